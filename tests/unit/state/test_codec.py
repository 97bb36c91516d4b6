import json

import numpy as np
import pytest

from distrib.state import codec


def test_round_trip_through_json_keeps_every_bit() -> None:
    state = {
        "none": None,
        "flag": True,
        "count": 3,
        "floats": [0.1, float("inf"), float("nan"), 1e-320],
        "text": "é",
        "scalar": np.float32(0.1),
        "array": np.arange(6, dtype=np.int16).reshape(2, 3),
        "empty": np.zeros((0, 3), np.float32),
        "pair": (1, [np.array(True)]),
    }
    encoded, arrays = codec.encode(state, "s")
    back = codec.decode(json.loads(json.dumps(encoded)), arrays)

    assert set(arrays) == {"s/array", "s/pair/1/0"}
    assert back["none"] is None
    assert back["flag"] is True
    assert (back["count"], back["text"]) == (3, "é")
    np.testing.assert_array_equal(back["floats"], state["floats"])
    assert back["scalar"] == np.float32(0.1)
    assert type(back["scalar"]) is np.float32
    np.testing.assert_array_equal(back["array"], state["array"])
    assert back["array"].dtype == np.int16
    assert (back["empty"].shape, back["empty"].dtype) == ((0, 3), np.float32)
    assert back["pair"][0] == 1
    assert isinstance(back["pair"], tuple)
    assert back["pair"][1][0].shape == ()


@pytest.mark.parametrize(
    ("value", "where"),
    [({"a": [object()]}, "cb/a/0"), ({1: 2}, "cb"), ({"x": np.array(["s"])}, "cb/x")],
)
def test_what_cannot_be_kept_is_named(value: object, where: str) -> None:
    with pytest.raises(TypeError, match=f"^{where} cannot be kept"):
        codec.encode(value, "cb")


def test_missing_array_is_an_error() -> None:
    encoded, _ = codec.encode({"a": np.ones(2)}, "s")
    with pytest.raises(KeyError):
        codec.decode(encoded, {})
