import json
from pathlib import Path

import pytest

from distrib.checkpoint import manifest
from distrib.checkpoint.manifest import DamagedCheckpointError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "12"
    (folder / "arrays" / "d").mkdir(parents=True)
    (folder / "arrays" / "d" / "data").write_bytes(bytes(range(256)) * 100)
    (folder / "training").write_text("{}")
    (folder / "empty").write_bytes(b"")
    return folder


def test_commit_vouches_for_every_byte(folder: Path) -> None:
    assert not manifest.is_committed(folder)
    written = manifest.commit(folder, step=12, epoch=1, batch=2)
    assert manifest.is_committed(folder)
    assert manifest.verify(folder) == manifest.read(folder) == written
    assert (written.step, written.epoch, written.batch) == (12, 1, 2)
    assert [entry.path for entry in written.files] == ["arrays/d/data", "empty", "training"]
    assert written.size == 25_602
    # The CRC32C of this content, computed with another implementation (a bitwise loop).
    assert written.files[0].crc32c == _crc32c(bytes(range(256)) * 100)


def test_a_copied_checkpoint_is_still_one(folder: Path, tmp_path: Path) -> None:
    manifest.commit(folder, 12, 1, 2)
    folder.rename(tmp_path / "elsewhere")
    manifest.verify(tmp_path / "elsewhere")


def test_every_flipped_byte_of_the_manifest_is_found(folder: Path) -> None:
    manifest.commit(folder, 12, 1, 2)
    path = folder / manifest.NAME
    sound = path.read_bytes()
    for place in range(len(sound)):
        damaged = bytearray(sound)
        damaged[place] ^= 0x04
        path.write_bytes(damaged)
        if json_or_none(damaged) == json.loads(sound):  # White space between values has changed.
            assert manifest.read(folder).step == 12
        else:
            with pytest.raises(DamagedCheckpointError, match=str(path)):
                manifest.read(folder)


@pytest.mark.parametrize("name", ["arrays/d/data", "training"])
def test_damage_is_named(folder: Path, name: str) -> None:
    manifest.commit(folder, 12, 1, 2)
    path = folder / name
    sound = path.read_bytes()

    path.write_bytes(sound[:-1])
    with pytest.raises(DamagedCheckpointError, match=f"{path} has {len(sound) - 1} bytes"):
        manifest.verify(folder)
    path.write_bytes(bytes([sound[0] ^ 1]) + sound[1:])
    with pytest.raises(DamagedCheckpointError, match=f"{path} has CRC32C"):
        manifest.verify(folder)
    path.unlink()
    with pytest.raises(DamagedCheckpointError, match=f"{path} is missing"):
        manifest.verify(folder)


def test_a_newer_format_is_not_taken_for_damage(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "FORMAT", 2)
    manifest.commit(folder, 12, 1, 2)
    path = folder / manifest.NAME
    body = json.loads(path.read_text())
    body.pop("crc32c")
    body["format"] = 2
    path.write_text(json.dumps({**body, "crc32c": manifest._self_checksum(body)}))
    monkeypatch.setattr(manifest, "FORMAT", 1)
    with pytest.raises(Exception, match="newer distrib") as raised:
        manifest.read(folder)
    assert not isinstance(raised.value, DamagedCheckpointError)


def json_or_none(text: bytes | bytearray) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
