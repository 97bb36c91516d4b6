import secrets
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from distrib.checkpoint import commit, layout, transfer
from distrib.checkpoint.manifest import DamagedCheckpointError, Manifest
from distrib.checkpoint.orbax_format import files
from distrib.checkpoint.stored_checkpoint import StoredCheckpoint
from distrib.storage.locate import locate
from distrib.storage.location import Location

ARRAYS: dict[str, dict[str, Any]] = {
    "model": {
        "matrix": np.random.default_rng(0).random((31, 7)),
        "long": np.arange(2000, dtype=np.int64),
        "bias": np.arange(7, dtype=ml_dtypes.bfloat16),
        "flag": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float16),
    },
    "optimizer": {"iteration": np.array(5, np.int32), "matrix": np.ones((31, 7), np.complex128)},
}


@pytest.fixture(params=["local", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    url = str(tmp_path) if request.param == "local" else f"memory://{secrets.token_hex(4)}"
    return locate(url, "directory")


def store(place: Location) -> StoredCheckpoint:
    draft = commit.draft(place, 1, 1)
    entries = transfer.write(files(ARRAYS, {"epoch": 3}), draft, None)
    manifest = Manifest(1, 0, 1, 0.0, entries, 1, root=commit.data_root(place, 1, 1))
    commit.publish(place, manifest)
    return StoredCheckpoint(place / "1", manifest)


# With arrays that are cut, that share a file with the rest of a cut one, and that are whole.
@pytest.mark.parametrize("max_bytes", [64, 300, 3000, 1 << 20])
def test_arrays_are_read_as_they_were_written(
    max_bytes: int, place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "MAX_FILE_BYTES", max_bytes)
    stored = store(place)
    loaded = stored.read()
    assert loaded.training == {"epoch": 3}
    assert {group: set(members) for group, members in loaded.arrays.items()} == {
        group: set(members) for group, members in ARRAYS.items()
    }
    for group, members in ARRAYS.items():
        for name, value in members.items():
            got = loaded.arrays[group][name]
            assert (got.dtype, got.shape) == (value.dtype, value.shape), name
            assert got.tobytes() == value.tobytes(), name


@pytest.mark.parametrize("max_bytes", [300, 1 << 20])
def test_every_file_is_verified(
    max_bytes: int, place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "MAX_FILE_BYTES", max_bytes)
    stored = store(place)
    for entry in stored.manifest.files:
        file = stored.root / entry.path
        content = file.read_bytes()
        flipped = bytes([content[0] ^ 1]) + content[1:]
        for broken, complaint in ((flipped, "CRC32C"), (content[:-1], "bytes instead of")):
            file.write_bytes(broken)
            with pytest.raises(DamagedCheckpointError, match=rf"{entry.path} .*{complaint}"):
                stored.read()
            with pytest.raises(DamagedCheckpointError, match=complaint):
                stored.verify()
        file.remove()
        with pytest.raises(DamagedCheckpointError, match=f"{entry.path} is missing"):
            stored.read()
        file.write_bytes(content)
    stored.verify()
