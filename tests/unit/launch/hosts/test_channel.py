import json
import socket
import sys

import pytest

from distrib.launch.hosts.channel import (
    LOST,
    ClosedChannel,
    FrameParser,
    ProcessChannel,
    SocketChannel,
)
from distrib.launch.hosts.rank_agent import ERRORS, EXIT, HEARTBEAT, MARK, OUTPUT, frame


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_frames_arrive_in_pieces(size: int) -> None:
    line = json.dumps({"phase": "training"}).encode() + b"\n"
    data = b"Welcome to h1!\n" + MARK + frame(OUTPUT, b"a" * 7) + frame(HEARTBEAT, line * 2)
    data += frame(ERRORS, b"e") + frame(EXIT, b"137")
    parser = FrameParser()
    output, heartbeats = [], []
    for start in range(0, len(data), size):
        chunks, more = parser.feed(data[start : start + size])
        output += chunks
        heartbeats += more
    assert output == [(OUTPUT, b"a" * 7), (ERRORS, b"e")]
    assert heartbeats == [{"phase": "training"}] * 2
    assert parser.exit_code == 137


def test_bytes_before_the_mark_are_skipped() -> None:
    parser = FrameParser()
    assert parser.feed(frame(EXIT, b"0")) == ([], [])
    assert parser.exit_code is None


@pytest.mark.parametrize(
    ("code", "failure"),
    [("0", LOST), ("255", LOST), ("64", 64), ("__import__('os').abort()", LOST)],
)
def test_a_process_that_ends_without_an_exit_frame(code: str, failure: int) -> None:
    channel = ProcessChannel([sys.executable, "-c", f"raise SystemExit({code})"])
    channel._process.wait()
    channel.send(b"15\n" * 100_000)  # Nothing reads this, which is no error.
    assert channel.failure() == failure
    channel.close()


def test_a_process_that_runs_has_not_failed() -> None:
    channel = ProcessChannel([sys.executable, "-c", "import time; time.sleep(600)"])
    assert channel.failure() is None
    channel.abort()
    channel.close()
    assert channel.failure() == LOST


def test_a_socket() -> None:
    ours, theirs = socket.socketpair()
    channel = SocketChannel(ours)
    channel.send(b"15\n")
    assert theirs.recv(10) == b"15\n"
    channel.abort()
    assert theirs.recv(10) == b""
    channel.send(b"9\n")
    assert channel.failure() == LOST
    assert channel.fds == {OUTPUT: ours.fileno()}
    channel.close()
    theirs.close()


def test_a_closed_channel() -> None:
    channel = ClosedChannel()
    channel.send(b"15\n")
    channel.abort()
    channel.close()
    assert (channel.fds, channel.failure()) == ({}, LOST)
