"""A second `fit` on one directory, runs that are prolonged, and new runs from another's state."""

import secrets
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from distrib.callbacks import BackupAndRestore, CSVLogger, EarlyStopping
from distrib.checkpoint.directory import CheckpointDirectory
from distrib.data.make_dataset import make_dataset
from distrib.errors import CheckpointMismatchError, ConfigurationError, NoLoadableCheckpointError
from distrib.storage.locate import locate
from distrib.training import run_ending

X = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
Y = X.sum(axis=1, keepdims=True)


def data(batch_size: int = 4, of: slice = slice(None)) -> Any:
    return make_dataset((X[of], Y[of]), batch_size, shuffle=True, seed=1)


def make(outputs: int = 1, optimizer: Any = "adam") -> keras.Model:
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(outputs)]
    )
    model.compile(optimizer, "mse", run_eagerly=True)  # Traces nothing, which takes longest.
    return model


def fit(directory: Any, epochs: int = 2, *callbacks: Any, on: Any = None, **backup: Any) -> Any:
    return make().fit(
        data() if on is None else on,
        epochs=epochs,
        verbose=0,
        callbacks=[*callbacks, BackupAndRestore(directory, **backup)],
    )


def new_process() -> None:
    run_ending._reached.clear()


def stop(patience: int, **arguments: Any) -> EarlyStopping:
    return EarlyStopping("loss", min_delta=1e9, patience=patience, **arguments)


def same(one: keras.Model, other: keras.Model) -> bool:
    pairs = zip(one.get_weights(), other.get_weights(), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


# A second fit of one process


def test_a_fold_on_the_directory_of_the_one_before_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, on=data(of=slice(10)))
    with pytest.raises(ConfigurationError, match=r"already finished a `fit` .*its own directory"):
        fit(tmp_path, on=data(of=slice(10, 20)))
    model = make()  # A second phase with a lower learning rate.
    model.compile(keras.optimizers.Adam(1e-5), "mse")
    with pytest.raises(ConfigurationError, match=r"pass more `epochs` than 2"):
        model.fit(data(of=slice(10)), epochs=2, callbacks=[BackupAndRestore(tmp_path)])
    assert fit(tmp_path / "fold-2", on=data(of=slice(10, 20))).epoch == [0, 1]


def test_a_fold_that_is_found_finished_is_followed_by_no_other(tmp_path: Path) -> None:
    fit(tmp_path)
    new_process()
    assert fit(tmp_path).epoch == [0, 1]
    with pytest.raises(ConfigurationError, match="already finished"):
        fit(tmp_path)


def test_a_trial_with_other_callbacks_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, 2, stop(5))
    with pytest.raises(ConfigurationError, match="already finished"):
        fit(tmp_path, 2, stop(6))


def test_every_fit_trains_if_the_one_before_deleted_its_checkpoints(tmp_path: Path) -> None:
    for _ in range(2):
        fit(tmp_path, delete_checkpoint=True, on=data(of=slice(10)))
    assert fit(tmp_path, on=data(of=slice(10, 20))).epoch == [0, 1]


def test_a_script_that_prolongs_its_run_finds_it_finished_when_started_again(
    tmp_path: Path,
) -> None:
    def script() -> list[Any]:
        return [fit(tmp_path, 2).epoch, fit(tmp_path, 3).epoch, fit(tmp_path, 4).epoch]

    assert script() == [[0, 1], [0, 1, 2], [0, 1, 2, 3]]
    new_process()
    assert script() == [[0, 1, 2, 3]] * 3


def test_a_script_that_prolongs_a_stopped_run_finds_it_finished_when_started_again(
    tmp_path: Path,
) -> None:
    def script() -> list[Any]:
        return [fit(tmp_path, 9, stop(patience)).epoch[-1] for patience in (1, 3)]

    assert script() == [1, 3]
    new_process()
    assert script() == [3, 3]


# Other data


@pytest.mark.parametrize("kind", ["arrays", "dataset"])
def test_other_examples_of_the_same_shape_are_refused(kind: str, tmp_path: Path) -> None:
    def run(shift: int, epochs: int, noise: float = 0.0) -> Any:
        x, y = np.roll(X, shift, 0) * np.float32(1 + noise), np.roll(Y, shift, 0)
        callbacks = [BackupAndRestore(tmp_path)]
        if kind == "dataset":
            return make().fit(make_dataset((x, y), 4), epochs=epochs, callbacks=callbacks)
        return make().fit(x, y, batch_size=4, epochs=epochs, callbacks=callbacks)

    run(0, 1)
    with pytest.raises(CheckpointMismatchError, match="other examples, or in another order"):
        run(1, 2)
    assert run(0, 2, noise=2e-7).epoch == [0, 1]


def test_arrays_that_are_only_rounded_otherwise_are_taken_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path, 1)
    assert fit(tmp_path, 2, on=make_dataset((X * np.float32(1 + 2e-7), Y), 4, True, 1)).epoch
    assert "differs from the checkpoint's by rounding" in capsys.readouterr().err


