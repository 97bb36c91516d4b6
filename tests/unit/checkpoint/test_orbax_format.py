"""Orbax and TensorStore read what distrib writes."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts

from distrib.checkpoint import layout, legacy_orbax, orbax_format

DTYPES = [
    *("float32", "float16", "float64", "complex64", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint32", "uint64"),
    *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn),
]


def write(folder: Path, arrays: layout.ArrayGroups, training: dict[str, Any]) -> None:
    for file in orbax_format.files(arrays, training):
        content = bytearray(file.size)
        for offset, data in file.parts:
            content[offset : offset + len(data)] = bytes(data)
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def arrays_of_all_kinds() -> dict[str, dict[str, np.ndarray[Any, Any]]]:
    rng = np.random.default_rng(0)
    shapes = [(), (1,), (3, 4), (2, 1, 5), (50, 7)]
    model = {
        f"layer_{i}/kernel@{i % 2}": (rng.normal(size=shapes[i % 5]) * 3).astype(dtype)
        for i, dtype in enumerate(DTYPES)
    }
    odd = np.array([np.nan, -0.0, np.inf, 1e-45], np.float32)
    return {"model": model, "other": {"größe": odd, "transposed": np.arange(6).reshape(2, 3).T}}


@pytest.mark.parametrize("max_bytes", [64, 300, 1 << 20])
def test_plain_orbax_reads_the_arrays(
    max_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "MAX_FILE_BYTES", max_bytes)
    arrays = arrays_of_all_kinds()
    write(tmp_path, arrays, {"a": [1.5, float("nan")]})
    tree = ocp.PyTreeCheckpointer().restore(tmp_path / "arrays")
    assert {group: set(members) for group, members in tree.items()} == {
        group: set(members) for group, members in arrays.items()
    }
    for group, members in arrays.items():
        for name, value in members.items():
            got = tree[group][name]
            assert (got.dtype, got.shape) == (value.dtype, value.shape), name
            assert got.tobytes() == value.tobytes(), name
    training = legacy_orbax.read_training(tmp_path)
    assert training["a"][0] == 1.5
    assert np.isnan(training["a"][1])


def test_orbax_recognizes_the_items(tmp_path: Path) -> None:
    write(tmp_path, {"model": {"w": np.ones(3, np.float32)}}, {})
    with ocp.CheckpointManager(tmp_path.parent) as manager:
        metadata = manager._checkpointer.metadata(tmp_path)
    assert set(metadata.item_metadata.keys()) == {"arrays", "training"}


def test_many_arrays_take_few_files() -> None:
    arrays = {"model": {f"w{i}": np.full(100, i, np.float32) for i in range(3000)}}
    files = orbax_format.files(arrays, {})
    assert len(files) == 6
    assert sum(file.size for file in files if file.path == "arrays/d/000000") >= 3000 * 400


def test_no_file_is_larger_than_the_maximum_or_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MAX_FILE_BYTES", 1000)
    arrays = {"model": {"a": np.zeros((1000, 30), np.uint8), "b": np.zeros((2, 3000), np.uint8)}}
    sizes = layout.plan(arrays).sizes
    assert sum(sizes) >= 36_000
    assert sorted(size for size in sizes if size > 1000) == [3000, 3000]
    assert len(sizes) == 2 + -(-30_000 // 990)


def test_empty_arrays_are_only_in_the_index(tmp_path: Path) -> None:
    arrays = {"model": {"full": np.ones(1), "empty": np.zeros((0, 3), np.float16)}}
    write(tmp_path, arrays, {})
    restored = layout.allocate(legacy_orbax.read_training(tmp_path)["index"])
    assert restored["model"]["empty"].shape == (0, 3)
    assert restored["model"]["empty"].dtype == np.float16
    tree = ocp.PyTreeCheckpointer().restore(tmp_path / "arrays")
    assert set(tree["model"]) == {"full"}


def test_tensorstore_encodes_the_same_manifest(tmp_path: Path) -> None:
    write(tmp_path, arrays_of_all_kinds(), {})
    base = ts.KvStore.open(f"file://{tmp_path}/arrays/").result()
    manifest = ts.ocdbt.dump(base).result()
    assert ts.ocdbt.undump_manifest(manifest) == base[b"manifest.ocdbt"]
    root = ts.ocdbt.dump(base, manifest["versions"][0]["root"]["location"]).result()
    assert len(root["entries"]) == manifest["versions"][0]["root"]["statistics"]["num_keys"]


def test_tensorstore_verifies_manifest_and_node(tmp_path: Path) -> None:
    write(tmp_path, {"model": {"w": np.arange(9, dtype=np.int32)}}, {})
    base = f"file://{tmp_path}/arrays/"
    store = ts.KvStore.open({"driver": "ocdbt", "base": base}).result()
    assert store.list().result() == [b"model.w/.zarray", b"model.w/0"]
    assert store[b"model.w/0"] == np.arange(9, dtype=np.int32).tobytes()
    for name in ("manifest.ocdbt", "d/tree"):
        path = tmp_path / "arrays" / name
        intact = path.read_bytes()
        path.write_bytes(intact[:-9] + bytes([intact[-9] ^ 1]) + intact[-8:])
        with pytest.raises(ValueError, match=r"CRC|checksum|corrupt"):
            ts.KvStore.open({"driver": "ocdbt", "base": base}).result().list().result()
        path.write_bytes(intact)


def test_format_1_is_still_read(tmp_path: Path) -> None:
    """Orbax itself wrote the checkpoints of this format."""
    arrays = {"model": {"dense/kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}
    handlers = {"arrays": ocp.PyTreeCheckpointHandler(), "training": ocp.JsonCheckpointHandler()}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers)) as checkpointer:
        checkpointer.save(
            tmp_path / "7",
            args=ocp.args.Composite(
                arrays=ocp.args.PyTreeSave(arrays), training=ocp.args.JsonSave({"step": 7})
            ),
        )
    np.testing.assert_array_equal(
        legacy_orbax.read_arrays(tmp_path / "7")["model"]["dense/kernel"],
        arrays["model"]["dense/kernel"],
    )
    assert legacy_orbax.read_training(tmp_path / "7") == {"step": 7}
