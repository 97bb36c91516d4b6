"""The supervisor, in this process, with real rank agents and ranks."""

import os
import pty
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from distrib.launch.hosts.channel import LOST, ClosedChannel, ProcessChannel, SocketChannel
from distrib.launch.hosts.network import script_command
from distrib.launch.hosts.placement import Host, place_ranks
from distrib.launch.hosts.rank_agent import EXIT, MARK, frame
from distrib.launch.process.signals import STOP_SIGNALS, Signals
from distrib.launch.run import escalation, supervisor
from distrib.launch.run.failure import RankExit
from distrib.launch.run.hang_detector import HangDetector, HangTimeouts
from distrib.launch.run.output import Display
from distrib.launch.run.rank_process import RankProcess
from distrib.launch.run.supervisor import AttemptResult, Supervisor

Capture = pytest.CaptureFixture[str]
IGNORE_SIGTERM = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
TRACEBACK = "import sys; print('Traceback (most recent call last):\\n{}', file=sys.stderr); "


def attempt(
    scripts: Sequence[str],
    grace: float = 60,
    agents: Sequence[Sequence[str]] = (),
    host: str = "localhost",
    timeouts: HangTimeouts = HangTimeouts(),  # noqa: B008 - it is frozen
    preempted_hosts: Callable[[], Sequence[str]] = tuple,
) -> AttemptResult:
    """Run a Python script for each rank; `{n}` in one is a file that rank n makes, at `wait`."""
    placements = place_ranks([Host(host, len(scripts))], len(scripts))
    ranks = []
    for placement, script in zip(placements, scripts, strict=True):
        spec: dict[str, Any] = {
            "command": [sys.executable, "-c", script],
            "directory": os.getcwd(),
            "environment": {},
            "terminals": {},
            "lease": None,
        }
        channel = ProcessChannel(
            agents[placement.rank] if agents else script_command("rank_agent.py")
        )
        ranks.append((placement, channel, spec))
    display, signals = Display(None, len(scripts)), Signals()
    supervisor = Supervisor(display, grace, signals, HangDetector(timeouts), preempted_hosts)
    try:
        with signals.handled():
            return supervisor.run(ranks)
    finally:
        display.close()


def run(scripts: Sequence[str], **options: Any) -> RankExit | None:
    return attempt(scripts, **options).cause


def make(path: Path) -> str:
    return f"open({str(path)!r}, 'w').close(); "


def wait(path: Path) -> str:
    return f"import os, time\nwhile not os.path.exists({str(path)!r}): time.sleep(0.01)\n"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(escalation, "NOTICE_SECONDS", 0.3)
    monkeypatch.setattr(escalation, "ESCALATION_SECONDS", 0.3)


@pytest.fixture
def signal_when(tmp_path: Path) -> Iterator[Any]:
    """Send this process signals, each as soon as a file exists."""
    threads = []

    def send(*pairs: tuple[Path, signal.Signals]) -> None:
        def follow() -> None:
            for path, number in pairs:
                while not path.exists():
                    time.sleep(0.01)
                os.kill(os.getpid(), number)

        threads.append(threading.Thread(target=follow, daemon=True))
        threads[-1].start()

    yield send
    for thread in threads:
        thread.join(10)


def test_all_finish(capfd: Capture) -> None:
    assert run(["print(1)", "print(2)"]) is None
    assert sorted(capfd.readouterr().out.splitlines()) == ["1", "[rank 1] 2"]


def test_other_ranks_have_time_to_notice_a_failure(tmp_path: Path, capfd: Capture) -> None:
    cause = run(["raise SystemExit(3)", "import time; time.sleep(1); print('saved')"])
    assert cause == RankExit(0, "localhost", 3)
    assert capfd.readouterr().out == "[rank 1] saved\n"


