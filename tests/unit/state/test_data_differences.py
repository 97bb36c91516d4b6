from typing import Any

import pytest

from distrib.errors import CheckpointMismatchError
from distrib.state.data_differences import check_data

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
