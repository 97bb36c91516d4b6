"""The wrapped `fit` does what Keras's does, however it is called."""

import functools
import inspect
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from distrib.callbacks import BackupAndRestore, CSVLogger
from distrib.checkpoint.directory import CheckpointDirectory
from distrib.data.make_dataset import make_dataset
from distrib.errors import ConfigurationError
from distrib.heartbeat import Heartbeat
from distrib.storage.locate import locate
from distrib.training import fit_session, trainer_wrapper
from distrib.training.fit_call import call_of, fit_of

X = np.arange(12, dtype="float32").reshape(12, 1)
Y = 2 * X


@pytest.fixture(autouse=True)
def _wrapped() -> None:
    trainer_wrapper.install()


def make(kind: Callable[..., Any] = keras.Sequential) -> Any:
    keras.utils.set_random_seed(1)
    model = kind([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def data() -> Any:
    return make_dataset((X, Y), batch_size=4, shuffle=True)


def steps(directory: Path) -> list[int]:
    checkpoints = CheckpointDirectory(locate(directory, "directory")).checkpoints()
    return sorted(checkpoint.manifest.step for checkpoint in checkpoints)


class Looks(keras.callbacks.Callback):
    """Calls something at the end of the first epoch."""

    def __init__(self, look: Callable[[], Any]) -> None:
        super().__init__()
        self._look = look

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if epoch == 0:
            self.found = self._look()


def test_installing_again_changes_nothing() -> None:
    fit = keras.Model.fit
    trainer_wrapper.install()
    assert keras.Model.fit.__wrapped__ is fit.__wrapped__
    assert keras.Model.fit.__doc__ == fit.__doc__
    assert inspect.signature(keras.Model.fit) == inspect.signature(fit)


def test_the_plainest_script(tmp_path: Path) -> None:
    """In a process of its own: nothing has wrapped `fit` before."""
    script = (
        "import keras, numpy as np\n"
        "from distrib.callbacks import BackupAndRestore\n"
        "model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])\n"
        "model.compile('sgd', 'mse')\n"
        "x = np.ones((8, 1))\n"
        f"model.fit(x, x, verbose=0, callbacks=[BackupAndRestore({str(tmp_path)!r})])\n"
    )
    subprocess.run([sys.executable, "-P", "-c", script], check=True)
    assert steps(tmp_path)[-1] == 1


@pytest.mark.parametrize("wraps", [False, True])
def test_what_patches_fit_gets_what_the_user_passes(
    tmp_path: Path, wraps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As experiment trackers do, which add a callback of their own."""

    class Tracker(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            tracked.append(epoch)

    def patched(self: Any, *args: Any, **kw: Any) -> Any:
        kw["callbacks"] = [*(kw.get("callbacks") or []), Tracker()]
        return original(self, *args, **kw)

    tracked: list[int] = []
    original = keras.Model.fit
    monkeypatch.setattr(
        keras.Model, "fit", functools.wraps(original)(patched) if wraps else patched
    )
    trainer_wrapper.install()
    make().fit(X, Y, epochs=2, verbose=0)
    make().fit(data(), epochs=2, verbose=0, callbacks=[BackupAndRestore(tmp_path)])
    assert tracked == [0, 1, 0, 1]
    assert steps(tmp_path)[-1] == 6


def test_what_goes_past_the_wrapper_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    past = keras.Model.fit.__wrapped__
    with pytest.raises(ConfigurationError, match=r"import distrib\.callbacks first"):
        past(make(), X, Y, verbose=0, callbacks=[BackupAndRestore(tmp_path)])
    monkeypatch.setattr(trainer_wrapper, "_has_ranks", lambda: True)
    with pytest.raises(ConfigurationError, match=r"Call `distrib\.init\(\)` first"):
        past(make(), X, Y, verbose=0)


def test_fit_is_a_function_of_the_model() -> None:
    assert len(keras.Model.fit(self=make(), x=X, y=Y, epochs=2, verbose=0).epoch) == 2
    assert len(keras.Model.fit(make(), X, Y, 4, 2, 0).epoch) == 2


def test_a_plain_fit_is_passed_on() -> None:
    model = make()
    looks = Looks(lambda: (call_of(model), type(listed[0])))
    listed: list[Any] = []

    class Mine(keras.callbacks.CallbackList):
        def on_train_begin(self, logs: Any = None) -> None:
            listed.append(self)
            super().on_train_begin(logs)

    model.fit(X, Y, verbose=0, callbacks=Mine([looks], add_history=True, model=model))
    assert looks.found == (None, Mine)


def test_arguments_by_position_and_results_are_kerass(tmp_path: Path) -> None:
    plain = make().fit(X, Y, 4, 2, 0, shuffle=False).history
    saved = make().fit(X, Y, 4, 2, 0, [BackupAndRestore(tmp_path)], shuffle=False).history
    assert saved == plain


def test_validation_split(tmp_path: Path) -> None:
    def fit(*callbacks: Any) -> Any:
        arguments = {"epochs": 2, "validation_split": 0.25, "shuffle": False, "verbose": 0}
        return make().fit(X, Y, callbacks=list(callbacks), **arguments).history

    assert fit(BackupAndRestore(tmp_path)) == fit()


def test_wrong_arguments_are_refused_in_kerass_words(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'epoch'"):
        make().fit(X, Y, epoch=2)
    with pytest.raises(ValueError, match="Arguments not recognized"):
        make().evaluate(X, Y, stepps=2)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="You must call `compile"):
        model.fit(X, Y, callbacks=[BackupAndRestore(tmp_path)])


def test_a_subclass_that_overrides_fit(tmp_path: Path) -> None:
    class Mine(keras.Sequential):
        def fit(self, *args: Any, **kwargs: Any) -> Any:
            kwargs["callbacks"] = [*kwargs["callbacks"], BackupAndRestore(tmp_path)]
            return super().fit(*args, **kwargs)

    make(Mine).fit(data(), epochs=2, verbose=0, callbacks=[])
    assert steps(tmp_path)[-1] == 6


def test_a_subclass_with_a_loop_of_its_own_is_refused(tmp_path: Path) -> None:
    class Mine(keras.Sequential):
        def fit(self, x: Any, callbacks: Any) -> None:
            listed = keras.callbacks.CallbackList(callbacks, model=self)
            listed.on_train_begin()

    with pytest.raises(ConfigurationError, match=r"works in `model\.fit` only"):
        make(Mine).fit(X, [BackupAndRestore(tmp_path)])


def test_nested_lists_of_callbacks(tmp_path: Path) -> None:
    callbacks = [[CSVLogger(tmp_path / "log.csv")], [[BackupAndRestore(tmp_path / "run")]]]
    make().fit(data(), verbose=0, callbacks=callbacks)
    assert steps(tmp_path / "run")[-1] == 3


def test_hooks_of_a_callback_list_of_the_users_own(tmp_path: Path) -> None:
    class Mine(keras.callbacks.CallbackList):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            seen.append(batch)
            self.count = len(seen)
            super().on_train_batch_end(batch, logs)

    seen: list[int] = []
    model = make()
    mine = Mine([BackupAndRestore(tmp_path)], add_history=True, model=model, epochs=1, steps=3)
    history = model.fit(data(), verbose=0, callbacks=mine)
    assert seen == [0, 1, 2]
    assert mine.count == 3
    assert len(history.history["loss"]) == 1


def test_a_fit_inside_of_a_fit(tmp_path: Path) -> None:
    inner, outer = make(), make()

    def fit_inner() -> Any:
        backup = BackupAndRestore(tmp_path / "inner")
        inner.fit(data(), epochs=3, verbose=0, callbacks=[backup])
        return fit_of(inner), fit_of(outer).epochs

    looks = Looks(fit_inner)
    outer.fit(data(), epochs=2, verbose=0, callbacks=[looks, BackupAndRestore(tmp_path / "outer")])
    assert looks.found == (None, 2)
    assert (steps(tmp_path / "inner")[-1], steps(tmp_path / "outer")[-1]) == (9, 6)
    np.testing.assert_array_equal(outer.get_weights()[0], make_fitted(2))
    np.testing.assert_array_equal(inner.get_weights()[0], make_fitted(3))


def make_fitted(epochs: int) -> Any:
    model = make()
    model.fit(data(), epochs=epochs, verbose=0)
    return model.get_weights()[0]


def test_an_evaluation_inside_of_a_fit(tmp_path: Path) -> None:
    model = make()
    looks = Looks(lambda: model.evaluate(X, Y, verbose=0))
    model.fit(data(), epochs=2, verbose=0, callbacks=[looks, BackupAndRestore(tmp_path)])
    assert looks.found > 0
    np.testing.assert_array_equal(model.get_weights()[0], make_fitted(2))


def test_two_models_in_two_threads(tmp_path: Path) -> None:
    models = [make(), make()]

    def fit(number: int) -> None:
        backup = BackupAndRestore(tmp_path / str(number))
        models[number].fit(data(), epochs=number + 2, verbose=0, callbacks=[backup])

    threads = [threading.Thread(target=fit, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [steps(tmp_path / str(number))[-1] for number in range(2)] == [6, 9]


@pytest.mark.usefixtures("_limit")
def test_keras_may_limit_the_epochs(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Limiting epochs"):
        history = make().fit(data(), epochs=5, verbose=0, callbacks=[BackupAndRestore(tmp_path)])
    assert len(history.history["loss"]) == 2
    assert steps(tmp_path)[-1] == 6


@pytest.fixture
def _limit() -> Iterator[None]:
    keras.config.set_max_epochs(2)
    yield
    keras.config.set_max_epochs(None)


@pytest.mark.parametrize("fails", [False, True])
def test_signals_are_given_back(tmp_path: Path, fails: bool) -> None:
    def look() -> Any:
        during.append(signal.getsignal(signal.SIGINT))
        if fails:
            raise ValueError("a bug in the script")

    during: list[Any] = []
    model = make()
    before = signal.getsignal(signal.SIGINT)
    try:
        model.fit(data(), epochs=2, verbose=0, callbacks=[Looks(look), BackupAndRestore(tmp_path)])
    except ValueError:
        assert fails
    assert during[0] is not before
    assert signal.getsignal(signal.SIGINT) is before
    assert call_of(model) is None


def test_a_fit_that_raised_leaves_no_epoch_behind(tmp_path: Path) -> None:
    def fails() -> None:
        raise ValueError("a bug in the script")

    make().fit(data(), epochs=3, verbose=0, callbacks=[BackupAndRestore(tmp_path)])
    model = make()
    fails_later = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: fails())
    with pytest.raises(ValueError, match="a bug"):
        model.fit(data(), epochs=5, verbose=0, callbacks=[fails_later, BackupAndRestore(tmp_path)])
    assert model.fit(X, Y, epochs=2, verbose=0).epoch == [0, 1]


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("saved", [False, True])
def test_a_dataset_of_distrib_is_trained_without_a_warning(saved: bool, tmp_path: Path) -> None:
    """Keras warns that it ignores `shuffle=True` with a dataset, even as its own default."""
    callbacks = [BackupAndRestore(tmp_path)] if saved else []
    make().fit(data(), epochs=2, verbose=0, callbacks=callbacks, validation_data=data())
    with pytest.warns(UserWarning, match="`shuffle=True` was passed"):
        make().fit(data(), shuffle=True, verbose=0)


def test_a_fit_reports_where_it_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    reader, writer = os.pipe()
    monkeypatch.setattr(fit_session, "heartbeat", Heartbeat(writer))
    for epochs in (1, 2):
        make().fit(data(), epochs=epochs, verbose=0, callbacks=[BackupAndRestore(tmp_path / "r")])
    reports = [json.loads(line) for line in os.read(reader, 1 << 20).splitlines()]
    os.close(reader)
    os.close(writer)
    seen = [(each["run"], each["found"], each["resumed"], each["finished"]) for each in reports]
    run = str(tmp_path / "r")
    assert seen == [
        *((run, False, 0, False), (run, False, 0, True)),
        *((run, True, 3, False), (run, True, 3, True)),
    ]
    assert caplog.text.count(f"nothing is saved in {run} yet, although Slurm") == 1