@pytest.mark.usefixtures("hasty")
def test_a_rank_that_does_not_notice_gets_sigterm(capfd: Capture) -> None:
    script = "import signal, sys; signal.signal(15, lambda *_: sys.exit(4)); signal.pause()"
    cause = run(["import time; time.sleep(0.5); raise SystemExit(3)", script])
    assert cause == RankExit(0, "localhost", 3)
    assert "SIGTERM to rank 1, which has not ended" in capfd.readouterr().err


@pytest.mark.usefixtures("hasty")
def test_a_rank_that_ignores_sigterm_is_killed(tmp_path: Path, capfd: Capture) -> None:
    """A rank that is stuck in a collective cannot act on SIGTERM."""
    deaf = tmp_path / "deaf"
    stuck = IGNORE_SIGTERM + make(deaf) + "time.sleep(600)"
    assert run([wait(deaf) + "raise SystemExit(3)", stuck]) == RankExit(0, "localhost", 3)
    assert "SIGKILL to rank 1, which has not ended" in capfd.readouterr().err


@pytest.mark.usefixtures("hasty")
def test_a_rank_that_cannot_be_reached_is_abandoned(capfd: Capture) -> None:
    deaf = ["sh", "-c", "sleep 600 & sleep 600"]  # Its child holds the pipes open as well.
    cause = run(["raise SystemExit(76)", ""], agents=[script_command("rank_agent.py"), deaf])
    assert cause == RankExit(1, "localhost", LOST)
    assert "giving up the connection to rank 1" in capfd.readouterr().err


def test_a_connection_that_is_lost(capfd: Capture) -> None:
    lost = ["sh", "-c", "sleep 0.5; exit 255"]
    cause = run(
        ["import time; time.sleep(0.2); raise SystemExit(76)", ""],
        agents=[script_command("rank_agent.py"), lost],
    )
    assert cause == RankExit(1, "localhost", LOST)
    assert cause.exit_code == 76


def test_a_connection_may_be_lost_in_many_ways() -> None:
    """A closed terminal, like a silent network, does not give a `ConnectionError`."""
    ours, theirs = pty.openpty()

    class Terminal(ClosedChannel):
        fds = {1: ours}

    (placement,) = place_ranks([Host("h1", 1)], 1)
    rank = RankProcess(placement, Terminal(), {})
    os.close(theirs)
    with pytest.raises(OSError, match="Input/output error"):
        os.read(ours, 1)
    assert rank.read(1) == ([(1, b"")], [])
    assert rank.exit_code() == LOST
    os.close(ours)


def test_the_cause_is_shown_before_the_symptoms(tmp_path: Path, capfd: Capture) -> None:
    """The rank that fails takes longer to end than those that lose it, with the same exit code."""
    failed, ended = tmp_path / "failed", tmp_path / "ended"
    slow = TRACEBACK.format("cause") + make(failed) + wait(ended) + "time.sleep(0.5); sys.exit(1)"
    # The loss must arrive after the error, and each comes through a pipe of its own.
    notice = wait(failed) + "time.sleep(0.3)\n"
    quick = notice + TRACEBACK.format("symptom") + make(ended) + "sys.exit(1)"
    cause = run([quick, slow, quick])
    assert cause == RankExit(1, "localhost", 1)
    lines = [line for line in capfd.readouterr().err.splitlines() if "Traceback" not in line]
    cause_line, symptom, others = lines
    assert cause_line == "[rank 1] cause"
    assert symptom.removeprefix("[rank 2] ") == "symptom"
    assert others.startswith("distrib: the same error on rank ")


def test_a_rank_that_is_still_ending_after_its_error_is_the_cause(
    hasty: None, tmp_path: Path, capfd: Capture
) -> None:
    """Horovod's own shutdown, for example, may take longer than the other ranks wait."""
    failed = tmp_path / "failed"
    slow = TRACEBACK.format("ValueError: no") + make(failed) + "import time; time.sleep(60)"
    lost = TRACEBACK.format("UnknownError: Horovod has been shut down") + "sys.exit(1)"
    cause = run([wait(failed) + lost, slow])
    assert cause == RankExit(1, "localhost", 1)
    assert "SIGTERM to rank 1" in capfd.readouterr().err


