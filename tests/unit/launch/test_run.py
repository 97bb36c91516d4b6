import os
import subprocess
import sys
from pathlib import Path

import pytest

from distrib.launch import run
from distrib.launch.cli import main
from distrib.launch.placement import Host, assign

Capture = pytest.CaptureFixture[str]
SCRIPT = "import json, os; print(json.loads(os.environ['TF_CONFIG'])['task']['index'])"


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-np", "0", "train.py"], "'0' is not a positive whole number"),
        (["-np", "two", "train.py"], "'two' is not a positive whole number"),
        (["-np", "2"], "which script?"),
        (["train.py"], "train.py: there is no such script"),
        (["-np", "2", "no-such-program"], "no-such-program: there is no such command"),
        (["-np", "3", "-H", "h0:1,h1:1", "true"], "the hosts have 2 slots"),
        (["-H", "h0:", "true"], "not of the form host:slots"),
        (["true"], "how many ranks?"),
        (["-np", "1", "--backend", "mpi", "true"], "invalid choice: 'mpi'"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, capsys: Capture) -> None:
    assert main(["run", *arguments]) == 64
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["soon", "-1", ""])
def test_wrong_grace(text: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("DISTRIB_GRACE_SECONDS", text)
    assert main(["run", "-np", "1", "true"]) == 78
    assert f"DISTRIB_GRACE_SECONDS={text!r} is not a number of seconds" in capsys.readouterr().err


def test_without_horovod(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setitem(sys.modules, "horovod", None)
    for name in [name for name in sys.modules if name.startswith("horovod.")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["run", "-np", "1", "true"]) == 78
    assert "install it with `distrib horovod build`" in capsys.readouterr().err


def test_a_script_runs_with_this_python(script: str, capfd: Capture) -> None:
    assert main(["run", "-np", "2", "--backend", "multiworker", script, "--np", "7"]) == 0
    lines = sorted(capfd.readouterr().out.splitlines())
    assert lines == ["0", "[rank 1] 1"]


@pytest.mark.parametrize("dashes", [[], ["--"]])
def test_any_command(dashes: list[str], capfd: Capture) -> None:
    command = ["sh", "-c", "echo $0 $1", "-H", "x"]
    assert main(["run", "-np", "1", "--backend", "multiworker", *dashes, *command]) == 0
    assert capfd.readouterr().out == "-H x\n"


def test_the_cause_is_told_last(tmp_path: Path, capfd: Capture) -> None:
    arguments = ["-np", "1", "--backend", "multiworker", "--output-dir", str(tmp_path / "logs")]
    assert main(["run", *arguments, "sh", "-c", "echo bad >&2; exit 5"]) == 5
    last = "distrib: rank 0 on localhost ended with exit code 5, whose own output says why."
    assert capfd.readouterr().err == f"bad\n{last} (exit code 5)\n"
    assert (tmp_path / "logs" / "rank-0.log").read_text() == "bad\n"


def test_all_slots_are_the_default() -> None:
    assert len(run._slots(None, "h0:2,h1:3")) == 5


def test_what_goes_to_other_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("MINE", "1")
    monkeypatch.setenv("OTHER", "2")
    monkeypatch.setenv("HOME", "/not/there")
    slots = assign([Host("localhost", 1), Host("far", 1)], 2)
    own = [{"HOROVOD_RANK": "0"}, {"HOROVOD_RANK": "1"}]
    here, there = run._jobs(["x"], slots, own, run.Ssh(), ["MINE"])
    assert here[2]["environment"] == {"HOROVOD_RANK": "0"}
    passed = there[2]["environment"]
    assert (passed["AWS_SECRET_ACCESS_KEY"], passed["MINE"]) == ("secret", "1")
    assert (passed["HOROVOD_RANK"], passed["PATH"]) == ("1", os.environ["PATH"])
    assert not {"OTHER", "HOME"} & passed.keys()
    assert "secret" not in " ".join(there[1])
    assert (here[2]["lease"], there[2]["lease"]) == (None, 60)


def test_the_launcher_does_without_tensorflow() -> None:
    code = (
        "import sys\nfrom distrib.launch.cli import main\n"
        "code = main(['run', '-np', '1', *sys.argv[1:]])\n"
        "heavy = {'tensorflow', 'keras', 'jax', 'orbax'} & set(sys.modules)\n"
        "sys.exit(code or bool(heavy))"
    )
    for backend in ("multiworker", "horovod"):
        if backend == "horovod":
            pytest.importorskip("horovod.runner")
        command = [sys.executable, "-P", "-c", code, "--backend", backend, "true"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
