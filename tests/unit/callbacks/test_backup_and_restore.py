"""Arguments and behaviour within one process; kills and several ranks are in `integration`."""

import json
import os
import secrets
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf

from distrib.callbacks import (
    BackupAndRestore,
    EarlyStopping,
    LearningRateScheduler,
    ReduceLROnPlateau,
)
from distrib.checkpoint import commit
from distrib.checkpoint.directory import CheckpointDirectory
from distrib.data.contents import contents_of
from distrib.data.make_dataset import make_dataset
from distrib.errors import CheckpointMismatchError, ConfigurationError, Preempted
from distrib.retention import KeepIf
from distrib.save_policy.schedule import SaveSchedule
from distrib.storage.locate import locate
from distrib.training import run_ending, trainer_wrapper

X = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
Y = X.sum(axis=1, keepdims=True)
SPARSE = scipy.sparse.csr_matrix(X)


def data(batch_size: int = 4, **kwargs: Any) -> Any:
    return make_dataset((X, Y), batch_size, shuffle=True, seed=1, **kwargs)


def make(seed: int = 1) -> keras.Model:
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dropout(0.2), keras.layers.Dense(1)]
    )
    model.compile("adam", "mse", metrics=["mae"])
    return model


def steps(directory: Path) -> list[int]:
    return CheckpointDirectory(locate(directory, "directory")).steps()