def test_a_rank_that_was_killed_is_the_cause(tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    kill = make(killed) + "import os; os.kill(os.getpid(), 9)"
    slow = wait(killed) + "time.sleep(0.5); raise SystemExit(1)"
    cause = run([slow, kill])
    assert cause == RankExit(1, "localhost", 137)


def test_a_caught_error_is_shown_after_a_while(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: Capture
) -> None:
    monkeypatch.setattr(supervisor, "HOLD_SECONDS", 0.2)
    assert run([TRACEBACK.format("caught") + "import time; time.sleep(1)"]) is None
    assert capfd.readouterr().err.endswith("caught\n")


@pytest.mark.parametrize(
    ("number", "received"),
    [("SIGTERM", "SIGTERM"), ("SIGINT", "SIGINT"), ("SIGUSR1", "SIGUSR1"), ("SIGHUP", "SIGTERM")],
)
def test_a_signal_reaches_all_ranks_and_each_may_save(
    number: str, received: str, tmp_path: Path, capfd: Capture, signal_when: Any
) -> None:
    files = [tmp_path / "0", tmp_path / "1"]
    scripts = [
        "import signal, sys, time\n"
        "def stop(number, frame):\n"
        f"    time.sleep({seconds}); print(signal.Signals(number).name); sys.exit(75)\n"
        f"signal.signal(signal.{received}, stop)\n{make(file)}\n"
        "time.sleep(600)"
        for file, seconds in zip(files, (1.0, 0.0), strict=True)
    ]
    signal_when((files[0], signal.SIGCONT), (files[1], signal.Signals[number]))
    previous = signal.signal(signal.Signals[number], signal.SIG_DFL)  # `nohup` ignores it.
    try:
        cause = run(scripts)
    finally:
        signal.signal(signal.Signals[number], previous)
    assert cause is not None
    assert cause.exit_code == 75
    out, err = capfd.readouterr()
    assert sorted(out.splitlines()) == [received, f"[rank 1] {received}"]
    assert f"distrib: {number}: asked all ranks to save and stop" in err


def test_a_rank_that_takes_too_long_to_save_is_killed(
    tmp_path: Path, capfd: Capture, signal_when: Any
) -> None:
    ready = tmp_path / "ready"
    signal_when((ready, signal.SIGTERM))
    cause = run([IGNORE_SIGTERM + make(ready) + "time.sleep(600)"], grace=0.5)
    assert cause == RankExit(0, "localhost", 137, by_launcher=True)
    assert cause.exit_code == 76
    assert "SIGKILL to rank 0, which has not ended" in capfd.readouterr().err


def test_ctrl_c_twice_kills(tmp_path: Path, capfd: Capture, signal_when: Any) -> None:
    ready, asked = tmp_path / "ready", tmp_path / "asked"
    script = f"import signal, time; signal.signal(2, lambda *_: {make(asked)[:-2]}); {make(ready)}"
    signal_when((ready, signal.SIGINT), (asked, signal.SIGINT))
    cause = run([script + "\nwhile True: time.sleep(600)"])
    assert cause == RankExit(0, "localhost", 137, by_launcher=True)
    assert "Ctrl-C again kills them." in capfd.readouterr().err


def test_after_the_first_preempted_rank_the_chief_may_save(tmp_path: Path) -> None:
    """SIGTERM to one rank stops all by agreement; the launcher learns of it by the first 75."""
    ended = tmp_path / "ended"
    chief = wait(ended) + "time.sleep(1); print('saved'); raise SystemExit(75)"
    cause = run([chief, make(ended) + "raise SystemExit(75)"])
    assert cause == RankExit(1, "localhost", 75)


def test_ignored_signals_stay_ignored(tmp_path: Path, signal_when: Any) -> None:
    """`nohup` ignores SIGHUP on purpose."""
    ready = tmp_path / "ready"
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signal_when((ready, signal.SIGHUP))
        assert run([make(ready) + "import time; time.sleep(1)"]) is None
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    run([""])
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


HEARTBEAT = "from distrib.heartbeat import TRAINING, heartbeat; heartbeat.enter(TRAINING); "


def test_ranks_that_hang_show_their_stacks_and_are_ended(
    monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")
    stuck = "import time\n" + HEARTBEAT + "\ndef stuck_here(): time.sleep(600)\nstuck_here()"
    result = attempt([stuck, stuck], timeouts=HangTimeouts(step=1.0))
    assert result.hang is not None
    assert "no rank has made progress for 1 s" in result.hang
    assert result.cause is not None
    assert result.cause.exit_code == 76
    err = capfd.readouterr().err
    assert err.count("in stuck_here") == 2
    assert "--step-timeout" in err


@pytest.mark.usefixtures("hasty")
def test_a_rank_that_hangs_and_ignores_sigabrt_is_killed(capfd: Capture) -> None:
    stopped = HEARTBEAT + "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"
    result = attempt([stopped], timeouts=HangTimeouts(step=0.5))
    assert result.hang is not None
    assert "SIGKILL to rank 0, which has not ended" in capfd.readouterr().err


def test_while_one_rank_makes_progress_the_others_may_wait() -> None:
    busy = (
        "import time\nfrom distrib.heartbeat import TRAINING, heartbeat\n"
        "for _ in range(30): heartbeat.enter(TRAINING); time.sleep(0.1)\n"
    )
    waiting = HEARTBEAT + "import time; time.sleep(2.5)"
    assert attempt([waiting, busy], timeouts=HangTimeouts(step=1.5)) == AttemptResult(None, None)


def test_a_job_that_never_starts_training(capfd: Capture) -> None:
    result = attempt(["import time; time.sleep(600)"], timeouts=HangTimeouts(start=0.5))
    assert result.hang is not None
    assert "--start-timeout" in result.hang


def test_the_ranks_of_a_preempted_host_get_sigterm(tmp_path: Path, capfd: Capture) -> None:
    ready = tmp_path / "ready"
    script = (
        f"import signal, sys; signal.signal(15, lambda *_: sys.exit(75)); {make(ready)}"
        "\nwhile True: signal.sigtimedwait([], 0.01)"
    )
    preempted = iter([["localhost"]])
    cause = run([script], preempted_hosts=lambda: next(preempted, []) if ready.exists() else [])
    assert cause == RankExit(0, "localhost", 75)
    assert "localhost was asked to stop: all ranks save and stop" in capfd.readouterr().err


def test_each_rank_is_asked_for_its_exit_code_only_when_it_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size, asked = 100, 0
    exit_code = RankProcess.exit_code

    def count(self: RankProcess) -> int | None:
        nonlocal asked
        asked += 1
        return exit_code(self)

    monkeypatch.setattr(RankProcess, "exit_code", count)
    pairs = [socket.socketpair() for _ in range(size)]
    spec = {"command": [], "environment": {}}
    ranks = [
        (placement, SocketChannel(own), spec)
        for placement, (own, _) in zip(place_ranks([Host("h1", size)], size), pairs, strict=True)
    ]

    def end_one_after_the_other() -> None:
        for _, agent in pairs:
            agent.sendall(MARK + frame(EXIT, b"0"))
            agent.close()
            time.sleep(0.001)

    thread = threading.Thread(target=end_one_after_the_other)
    thread.start()
    detector = HangDetector(HangTimeouts())
    result = Supervisor(Display(None, size), 60, Signals(), detector).run(ranks)
    thread.join()
    assert result.cause is None
    assert asked == size
