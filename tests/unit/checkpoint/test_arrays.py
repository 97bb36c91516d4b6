from pathlib import Path

import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from distrib.checkpoint import arrays

DTYPES = ["float32", "float16", "float64", "int8", "int64", "uint32", "bool", ml_dtypes.bfloat16]


def test_round_trip_keeps_shapes_dtypes_and_bits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model = {
        f"layer_{i}/kernel@{i % 2}": (rng.normal(size=shape) * 3).astype(dtype)
        for i, dtype in enumerate(DTYPES)
        for shape in [(), (1,), (3, 4), (2, 1, 5)][i % 4 : i % 4 + 1]
    }
    model["odd"] = np.array([np.nan, -0.0, np.inf, 1e-45], np.float32)
    arrays.write(tmp_path / "7", {"model": model, "none": {}}, {"a": [1.5, float("nan")]})

    restored = arrays.read_arrays(tmp_path / "7")
    assert set(restored) == {"model"}
    assert set(restored["model"]) == set(model)
    for name, value in model.items():
        got = restored["model"][name]
        assert (got.dtype, got.shape) == (value.dtype, value.shape), name
        assert got.tobytes() == value.tobytes(), name
    training = arrays.read_training(tmp_path / "7")
    assert training["a"][0] == 1.5
    assert np.isnan(training["a"][1])


def test_plain_orbax_reads_it(tmp_path: Path) -> None:
    value = np.arange(6, dtype=np.float32).reshape(2, 3)
    arrays.write(tmp_path / "7", {"model": {"dense/kernel": value}}, {})
    tree = ocp.PyTreeCheckpointer().restore(tmp_path / "7" / "arrays")
    np.testing.assert_array_equal(tree["model"]["dense/kernel"], value)


def test_refuses_to_overwrite(tmp_path: Path) -> None:
    arrays.write(tmp_path / "7", {"model": {"a": np.ones(2)}}, {})
    with pytest.raises(ValueError, match="already exists"):
        arrays.write(tmp_path / "7", {"model": {"a": np.zeros(2)}}, {})
