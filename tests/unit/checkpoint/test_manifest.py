import json

import pytest

from distrib.checkpoint import manifest
from distrib.checkpoint.manifest import DamagedCheckpointError, FileEntry, Manifest, decode

FILES = (FileEntry("arrays/d/000000", 25_600, 7), FileEntry("empty", 0, 0))
ONE = Manifest(12, 1, 2, 1.5e9, FILES, 3, 4, "abc", {"loss": 0.25}, "attempt-3")


def test_round_trip() -> None:
    assert decode(ONE.encode(), "place") == ONE
    assert ONE.size == 25_600


def test_every_changed_byte_is_found() -> None:
    sound = ONE.encode()
    for place in range(len(sound)):
        damaged = bytearray(sound)
        damaged[place] ^= 0x04
        if json_or_none(damaged) == json.loads(sound):  # White space between values has changed.
            assert decode(bytes(damaged), "place") == ONE
        else:
            with pytest.raises(DamagedCheckpointError, match="place"):
                decode(bytes(damaged), "place")


def test_format_1_is_still_read() -> None:
    body = {"step": 5, "epoch": 0, "batch": 5, "created": 1.0, "files": [], "format": 1}
    checksum = manifest._self_checksum(body)
    found = decode(json.dumps({**body, "crc32c": checksum}).encode(), "place")
    assert (found.step, found.attempt, found.root) == (5, 0, "")


def test_a_newer_format_is_no_damage() -> None:
    body = json.loads(ONE.encode())
    body.pop("crc32c")
    body |= {"format": manifest.FORMAT + 1, "something new": 1}
    content = json.dumps({**body, "crc32c": manifest._self_checksum(body)}).encode()
    with pytest.raises(Exception, match="newer distrib") as raised:
        decode(content, "place")
    assert not isinstance(raised.value, DamagedCheckpointError)


def json_or_none(text: bytes | bytearray) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None
