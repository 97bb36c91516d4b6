import argparse
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from distrib.launch.cli import main
from distrib.launch.run import command as run

Capture = pytest.CaptureFixture[str]
ONE = ["-np", "1", "--backend", "multiworker"]
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
        (["train.py"], "train.py: no such script"),
        (["-np", "2", "no-such-program"], "no-such-program: no such command"),
        (["-np", "3", "-H", "h0:1,h1:1", "true"], "the hosts have 2 slots"),
        (["-H", "h0:", "true"], "not of the form host:slots"),
        (["true"], "how many ranks?"),
        (["-np", "1", "--backend", "mpi", "true"], "invalid choice: 'mpi'"),
        (["-np", "2", "--backend", "local", "true"], "--backend local is one process"),
        (["-np", "2", "--min-np", "3", "true"], "--min-np 3 is more than the 2 ranks"),
        (["-np", "1", "--attempts", "-1", "true"], "'-1' is not a whole number"),
        (["-np", "1", "--step-timeout", "soon", "true"], "'soon' is not a number of seconds"),
        (["-H", "h0", "--hostfile", "f", "true"], "Give -H or --hostfile, not both"),
        (["-np", "1", "--hostfile", "no-such-file", "true"], "no-such-file: No such file"),
        (["-np", "1", "--slots", "2", "true"], "--slots goes with --join"),
        (["-np", "1", "--join", "h0", "-H", "h0", "true"], "leave -H and --hostfile out"),
        (["--join", "h0", "true"], "how many ranks has the whole job? Give -np"),
        (["-np", "1", "--join", "h0:x", "true"], "--join h0:x: not of the form HOST or HOST:PORT"),
        (["-np", "1", "--join", "[::1]:7600", "true"], "knows IPv4 only"),
        (["--epochs", "3", "true"], "arguments: --epochs. Options of the script go after its name"),
        (["-np", "1", "--port", "70000", "true"], "'70000' is not a port"),
        (["-np", "1", "--env", "=x", "true"], "'=x' names no variable"),
        (["-np", "1", "-m"], "-m: which module?"),
        (["-np", "1", "-m", "no_such.module"], "there is no module 'no_such'"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, capsys: Capture) -> None:
    assert main(["run", *arguments]) == 64
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["soon", "-1"])
def test_wrong_grace(text: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("DISTRIB_GRACE_SECONDS", text)
    assert main(["run", "-np", "1", "true"]) == 78
    assert f"DISTRIB_GRACE_SECONDS={text!r} is not a number of seconds" in capsys.readouterr().err


@pytest.mark.parametrize("host", [socket.gethostname(), "h0"])
def test_joining_beyond_loopback_needs_a_token(
    host: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """As the coordinator and as another host; before either opens a socket."""
    monkeypatch.delenv("DISTRIB_JOIN_TOKEN", raising=False)
    monkeypatch.setattr(socket, "socket", None)
    assert main(["run", "--join", host, "-np", "2", "true"]) == 78
    err = capsys.readouterr().err
    assert f"--join {host}: DISTRIB_JOIN_TOKEN is not set" in err
    assert "openssl rand -hex 16" in err


def test_a_job_on_loopback_needs_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISTRIB_JOIN_TOKEN", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    address = f"localhost:{port}"
    assert main(["run", "--join", address, *ONE, "true"]) == 0


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


def test_the_cause_is_the_last_line(tmp_path: Path, capfd: Capture) -> None:
    arguments = [*ONE, "--attempts", "0", "--output-dir", str(tmp_path / "logs")]
    assert main(["run", *arguments, "sh", "-c", "echo bad >&2; exit 5"]) == 5
    last = "distrib: rank 0 on localhost ended with exit code 5: bad."
    assert capfd.readouterr().err == f"bad\n{last} (exit code 5)\n"
    assert (tmp_path / "logs" / "rank-0.log").read_text() == "bad\n"


MISTAKES = {
    "def f(:": (1, "SyntaxError: invalid syntax"),
    "import nothing_of_this_name": (1, "No module named 'nothing_of_this_name'"),
    "import argparse; argparse.ArgumentParser().parse_args(['--x'])": (2, "error: unrecognized"),
    "raise SystemExit('no data')": (1, "no data"),
    "raise SystemExit(7)": (7, "ended with exit code 7"),
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_shown_once_and_not_restarted(
    text: str, tmp_path: Path, capfd: Capture
) -> None:
    code, error = MISTAKES[text]
    script = tmp_path / "train.py"
    script.write_text(text)
    assert main(["run", "-np", "2", "--backend", "multiworker", str(script)]) == code
    err = capfd.readouterr().err
    assert "Starting again" not in err
    assert err.splitlines()[-1].startswith("distrib: the job has not trained a batch yet, ")
    assert error in err.splitlines()[-1]
    shown = err.count("Traceback (most recent") + err.count("  File ") + err.count("usage:")
    assert shown <= 2
    assert not shown or "distrib: the same error on rank " in err


def test_a_job_that_fails_each_time_is_given_up(tmp_path: Path, capfd: Capture) -> None:
    count = tmp_path / "count"
    error = r"Traceback (most recent call last):\n  x\nTimeoutError: y\n"
    script = f"echo once >> {count}; printf '{error}' >&2; exit 3"
    assert main(["run", *ONE, "--attempts", "2", "sh", "-c", script]) == 70
    assert count.read_text() == "once\n" * 2
    err = capfd.readouterr().err
    assert err.count("TimeoutError: y\n") == 2
    assert "exit code 3: TimeoutError: y. Starting again now." in err
    assert err.splitlines()[-1].startswith(
        "distrib: given up: 2 attempts in a row have made no progress beyond 0, the last "
        "checkpoint's. The last one ended because rank 0 on localhost ended with exit code 3: "
        "TimeoutError: y. "
    )


def test_a_job_that_fails_once_is_restarted(tmp_path: Path, capfd: Capture) -> None:
    script = f"test -e {tmp_path}/second && exit 0; touch {tmp_path}/second; kill -9 $$"
    assert main(["run", *ONE, "sh", "-c", script]) == 0
    assert capfd.readouterr().err == (
        "distrib: rank 0 on localhost was killed by SIGKILL. Starting again now.\n"
    )


@pytest.mark.parametrize("code", [64, 65, 70, 78])
def test_non_retryable_exit_codes_end_the_job(code: int, tmp_path: Path, capfd: Capture) -> None:
    count = tmp_path / "count"
    assert main(["run", *ONE, "sh", "-c", f"echo once >> {count}; exit {code}"]) == code
    assert count.read_text() == "once\n"


@pytest.mark.parametrize(
    ("arguments", "available", "size"),
    [
        ([], 5, (5, 5)),
        (["-np", "3"], 5, (3, 3)),
        (["-np", "4", "--min-np", "2"], 4, (2, 4)),
        (["--min-np", "2"], 4, (2, 4)),
        (["--min-np", "2", "--max-np", "8"], 4, (2, 8)),
    ],
)
def test_how_many_ranks(arguments: list[str], available: int, size: tuple[int, int]) -> None:
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    made = run._size(parser.parse_args([*arguments, "true"]), available)
    assert (made.min_ranks, made.max_ranks) == size


def test_variables_for_other_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("MINE", "1")
    monkeypatch.setenv("OTHER", "2")
    monkeypatch.setenv("HOME", "/not/there")
    passed = run._exported(["MINE"])
    assert (passed["AWS_SECRET_ACCESS_KEY"], passed["MINE"]) == ("secret", "1")
    assert passed["PATH"] == os.environ["PATH"]
    assert not {"OTHER", "HOME"} & passed.keys()


def test_one_process_needs_no_backend(capfd: Capture) -> None:
    command = ["sh", "-c", "env | grep -c '^HOROVOD_[RS]\\|^TF_CONFIG'; env | grep -c ^DISTRIB_"]
    assert main(["run", "-np", "1", "--backend", "local", *command]) == 0
    assert capfd.readouterr().out.splitlines() == ["0", "6"]


def test_the_heartbeat_file(tmp_path: Path) -> None:
    file = tmp_path / "alive"
    arguments = [
        *ONE,
        "--heartbeat-file",
        str(file),
        "sh",
        "-c",
        f"until test -e {file}; do sleep 0.01; done",
    ]
    assert main(["run", *arguments]) == 0


@pytest.mark.parametrize("option", ["--output-dir", "--heartbeat-file"])
def test_places_that_cannot_be_written(option: str, capsys: Capture) -> None:
    assert main(["run", "-np", "1", option, "/proc/none/x", "true"]) == 78
    assert f"distrib: {option} /proc/none/x cannot be written: " in capsys.readouterr().err


def test_a_working_directory_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["run", "-np", "1", "true"]) == 64
    assert "the working directory does not exist any more" in capsys.readouterr().err


def test_the_launcher_does_not_import_tensorflow() -> None:
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
