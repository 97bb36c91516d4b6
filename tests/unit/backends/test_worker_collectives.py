import numpy as np
import pytest
import tensorflow as tf

from distrib.backends.worker_collectives import _bytes, _words, translate_error
from distrib.errors import LostPeerError


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            tf.errors.UnavailableError(None, None, "x\nCollective ops is aborted by: gone: off\ny"),
            "(gone: off)",
        ),
        (tf.errors.DeadlineExceededError(None, None, "Collective has timed out."), "(Collective"),
    ],
)
def test_a_lost_peer_is_recognized(error: tf.errors.OpError, reason: str) -> None:
    translated = translate_error(error, 1, 4)
    assert isinstance(translated, LostPeerError)
    assert str(translated).startswith("rank 1 of 4 (pid ")
    assert f"cannot be reached {reason}" in str(translated)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("Collective ops is aborted by: a user"),
        tf.errors.InvalidArgumentError(None, None, "Collective ops is aborted by: a user"),
        tf.errors.UnavailableError(None, None, "the data set's server"),
    ],
)
def test_other_errors_are_not_translated(error: BaseException) -> None:
    assert translate_error(error, 1, 4) is error


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5])
def test_bytes_survive_as_words(size: int) -> None:
    data = np.arange(size, dtype=np.uint8) + 250
    assert _bytes(_words(data), size).tolist() == data.tolist()
    assert _bytes(_words(data, size + 6), size).tolist() == data.tolist()
