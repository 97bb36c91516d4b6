from types import SimpleNamespace
from typing import Any

import pytest

from distrib.state.training_position import TrainingPosition
from distrib.training.fit_data import restart_epoch


@pytest.mark.parametrize(
    ("restarts", "position", "batch"),
    [
        (True, TrainingPosition(7, 1, 3), 0),
        (True, TrainingPosition(8, 1, 4, train_done=True), 4),
        (True, TrainingPosition(8, 2, 0), 0),
        (False, TrainingPosition(7, 1, 3), 3),
    ],
)
def test_an_epoch_that_begins_again_is_announced(
    restarts: bool, position: TrainingPosition, batch: int, capfd: Any
) -> None:
    begins_again = position.batch != batch
    done = position.train_done
    call: Any = SimpleNamespace(dataset=SimpleNamespace(restarts_epoch=restarts))
    restart_epoch(call, position, ranks=2)
    assert (position.batch, position.train_done) == (batch, done)
    said = "from 2 ranks" in capfd.readouterr().err
    assert said == begins_again
