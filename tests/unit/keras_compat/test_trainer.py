"""These fail when a Keras release changes what `keras_compat/trainer.py` relies on."""

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.backend.tensorflow.trainer import TensorFlowTrainer

from distrib.keras_compat import trainer

X = np.arange(12, dtype="float32").reshape(12, 1)
REPLACED = ("_maybe_symbolic_build", "_get_metrics_result_or_logs")


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for method in ("fit", "evaluate"):
        monkeypatch.setattr(TensorFlowTrainer, method, vars(TensorFlowTrainer)[method])
    before = {name: vars(keras.Model).get(name) for name in REPLACED}
    yield
    for name, value in before.items():
        if value is not None:
            setattr(keras.Model, name, value)
        elif name in vars(keras.Model):
            delattr(keras.Model, name)


def make() -> Any:
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae"])
    return model


def test_a_wrapped_method_gets_all_arguments_by_name() -> None:
    def around(call: trainer.Call) -> Any:
        seen.append((call.model, call.arguments))
        return call.proceed()

    seen: list[Any] = []
    trainer.wrap("fit", around)
    model = make()
    assert len(model.fit(X, X, 4, epochs=2, verbose=0).history["loss"]) == 2
    ((whose, arguments),) = seen
    assert whose is model
    assert {"batch_size": 4, "epochs": 2, "initial_epoch": 0}.items() <= arguments.items()
    assert {"x", "callbacks", "validation_data", "steps_per_epoch", "verbose"} <= arguments.keys()


def test_validation_evaluates_with_the_callback_list_of_the_fit() -> None:
    def around(call: trainer.Call) -> Any:
        seen.append((call.arguments["callbacks"], call.arguments["_use_cached_eval_dataset"]))
        return call.proceed()

    seen: list[Any] = []
    trainer.wrap("evaluate", around)
    model = make()
    mine = keras.callbacks.CallbackList([], add_history=True, model=model)
    model.fit(X, X, verbose=0, validation_data=(X, X), callbacks=mine)
    assert seen == [(mine, True)]


@pytest.mark.parametrize("method", ["fit", "evaluate"])
def test_the_iterator_is_announced_before_callbacks_begin(method: str) -> None:
    class Begins(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            events.append("begin")

        on_test_begin = on_train_begin

    events: list[Any] = []
    trainer.on_iterator(lambda model, iterator: events.append(iterator))
    getattr(make(), method)(X, X, 4, verbose=0, callbacks=[Begins()])
    iterator, begin = events
    assert begin == "begin"
    assert iterator.num_batches == 3
    x, y = trainer.element_spec_of(iterator)
    assert x.shape[1:] == y.shape[1:] == (1,)


def test_steps_of_an_iterator_are_those_given() -> None:
    iterators: list[Any] = []
    trainer.on_iterator(lambda model, iterator: iterators.append(iterator))
    make().fit(X, X, 4, verbose=0)
    make().fit(X, X, 4, verbose=0, steps_per_epoch=2)
    assert [iterator.steps_per_epoch for iterator in iterators] == [None, 2]


def test_a_restarted_iterator_begins_anew() -> None:
    class Restarts(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            trainer.restart(iterators[0])

    iterators: list[Any] = []
    trainer.on_iterator(lambda model, iterator: iterators.append(iterator))
    data = tf.data.Dataset.from_tensor_slices((X, X)).batch(4)

    def losses(*callbacks: Any) -> list[float]:
        iterators.clear()
        model = make()
        model.optimizer.learning_rate = 0.0  # So a loss says which batches it is of.
        arguments = {"epochs": 2, "steps_per_epoch": 2, "verbose": 0, "callbacks": list(callbacks)}
        found: list[float] = model.fit(data, **arguments).history["loss"]
        return found

    first, second = losses()
    assert first != second
    first, second = losses(Restarts())
    assert first == second


def test_results_are_replaced_in_fit_and_evaluate() -> None:
    def results(model: Any, logs: Mapping[str, Any]) -> Mapping[str, Any]:
        own = trainer.own_results(model, logs)
        assert set(own) == {"loss", "mae"}
        return {**own, "mine": 1.0}

    trainer.replace_results(results)
    history = make().fit(X, X, verbose=0, validation_data=(X, X)).history
    assert history["mine"] == history["val_mine"] == [1.0]
    assert make().evaluate(X, X, verbose=0, return_dict=True)["mine"] == 1.0


def test_a_model_is_built_without_a_step() -> None:
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("adam", "mse", metrics=["mae"])
    spec = tf.TensorSpec([None, 1], tf.float32)
    trainer.build_symbolically(model, (spec, spec))
    assert model.built
    assert model.optimizer.built
    assert model.optimizer.iterations.numpy() == 0
    assert {metric.name for metric in model.metrics} >= {"loss"}


def test_fit_begins_with_the_epoch_that_is_set() -> None:
    model = make()
    trainer.set_initial_epoch(model, 3)
    assert model.fit(X, X, epochs=5, verbose=0).epoch == [3, 4]
    trainer.set_initial_epoch(model, None)
    assert model.fit(X, X, epochs=2, verbose=0).epoch == [0, 1]


def test_the_loss_tracker_holds_the_mean_loss() -> None:
    model = make()
    history = model.fit(X, X, 4, verbose=0).history
    assert float(trainer.loss_tracker_of(model).result()) == pytest.approx(history["loss"][0])


def test_hooks_are_called_in_the_thread_that_trains() -> None:
    class Notes(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            threads.append(threading.current_thread())

    threads: list[threading.Thread] = []
    model = make()
    mine = keras.callbacks.CallbackList([Notes()], add_history=True, model=model)
    assert {"_async_train", "_async_test"} <= vars(mine).keys()
    mine._async_train = mine._async_test = True  # As Keras sets it where the backend allows.
    trainer.call_hooks_synchronously(mine)
    model.fit(X, X, 4, verbose=0, callbacks=mine)
    assert threads == [threading.main_thread()] * 3
    threads.clear()
    mine._async_train = True
    model.fit(X, X, 4, verbose=0, callbacks=mine)
    assert threading.main_thread() not in threads
