from typing import Any

import keras
import pytest

from distrib import callbacks
from distrib.errors import ConfigurationError
from distrib.training.rank_callbacks import check_callbacks, describe_callbacks


def check(*by_rank: list[Any]) -> None:
    check_callbacks([describe_callbacks(given) for given in by_rank])


class Own(keras.callbacks.Callback):
    pass


ON_THE_CHIEF = [
    Own(),
    keras.callbacks.LambdaCallback(),
    keras.callbacks.CSVLogger("log.csv"),
    keras.callbacks.ModelCheckpoint("best.keras"),
    callbacks.ModelCheckpoint("best.keras"),
    callbacks.EarlyStopping(),
    callbacks.ReduceLROnPlateau(),
    callbacks.LearningRateScheduler(lambda epoch: 0.1),
]


@pytest.mark.parametrize("callback", ON_THE_CHIEF, ids=lambda callback: type(callback).__name__)
def test_may_be_the_chiefs_alone(callback: Any) -> None:
    check([callback], [], [])


def everywhere(patience: int = 0) -> list[Any]:
    return [
        callbacks.BackupAndRestore("runs/17"),
        callbacks.EarlyStopping(patience=patience, restore_best_weights=True),
        callbacks.LearningRateWarmup(2),
        callbacks.SwapEMAWeights(),
    ]


@pytest.mark.parametrize("callback", everywhere(), ids=lambda callback: type(callback).__name__)
def test_has_to_be_on_every_rank(callback: Any) -> None:
    name = type(callback).__name__
    with pytest.raises(ConfigurationError, match=rf"{name}.* is in the list on rank 0 only"):
        check([callback], [], [])
    with pytest.raises(ConfigurationError, match=rf"{name}.* is in the list on ranks 1, 2 only"):
        check([], [callback], [[callback]])


def test_lists_that_agree() -> None:
    check(everywhere(), everywhere()[::-1], [*everywhere(), Own()])


def test_other_arguments_would_change_other_weights() -> None:
    with pytest.raises(ConfigurationError, match="has other arguments on rank 1 than on rank 0"):
        check(everywhere(), everywhere(patience=1))


def test_the_chiefs_learning_rate_counts() -> None:
    with pytest.raises(ConfigurationError, match="ReduceLROnPlateau is in the list on rank 1, but"):
        check([], [callbacks.ReduceLROnPlateau()])


def test_writers_of_kerass_own_write_other_files() -> None:
    def board(folder: str) -> list[Any]:
        return [keras.callbacks.TensorBoard(folder)]

    check(board("a"), board("b"))
    with pytest.raises(
        ConfigurationError, match=r"TensorBoard would write the same files on ranks 0-2"
    ):
        check(board("a"), board("b"), board("a"))


def test_kerass_own_backup_restores_one_rank() -> None:
    with pytest.raises(ConfigurationError, match="import BackupAndRestore from"):
        check([keras.callbacks.BackupAndRestore("runs/17")], [])
