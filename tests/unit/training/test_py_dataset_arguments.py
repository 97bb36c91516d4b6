"""A `PyDataset` in one process; ranks and real kills are in `tests/integration`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import keras
import numpy as np
import pytest

from distrib.callbacks import BackupAndRestore
from distrib.errors import CheckpointMismatchError, ConfigurationError


class Batches(keras.utils.PyDataset):
    """Shuffles its examples itself, and notes what it is asked for."""

    notes: ClassVar[list[Any]] = []  # An attribute that a hook changes would be restored.

    def __init__(self, count: int | None = 5, **how: Any) -> None:
        super().__init__(**how)
        self.count = count
        self.indices = np.arange(4 * (count or 40))

    @property
    def num_batches(self) -> int | None:
        return self.count

    def __getitem__(self, index: int) -> Any:
        self.notes.append(index)
        x = self.indices[4 * index : 4 * index + 4, np.newaxis] / 200
        return x, 2 * x

    def on_epoch_begin(self) -> None:
        self.notes.append("begin")

    def on_epoch_end(self) -> None:
        self.notes.append("end")
        np.random.shuffle(self.indices)


class Validation(Batches):
    notes: ClassVar[list[Any]] = []


class KilledError(Exception):
    pass


class Kill(keras.callbacks.Callback):
    def __init__(self, step: int | None) -> None:
        super().__init__()
        self.left, self.steps = step, 0

    def get_state(self) -> dict[str, Any]:
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        pass

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps += 1
        if self.left is not None:
            self.left -= 1
            if not self.left:
                raise KilledError


def make() -> keras.Model:
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(3), keras.layers.Dropout(0.2), keras.layers.Dense(1)]
    )
    model.compile("sgd", "mse")
    return model


def fit(
    directory: Path, batches: Any, kill: int | None = None, seed: int | None = 1, **how: Any
) -> keras.Model:
    model = make()
    np.random.seed(seed)
    killer = Kill(kill)
    callbacks = [BackupAndRestore(directory, save_freq=1), killer]
    model.fit(batches, **{"epochs": 3, "verbose": 0, **how}, callbacks=callbacks)
    model.steps_here = killer.steps
    return model


def assert_same(one: keras.Model, other: keras.Model) -> None:
    assert one.history.history == other.history.history
    for mine, theirs in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_killed_run_goes_on_with_the_very_next_batch(tmp_path: Path) -> None:
    calm = fit(tmp_path / "calm", Batches(workers=2), validation_data=Validation(2))
    with pytest.raises(KilledError):
        fit(tmp_path / "run", Batches(workers=2), 8, validation_data=Validation(2))
    # Without a seed: what was shuffled comes from the checkpoint.
    Batches.notes.clear()
    resumed = fit(tmp_path / "run", Batches(), seed=None, validation_data=Validation(2))
    assert_same(resumed, calm)
    built = [note for note in Batches.notes[Batches.notes.index("begin") :] if type(note) is int]
    assert len(built) == resumed.steps_here < calm.steps_here == 15


def test_hooks_and_batches_come_as_keras_calls_them(tmp_path: Path) -> None:
    def noted(train: Callable[[Any], Any]) -> list[Any]:
        Batches.notes.clear()
        train(Batches(2))
        return Batches.notes[Batches.notes.index("end") :]  # Before are batches for the shapes.

    how = {"epochs": 2, "shuffle": False, "verbose": 0}
    by_keras = noted(lambda batches: make().fit(batches, **how))
    by_distrib = noted(lambda batches: fit(tmp_path, batches, **how))
    # One batch is built twice to see whether it is the same.
    assert by_distrib == ["end", 0, 0, *by_keras[1:]]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("count", "steps"), [(None, 4), (7, 3)], ids=["endless", "part of a pass"])
def test_given_steps_go_on_from_epoch_to_epoch(
    count: int | None, steps: int, tmp_path: Path
) -> None:
    how = {"steps_per_epoch": steps}
    calm = fit(tmp_path / "calm", Batches(count), **how)
    with pytest.raises(KilledError):
        fit(tmp_path / "run", Batches(count), 5, **how)
    assert_same(fit(tmp_path / "run", Batches(count), seed=None, **how), calm)


@pytest.mark.exhaustive
def test_one_object_for_training_and_validation(tmp_path: Path) -> None:
    def train(run: str, kill: int | None = None, seed: int | None = 1) -> keras.Model:
        both = Batches(3)
        return fit(tmp_path / run, both, kill, seed, validation_data=both, epochs=2)

    calm = train("calm")
    with pytest.raises(KilledError):
        train("run", 5)
    assert_same(train("run", seed=None), calm)


def test_a_state_of_its_own_counts(tmp_path: Path) -> None:
    class Own(Batches):
        restored = 0

        def get_state(self) -> dict[str, Any]:
            return {"indices": self.indices.copy()}

        def set_state(self, state: dict[str, Any]) -> None:
            self.indices, self.restored = state["indices"], self.restored + 1

    calm = fit(tmp_path / "calm", Own(3), epochs=2)
    with pytest.raises(KilledError):
        fit(tmp_path / "run", Own(3), 5, epochs=2)
    resumed = Own(3)
    assert_same(fit(tmp_path / "run", resumed, seed=None, epochs=2), calm)
    assert resumed.restored


def test_random_batches_are_named_before_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Augmented(Batches):
        def __getitem__(self, index: int) -> Any:
            x, y = super().__getitem__(index)
            return x + np.random.normal(size=x.shape), y

    fit(tmp_path, Augmented(), epochs=1)
    said = capsys.readouterr().err
    assert "`Augmented.__getitem__` returns another batch each time" in said
    assert "np.random.default_rng((seed, self.epoch, index))" in said


def test_another_number_of_batches_in_a_later_epoch_is_refused(tmp_path: Path) -> None:
    class Shrinks(Batches):
        def on_epoch_end(self) -> None:
            self.count = 4

    with pytest.raises(ConfigurationError, match=r"Shrinks had 5 batches .* has 4 in epoch 1"):
        fit(tmp_path, Shrinks())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": Batches(None)}, "Batches has no end: pass `steps_per_epoch`"),
        ({"x": Batches(), "validation_data": Batches(None)}, "no end; pass `validation_steps`"),
        ({"x": Batches(0)}, "Batches has 0 batches"),
    ],
)
def test_what_has_no_end_or_no_beginning_is_refused(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make().fit(**arguments, callbacks=[BackupAndRestore(tmp_path)])


def test_targets_beside_it_are_refused_as_by_keras(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="When providing `x` as a PyDataset, `y` should not be"):
        make().fit(Batches(), np.zeros(3), callbacks=[BackupAndRestore(tmp_path)])


def test_another_pydataset_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, Batches(5), epochs=1)
    with pytest.raises(CheckpointMismatchError, match="num_batches: checkpoint has 5, this run"):
        fit(tmp_path, Batches(6))


def test_more_steps_than_batches_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path, Batches(2), epochs=1, steps_per_epoch=3)
    assert "`steps_per_epoch=3` is more than the 2 steps" in capsys.readouterr().err
