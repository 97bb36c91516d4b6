import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from distrib.launch.run import output
from distrib.launch.run.output import STDERR, STDOUT, Display, LineSplitter
from distrib.startup_noise import StartupNoise

TRACEBACK = b"Traceback (most recent call last):\nValueError: "
Read = Callable[[], tuple[str, str]]


@pytest.fixture
def read(capfd: pytest.CaptureFixture[str]) -> Read:
    def take() -> tuple[str, str]:
        captured = capfd.readouterr()
        return captured.out, captured.err

    return take


def test_rank_0_is_shown_unchanged(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    display = Display(None, 2)
    chunks = (b"\r1/2", b"\r2/2", b"\n\x1b[1mend\xff")
    for data in chunks:
        display.receive([(0, STDOUT, data)])
    display.receive([(0, STDERR, b"part")])
    assert capfdbinary.readouterr() == (b"".join(chunks), b"part")


def test_other_ranks_lines_are_marked_and_whole(read: Read) -> None:
    display = Display(None, 3)
    display.receive([(1, STDOUT, b"on"), (2, STDOUT, b"tw"), (1, STDOUT, b"e\nmore")])
    display.receive([(2, STDOUT, b"o\n"), (1, STDERR, b"warning\n")])
    assert read() == ("[rank 1] one\n[rank 2] two\n", "[rank 1] warning\n")
    display.receive([(1, STDOUT, b"")])
    assert read() == ("[rank 1] more\n", "")


def test_a_line_waits_for_the_end_of_rank_0s_line(read: Read) -> None:
    """Python writes a line and its end one after the other when its output is not buffered."""
    display = Display(None, 2)
    display.receive([(0, STDOUT, b"first"), (1, STDOUT, b"other\n")])
    display.receive([(0, STDOUT, b"\n")])
    display.flush()
    assert read()[0] == "first\n[rank 1] other\n"


def test_a_line_does_not_wait_forever(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "PARTIAL_LINE_SECONDS", 0)
    display = Display(None, 2)
    display.receive([(0, STDOUT, b"\r1/2 =>"), (1, STDOUT, b"other\n")])
    display.flush()
    display.receive([(0, STDOUT, b"\r2/2 ==")])
    assert read()[0] == "\r1/2 =>\n[rank 1] other\n\r2/2 =="


def test_a_progress_bar_of_another_rank_is_its_last_state() -> None:
    lines = LineSplitter()
    assert lines.feed(b"\r1/2\r2/2\nwindows\r\n\r1") == [b"2/2", b"windows"]
    assert lines.feed(b"/9\r2/9") == []
    assert lines.feed(b"") == [b"2/9"]
    assert lines.feed(b"") == []


def test_an_endless_line_is_cut() -> None:
    lines = LineSplitter()
    assert lines.feed(b"x" * 70000) == [b"x" * 70000]


def test_the_cause_comes_first(read: Read) -> None:
    display = Display(None, 3)
    display.receive([(0, STDERR, b"0000 Horovod has been shut down\n"), (2, STDOUT, b"2\n")])
    display.receive([(2, STDERR, TRACEBACK + b"symptom\n")])
    display.receive([(1, STDERR, TRACEBACK + b"cau"), (0, STDERR, b"lost\n")])
    display.receive([(1, STDERR, b"se\n")])
    assert read() == ("[rank 2] 2\n", "")
    assert list(display.failed_ranks) == [2, 1]
    display.release(cause=1)
    traceback = TRACEBACK.decode().splitlines()[0]
    assert read()[1].splitlines() == [
        f"[rank 1] {traceback}",
        "[rank 1] ValueError: cause",
        f"[rank 2] {traceback}",
        "[rank 2] ValueError: symptom",
        "0000 Horovod has been shut down",
        "lost",
    ]
    display.receive([(2, STDERR, TRACEBACK + b"late\n")])
    assert "late" in read()[1], "nothing is held back once the cause is shown"


def test_a_symptom_of_the_same_moment_is_held_back_too(read: Read) -> None:
    display = Display(None, 2)
    display.receive([(0, STDERR, b"I lost my peer\n"), (1, STDERR, TRACEBACK + b"cause\n")])
    display.release(None)
    assert read()[1].endswith("ValueError: cause\nI lost my peer\n")


def test_only_old_errors_are_forgotten() -> None:
    display = Display(None, 2)
    display.receive([(0, STDERR, TRACEBACK + b"survived\n")])
    between = time.monotonic()
    display.receive([(1, STDERR, TRACEBACK + b"just now\n")])
    display.forget_errors(between)
    assert list(display.failed_ranks) == [1]


def test_an_error_that_the_rank_survived(read: Read) -> None:
    display = Display(None, 2)
    display.receive([(1, STDERR, TRACEBACK + b"caught\n")])
    assert read()[1] == ""
    display.release(None)
    assert "[rank 1] ValueError: caught\n" in read()[1]
    display.receive([(1, STDERR, TRACEBACK + b"again\n")])
    assert read()[1] == ""
    display.close()
    assert "again" in read()[1]


def test_the_end_of_a_line_that_is_held_back_is_held_back_too(read: Read) -> None:
    display = Display(None, 2)
    display.receive([(1, STDERR, TRACEBACK + b"no newline")])
    display.receive([(1, STDERR, b"")])
    assert read()[1] == ""
    display.release(cause=1)
    assert read()[1].endswith("[rank 1] ValueError: no newline\n")


def test_tensorflows_startup_messages_are_dropped(read: Read, tmp_path: Path) -> None:
    noise = (
        b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
        b"I0000 00:00:1795492344.623259   18401 port.cc:153] oneDNN custom operations are on. You\n"
    )
    info = b"I0000 00:00:1795492344.6   18401 gpu.cc:1] device 0: H100\n"
    problem = b"W0000 00:00:1795492344.6   18401 op.cc:1] something\nI0000 is not a log line\n"
    written = noise + info + problem
    display = Display(tmp_path, 2, [StartupNoise(True, is_chief) for is_chief in (True, False)])
    display.receive([(rank, STDERR, written) for rank in (0, 1)])
    marked = [f"[rank 1] {line}" for line in problem.decode().splitlines()]
    assert read()[1].splitlines() == [*(info + problem).decode().splitlines(), *marked]
    assert (tmp_path / "rank-1.log").read_bytes() == written
    loud = Display(None, 2)
    loud.receive([(1, STDERR, noise)])
    assert read()[1].count("[rank 1]") == 2


def test_logs_are_appended(read: Read, tmp_path: Path) -> None:
    for attempt in (b"first\n", b"second\n"):
        display = Display(tmp_path / "new" / "logs", 2)
        display.receive([(0, STDOUT, attempt), (1, STDERR, attempt), (1, STDERR, b"")])
        display.close()
    for rank in (0, 1):
        assert (tmp_path / "new" / "logs" / f"rank-{rank}.log").read_text() == "first\nsecond\n"


def test_both_streams_may_be_the_same_file(tmp_path: Path) -> None:
    """With `2>&1`, a line on one stream must not break into a line on the other."""
    code = (
        "from distrib.launch.run.output import Display\n"
        "display = Display(None, 2)\n"
        "display.receive([(0, 1, b'out'), (1, 2, b'err\\n')])\n"
        "display.receive([(0, 1, b'put\\n')])\n"
        "display.log('logged')\n"
        "display.close()\n"
    )
    path = tmp_path / "both"
    with path.open("wb") as file:
        command = [sys.executable, "-P", "-c", code]
        subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=True)
    assert path.read_text() == "output\n[rank 1] err\ndistrib: logged\n"


