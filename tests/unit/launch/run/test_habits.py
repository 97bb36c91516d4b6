"""Options that users of other launchers type by habit: their meaning here, or a hint."""

import argparse
import sys
from pathlib import Path

import pytest

from distrib.launch.cli import main
from distrib.launch.run import habits
from distrib.launch.run.options import add_options

Capture = pytest.CaptureFixture[str]
ONE = ["-np", "1", "--backend", "multiworker"]


@pytest.mark.parametrize(
    ("arguments", "attribute", "value"),
    [
        (["-n", "4"], "num_proc", 4),
        (["--np=4"], "num_proc", 4),
        (["--num_proc", "4"], "num_proc", 4),
        (["-host", "h0:2"], "hosts", "h0:2"),
        (["--machinefile", "hosts"], "hostfile", Path("hosts")),
        (["-p", "22"], "ssh_port", 22),
        (["--output_dir", "logs"], "output_dir", Path("logs")),
        (["-x", "A=1", "--env", "B", "-xC"], "env", ["A=1", "B", "C"]),
        (["--nproc_per_node", "4", "--standalone", "--nnodes=1"], "nproc_per_node", 4),
        (["--nproc-per-node=4", "--nnodes", "1:1", "-m"], "module", True),
    ],
)
def test_what_it_means(arguments: list[str], attribute: str, value: object) -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    options = parser.parse_args([*arguments, "train.py", "-np", "9", "--mpi"])
    assert getattr(options, attribute) == value
    assert options.command == ["train.py", "-np", "9", "--mpi"]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--rdzv_endpoint=h0:29500"], "no option --rdzv_endpoint; name the hosts (-H h0:4,h1:4)"),
        (["--nnodes", "2"], "to run on 2 hosts name the hosts (-H h0:4,h1:4)"),
        (["--nproc-per-node", "gpu"], "write a number instead of 'gpu'"),
        (["--nproc-per-node", "2", "-H", "h0"], "behind its name: h0:2"),
        (["--nproc-per-node", "2", "-np", "4"], "--nproc-per-node 2, -np 4: how many ranks?"),
        (["--nproc-per-node", "2", "--join", "h0"], "with --join write --slots 2"),
        (["--max-restarts", "3"], "write --attempts N"),
        (["-bind-to", "none", "-map-by", "slot"], "no option -bind-to; leave it out"),
        (["-np", "2", "-mca", "pml", "ob1"], "no option -mca; leave it out"),
        (["-np", "2", "-c", "print(1)"], "python -c CODE"),
        (["-W", "error"], "no option -W; write the interpreter"),
        (["--timeline-filename", "t"], "set the environment variable HOROVOD_TIMELINE."),
        (["-N", "2"], "behind each host's name"),
    ],
)
def test_hints(arguments: list[str], hint: str, capsys: Capture) -> None:
    assert main(["run", *arguments, "true"]) == 64
    assert hint in capsys.readouterr().err


def test_the_help_shows_none(capsys: Capture) -> None:
    assert main(["run", "--help"]) == 0
    shown = capsys.readouterr().out.split()
    hidden = [name for names in habits.HINTS.values() for name in names.split()]
    assert not {*hidden, *habits.ACCEPTED.split(), "--num_proc", "--nproc-per-node"} & {*shown}


def test_a_module_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "train.py").write_text("import sys; print(__name__, sys.argv[1:])")
    assert main(["run", *ONE, "-m", "recipe.train", "--np", "7"]) == 0
    assert capfd.readouterr().out == "__main__ ['--np', '7']\n"
    assert "recipe" not in sys.modules


def test_a_variable_with_its_value(monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    monkeypatch.setenv("MINE", "before")
    assert main(["run", *ONE, "-x", "MINE=a=b", "sh", "-c", "echo $MINE"]) == 0
    assert capfd.readouterr().out == "a=b\n"
