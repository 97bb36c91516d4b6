import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from distrib.checkpoint.layout import Array
from distrib.checkpoint.stored_checkpoint import LoadedCheckpoint
from distrib.launch.checkpoints.diff import compare_arrays, compare_state, named_as


def loaded(**arrays: Array) -> LoadedCheckpoint:
    return LoadedCheckpoint({}, {"model": arrays})


def test_equal_to_itself(run: Any, checkpoints: Any) -> None:
    run.save(7)
    result = checkpoints("diff", run.url, 7, "newest")
    assert result.code == 0
    assert "3 arrays are bit-identical, 0 differ." in result.out


def test_different_steps(run: Any, checkpoints: Any) -> None:
    run.save(4, metrics={"loss": 0.5})
    run.save(7, metrics={"loss": 0.25})
    result = checkpoints("diff", run.url, 4, 7)
    assert result.code == 1
    assert ["position.step", "4", "7"] in result.table
    assert ["logs.batch.loss", "0.5", "0.25"] in result.table
    assert ["model", "bn/mean@0", "3", "0.75", "values"] in result.table
    assert "1 arrays are bit-identical, 2 differ." in result.out


def test_equal_runs(run: Any, make_run: Any, tmp_path: Path, checkpoints: Any) -> None:
    other = make_run(str(tmp_path / "other"))
    run.save(7)
    other.save(1)
    other.save(7)
    assert checkpoints("diff", run.url, 7, 7, "--other", other.url).code == 0
    assert checkpoints("diff", run.url, 7, 1, "--other", other.url).code == 1


def test_another_optimizer_alone_is_a_difference(run: Any, checkpoints: Any) -> None:
    state = {"optimizer": "SGD", "variables": []}
    run.save(7)
    run.save(8, values=7, state=state, position={"step": 7, "epoch": 0, "batch": 7})
    result = checkpoints("diff", run.url, 7, 8, "--json")
    assert result.code == 1
    found = json.loads(result.out)
    assert found["facts"] == [{"name": "optimizer", "first": "Adam", "second": "SGD"}]
    assert (found["arrays"], found["equal_arrays"]) == ([], 3)


def test_other_weights_alone_are_a_difference(run: Any, checkpoints: Any) -> None:
    run.save(7)
    run.save(8, values=7.5, position={"step": 7, "epoch": 0, "batch": 7})
    result = checkpoints("diff", run.url, 7, 8, "--json")
    assert result.code == 1
    found = json.loads(result.out)
    assert (found["facts"], found["equal_arrays"]) == ([], 1)
    assert [array["max_abs"] for array in found["arrays"]] == [0.5, 0.5]


def test_a_changed_script_is_shown_and_is_no_difference(run: Any, checkpoints: Any) -> None:
    run.save(7, record={"compile": {"loss": "mse"}, "fit": {"shuffle": True}})
    place = {"values": 7, "position": {"step": 7, "epoch": 0, "batch": 7}}
    run.save(8, record={"compile": {"loss": "mae"}, "fit": {"shuffle": True}}, **place)
    result = checkpoints("diff", run.url, 7, 8)
    assert result.code == 0
    assert ["compile.loss", '"mse"', '"mae"'] in result.table
    found = json.loads(checkpoints("diff", run.url, 7, 8, "--json").out)
    assert found["script"] == [{"name": "compile.loss", "first": "mse", "second": "mae"}]


def test_the_numbers_of_names_do_not_count() -> None:
    def variable(path: str) -> dict[str, Any]:
        kernel = {"group": "model", "path": path, "shape": [3], "dtype": "float32"}
        return {"optimizer": "Adam", "variables": [{**kernel, "names": [path]}]}

    one, other = ({"model": {path: np.ones(3)}} for path in ("dense_1/kernel", "dense_7/kernel"))
    first = LoadedCheckpoint({"state": variable("dense_1/kernel")}, one)
    second = LoadedCheckpoint({"state": variable("dense_7/kernel")}, other)
    assert list(compare_arrays(first, named_as(first, second))) == []


def test_damaged(run: Any, checkpoints: Any) -> None:
    run.save(4, 7)
    place = run.damage(7)
    result = checkpoints("diff", run.url, 4, 7)
    assert result.code == 65
    assert str(place) in result.err


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.uint8])
def test_size_of_a_difference(dtype: Any) -> None:
    a, b = np.array([3, 4, 0], dtype), np.array([3, 0, 3], dtype)
    (found,) = compare_arrays(loaded(w=a), loaded(w=b))
    assert (found.group, found.name, found.what) == ("model", "w", "values")
    assert found.max_abs == 4
    assert found.relative == 1


def test_half_precision_does_not_overflow() -> None:
    a, b = np.array([300, 400], np.float16), np.zeros(2, np.float16)
    (found,) = compare_arrays(loaded(w=a), loaded(w=b))
    assert (found.max_abs, found.relative) == (400, 1)


def test_bits_are_compared_not_values() -> None:
    nan = np.array([np.nan, 1], np.float32)
    assert list(compare_arrays(loaded(w=nan), loaded(w=nan.copy()))) == []
    zero = np.zeros(2, np.float32)
    (found,) = compare_arrays(loaded(w=zero), loaded(w=-zero))
    assert found.max_abs == 0
    assert np.isnan(found.relative)


def test_missing_reshaped_and_retyped_arrays() -> None:
    a = loaded(gone=np.ones(1), reshaped=np.ones((2, 3)), retyped=np.ones(2, np.float32))
    b = loaded(reshaped=np.ones(6), retyped=np.ones(2, np.int32), new=np.ones(1))
    found = [(one.name, one.what, one.max_abs) for one in compare_arrays(a, b)]
    assert found == [
        ("gone", "only in A", None),
        ("reshaped", "float64(2, 3) and float64(6,)", None),
        ("retyped", "float32(2,) and int32(2,)", None),
        ("new", "only in B", None),
    ]


def test_state_with_nan_or_in_one_checkpoint_only() -> None:
    a = {"logs": {"loss": float("nan"), "acc": 1}, "data": None, "model": {"a": 1}}
    b = {"logs": {"loss": float("nan")}, "data": {"seed": 1}, "model": {"a": 2}}
    found = {one.name: (one.first, one.second) for one in compare_state(a, b)}
    assert found == {"logs.acc": (1, None), "data.seed": (None, 1)}
