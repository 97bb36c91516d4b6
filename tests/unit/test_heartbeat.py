import fcntl
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from select import PIPE_BUF

import pytest

from distrib import heartbeat as module
from distrib.heartbeat import OUTSIDE, STARTING, TRAINING, VARIABLE, Heartbeat, connect


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    yield reader, writer
    for fd in (reader, writer):
        with suppress(OSError):  # The test may have closed it.
            os.close(fd)


def lines(reader: int) -> list[dict[str, object]]:
    try:
        return [json.loads(line) for line in os.read(reader, 1 << 20).splitlines()]
    except BlockingIOError:
        return []


def test_a_new_phase_is_reported_at_once_and_the_same_phase_once_an_interval(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    heartbeat = Heartbeat(pipe[1])
    for phase in (STARTING, STARTING, TRAINING, TRAINING):
        heartbeat.enter(phase)
    assert [line["phase"] for line in lines(pipe[0])] == [STARTING, TRAINING]
    assert not heartbeat.due
    now += module.INTERVAL_SECONDS
    assert heartbeat.due
    heartbeat.beat()
    heartbeat.beat()
    assert len(lines(pipe[0])) == 1


def test_outside_of_fit_beat_reports_nothing(pipe: tuple[int, int]) -> None:
    heartbeat = Heartbeat(pipe[1])
    heartbeat.beat()
    assert lines(pipe[0]) == []


def test_each_line_holds_all_facts(pipe: tuple[int, int]) -> None:
    heartbeat = Heartbeat(pipe[1])
    heartbeat.note(step=3, resumed=0)
    assert lines(pipe[0]) == []
    heartbeat.committed(2)
    heartbeat.note(step=4)
    heartbeat.enter(TRAINING)
    assert lines(pipe[0]) == [
        {"phase": OUTSIDE, "step": 3, "resumed": 0, "committed": 2},
        {"phase": TRAINING, "step": 4, "resumed": 0, "committed": 2},
    ]


def test_a_run_is_reported_at_once(pipe: tuple[int, int]) -> None:
    heartbeat = Heartbeat(pipe[1])
    heartbeat.begin_run("runs/17", 3, found=True)
    heartbeat.committed(5)
    heartbeat.end_run()
    run = {"phase": OUTSIDE, "run": "runs/17", "found": True, "resumed": 3}
    assert lines(pipe[0]) == [
        {**run, "committed": 3, "finished": False},
        {**run, "committed": 5, "finished": False},
        {**run, "committed": 5, "finished": True},
    ]
    heartbeat.begin_run("ü" * 5000, 0, found=False)
    os.set_blocking(pipe[0], True)
    assert len(os.read(pipe[0], 1 << 20)) < select.PIPE_BUF


def test_a_busy_supervisor_does_not_block_the_rank(pipe: tuple[int, int]) -> None:
    fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, 4096)
    heartbeat = Heartbeat(pipe[1])
    for step in range(1000):
        heartbeat.committed(step)
    received = lines(pipe[0])
    assert 0 < len(received) < 1000
    heartbeat.committed(1000)
    assert lines(pipe[0])[-1]["committed"] == 1000


def test_a_dead_supervisor_does_not_stop_the_rank(pipe: tuple[int, int]) -> None:
    heartbeat = Heartbeat(pipe[1])
    os.close(pipe[0])
    heartbeat.committed(1)
    heartbeat.committed(2)


def test_without_a_supervisor_nothing_is_written() -> None:
    heartbeat = connect({})
    assert not heartbeat.connected
    assert not heartbeat.due
    heartbeat.note(step=1)
    heartbeat.enter(TRAINING)
    heartbeat.committed(1)


def test_a_child_without_the_pipe_does_not_write_into_another_file(pipe: tuple[int, int]) -> None:
    """The child inherits the variable, but has another file open under the pipe's number."""
    address = f"{pipe[1]}:{os.fstat(pipe[1]).st_ino}"
    code = "from distrib.heartbeat import heartbeat; heartbeat.enter('training')"
    with open(os.devnull, "wb") as other:
        os.dup2(other.fileno(), pipe[1], inheritable=True)
        done = subprocess.run(
            [sys.executable, "-P", "-c", code],
            env={**os.environ, VARIABLE: address},
            pass_fds=(pipe[1],),
            capture_output=True,
        )
    assert (done.returncode, done.stderr) == (0, b"")
    assert lines(pipe[0]) == []
    assert connect({VARIABLE: address})._fd is None
    assert connect({VARIABLE: "x:y"})._fd is None


def test_a_collective_is_reported_at_once(pipe: tuple[int, int]) -> None:
    heartbeat = Heartbeat(pipe[1])
    heartbeat.enter_collective("barrier", "train.py:3")
    heartbeat.leave_collective()
    heartbeat.enter_collective("allgather", "x" * 5000)
    first, second, third = lines(pipe[0])
    assert first == {
        "phase": OUTSIDE,
        "collectives": 1,
        "collective": "barrier",
        "place": "train.py:3",
    }
    assert (second["collectives"], second["collective"]) == (1, None)
    assert (third["collectives"], third["collective"]) == (2, "allgather")
    assert len(json.dumps(third)) < select.PIPE_BUF
    Heartbeat(None).enter_collective("barrier", "")


def test_a_line_with_long_names_in_any_script_is_written_in_one_piece() -> None:
    reader, writer = os.pipe()
    heartbeat = Heartbeat(writer)
    heartbeat.begin_run("/läufe/\U0001f600\udcff" * 200, 3, found=True)
    heartbeat.enter_collective("barrier", "\U0001f600" * 1000)
    first, second = os.read(reader, 1 << 16).splitlines(keepends=True)
    os.close(reader)
    os.close(writer)
    assert max(len(first), len(second)) <= PIPE_BUF
    assert json.loads(second)["resumed"] == 3