def test_another_batch_size_of_arrays_is_refused(tmp_path: Path) -> None:
    make().fit(X, Y, batch_size=4, verbose=0, callbacks=[BackupAndRestore(tmp_path)])
    with pytest.raises(CheckpointMismatchError, match="batch_size: checkpoint has 4, this run has"):
        make().fit(X, Y, epochs=2, verbose=0, callbacks=[BackupAndRestore(tmp_path)])


class Batches(keras.utils.PyDataset):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Any:
        return X[index * 4 : index * 4 + 4], Y[index * 4 : index * 4 + 4]


@pytest.mark.parametrize(
    "arguments",
    [
        {"x": X, "y": Y},
        {"x": data()},
        {"x": Batches()},
        {"x": tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)},
    ],
)
def test_data_that_is_resumed_exactly_needs_no_words(
    arguments: dict[str, Any], tmp_path: Path, capsys: Any
) -> None:
    for epochs in (1, 2):
        make().fit(**arguments, epochs=epochs, verbose=0, callbacks=[BackupAndRestore(tmp_path)])
        assert "exactly" not in capsys.readouterr().err


# Runs that were stopped


def test_more_patience_continues_as_if_it_had_been_there_from_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"restore_best_weights": True}
    assert fit(tmp_path, 9, stop(2, **options)).epoch == [0, 1, 2]
    history = fit(tmp_path, 9, stop(4, **options))
    straight = fit(tmp_path / "straight", 9, stop(4, **options))
    assert history.history == straight.history
    assert history.epoch == [0, 1, 2, 3, 4]
    assert same(history.model, straight.model)
    said = capsys.readouterr().err
    assert "stopped after epoch 3, and goes on: EarlyStopping has `patience=4` instead of 2" in said


def test_more_epochs_begin_the_patience_anew(tmp_path: Path) -> None:
    assert fit(tmp_path, 5, stop(2)).epoch[-1] == 2
    assert fit(tmp_path, 9, stop(2)).epoch[-1] == 4
    new_process()
    assert fit(tmp_path, 9, stop(2)).epoch[-1] == 4


def test_without_the_callback_the_run_goes_on(tmp_path: Path) -> None:
    fit(tmp_path, 4, stop(1))
    history = fit(tmp_path, 4)
    assert history.history == fit(tmp_path / "straight", 4).history


def test_a_stopped_run_says_what_continues_it_and_nothing_else_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path, 9, stop(2))
    for callbacks in ([stop(2)], [stop(1)], [stop(2), CSVLogger(tmp_path / "log.csv")]):
        new_process()
        assert fit(tmp_path, 9, *callbacks).epoch == [0, 1, 2]
    assert (
        "stopped after epoch 3 by EarlyStopping; nothing is left to do. To go on from there pass "
        "more `epochs` than 9, a greater `patience`, or a list without the callback."
    ) in capsys.readouterr().err


# New runs from another run's state


class AtBegin(keras.callbacks.Callback):
    def on_train_begin(self, logs: Any = None) -> None:
        self.weights = self.model.get_weights()
        self.optimizer = [variable.numpy() for variable in self.model.optimizer.variables]


def files(folder: Path) -> dict[str, float]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize(("of", "step"), [("", 10), ("checkpoints", 10), ("checkpoints/0", 0)])
def test_a_new_run_begins_with_the_weights_of_another(of: str, step: int, tmp_path: Path) -> None:
    source, seen = tmp_path / "17", AtBegin()
    fit(source, 2)
    before = files(source)
    history = fit(tmp_path / "18", 1, seen, on=data(5), initialize_from=source / of)
    assert files(source) == before
    assert history.epoch == [0]
    assert int(seen.optimizer[0]) == 0
    assert CheckpointDirectory(locate(tmp_path / "18", "directory")).steps() == [0, 4]
    weights = np.concatenate([each.ravel() for each in seen.weights])
    saved = CheckpointDirectory(locate(source, "directory")).checkpoints()
    (stored,) = [each for each in saved if each.manifest.step == step]
    model = stored.read().arrays["model"]
    assert weights.tolist() == np.concatenate([each.ravel() for each in model.values()]).tolist()


def test_the_optimizer_is_taken_over_but_for_its_learning_rate(tmp_path: Path) -> None:
    fit(tmp_path / "17")
    seen, model = AtBegin(), make(optimizer=keras.optimizers.Adam(0.5))
    backup = BackupAndRestore(
        tmp_path / "18", initialize_from=tmp_path / "17", restore=("model", "optimizer")
    )
    model.fit(data(5), verbose=0, callbacks=[seen, backup])
    assert int(seen.optimizer[0]) == 10
    assert float(seen.optimizer[1]) == 0.5
    assert any(np.any(each) for each in seen.optimizer[2:])


