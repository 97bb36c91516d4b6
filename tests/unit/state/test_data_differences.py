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
        ({"source": "PyDataset"}, DATA, "checkpoint has a PyDataset, this run has a cluster.dat"),
        (DATA, {"source": "a tf.data pipeline"}, "this run has a `tf.data` pipeline"),
    ],
)
def test_other_data_are_refused(saved: Any, here: Any, difference: str) -> None:
    with pytest.raises(CheckpointMismatchError, match=difference):
        check_data(saved, here)


PIPELINE = {"source": "a tf.data pipeline", "batches_per_epoch": 6, "sizes": ["batch: 8"]}


def test_sizes_of_a_pipeline_that_an_old_version_did_not_save() -> None:
    check_data({"source": "a tf.data pipeline", "batches_per_epoch": 6}, PIPELINE)
    with pytest.raises(CheckpointMismatchError, match="sizes: checkpoint has"):
        check_data(PIPELINE, {**PIPELINE, "sizes": ["batch: 4"]})


def test_parts_of_data_that_each_rank_reads_itself_have_another_length_on_more_ranks() -> None:
    own = {**PIPELINE, "sizes": None, "ranks": 2}
    check_data(PIPELINE, {**own, "batches_per_epoch": 3})
    check_data(own, {**own, "batches_per_epoch": 4, "ranks": 3})
    with pytest.raises(CheckpointMismatchError, match="batches_per_epoch"):
        check_data(own, {**own, "batches_per_epoch": 4})


def test_weights_that_old_versions_took_for_data() -> None:
    parts = [{"path": f"[{i}]"} for i in range(3)]
    contents = {f"[{i}]": {"crc32c": str(i)} for i in range(3)}
    old = {"source": PLAIN_ARRAYS, "structure": parts, "contents": contents}
    new = {**old, "structure": parts[:2], "contents": {k: contents[k] for k in ("[0]", "[1]")}}
    check_data(old, new)
    with pytest.raises(CheckpointMismatchError, match="structure"):
        check_data(new, old)  # Here they are a `sample_weight`.


KERAS_OWN = {
    "source": "plain arrays",
    "num_examples": 64,
    "batch_size": 8,
    "structure": [{"path": "[0]", "shape": [3], "dtype": "float32"}],
    "contents": {"[0]": {"crc32c": "1"}},
}
NOW: dict[str, Any] = {**KERAS_OWN, "source": "arrays", "seed": 3, "converted": True}


@pytest.mark.parametrize("saved", [None, KERAS_OWN])
def test_data_that_an_old_version_left_to_keras_get_another_order(saved: Any, capfd: Any) -> None:
    check_data(saved, NOW)
    assert "left this data to Keras. From here on its order" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("here", "difference"),
    [
        ({**NOW, "batch_size": 9}, "batch_size: checkpoint has 8, this run has 9"),
        ({**NOW, "contents": {"[0]": {"crc32c": "2"}}}, "other examples"),
        ({**NOW, "converted": False}, "checkpoint has plain arrays, this run has a cluster"),
    ],
)
def test_other_data_than_an_old_version_left_to_keras(here: Any, difference: str) -> None:
    with pytest.raises(CheckpointMismatchError, match=difference):
        check_data(KERAS_OWN, here)


def test_whether_data_were_converted_makes_no_difference() -> None:
    check_data({**NOW, "converted": False}, NOW)
