import json
import socket
import sys

import pytest

from distrib.launch.hosts.channel import LOST, Frames, LostLink, ProcessLink, SocketLink
from distrib.launch.hosts.rank_agent import BEAT, ERRORS, EXIT, MARK, OUTPUT, frame


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_frames_arrive_in_pieces(size: int) -> None:
    beat = json.dumps({"phase": "training"}).encode() + b"\n"
    data = b"Welcome to h1!\n" + MARK + frame(OUTPUT, b"a" * 7) + frame(BEAT, beat * 2)
    data += frame(ERRORS, b"e") + frame(EXIT, b"137")
    frames = Frames()
    output, beats = [], []
    for start in range(0, len(data), size):
        some, signs = frames.take(data[start : start + size])
        output += some
        beats += signs
    assert output == [(OUTPUT, b"a" * 7), (ERRORS, b"e")]
    assert beats == [{"phase": "training"}] * 2
    assert frames.exit_code == 137


def test_nothing_counts_before_the_mark() -> None:
    frames = Frames()
    assert frames.take(frame(EXIT, b"0")) == ([], [])
    assert frames.exit_code is None


@pytest.mark.parametrize(
    ("code", "failure"),
    [("0", LOST), ("255", LOST), ("64", 64), ("__import__('os').abort()", LOST)],
)
def test_a_process_that_ends_without_a_word(code: str, failure: int) -> None:
    link = ProcessLink([sys.executable, "-c", f"raise SystemExit({code})"])
    link._process.wait()
    link.tell(b"15\n" * 100_000)  # It hears nothing, and that is no error.
    assert link.failure() == failure
    link.close()


def test_a_process_that_runs_has_not_failed() -> None:
    link = ProcessLink([sys.executable, "-c", "import time; time.sleep(600)"])
    assert link.failure() is None
    link.cut()
    link.close()
    assert link.failure() == LOST


def test_a_socket() -> None:
    ours, its = socket.socketpair()
    link = SocketLink(ours)
    link.tell(b"15\n")
    assert its.recv(10) == b"15\n"
    link.cut()
    assert its.recv(10) == b""
    link.tell(b"9\n")
    assert link.failure() == LOST
    assert link.sources == {OUTPUT: ours.fileno()}
    link.close()
    its.close()


def test_there_was_no_way() -> None:
    link = LostLink()
    link.tell(b"15\n")
    link.cut()
    link.close()
    assert (link.sources, link.failure()) == ({}, LOST)