def test_what_has_no_counterpart_is_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path / "17")
    backup = BackupAndRestore(tmp_path / "18", initialize_from=tmp_path / "17")
    make(outputs=2).fit(data(), verbose=0, callbacks=[backup])
    said = capsys.readouterr().err
    assert "new run with 2 variables (model) of" in said
    assert "of another shape: sequential" in said
    assert "kernel (4, 2) float32 (there (4, 1))" in said


def test_another_vocabulary_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fit_words(directory: Path, vocabulary: Any, words: list[str], **backup: Any) -> list[str]:
        lookup = keras.layers.StringLookup(vocabulary=vocabulary, name="words")
        if vocabulary is None:
            lookup.adapt(words)
        model = keras.Sequential(
            [
                keras.Input((1,), dtype="string"),
                lookup,
                keras.layers.Embedding(9, 2),
                keras.layers.Flatten(),
                keras.layers.Dense(1),
            ]
        )
        model.compile("sgd", "mse", run_eagerly=True)
        x = np.array([["a"], ["b"]])
        on = make_dataset((x, Y[:2]), 2)
        model.fit(on, verbose=0, callbacks=[BackupAndRestore(directory, **backup)])
        return list(lookup.get_vocabulary())

    fit_words(tmp_path / "17", None, ["a", "a", "b"])
    other = {"initialize_from": tmp_path / "17"}
    capsys.readouterr()
    assert fit_words(tmp_path / "18", None, ["a", "a", "b"], **other)[1:] == ["a", "b"]
    assert "layer" not in capsys.readouterr().err
    assert fit_words(tmp_path / "19", None, ["c"], **other)[1:] == ["a", "b"]
    assert "replaces this script's in layer: words." in capsys.readouterr().err
    assert fit_words(tmp_path / "20", ["b", "a"], [], **other)[1:] == ["b", "a"]
    assert "so that weights after it mean other tokens, in layer: words." in capsys.readouterr().err


def test_a_run_with_checkpoints_of_its_own_resumes_from_them(tmp_path: Path) -> None:
    fit(tmp_path / "17")
    fit(tmp_path / "18", 1, initialize_from=tmp_path / "17")
    history = fit(tmp_path / "18", 2, initialize_from=tmp_path / "gone")
    assert history.epoch == [0, 1]


def test_urls(tmp_path: Path) -> None:
    url = f"memory://{secrets.token_hex(4)}/17"
    fit(url)
    assert fit(tmp_path / "18", 1, initialize_from=url).epoch == [0]


def test_a_damaged_checkpoint_of_the_other_run_stays_where_it_is(tmp_path: Path) -> None:
    source = tmp_path / "17"
    fit(source, save_freq=100)
    for name in ("10", "0"):
        (path,) = (source / "checkpoints" / name).rglob("training/metadata")
        path.write_bytes(b"{}")
        before = files(source)
        if name == "10":
            with pytest.warns(UserWarning, match=r"Checkpoint 10 is damaged.*the one before"):
                fit(tmp_path / "18", 1, initialize_from=source)
        else:
            with (
                pytest.warns(UserWarning, match="is damaged"),
                pytest.raises(NoLoadableCheckpointError),
            ):
                fit(tmp_path / "19", 1, initialize_from=source)
        assert files(source) == before
    with pytest.raises(NoLoadableCheckpointError, match="10 is damaged"):
        fit(tmp_path / "19", 1, initialize_from=source / "checkpoints" / "10")


def test_a_source_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"`initialize_from=.*there is no checkpoint"):
        fit(tmp_path / "18", initialize_from=tmp_path / "17")
    fit(tmp_path / "17")

    def run(model: keras.Model, **backup: Any) -> None:
        model.fit(
            data(),
            verbose=0,
            callbacks=[
                BackupAndRestore(tmp_path / "19", initialize_from=tmp_path / "17", **backup)
            ],
        )

    with pytest.raises(
        CheckpointMismatchError, match=r"trained with Adam, this one with SGD.*only"
    ):
        run(make(optimizer="sgd"), restore=("model", "optimizer"))
    other = keras.Sequential([keras.Input((3,)), keras.layers.EinsumDense("ab,bc->ac", 1)])
    other.compile("sgd", "mse")
    with pytest.raises(CheckpointMismatchError, match="None of the model's weights are in it"):
        run(other)
    with pytest.raises(ConfigurationError, match=r'`restore=.*must be \("model",\) or'):
        BackupAndRestore(tmp_path, restore="model")  # type: ignore[arg-type]


def test_a_refused_checkpoint_names_the_way_out(tmp_path: Path) -> None:
    fit(tmp_path, 1)
    with pytest.raises(CheckpointMismatchError, match="initialize_from="):
        fit(tmp_path, 2, on=data(5))
    with pytest.raises(CheckpointMismatchError, match="initialize_from="):
        make(outputs=2).fit(data(), epochs=2, callbacks=[BackupAndRestore(tmp_path)])