def test_a_reader_that_is_gone_does_not_stop_the_training() -> None:
    code = (
        "import os, sys\n"
        "from distrib.launch.run.output import Display\n"
        "sys.stdin.read()\n"
        "display = Display(None, 1)\n"
        "display.receive([(0, 1, b'x' * 100000)])\n"
        "display.close()\n"
    )
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code], stdin=subprocess.PIPE, stdout=writer
    )
    os.close(writer)
    os.close(reader)
    process.communicate()
    assert process.returncode == 0


def test_a_full_disk_does_not_stop_the_training(tmp_path: Path, read: Read) -> None:
    """Opening `/dev/full` works, and writing to it fails as on a full disk."""
    (tmp_path / "rank-0.log").symlink_to("/dev/full")
    display = Display(tmp_path, 2)
    for _ in range(2):
        display.receive([(0, STDOUT, b"shown\n"), (1, STDOUT, b"kept\n")])
    out, err = read()
    assert out.count("shown\n") == 2
    assert err.startswith(f"distrib: {tmp_path}/rank-0.log: No space left on device.")
    assert err.count("\n") == 1
    assert (tmp_path / "rank-1.log").read_text() == "kept\n" * 2
    code = (
        "from distrib.launch.process.terminal import print_message\n"
        "from distrib.launch.run.output import Display\n"
        "print_message('x'); Display(None, 1).log('y')"
    )
    with open("/dev/full", "wb") as full:
        subprocess.run([sys.executable, "-P", "-c", code], stderr=full, check=True)


def test_errors_of_very_many_ranks(read: Read) -> None:
    """The same one is shown once; of different ones the first, and which ranks have more."""
    size = 1000
    display = Display(None, size)
    chunks = [(rank, STDERR, TRACEBACK + b"peer %d\n" % rank) for rank in range(0, size, 2)]
    chunks += [(rank, STDERR, TRACEBACK + b"the same\n") for rank in range(1, size, 2)]
    display.receive(chunks)
    display.release(cause=501)
    display.receive([(rank, STDERR, TRACEBACK + b"late\n") for rank in range(size)])
    display.close()
    shown = read()[1]
    assert shown.startswith("[rank 501] Traceback")
    assert shown.count("ValueError: ") == 2 * output.MAX_SHOWN_RANKS
    assert "distrib: the same error on ranks 1, 3, 5, 7, 9, 11, 13, 15 and 491 more as" in shown
    hidden = "distrib: ranks 1, 3, 5, 7, 9, 11, 13, 15 and"
    assert shown.splitlines()[-1].startswith(hidden)
    assert shown.endswith("more wrote errors too; --output-dir keeps them\n")