class Recorder(keras.callbacks.Callback):
    """Records its hooks; counts across restarts as a third party's callback would."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []
        self.count = 0

    def get_state(self) -> dict[str, Any]:
        return {"count": self.count}

    def set_state(self, state: dict[str, Any]) -> None:
        self.count = state["count"]

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.seen.append(("epoch", epoch))

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.seen.append(("begin", batch))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen.append(("end", batch))
        self.count += 1


class StopAt(keras.callbacks.Callback):
    """Sends this process a signal, or stops training, after a step of the run."""

    def __init__(self, step: int, how: Any = signal.SIGTERM) -> None:
        super().__init__()
        self.step, self.how = step, how

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if int(self.model.optimizer.iterations) == self.step:
            if self.how is None:
                self.model.stop_training = True
            else:
                os.kill(os.getpid(), self.how)


def as_in_a_new_process() -> None:
    """What a new process would have."""
    run_ending._reached.clear()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize(
    ("save_freq", "expected"),
    [
        ("epoch", SaveSchedule(epochs=True)),
        (500, SaveSchedule(steps=500)),
        ("30s", SaveSchedule(seconds=30)),
        ("5m", SaveSchedule(seconds=300)),
        ("1.5h", SaveSchedule(seconds=5400)),
        ("auto", SaveSchedule(auto=True)),
    ],
)
def test_save_freq(save_freq: Any, expected: SaveSchedule, tmp_path: Path) -> None:
    assert BackupAndRestore(tmp_path, save_freq=save_freq)._schedule == expected


@pytest.mark.parametrize("save_freq", [0, -1, True, "5", "5 m", "m", "0s", "epochs", 2.5, None])
def test_nonsense_save_freq(save_freq: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="`save_freq="):
        BackupAndRestore(tmp_path, save_freq=save_freq)


def test_directory_by_either_name(tmp_path: Path) -> None:
    for backup in (
        BackupAndRestore(tmp_path),
        BackupAndRestore(backup_dir=tmp_path),
        BackupAndRestore(directory=tmp_path),
    ):
        assert backup.directory.local == tmp_path


def test_directory_by_both_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"`backup_dir=.*`directory=.*pass one of them"):
        BackupAndRestore(tmp_path, directory=tmp_path)


def test_no_directory_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"needs a directory, as in BackupAndRestore\("):
        BackupAndRestore(save_freq=5)


def test_arguments_by_position_are_those_of_keras(tmp_path: Path) -> None:
    arguments = (tmp_path, 7, True, True)
    ours, theirs = BackupAndRestore(*arguments), keras.callbacks.BackupAndRestore(*arguments)
    for name in ("save_freq", "double_checkpoint", "delete_checkpoint"):
        assert getattr(ours, name) == getattr(theirs, name)
    with pytest.raises(TypeError, match="positional argument"):
        BackupAndRestore(*arguments, tmp_path)  # type: ignore[misc]


def test_keep_last_by_position_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"`double_checkpoint=3` .*by name: `keep_last="):
        BackupAndRestore(tmp_path, "epoch", 3)  # type: ignore[arg-type]


@pytest.mark.usefixtures("every_save_is_waited_for")
@pytest.mark.parametrize(
    ("keep_last", "double_checkpoint", "expected"),
    [
        (1, False, [20]),
        (1, True, [15, 20]),
        (3, True, [10, 15, 20]),
        (None, True, [0, 5, 10, 15, 20]),
    ],
)
def test_double_checkpoint_keeps_at_least_two(
    keep_last: int | None, double_checkpoint: bool, expected: list[int], tmp_path: Path
) -> None:
    backup = BackupAndRestore(tmp_path, double_checkpoint=double_checkpoint, keep_last=keep_last)
    make().fit(data(), epochs=4, verbose=0, callbacks=[backup])
    assert steps(tmp_path) == expected


@pytest.mark.parametrize("keep_last", [0, -1, "3", 1.5])
def test_nonsense_keep_last(keep_last: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="`keep_last="):
        BackupAndRestore(tmp_path, keep_last=keep_last)


def test_first_and_last_state_are_always_saved(tmp_path: Path) -> None:
    make().fit(data(), epochs=3, verbose=0, callbacks=[BackupAndRestore(tmp_path, save_freq=1000)])
    assert steps(tmp_path) == [0, 15]


def test_auto_says_what_it_chose_and_saves_within_the_bound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Waits(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            time.sleep(0.02)

    backup = BackupAndRestore(tmp_path, save_freq="auto", keep_last=None)
    make().fit(data(), epochs=10, verbose=0, callbacks=[Waits(), backup])
    said = capsys.readouterr().err
    assert "distrib: saving every" in said
    assert "a save costs" in said
    # Of a second of training; a save in a loaded process may cost more than the bound allows.
    assert {0, 50} <= set(steps(tmp_path))
    assert len(steps(tmp_path)) < 25


def test_a_save_that_would_wait_is_skipped_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    publish = commit.publish

    def slow(location: Any, manifest: Any) -> None:
        assert manifest.step in (0, 2, 15) or go.wait(30)
        if manifest.step == 2:
            go.wait(30)
        publish(location, manifest)

    class Opens(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if int(self.model.optimizer.iterations) == 9:
                go.set()
                wait_for(lambda: steps(tmp_path)[-1] == 2)

    monkeypatch.setattr(commit, "publish", slow)
    backup = BackupAndRestore(tmp_path, save_freq=2, keep_last=None)
    make().fit(data(), epochs=3, verbose=0, callbacks=[Opens(), backup])
    said = capsys.readouterr().err
    assert (
        f"skipped the checkpoint of step 4: that of step 2 is still being written to {tmp_path}"
        in said
    )
    assert "step 6" not in said  # Once for each that is late.
    assert not {4, 6, 8} & set(steps(tmp_path))
    assert {0, 2, 15} <= set(steps(tmp_path))


@pytest.mark.usefixtures("every_save_is_waited_for")
def test_retention_keeps_more_than_the_last(tmp_path: Path) -> None:
    best = KeepIf(lambda manifest: manifest.epoch == 1 and "loss" in manifest.metrics)
    backup = BackupAndRestore(tmp_path, keep_last=1, retention=best)
    make().fit(data(), epochs=4, verbose=0, callbacks=[backup])
    assert steps(tmp_path) == [5, 20]


def test_any_store_with_a_local_cache(tmp_path: Path) -> None:
    url = f"memory://{secrets.token_hex(4)}/run"

    def backup() -> BackupAndRestore:
        return BackupAndRestore(url, local_cache=tmp_path / "cache")

    calm = make()
    calm.fit(data(), epochs=4, verbose=0)
    make().fit(data(), epochs=2, verbose=0, callbacks=[backup()])
    model = make()
    history = model.fit(data(), epochs=4, verbose=0, callbacks=[backup()])
    assert history.epoch == [0, 1, 2, 3]
    for got, expected in zip(model.get_weights(), calm.get_weights(), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert (tmp_path / "cache" / "20.attempt-2").is_dir()


@pytest.mark.parametrize(
    ("directory", "cache"), [("runs/17", "cache"), ("memory://run", "memory://cache")]
)
def test_a_cache_is_local_and_the_directory_is_not(directory: str, cache: str) -> None:
    with pytest.raises(ConfigurationError, match=f"`local_cache='{cache}'` must be a local folder"):
        BackupAndRestore(directory, local_cache=cache)


@pytest.mark.usefixtures("every_save_is_waited_for")
def test_keep_last(tmp_path: Path) -> None:
    backup = BackupAndRestore(tmp_path, keep_last=2)
    make().fit(data(), epochs=4, verbose=0, callbacks=[backup])
    assert steps(tmp_path) == [15, 20]


def wait_for(condition: Any) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("never happened")


def test_delete_checkpoint(tmp_path: Path) -> None:
    backup = BackupAndRestore(tmp_path, delete_checkpoint=True)
    make().fit(data(), epochs=1, verbose=0, callbacks=[backup])
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_the_step_and_leaves_with_75(
    number: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Preempted) as left:
        make().fit(
            data(), epochs=3, verbose=0, callbacks=[StopAt(7, number), BackupAndRestore(tmp_path)]
        )
    assert left.value.code == 75
    assert steps(tmp_path)[-1] == 7
    assert "asked to stop: checkpoint" in capsys.readouterr().err
    signal.signal(number, before)


def interrupted_then_finished(tmp_path: Path, step: int, *, how: Any = signal.SIGTERM) -> Recorder:
    with pytest.raises(Preempted):
        make().fit(
            data(),
            epochs=3,
            verbose=0,
            callbacks=[Recorder(), StopAt(step, how), BackupAndRestore(tmp_path)],
        )
    as_in_a_new_process()
    recorder = Recorder()
    make(seed=99).fit(data(), epochs=3, verbose=0, callbacks=[recorder, BackupAndRestore(tmp_path)])
    return recorder


def test_batch_numbers_continue_and_third_party_state_is_kept(tmp_path: Path) -> None:
    recorder = interrupted_then_finished(tmp_path, step=7)
    assert recorder.seen[0] == ("epoch", 1)
    assert [number for kind, number in recorder.seen if kind == "begin"] == [2, 3, 4, 0, 1, 2, 3, 4]
    assert [number for kind, number in recorder.seen if kind == "end"] == [2, 3, 4, 0, 1, 2, 3, 4]
    assert recorder.count == 15


def test_a_run_that_has_finished_is_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = make()
    history = first.fit(data(), epochs=2, verbose=0, callbacks=[BackupAndRestore(tmp_path)])
    as_in_a_new_process()
    recorder = Recorder()
    second = make(seed=99)
    again = second.fit(
        data(), epochs=2, verbose=0, callbacks=[recorder, BackupAndRestore(tmp_path)]
    )
    assert recorder.seen == []
    assert again.history == history.history
    assert again.epoch == [0, 1]
    for mine, theirs in zip(second.get_weights(), first.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert "training has finished" in capsys.readouterr().err


def test_a_finished_run_can_be_prolonged(tmp_path: Path) -> None:
    make().fit(data(), epochs=1, verbose=0, callbacks=[BackupAndRestore(tmp_path)])
    history = make().fit(data(), epochs=3, verbose=0, callbacks=[BackupAndRestore(tmp_path)])
    straight = make().fit(
        data(), epochs=3, verbose=0, callbacks=[BackupAndRestore(tmp_path / "straight")]
    )
    assert history.history == straight.history


def test_a_run_that_was_stopped_early_stays_stopped(tmp_path: Path) -> None:
    def callbacks() -> list[Any]:
        return [EarlyStopping("loss", min_delta=1e9, patience=1), BackupAndRestore(tmp_path)]

    history = make().fit(data(), epochs=9, verbose=0, callbacks=callbacks())
    assert history.epoch == [0, 1]
    as_in_a_new_process()
    again = make().fit(data(), epochs=9, verbose=0, callbacks=callbacks())
    assert again.epoch == [0, 1]
    assert again.history == history.history


def test_a_stop_asked_for_in_the_step_of_the_signal_survives(tmp_path: Path) -> None:
    stop_and_signal = [StopAt(7, None), StopAt(7)]
    with pytest.raises(Preempted):
        make().fit(
            data(), epochs=3, verbose=0, callbacks=[*stop_and_signal, BackupAndRestore(tmp_path)]
        )
    as_in_a_new_process()
    recorder = Recorder()
    model = make()
    history = model.fit(
        data(), epochs=3, verbose=0, callbacks=[recorder, BackupAndRestore(tmp_path)]
    )
    assert recorder.seen == [("epoch", 1)]
    assert history.epoch == [0, 1]
    straight = make().fit(
        data(),
        epochs=3,
        verbose=0,
        callbacks=[StopAt(7, None), BackupAndRestore(tmp_path / "straight")],
    )
    assert history.history == straight.history


def test_two_fits_in_one_process_do_not_mix(tmp_path: Path) -> None:
    backup = BackupAndRestore(tmp_path)
    make().fit(data(), epochs=2, verbose=0, callbacks=[backup])
    model = make()
    history = model.fit(data(), epochs=1, verbose=0)
    assert history.epoch == [0]
    other = BackupAndRestore(tmp_path / "other")
    history = make().fit(data(), epochs=1, verbose=0, callbacks=[other])
    assert history.epoch == [0]


def test_a_fit_that_raised_can_be_repeated(tmp_path: Path) -> None:
    class Bug(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if int(self.model.optimizer.iterations) == 7:
                raise RuntimeError("bug")

    with pytest.raises(RuntimeError, match="bug"):
        make().fit(data(), epochs=2, verbose=0, callbacks=[BackupAndRestore(tmp_path), Bug()])
    history = make().fit(data(), epochs=2, verbose=0, callbacks=[BackupAndRestore(tmp_path)])
    assert history.epoch == [0, 1]
    as_in_a_new_process()


def test_changed_data_is_refused_by_name(tmp_path: Path) -> None:
    make().fit(data(), epochs=1, verbose=0, callbacks=[BackupAndRestore(tmp_path)])
    with pytest.raises(
        CheckpointMismatchError, match="batch_size: checkpoint has 4, this run has 5"
    ):
        make().fit(data(5), epochs=2, verbose=0, callbacks=[BackupAndRestore(tmp_path)])
    with pytest.raises(CheckpointMismatchError, match="this run has plain arrays"):
        make().fit(SPARSE, Y, epochs=2, verbose=0, callbacks=[BackupAndRestore(tmp_path)])


def test_another_model_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    make().fit(data(), epochs=1, verbose=0, callbacks=[BackupAndRestore(tmp_path)])
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("adam", "mse", metrics=["mae"])
    before = model.get_weights()
    with pytest.raises(CheckpointMismatchError, match="another model"):
        model.fit(data(), epochs=2, verbose=0, callbacks=[BackupAndRestore(tmp_path)])
    for mine, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert steps(tmp_path) == [0, 5]


class TestChangedScript:
    """A run that goes on with another learning rate, loss and dropout rate."""

    def fit(self, folder: Path, changed: bool = False, epochs: int = 3, **arguments: Any) -> float:
        """Train, and return the learning rate at the end; a callback changes it as well."""
        model = make()
        if changed:
            model.layers[1].rate = 0.5
            model.compile("adam", "mae", metrics=["mae"])
            model.optimizer.learning_rate = 0.25
        reduce = ReduceLROnPlateau("loss", patience=1, min_delta=100)
        backup = BackupAndRestore(folder, **arguments)
        model.fit(data(), epochs=epochs, verbose=0, callbacks=[reduce, backup])
        return float(model.optimizer.learning_rate)

    @pytest.fixture(scope="class")
    def trained(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("trained")
        self.fit(folder, epochs=2)
        return folder

    @pytest.fixture
    def run(self, trained: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(trained, tmp_path / "run"))

    def test_the_same_script_says_nothing(self, run: Path, capfd: Any) -> None:
        self.fit(run, on_change="error")
        assert "changed" not in capfd.readouterr().err

    def test_what_differs_is_said_once(self, run: Path, capfd: Any) -> None:
        assert self.fit(run, changed=True) == pytest.approx(1e-5)
        said = capfd.readouterr().err
        assert f"the script has changed since {run}/checkpoints/10 was written" in said
        assert "dropout.rate: checkpoint 0.2, script 0.5; the script's is used" in said
        assert "loss: checkpoint mse, script mae; the script's is used" in said
        assert "learning_rate: checkpoint 0.001, script 0.25; the checkpoint's (0.0001" in said
        as_in_a_new_process()
        self.fit(run, changed=True)
        assert "changed" not in capfd.readouterr().err

    def test_the_way_to_change_the_learning_rate(self, run: Path) -> None:
        model = make()
        scheduler = LearningRateScheduler(lambda epoch: 0.25)
        callbacks = [scheduler, BackupAndRestore(run)]
        model.fit(data(), epochs=3, verbose=0, callbacks=callbacks)
        assert float(model.optimizer.learning_rate) == 0.25

    def test_error(self, run: Path) -> None:
        before = sorted(run.rglob("*"))
        with pytest.raises(CheckpointMismatchError, match=r"The script has changed .*\n.*rate: "):
            self.fit(run, changed=True, on_change="error")
        assert sorted(run.rglob("*")) == before

    def test_ignore(self, run: Path, capfd: Any) -> None:
        self.fit(run, changed=True, on_change="ignore")
        assert "changed" not in capfd.readouterr().err

    def test_an_unknown_value(self, run: Path) -> None:
        with pytest.raises(ConfigurationError, match="`on_change='raise'` must be"):
            BackupAndRestore(run, on_change="raise")  # type: ignore[arg-type]


@pytest.mark.usefixtures("every_save_is_waited_for")
def test_sparse_arrays_resume_at_epochs(tmp_path: Path, capfd: Any) -> None:
    def fit(*callbacks: Any) -> Any:
        model, callbacks = make(), (*callbacks, BackupAndRestore(tmp_path))
        return model.fit(SPARSE, Y, batch_size=4, epochs=3, verbose=0, callbacks=callbacks)

    with pytest.raises(Preempted):
        fit(StopAt(12))
    assert "pass dense arrays" in capfd.readouterr().err
    as_in_a_new_process()
    assert steps(tmp_path)[-1] == 10
    recorder = Recorder()
    assert fit(recorder).epoch == [0, 1, 2]
    assert recorder.seen[0] == ("epoch", 2)


def test_another_class_weight_is_a_changed_argument(tmp_path: Path, capfd: Any) -> None:
    labels = (Y[:, 0] > 0).astype("int64")
    for epochs, weight in enumerate((None, {0: 1.0, 1: 3.0}), start=1):
        make().fit(
            X, labels, epochs=epochs, class_weight=weight, verbose=0,
            callbacks=[BackupAndRestore(tmp_path)],
        )  # fmt: skip
        said = capfd.readouterr().err
        assert ("fit.class_weight" in said) == (epochs > 1)
        as_in_a_new_process()
    with pytest.raises(CheckpointMismatchError, match="other training data"):
        make().fit(
            X, labels[::-1], epochs=3, class_weight={0: 1.0, 1: 3.0}, verbose=0,
            callbacks=[BackupAndRestore(tmp_path)],
        )  # fmt: skip


def test_sparse_arrays_cannot_be_saved_within_an_epoch(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"`save_freq` in steps .*was given csr_matrix"):
        make().fit(SPARSE, Y, verbose=0, callbacks=[BackupAndRestore(tmp_path, save_freq=5)])


@pytest.mark.parametrize("steps_per_epoch", [None, 3])
def test_arrays_resume_at_the_very_step(steps_per_epoch: int | None, tmp_path: Path) -> None:
    def fit(folder: Path, *callbacks: Any) -> Any:
        model, callbacks = make(), (*callbacks, BackupAndRestore(folder))
        options: dict[str, Any] = {"steps_per_epoch": steps_per_epoch, "callbacks": callbacks}
        options |= {"batch_size": 4, "validation_split": 0.2, "class_weight": {0: 1.0, 1: 2.0}}
        return model.fit(X, Y > 0, epochs=3, verbose=0, **options)

    straight = fit(tmp_path / "straight")
    for step in (1, 6):
        with pytest.raises(Preempted):
            fit(tmp_path, StopAt(step))
        as_in_a_new_process()
        assert steps(tmp_path)[-1] == step
    assert fit(tmp_path).history == straight.history


def test_arrays_of_a_run_that_left_them_to_keras(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    def fit(epochs: int, x: Any = X) -> Any:
        model = make()
        model.fit(x, Y, epochs=epochs, verbose=0, callbacks=[BackupAndRestore(tmp_path)])
        return model

    with monkeypatch.context() as patch:  # As old versions did.
        patch.setattr(trainer_wrapper, "resumable_arguments", lambda *given: {})
        fit(2)
        capfd.readouterr()
    with pytest.raises(CheckpointMismatchError, match="other examples, or in another order"):
        fit(3, np.roll(X, 1, 0))
    assert "left this data to Keras" not in capfd.readouterr().err
    model = fit(3)
    assert model.history.epoch == [0, 1, 2]
    assert int(model.optimizer.iterations) == 3
    assert "left this data to Keras. From here on" in capfd.readouterr().err


def test_steps_per_epoch_needs_a_repeated_dataset(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"`steps_per_epoch=3` differs.*repeat\(\)"):
        make().fit(data(), steps_per_epoch=3, verbose=0, callbacks=[BackupAndRestore(tmp_path)])
    with pytest.raises(ConfigurationError, match="pass `steps_per_epoch`"):
        make().fit(data().repeat(), verbose=0, callbacks=[BackupAndRestore(tmp_path)])


@pytest.mark.parametrize("step", [2, 3, 7, 11])
def test_steps_per_epoch_resumes_exactly(step: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 5, "steps_per_epoch": 3, "verbose": 0}
    straight = make().fit(
        data().repeat(), callbacks=[BackupAndRestore(tmp_path / "straight")], **options
    )
    with pytest.raises(Preempted):
        make().fit(data().repeat(), callbacks=[StopAt(step), BackupAndRestore(tmp_path)], **options)
    as_in_a_new_process()
    resumed = make().fit(data().repeat(), callbacks=[BackupAndRestore(tmp_path)], **options)
    assert resumed.history == straight.history


@pytest.mark.parametrize("step", [3, 5, 7])
def test_steps_per_epoch_of_the_whole_dataset_resumes_exactly(step: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 3, "steps_per_epoch": 5, "verbose": 0}
    straight = make().fit(data(), callbacks=[BackupAndRestore(tmp_path / "straight")], **options)
    with pytest.raises(Preempted):
        make().fit(data(), callbacks=[StopAt(step), BackupAndRestore(tmp_path)], **options)
    as_in_a_new_process()
    resumed = make().fit(data(), callbacks=[BackupAndRestore(tmp_path)], **options)
    assert resumed.history == straight.history
    assert resumed.epoch == [0, 1, 2]


class PerFeature(keras.metrics.Metric):
    """A metric whose result is not a number but an array."""

    def __init__(self) -> None:
        super().__init__(name="sums")
        self.sums = self.add_weight(shape=(2,), initializer="zeros", name="sums")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        self.sums.assign_add(tf.reduce_sum(tf.concat([y_true, y_pred], 1), axis=0))

    def result(self) -> Any:
        return tf.identity(self.sums)


def test_metrics_that_are_arrays(tmp_path: Path) -> None:
    def model() -> keras.Model:
        made = make()
        made.compile("adam", "mse", metrics=[PerFeature()])
        return made

    options: dict[str, Any] = {"epochs": 2, "validation_data": data(), "verbose": 0}
    straight = model().fit(data(), callbacks=[BackupAndRestore(tmp_path / "straight")], **options)
    with pytest.raises(Preempted):
        model().fit(data(), callbacks=[StopAt(5), BackupAndRestore(tmp_path)], **options)
    as_in_a_new_process()
    resumed = model().fit(data(), callbacks=[BackupAndRestore(tmp_path)], **options)
    assert resumed.history.keys() == straight.history.keys()
    for name, values in straight.history.items():
        np.testing.assert_array_equal(resumed.history[name], values)
    assert np.shape(straight.history["sums"]) == (2, 2)


def test_class_weight_and_mapped_batches_resume_exactly(tmp_path: Path) -> None:
    def labels() -> Any:
        dataset = make_dataset((X, (Y[:, 0] > 0).astype("int64")), 4, shuffle=True, seed=1)
        return dataset.map(lambda x, y: (x * 2, y)).prefetch(2)

    options: dict[str, Any] = {"epochs": 3, "class_weight": {0: 1.0, 1: 3.0}, "verbose": 0}
    straight = make().fit(labels(), callbacks=[BackupAndRestore(tmp_path / "s")], **options)
    with pytest.raises(Preempted):
        make().fit(labels(), callbacks=[StopAt(7), BackupAndRestore(tmp_path)], **options)
    as_in_a_new_process()
    resumed = make().fit(labels(), callbacks=[BackupAndRestore(tmp_path)], **options)
    assert resumed.history == straight.history
    assert len(resumed.history["loss"]) == 3


MADE = {
    "take": lambda: data().take(3),
    "skip": lambda: data().skip(2).enumerate().map(lambda step, batch: batch),
    "zip": lambda: make_dataset(X, 4, True, 1).zip(make_dataset(Y, 4, True, 1)),
    "concatenate": lambda: data().take(1).concatenate(data(10)),
}


@pytest.mark.parametrize(
    "name",
    [
        "take",
        "zip",
        *(pytest.param(it, marks=pytest.mark.exhaustive) for it in ("skip", "concatenate")),
    ],
)
def test_what_methods_have_made_of_a_dataset_resumes_exactly(name: str, tmp_path: Path) -> None:
    def fit(folder: Path, *callbacks: Any) -> Any:
        validation = make_dataset((X, Y), 4).cache().take(2)
        callbacks = (*callbacks, BackupAndRestore(folder))
        return make().fit(
            MADE[name](), epochs=3, verbose=0, validation_data=validation, callbacks=[*callbacks]
        )

    straight = fit(tmp_path / "straight")
    with pytest.raises(Preempted):
        fit(tmp_path, StopAt(5))
    as_in_a_new_process()
    assert fit(tmp_path).history == straight.history


def test_what_cannot_be_resumed_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"by `filter`, which loses its position"):
        make().fit(
            data().filter(lambda x, y: True), verbose=0, callbacks=[BackupAndRestore(tmp_path)]
        )
    assert not [*tmp_path.iterdir()]


def test_a_changed_augmentation_is_said_and_arrays_are_read_once(
    tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Any] = []

    def counted(columns: Any) -> Any:
        read.append(columns)
        return contents_of(columns)

    monkeypatch.setattr("distrib.data.dataset.contents_of", counted)

    def fit(epochs: int, factor: float, **arguments: Any) -> None:
        made = data().map(lambda x, y: (x * factor, y))
        validation, backup = make_dataset((X, Y), 4), BackupAndRestore(tmp_path, **arguments)
        make().fit(made, epochs=epochs, verbose=0, validation_data=validation, callbacks=[backup])

    fit(1, 1.0)
    assert len(read) == 2
    with pytest.raises(CheckpointMismatchError, match=r"data.x.functions.Dataset.map: checkpoint"):
        fit(2, 2.0, on_change="error")
    fit(2, 1.0, on_change="error")
    assert "the script has" not in capfd.readouterr().err


def test_two_of_them_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="two BackupAndRestore"):
        make().fit(
            data(),
            verbose=0,
            callbacks=[BackupAndRestore(tmp_path / "a"), BackupAndRestore(tmp_path / "b")],
        )


def test_harmless_in_evaluate_and_predict(tmp_path: Path) -> None:
    model = make()
    backup = BackupAndRestore(tmp_path)
    model.evaluate(data(), verbose=0, callbacks=[backup])
    model.predict(X, verbose=0, callbacks=[backup])
    assert not (tmp_path / "checkpoints").exists()


def test_a_training_loop_of_the_users_own_is_refused(tmp_path: Path) -> None:
    mine = keras.callbacks.CallbackList([BackupAndRestore(tmp_path)], model=make(), epochs=1)
    with pytest.raises(ConfigurationError, match=r"works in `model\.fit` only"):
        mine.on_train_begin()


@pytest.mark.usefixtures("every_save_is_waited_for")
def test_a_callback_list_of_the_users_own(tmp_path: Path) -> None:
    class Mine(keras.callbacks.CallbackList):
        pass

    model = make()
    mine = Mine(
        [BackupAndRestore(tmp_path)], add_history=True, model=model, epochs=2, steps=5, verbose=0
    )
    model.fit(data(), epochs=2, verbose=0, callbacks=mine)
    assert isinstance(mine, Mine)
    assert steps(tmp_path)[-1] == 10


def test_what_the_checkpoint_says_is_json_and_orbax(tmp_path: Path) -> None:
    make().fit(data(), epochs=1, verbose=0, callbacks=[BackupAndRestore(tmp_path)])
    import orbax.checkpoint as ocp

    tree = ocp.PyTreeCheckpointer().restore(tmp_path / "checkpoints" / "5" / "arrays")
    assert {"model", "optimizer", "metrics", "callbacks"} <= set(tree)
    training = json.loads((tmp_path / "checkpoints" / "5" / "training" / "metadata").read_text())
    assert training["position"] == {
        "step": 5, "epoch": 1, "batch": 0, "train_done": False, "stop": False,
    }  # fmt: skip


def test_progress_bar_continues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Preempted):
        make().fit(data(), epochs=1, verbose=1, callbacks=[StopAt(3), BackupAndRestore(tmp_path)])
    as_in_a_new_process()
    capsys.readouterr()
    make().fit(data(), epochs=1, verbose=1, callbacks=[BackupAndRestore(tmp_path)])
    out = capsys.readouterr().out
    assert "4/5" in out
    assert "1/5" not in out


@pytest.mark.usefixtures("every_save_is_waited_for")
def test_an_unfinished_tf_dataset_pass_is_not_needed(tmp_path: Path) -> None:
    """A plain tf.data.Dataset is resumed at the beginning of an epoch."""
    plain = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    make().fit(plain, epochs=2, verbose=0, callbacks=[BackupAndRestore(tmp_path)])
    assert steps(tmp_path) == [0, 5, 10]
