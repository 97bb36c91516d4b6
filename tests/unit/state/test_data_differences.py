from typing import Any

import pytest

from distrib.errors import CheckpointMismatchError
from distrib.state.data_differences import PLAIN_ARRAYS, check_data

DATA = {"source": "arrays", "num_examples": 64}


def test_the_same_data_are_taken() -> None:
    check_data(DATA, dict(DATA))
    check_data(None, None)


@pytest.mark.parametrize(
    ("saved", "here", "difference"),
    [
        (DATA, {**DATA, "num_examples": 65}, "num_examples: checkpoint has 64, this run has 65"),
        (DATA, None, "checkpoint has a cluster.dataset, this run has data that is not"),
        (None, DATA, "checkpoint has data that is not a cluster.dataset, this run has a"),
    ],
)
def test_other_data_are_refused(saved: Any, here: Any, difference: str) -> None:
    with pytest.raises(CheckpointMismatchError, match=difference):
        check_data(saved, here)


def test_weights_that_old_versions_took_for_data() -> None:
    parts = [{"path": f"[{i}]"} for i in range(3)]
    contents = {f"[{i}]": {"crc32c": str(i)} for i in range(3)}
    old = {"source": PLAIN_ARRAYS, "structure": parts, "contents": contents}
    new = {**old, "structure": parts[:2], "contents": {k: contents[k] for k in ("[0]", "[1]")}}
    check_data(old, new)
    with pytest.raises(CheckpointMismatchError, match="structure"):
        check_data(new, old)  # Here they are a `sample_weight`.
