"""Checks that all ranks of one job make together: run by `test_ranks.py`.

    distrib run -np 2 rank_checks.py REPORT.json [CHECK ...]

Starting ranks is slow, so one job makes all checks in turn. Every rank calls each check; the ranks'
return values must be equal, and failures are reported by the check's name.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import distrib
from distrib.backends import local
from distrib.backends.horovod_keras import explain
from distrib.callbacks import (
    BackupAndRestore,
    EarlyStopping,
    LearningRateWarmup,
    ReduceLROnPlateau,
    TerminateOnNaN,
)
from distrib.checkpoint.directory import CheckpointDirectory
from distrib.cluster import Cluster
from distrib.data.make_dataset import make_dataset
from distrib.errors import CheckpointMismatchError, ConfigurationError
from distrib.gradients.optimizer import reduction_of
from distrib.gradients.step_payload import Request
from distrib.storage.locate import locate

CHECKS: dict[str, Callable[[Cluster], Any]] = {}
ALONE = Cluster(local.LocalBackend())


def check(function: Callable[[Cluster], Any]) -> Callable[[Cluster], Any]:
    CHECKS[function.__name__] = function
    return function


def data(n: int = 93, width: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    x = rng.normal(size=(n, width)).astype("float32")
    return x, (x[:, :1] + rng.normal(size=(n, 1)) > 0).astype("float32")


def model_of(cluster: Cluster, optimizer: Any, seed: int = 1, **options: Any) -> keras.Model:
    """A model with the same initial weights on all ranks, reduced over the ranks of `cluster`."""
    keras.utils.set_random_seed(seed)
    with cluster.scope():
        model = keras.Sequential(
            [keras.Input((6,)), keras.layers.Dense(5, "relu"), keras.layers.Dense(1, "sigmoid")]
        )
        model.compile(
            cluster.optimizer(optimizer, **options.pop("how", {})),
            options.pop("loss", "binary_crossentropy"),
            **options,
        )
    return model


def steps(model: keras.Model, batches: Any) -> list[np.ndarray]:
    """Train without `fit`, which synchronises ranks: the step alone has to be right."""
    for x, y in batches:
        model.train_on_batch(x, y)
    return [variable.numpy() for variable in model.trainable_variables]


def close(one: list[np.ndarray], other: list[np.ndarray], tolerance: float = 1e-5) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def compare(cluster: Cluster, make: Callable[[], Any], tolerance: float = 1e-5, **how: Any) -> Any:
    """Train on each rank's part of every batch, and on whole batches on the chief alone."""
    x, y = data(24 * cluster.size)
    whole = cluster.dataset((x, y), 12 * cluster.size)
    mine = steps(model_of(cluster, make(), how=how), whole.repeat().take(6))
    if cluster.is_chief:
        alone = make_dataset((x, y), 12 * cluster.size)
        passes = {"backward_passes_per_step": how.get("backward_passes_per_step", 1)}
        close(mine, steps(model_of(ALONE, make(), how=passes), alone.repeat().take(6)), tolerance)
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(mine, start(), strict=True))
    return [value.tolist() for value in mine]


def start() -> list[np.ndarray]:
    return [variable.numpy() for variable in model_of(ALONE, "sgd").trainable_variables]


# Collectives


@check
def collectives_of_arrays(cluster: Cluster) -> Any:
    rank, size, those = cluster.rank, cluster.size, cluster.collectives
    for dtype in (np.int32, np.int64, np.float32, np.float64):
        value = np.array([[rank, 1], [rank * 2, -rank]], dtype)
        everybody = np.stack([[[r, 1], [r * 2, -r]] for r in range(size)]).astype(dtype)
        for op in ("sum", "max", "min"):
            result = those.allreduce(value, op)
            assert result.dtype == dtype
            np.testing.assert_array_equal(result, getattr(everybody, op)(axis=0))
    assert those.allreduce(rank).shape == ()
    those.barrier()


@check
def collectives_of_objects(cluster: Cluster) -> Any:
    rank, size, those = cluster.rank, cluster.size, cluster.collectives
    mine = {"rank": rank, "array": np.full((rank, 3), rank), "text": "x" * rank * 1000}
    gathered = those.allgather(mine)
    assert [item["rank"] for item in gathered] == list(range(size))
    assert gathered[-1]["array"].tolist() == [[size - 1] * 3] * (size - 1)
    for root in range(size):
        big = {"weights": [np.arange(100_000, dtype=np.float32) + rank, np.array(rank)], "n": None}
        received = those.broadcast(big if rank == root else None, root)
        np.testing.assert_array_equal(received["weights"][0][:2], [root, root + 1])
        assert received["weights"][1] == root
        received["weights"][0][0] = 7  # Not a view of something read-only.
    assert those.broadcast(None) is None
    with pytest.raises(ConfigurationError, match=r"different collectives: barrier on rank 0, allg"):
        those.allgather(1) if rank else those.barrier()
    return those.broadcast({"rank": rank})


# Optimizers


@check
def plain_optimizers(cluster: Cluster) -> Any:
    return [
        compare(cluster, lambda: keras.optimizers.SGD(0.1, momentum=0.9)),
        compare(cluster, lambda: keras.optimizers.Adam(0.05, amsgrad=True)),
    ]


@check
def other_optimizers(cluster: Cluster) -> Any:
    return [
        compare(cluster, lambda: keras.optimizers.RMSprop(0.01)),
        compare(cluster, lambda: keras.optimizers.Lion(0.01), 1e-4),
    ]


@check
def clipping_comes_after_the_reduction(cluster: Cluster) -> Any:
    return compare(cluster, lambda: keras.optimizers.SGD(1.0, global_clipnorm=0.05))


@check
def other_clipping_comes_after_the_reduction(cluster: Cluster) -> Any:
    return [
        compare(cluster, lambda: keras.optimizers.SGD(1.0, clipnorm=0.03)),
        compare(cluster, lambda: keras.optimizers.SGD(1.0, clipvalue=0.01)),
    ]


@check
def moving_averages_and_weight_decay(cluster: Cluster) -> Any:
    def make() -> Any:
        return keras.optimizers.AdamW(0.05, weight_decay=0.1, use_ema=True, ema_momentum=0.5)

    return compare(cluster, make)


@check
def loss_scaling(cluster: Cluster) -> Any:
    def make() -> Any:
        return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), 2.0**10)

    return compare(cluster, make)


@check
def loss_scaling_in_the_scope(cluster: Cluster) -> Any:
    with cluster.scope():
        inner = keras.optimizers.Adam(0.01)
        optimizer = keras.optimizers.LossScaleOptimizer(inner, 2.0**10, dynamic_growth_steps=2)
        model = model_of(cluster, optimizer)
    model.fit(cluster.dataset(data(), 8, shuffle=True), epochs=1, verbose=0)
    assert int(inner.iterations.numpy()) == 12
    return [variable.numpy().tolist() for variable in model.trainable_variables]


@check
def a_rank_that_overflows_makes_all_skip_the_step(cluster: Cluster) -> Any:
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), 2.0**10)
    model = model_of(cluster, optimizer)
    x, y = data(8)
    if cluster.rank == cluster.size - 1:
        x = x * np.inf
    after = steps(model, [(x, y)])
    close(after, start(), 0)
    assert float(optimizer.dynamic_scale.numpy()) == 2.0**9
    return [value.tolist() for value in after]


@check
def a_nan_on_one_rank_is_a_nan_on_all(cluster: Cluster) -> Any:
    x, y = data(8)
    if cluster.rank == cluster.size - 1:
        x = x * np.nan
    after = steps(model_of(cluster, keras.optimizers.SGD(0.1)), [(x, y)])
    assert np.isnan(after[0]).any()


@check
def gradients_in_half_precision(cluster: Cluster) -> Any:
    x, y = data(24 * cluster.size)
    batch = cluster.dataset((x, y), len(x))
    exact = steps(model_of(ALONE, keras.optimizers.SGD(1.0)), [(x, y)])
    results = []
    for compression, tolerance in (("fp16", 1e-3), ("bf16", 8e-3)):
        optimizer = keras.optimizers.SGD(1.0)
        rounded = steps(model_of(cluster, optimizer, how={"compression": compression}), batch)
        close(rounded, exact, tolerance)
        assert any((a != b).any() for a, b in zip(rounded, exact, strict=True))
        results.append([value.tolist() for value in rounded])
    return results


@check
def accumulated_gradients(cluster: Cluster) -> Any:
    return compare(
        cluster, lambda: keras.optimizers.SGD(0.3, clipnorm=0.1), backward_passes_per_step=3
    )


@check
def sums_instead_of_averages(cluster: Cluster) -> Any:
    x, y = data(8)
    one = steps(model_of(cluster, keras.optimizers.SGD(0.1), how={"op": "sum"}), [(x, y)])
    other = steps(model_of(ALONE, keras.optimizers.SGD(0.1 * cluster.size)), [(x, y)])
    close(one, other)


@check
def float64_models(cluster: Cluster) -> Any:
    keras.config.set_dtype_policy("float64")
    try:
        return compare(cluster, lambda: keras.optimizers.SGD(0.05, momentum=0.9), 1e-6)
    finally:
        keras.config.set_dtype_policy("float32")


@check
def gradients_of_embeddings(cluster: Cluster) -> Any:
    def train(cluster: Cluster, batches: Any) -> list[np.ndarray]:
        keras.utils.set_random_seed(2)
        model = keras.Sequential(
            [
                keras.Input((3,), dtype="int32"),
                keras.layers.Embedding(50, 4),
                keras.layers.Flatten(),
                keras.layers.Dense(1),
            ]
        )
        model.compile(cluster.optimizer(keras.optimizers.Adam(0.05)), "mse")
        return steps(model, batches)

    rng = np.random.default_rng(0)
    x, y = rng.integers(50, size=(12 * cluster.size, 3)), rng.normal(size=(12 * cluster.size, 1))
    mine = train(cluster, cluster.dataset((x, y), 6 * cluster.size))
    theirs = train(ALONE, make_dataset((x, y), 6 * cluster.size))
    close(mine, theirs)
    return [value.tolist() for value in mine]


class Sided(keras.Model):
    """Uses one layer on one rank only, and one layer on no rank."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self.both, self.one, self.none = (keras.layers.Dense(1) for _ in range(3))
        self.uses_one = cluster.rank == cluster.size - 1
        for layer in (self.both, self.one, self.none):
            layer.build((None, 6))

    def call(self, x: Any) -> Any:
        return self.both(x) + (self.one(x) if self.uses_one else 0.0)


@check
def a_gradient_that_only_one_rank_has(cluster: Cluster) -> Any:
    keras.utils.set_random_seed(1)
    model = Sided(cluster)
    model.compile(cluster.optimizer(keras.optimizers.SGD(0.1, weight_decay=0.5)), "mse")
    before = model.none.kernel.numpy()
    one = model.one.kernel.numpy()
    x, y = data(8)
    after = steps(model, [(x, y), (x, y)])
    assert not np.allclose(model.one.kernel.numpy(), one)
    close([model.none.kernel.numpy()], [before], 0)
    return [value.tolist() for value in after]


@check
def the_optimizer_is_saved_as_it_was(cluster: Cluster) -> Any:
    model = model_of(cluster, keras.optimizers.Adam(0.03))
    steps(model, [data(8)])
    assert type(model.optimizer) is keras.optimizers.Adam
    path = Path(tempfile.mkdtemp()) / "model.keras"
    model.save(path)
    loaded = keras.models.load_model(path)
    assert reduction_of(loaded.optimizer) is None
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    close([v.numpy() for v in loaded.variables], [v.numpy() for v in model.variables], 0)
    close(
        [v.numpy() for v in loaded.optimizer.variables],
        [v.numpy() for v in model.optimizer.variables],
        0,
    )
    copy = keras.optimizers.deserialize(keras.optimizers.serialize(model.optimizer))
    assert reduction_of(copy) is None


# Training


@check
def fit_begins_with_the_chiefs_state(cluster: Cluster) -> Any:
    model = model_of(cluster, keras.optimizers.SGD(0.0, momentum=0.9), seed=1 + cluster.rank)
    model.fit(cluster.dataset(data(), 8, shuffle=True), verbose=0)
    close([v.numpy() for v in model.trainable_variables], start(), 0)


@check
def dropout_differs_between_ranks(cluster: Cluster) -> Any:
    keras.utils.set_random_seed(4)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dropout(0.5, seed=1)])
    model.add(keras.layers.Dense(1))
    model.compile(cluster.optimizer("sgd"), "mse")
    model.fit(cluster.dataset(data(), 8, shuffle=True), verbose=0)
    masks = cluster.collectives.allgather(
        np.asarray(model.layers[0](np.ones((1, 64)), training=True) != 0)
    )
    assert not np.array_equal(masks[0], masks[1])


@check
def statistics_are_those_of_all_ranks(cluster: Cluster) -> Any:
    keras.utils.set_random_seed(4)
    norm = keras.layers.BatchNormalization()
    model = keras.Sequential([keras.Input((6,)), norm, keras.layers.Dense(1)])
    model.compile(cluster.optimizer("sgd"), "mse")
    model.fit(cluster.dataset(data(), 8, shuffle=True), epochs=2, verbose=0)
    return norm.moving_mean.numpy().tolist(), norm.moving_variance.numpy().tolist()


def metrics() -> list[Any]:
    return [
        "accuracy",
        keras.metrics.AUC(name="auc"),
        keras.metrics.Precision(name="precision"),
        keras.metrics.F1Score(threshold=0.5, name="f1"),
        keras.metrics.MeanSquaredError(name="mse"),
    ]


@check
def metrics_are_those_of_all_the_data(cluster: Cluster) -> Any:
    x, y = data(93)
    weight = np.linspace(0.5, 2.0, 93).astype("float32")
    options = {"metrics": metrics(), "weighted_metrics": [keras.metrics.MeanAbsoluteError()]}
    model = model_of(cluster, "sgd", **options)
    val = (x[:29], y[:29], weight[:29])
    rate = model.optimizer.learning_rate
    rate.assign(0.0)
    history = model.fit(
        cluster.dataset((x, y, weight), 16, shuffle=True),
        validation_data=cluster.dataset(val, 4),
        verbose=0,
    ).history
    results = model.evaluate(cluster.dataset(val, 4), return_dict=True, verbose=0)
    expected = model.evaluate(*val[:2], sample_weight=val[2], return_dict=True, verbose=0)
    whole = model.evaluate(x, y, sample_weight=weight, return_dict=True, verbose=0)
    for name, value in expected.items():
        np.testing.assert_allclose(results[name], value, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(history[f"val_{name}"][0], value, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(history[name][0], whole[name], rtol=1e-6, err_msg=name)
    return [np.asarray(value).tolist() for value in history.values()]


@check
def what_methods_have_made_of_a_dataset_is_shared_as_well(cluster: Cluster) -> Any:
    x, y = data(30)
    model = model_of(cluster, keras.optimizers.SGD(0.0), metrics=metrics())
    batches = cluster.dataset((x, y), 4)
    ordinary = batches.filter(lambda x, y: True)  # A part on each rank, and not divided again.
    history = model.fit(
        batches.skip(2).take(4),
        validation_data=ordinary.map(lambda x, y: (x, y)),
        verbose=0,
    ).history
    results = model.evaluate(ordinary, return_dict=True, verbose=0)
    whole = model.evaluate(x, y, return_dict=True, verbose=0)
    middle = model.evaluate(x[8:24], y[8:24], return_dict=True, verbose=0)
    for name, value in whole.items():
        np.testing.assert_allclose(results[name], value, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(history[f"val_{name}"][0], value, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(history[name][0], middle[name], rtol=1e-6, err_msg=name)
    return [np.asarray(value).tolist() for value in history.values()]


@check
def a_rank_may_have_no_validation_data(cluster: Cluster) -> Any:
    x, y = data(1)
    model = model_of(cluster, keras.optimizers.SGD(0.0), metrics=metrics())
    history = model.fit(
        cluster.dataset(data(16), 8, shuffle=True),
        validation_data=cluster.dataset((x, y), 4),
        epochs=2,
        verbose=0,
    ).history
    expected = model.evaluate(x, y, return_dict=True, verbose=0)
    for name, value in expected.items():
        np.testing.assert_allclose(history[f"val_{name}"], [value] * 2, rtol=1e-6, err_msg=name)
    return [np.asarray(value).tolist() for value in history.values()]


@check
def every_epoch_costs_the_metrics_one_collective(cluster: Cluster) -> Any:
    from distrib.state import global_metrics as module

    calls: list[int] = []
    real = module.global_result

    def counted(*args: Any) -> Any:
        those = args[-1]
        gather, others = those.allgather, (those.allreduce, those.broadcast)
        those.allgather = lambda value: (calls.append(1), gather(value))[1]
        those.allreduce = those.broadcast = None
        try:
            return real(*args)
        finally:
            those.allgather, (those.allreduce, those.broadcast) = gather, others

    from distrib.training import global_results

    global_results.global_result = counted  # type: ignore[assignment]
    try:
        model = model_of(cluster, "sgd", metrics=metrics())
        train = cluster.dataset(data(), 8, shuffle=True)
        model.fit(train, validation_data=cluster.dataset(data(20), 4), epochs=2, verbose=0)
    finally:
        global_results.global_result = real
    assert len(calls) == 4, calls  # Training and validation, twice.


class StopsOnOneRank(keras.callbacks.Callback):
    def __init__(self, cluster: Cluster, hook: str, number: int) -> None:
        super().__init__()
        self.last = cluster.rank == cluster.size - 1
        self.hook, self.number, self.batches = hook, number, 0

    def stop(self, hook: str, number: int) -> None:
        if self.last and (hook, number) == (self.hook, self.number):
            self.model.stop_training = True

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches += 1
        self.stop("batch", batch)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.stop("epoch", epoch)


def batches_until_stop(cluster: Cluster, hook: str, number: int) -> int:
    callback = StopsOnOneRank(cluster, hook, number)
    model = model_of(cluster, "sgd")
    train = cluster.dataset(data(80), 8, shuffle=True)
    model.fit(train, epochs=3, verbose=0, callbacks=[callback])
    assert not any(cluster.step_payload.is_requested(request) for request in Request)
    return callback.batches


@check
def a_stop_on_one_rank_stops_all_after_the_next_batch(cluster: Cluster) -> Any:
    assert batches_until_stop(cluster, "batch", 3) == 5


@check
def a_stop_at_the_last_batch_stops_all_after_the_epoch(cluster: Cluster) -> Any:
    assert batches_until_stop(cluster, "batch", 9) == 10


@check
def a_stop_after_an_epoch_stops_all(cluster: Cluster) -> Any:
    assert batches_until_stop(cluster, "epoch", 1) == 20


@check
def nobody_stops_without_a_reason(cluster: Cluster) -> Any:
    assert batches_until_stop(cluster, "never", 0) == 30


@check
def a_bad_loss_on_one_rank_stops_all(cluster: Cluster) -> Any:
    x, y = data(80)
    model = model_of(cluster, "sgd")
    y[17] = np.nan
    history = model.fit(
        cluster.dataset((x, y), 8), epochs=3, verbose=0, callbacks=[TerminateOnNaN()]
    )
    assert len(history.history["loss"]) == 1


@check
def early_stopping_and_plateaus_are_the_same_everywhere(cluster: Cluster) -> Any:
    callbacks = [
        EarlyStopping("val_loss", patience=3, restore_best_weights=True),
        ReduceLROnPlateau("val_loss", patience=1, min_delta=0.05),
    ]
    model = model_of(cluster, keras.optimizers.SGD(2.0))
    history = model.fit(
        cluster.dataset(data(), 8, shuffle=True),
        validation_data=cluster.dataset(data(21), 4),
        epochs=15,
        verbose=0,
        callbacks=callbacks,
    )
    assert len(history.epoch) > 3
    weights = [variable.numpy().tolist() for variable in model.trainable_variables]
    return {name: [float(v) for v in values] for name, values in history.history.items()}, weights


class RateOfTheChief(keras.callbacks.Callback):
    """Each rank sets another learning rate."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank, self.seen = rank, []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.model.optimizer.learning_rate = 0.1 * (self.rank + 1) + epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.seen.append(round(float(self.model.optimizer.learning_rate.numpy()), 5))


@check
def the_chiefs_learning_rate_counts(cluster: Cluster) -> Any:
    callback = RateOfTheChief(cluster.rank)
    train = cluster.dataset(data(16), 8, shuffle=True)
    model_of(cluster, "sgd").fit(train, epochs=2, verbose=0, callbacks=[callback])
    assert callback.seen == [0.1, 0.1, 1.1, 1.1]


class SeesLogs(keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.losses.append(float(logs["loss"]))


@check
def losses_of_batches_are_those_of_one_process(cluster: Cluster) -> Any:
    x, y = data(93)

    def train(cluster: Cluster, dataset: Any) -> list[float]:
        seen = SeesLogs()
        model = model_of(cluster, keras.optimizers.Adam(0.05))
        model.fit(dataset, epochs=9, verbose=0, callbacks=[seen])
        return seen.losses

    mine = train(cluster, cluster.dataset((x, y), 16, shuffle=True, seed=2))
    assert len(mine) == 54
    theirs = one_process(lambda: train(ALONE, make_dataset((x, y), 16, True, 2)))
    np.testing.assert_allclose(mine, theirs, rtol=2e-6)
    return mine


class Interrupt(keras.callbacks.Callback):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if int(self.model.optimizer.iterations.numpy()) == self.step:
            raise InterruptedError


@check
def a_tf_data_pipeline_is_shared_by_rows_and_resumed(cluster: Cluster) -> Any:
    folder = cluster.collectives.broadcast(tempfile.mkdtemp() if cluster.is_chief else None)
    x, y = data(93)

    def train(cluster: Cluster, *callbacks: Any) -> list[float]:
        seen = SeesLogs()
        model = model_of(cluster, keras.optimizers.Adam(0.05))
        batches = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(50, seed=2).batch(16)
        model.fit(batches.prefetch(2), epochs=3, verbose=0, callbacks=[seen, *callbacks])
        return seen.losses

    backup = {"backup_dir": folder, "save_freq": 1}
    for step in (5, 9, 13):
        with pytest.raises(InterruptedError):
            train(cluster, BackupAndRestore(**backup), Interrupt(step))
    mine = train(cluster, BackupAndRestore(**backup))
    with tempfile.TemporaryDirectory() as own:
        theirs = one_process(lambda: train(ALONE, BackupAndRestore(own)))
    assert len(theirs) == 18
    np.testing.assert_allclose(mine, theirs, rtol=2e-6)
    np.testing.assert_allclose(train(cluster), theirs, rtol=2e-6)
    cluster.collectives.barrier()
    if cluster.is_chief:
        shutil.rmtree(folder)
    return mine


@check
def pipelines_and_generators_that_ranks_cannot_share_are_refused(cluster: Cluster) -> Any:
    x, y = data(32)

    def fit(batches: Any, **how: Any) -> None:
        model_of(cluster, "sgd").fit(batches, verbose=0, **how)

    def pipeline(shift: int = 0, **how: Any) -> Any:
        rows = tf.data.Dataset.from_tensor_slices((np.roll(x, shift, 0), y))
        return rows.shuffle(8, **how).batch(4)

    refused("generator cannot be shared", lambda: fit(iter([(x, y)] * 2 for _ in "a")))
    refused("yield different batches", lambda: fit(pipeline(cluster.rank, seed=1)))
    own = tf.data.Options()
    own.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    fit(pipeline(cluster.rank, seed=1).with_options(own))
    fit(pipeline(seed=cluster.rank + 1).shard(cluster.size, cluster.rank))


@check
def checkpoints_within_an_epoch_hold_the_loss_of_all_ranks(cluster: Cluster) -> Any:
    folder = cluster.collectives.broadcast(tempfile.mkdtemp() if cluster.is_chief else None)
    seen = SeesLogs()
    model = model_of(cluster, keras.optimizers.Adam(0.05))
    backup = BackupAndRestore(folder, save_freq=4, keep_last=None)
    train = cluster.dataset(data(), 16, shuffle=True, seed=2)
    model.fit(train, epochs=1, verbose=0, callbacks=[seen, backup])
    saved = {}
    if cluster.is_chief:
        stored = CheckpointDirectory(locate(folder, "directory")).checkpoints()
        saved = {each.manifest.step: each.manifest.metrics for each in stored}
        shutil.rmtree(folder)
    saved = cluster.collectives.broadcast(saved)
    assert saved[4]["loss"] == pytest.approx(seen.losses[3], rel=1e-12), saved
    return sorted(saved)


@check
def a_new_run_from_anothers_state_and_a_second_fit_on_it(cluster: Cluster) -> Any:
    folder = Path(cluster.collectives.broadcast(tempfile.mkdtemp() if cluster.is_chief else ""))
    x, y = data(32 + cluster.rank)  # Each rank has arrays of its own.

    def fit(run: str, epochs: int = 1, shift: int = 0, **backup: Any) -> keras.Model:
        model = model_of(cluster, "sgd", seed=1 + cluster.rank)
        model.fit(
            np.roll(x, shift, 0),
            y,
            batch_size=8,
            steps_per_epoch=4,
            epochs=epochs,
            verbose=0,
            callbacks=[BackupAndRestore(folder / run, **backup)],
        )
        return model

    first = fit("17")
    with pytest.raises(ConfigurationError, match="already finished a `fit`"):
        fit("17")
    with pytest.raises(CheckpointMismatchError, match="other examples, or in another order"):
        # Only the arrays of the last rank have changed.
        fit("17", 2, shift=cluster.rank == cluster.size - 1)
    # On all ranks, although the chief alone reads: without a step the weights are those of the run.
    with pytest.raises(ConfigurationError, match="there is no checkpoint"):
        fit("18", initialize_from=folder / "16")
    new = fit("18", epochs=0, initialize_from=folder / "17")
    close(new.get_weights(), first.get_weights(), 0)
    assert fit("17", 2).optimizer.iterations.numpy() == 8
    cluster.collectives.barrier()
    if cluster.is_chief:
        shutil.rmtree(folder)
    return [weight.tolist() for weight in new.get_weights()]


@check
def a_callback_list_and_an_evaluate_of_the_users_own(cluster: Cluster) -> Any:
    class Mine(keras.Sequential):
        def evaluate(self, *args: Any, **kwargs: Any) -> Any:
            kwargs.pop("callbacks")
            return super().evaluate(*args, verbose=0, **kwargs)

    keras.utils.set_random_seed(1)
    model = Mine([keras.Input((6,)), keras.layers.Dense(1, "sigmoid")])
    model.compile(cluster.optimizer("sgd"), "binary_crossentropy")
    x, y = data(32)
    mine = slice(cluster.rank, None, cluster.size)  # Each rank validates rows of its own.
    listed = keras.callbacks.CallbackList([], add_history=True, model=model)
    history = model.fit(
        cluster.dataset((x, y), 8), validation_data=(x[mine], y[mine]), callbacks=listed
    ).history
    expected = keras.Sequential.evaluate(model, x, y, verbose=0)
    np.testing.assert_allclose(history["val_loss"], [expected], rtol=1e-5)
    return history["val_loss"]


def one_process(train: Callable[[], Any]) -> Any:
    """Run plain Keras in this process, as if there were no ranks."""
    from distrib import cluster

    here, cluster._current = cluster._current, ALONE
    try:
        return train()
    finally:
        cluster._current = here


class OwnStep(keras.Model):
    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(1)
        self.mine = cluster.optimizer(keras.optimizers.Adam(0.05))

    def call(self, x: Any) -> Any:
        return self.dense(x)

    def train_step(self, batch: Any) -> Any:
        x, y = batch
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(x) - y) ** 2)
        self.mine.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"distance": loss}


@check
def custom_train_steps(cluster: Cluster) -> Any:
    keras.utils.set_random_seed(1 + cluster.rank)
    model = OwnStep(cluster)
    model.compile()
    history = model.fit(cluster.dataset(data(), 8, shuffle=True), epochs=2, verbose=0)
    weights = [variable.numpy().tolist() for variable in model.trainable_variables]
    return history.history["distance"], weights


class OwnMetrics(keras.Sequential):
    """Reports a number beside its metrics, and another one under the name of one of them."""

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        results = super().compute_metrics(x, y, y_pred, sample_weight)
        return {**results, "rows": tf.cast(tf.shape(y)[0], tf.float32), "mse": tf.constant(7.0)}


@check
def metrics_beside_what_a_step_reports_are_those_of_all_the_data(cluster: Cluster) -> Any:
    x, y = data(29)
    model = OwnMetrics([keras.Input(x.shape[1:]), keras.layers.Dense(1, activation="sigmoid")])
    model.compile(
        cluster.optimizer(keras.optimizers.SGD(0.0)),
        "binary_crossentropy",
        metrics=["accuracy", "mse"],
    )
    # The ranks' shares of the last batch of each differ.
    results = model.fit(
        cluster.dataset((x, y), 8), validation_data=cluster.dataset((x, y), 8), verbose=0
    ).history
    expected = model.evaluate(x, y, return_dict=True, verbose=0)
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(results[name], [expected[name]], rtol=1e-6)
        np.testing.assert_allclose(results[f"val_{name}"], [expected[name]], rtol=1e-6)
    assert results["mse"] == results["val_mse"] == [7.0]
    assert results["rows"][0] < 8
    return results


@check
def mixed_precision_is_found_behind_keras(cluster: Cluster) -> Any:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = model_of(cluster, keras.optimizers.SGD(0.1))
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        x, y = data(80)
        x[3] *= 1e30  # Overflows on the rank that has this example.
        model.fit(cluster.dataset((x, y), 8, shuffle=True), epochs=2, verbose=0)
    finally:
        keras.config.set_dtype_policy("float32")
    assert reduction_of(model.optimizer) is not None
    assert reduction_of(model.optimizer.inner_optimizer) is None
    return float(model.optimizer.dynamic_scale.numpy())


@check
def several_steps_in_one_execution(cluster: Cluster) -> Any:
    model = model_of(cluster, keras.optimizers.Adam(0.05), steps_per_execution=4)
    history = model.fit(cluster.dataset(data(), 8, shuffle=True), epochs=2, verbose=0)
    return history.history["loss"], [v.numpy().tolist() for v in model.trainable_variables]


@check
def eager_training(cluster: Cluster) -> Any:
    model = model_of(cluster, keras.optimizers.Adam(0.05), run_eagerly=True)
    history = model.fit(cluster.dataset(data(40), 8, shuffle=True), verbose=0)
    return history.history["loss"], [v.numpy().tolist() for v in model.trainable_variables]


@check
def arrays_are_shared(cluster: Cluster) -> Any:
    x, y = data(95)  # The split leaves 6 full batches and one of 4 examples.
    looks = ChiefLooks()

    def fit(cluster: Cluster, seed: int, *callbacks: Any) -> Any:
        model = model_of(cluster, keras.optimizers.Adam(0.05), seed=1, weighted_metrics=["AUC"])
        keras.utils.set_random_seed(seed)
        history = model.fit(
            x,
            y,
            batch_size=12,
            epochs=2,
            validation_split=0.2,
            class_weight={0: 1.0, 1: 2.0},
            callbacks=callbacks,
            verbose=0,
        ).history
        again = model.fit(x, y, steps_per_epoch=5, shuffle=False, verbose=0)
        return {**history, "again": again.history["loss"]}

    shared = fit(cluster, 1 + cluster.rank, looks)  # The chief's seed counts.
    if cluster.is_chief:
        folder = Path(tempfile.mkdtemp())  # With a saver one process has the same order, too.
        alone = one_process(lambda: fit(ALONE, 1, BackupAndRestore(folder)))
        shutil.rmtree(folder)
        for name, values in alone.items():
            np.testing.assert_allclose(shared[name], values, rtol=1e-4, err_msg=name)
    return shared


@check
def any_number_of_arrays_can_be_trained_on(cluster: Cluster) -> Any:
    n = 8 * cluster.size + 1  # A last batch of one example is padded.
    x, y = data(n)
    model = model_of(cluster, keras.optimizers.Adam(0.05))
    return model.fit(x, y, batch_size=8, shuffle=False, validation_data=(x[:1], y[:1])).history


@check
def arrays_that_cannot_be_shared(cluster: Cluster) -> Any:
    x, y = data(40)
    model = model_of(cluster, keras.optimizers.Adam(0.05))
    with pytest.raises(ConfigurationError, match=r"RaggedTensor at \[0\] on all ranks"):
        model.fit(tf.RaggedTensor.from_tensor(x), y, verbose=0)
    with pytest.raises(ConfigurationError, match="`batch_size` is 8 on rank 0, 9 on rank"):
        model.fit(x, y, batch_size=8 + min(1, cluster.rank), verbose=0)
    call = model.fit if cluster.rank else model.evaluate
    with pytest.raises(ConfigurationError, match=r"`model\.fit` was called on rank"):
        call(x if cluster.rank else cluster.dataset((x, y), 8), y if cluster.rank else None)


@check
def predictions_are_those_of_all_examples(cluster: Cluster) -> Any:
    keras.utils.set_random_seed(1)
    given = keras.Input((6,))
    outputs = {"one": keras.layers.Dense(1)(given), "two": keras.layers.Dense(3)(given)}
    model = keras.Model(given, outputs)
    x, y = data(29)  # The last batch, of one example, is the chief's alone.
    expected = model.predict(x, verbose=0)
    shared = cluster.dataset((x, y), 7)
    for steps, rows in ((None, 29), (2, 14), (5, 29)):
        found = model.predict(shared, steps=steps, verbose=0)
        for name, values in found.items():
            np.testing.assert_allclose(values, expected[name][:rows], rtol=1e-5, atol=1e-6)
    found = model.predict(cluster.dataset(x[:1], 7), verbose=0)  # Other ranks have none.
    np.testing.assert_allclose(found["two"], expected["two"][:1], rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigurationError, match=r"Each pass over this cluster\.dataset differs"):
        model.predict(cluster.dataset(x, 7, shuffle=True), verbose=0)
    with pytest.raises(ConfigurationError, match=r"The ranks differ: `x\.batch_size` is 7 on"):
        model.predict(cluster.dataset(x, 7 + min(1, cluster.rank)), verbose=0)
    call = model.predict if cluster.rank else model_of(cluster, "sgd").evaluate
    with pytest.raises(ConfigurationError, match=r"but `model\.predict` of a cluster\.dataset on"):
        call(cluster.dataset((x, y), 7), verbose=0)
    return found["one"].tolist()


@check
def arrays_of_each_ranks_own(cluster: Cluster) -> Any:
    x, y = data(40 * cluster.size)
    mine = slice(cluster.rank, None, cluster.size)  # As scripts for Horovod divide them.
    model = model_of(cluster, keras.optimizers.Adam(0.05))
    steps = CountSteps()
    history = model.fit(x[mine], y[mine], batch_size=8, verbose=0, callbacks=[steps])
    assert steps.count == 5
    with pytest.raises(ConfigurationError, match=r"have .* batches in an epoch"):
        model.fit(x[cluster.rank * 8 :], y[cluster.rank * 8 :], batch_size=8, verbose=0)
    return history.history["loss"]


class CountSteps(keras.callbacks.Callback):
    count = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.count += 1


class ChiefLooks(keras.callbacks.Callback):
    """Uses the model on the chief alone, during `fit`."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if distrib.current().is_chief:
            x, y = data(20)
            self.model.predict(x, verbose=0)
            self.model.evaluate(x, y, verbose=0)
            self.model.save(Path(tempfile.mkdtemp()) / "model.keras")


@check
def the_chief_may_use_the_model_alone(cluster: Cluster) -> Any:
    model = model_of(cluster, keras.optimizers.Adam(0.05))
    train = cluster.dataset(data(), 8, shuffle=True)
    model.fit(train, epochs=2, verbose=0, callbacks=[ChiefLooks()])
    return [variable.numpy().tolist() for variable in model.trainable_variables]


# Refused uses


def refused(message: str, train: Callable[[], Any]) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        train()


@check
def wrong_use_is_refused(cluster: Cluster) -> Any:
    train = cluster.dataset(data(), 8, shuffle=True)

    def plain() -> None:
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(train, verbose=0)

    refused("does not reduce gradients", plain)
    refused(
        "keras.callbacks.CSVLogger would write the same files on ranks 0",
        lambda: model_of(cluster, "sgd").fit(
            train, verbose=0, callbacks=[keras.callbacks.CSVLogger("log.csv")]
        ),
    )
    refused(
        "fewer examples than there are ranks",
        lambda: model_of(cluster, "sgd").fit(cluster.dataset(data(25), 8), verbose=0),
    )
    refused(
        "The ranks have built different models",
        lambda: different_models(cluster).fit(train, verbose=0),
    )


@check
def ranks_that_do_not_agree_are_refused(cluster: Cluster) -> Any:
    rank, train = cluster.rank, cluster.dataset(data(), 8, shuffle=True)

    def fit(optimizer: Any = "sgd", x: Any = train, loss: str = "mse", **how: Any) -> None:
        model_of(cluster, optimizer, loss=loss).fit(x, verbose=0, **how)

    def saving(callback: keras.callbacks.Callback) -> Any:
        return [callback] if cluster.is_chief else []

    folder = cluster.collectives.broadcast(tempfile.mkdtemp() if cluster.is_chief else None)
    for callback in (
        BackupAndRestore(folder),
        EarlyStopping("loss", restore_best_weights=True),
        keras.callbacks.EarlyStopping("loss", restore_best_weights=True),
        LearningRateWarmup(1),
    ):
        refused(
            "is in the list on rank 0 only",
            lambda callback=callback: fit(callbacks=saving(callback)),
        )
    plateau = [] if cluster.is_chief else [ReduceLROnPlateau("loss")]
    refused("but not on rank 0, whose learning rate counts", lambda: fit(callbacks=plateau))
    best = EarlyStopping("loss", patience=rank, restore_best_weights=True)
    refused("has other arguments on", lambda: fit(callbacks=[best]))
    if cluster.is_chief:
        assert not os.listdir(folder)
        shutil.rmtree(folder)
    refused("`epochs` is 1 on rank 0, 2 on rank 1", lambda: fit(epochs=rank + 1))
    refused(
        "`validation_data` is a cluster.dataset on rank 0",
        lambda: fit(validation_data=None if rank else train),
    )
    refused(
        "`x.seed` is 0 on rank 0, 1 on",
        lambda: fit(x=cluster.dataset(data(), 8, shuffle=True, seed=rank)),
    )
    refused(
        "`compile.loss` is 'mse' on rank 0, 'mae' on", lambda: fit(loss="mae" if rank else "mse")
    )
    adam = keras.optimizers.Adam(beta_1=0.5 + rank / 8)
    refused("`optimizer.beta_1` is 0.5 on rank 0, 0.625 on", lambda: fit(adam))
    model = model_of(cluster, "sgd")
    model.layers[0].trainable = cluster.is_chief
    refused("`layers[2].trainable` is True on rank 0, False", lambda: model.fit(train, verbose=0))
    refused(
        "`model.fit` was called on rank 0, but `model.evaluate` of a cluster.dataset on rank",
        lambda: model.evaluate(train, verbose=0) if rank else fit(),
    )


@check
def the_chief_may_log_and_decide_alone(cluster: Cluster) -> Any:
    keras.metrics.Mean()  # Names that Keras counts up differ between the ranks from here on.
    if cluster.is_chief:
        model_of(ALONE, "sgd")
    callbacks: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        if cluster.is_chief:
            callbacks = [
                keras.callbacks.ModelCheckpoint(f"{folder}/best.keras", monitor="loss"),
                keras.callbacks.CSVLogger(f"{folder}/log.csv"),
                keras.callbacks.LearningRateScheduler(lambda epoch: 0.5 / (epoch + 1)),
                EarlyStopping("loss", min_delta=100),
            ]
        callbacks += [keras.callbacks.TensorBoard(f"{folder}/{cluster.rank}")]
        model = model_of(cluster, keras.optimizers.SGD(0.1 + cluster.rank))
        history = model.fit(
            cluster.dataset(data(), 16),
            epochs=5,
            callbacks=callbacks,
            verbose=2 if cluster.rank else 0,
        )
        assert len(history.epoch) == 2
        assert cluster.rank or len(os.listdir(folder)) == 3
    return [value.tolist() for value in model.get_weights()]


@check
def data_that_would_leave_ranks_waiting_is_refused(cluster: Cluster) -> Any:
    x, y = data(8 * cluster.size)

    def fit(rows: int, **how: Any) -> None:
        batches = tf.data.Dataset.from_tensor_slices((x[:rows], y[:rows])).batch(2)
        if how.pop("unknown", False):
            batches = batches.filter(lambda x, y: True)
        if how.pop("own", False):
            batches = batches.shard(cluster.size, cluster.rank)
        model_of(cluster, "sgd").fit(batches, verbose=0, **how)

    refused("`x.cardinality` is 4 on rank 0, 3 on", lambda: fit(8 - 2 * cluster.rank))
    refused("It is not known how many batches an epoch", lambda: fit(8, unknown=True, own=True))
    fit(8, unknown=True, own=True, steps_per_epoch=2)
    fit(8, unknown=True)  # All ranks reach its end after the same batch.


@check
def what_horovods_own_keras_api_raises_is_explained(cluster: Cluster) -> Any:
    if cluster.kind != "horovod":
        return
    import horovod.tensorflow as hvd
    from horovod.tensorflow.keras import elastic

    hvd.init()  # As scripts written for Horovod do, which changes nothing.
    model = model_of(cluster, "sgd")
    tape = hvd.DistributedGradientTape(tf.GradientTape())
    x, y = data(2)

    def gradient() -> None:
        with tape:
            loss = model.compute_loss(x, y, model(x))
        tape.gradient(loss, model.trainable_variables)

    for call in (
        lambda: hvd.broadcast_variables(model.variables, root_rank=0),
        lambda: hvd.broadcast_variables(model.optimizer.variables(), root_rank=0),
        lambda: elastic.KerasState(model),
        lambda: hvd.SyncBatchNormalization(),
        gradient,
    ):
        with pytest.raises((AttributeError, TypeError, ValueError)) as caught:
            call()
        assert "docs/horovod.md" in str(explain(caught.value))


def with_and_without_xla(cluster: Cluster, make: Callable[[], Any], **options: Any) -> Any:
    """Train with XLA, and without it; return what came out."""

    def train(jit_compile: bool) -> Any:
        model = model_of(cluster, make(), metrics=["mae"], jit_compile=jit_compile, **options)
        assert model.jit_compile == jit_compile
        # The last batch is smaller, and uneven.
        train = cluster.dataset(data(23 * cluster.size), 8 * cluster.size, shuffle=True)
        history = model.fit(train, epochs=2, verbose=0, validation_data=train).history
        return history, [variable.numpy() for variable in model.variables]

    (history, variables), (other, others) = train(True), train(False)
    close(variables, others, 1e-4)
    for name, values in other.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-4, err_msg=name)
    return history, [variable.tolist() for variable in variables]


@check
def xla_compiles_all_but_the_exchange(cluster: Cluster) -> Any:
    return with_and_without_xla(
        cluster, lambda: keras.optimizers.Adam(0.05, global_clipnorm=0.1), weighted_metrics=["mse"]
    )


@check
def xla_compiles_other_steps(cluster: Cluster) -> Any:
    def accumulating() -> Any:
        return keras.optimizers.Adam(0.05, gradient_accumulation_steps=2)

    def scaling() -> Any:
        return keras.optimizers.LossScaleOptimizer(sgd(0.1), dynamic_growth_steps=2)

    sgd = keras.optimizers.SGD
    return [
        with_and_without_xla(cluster, accumulating),
        with_and_without_xla(cluster, lambda: sgd(0.1), steps_per_execution=4),
        with_and_without_xla(cluster, lambda: sgd(0.1), how={"op": "sum"}),
        with_and_without_xla(cluster, scaling),
    ]


@check
def xla_is_chosen_as_in_keras(cluster: Cluster) -> Any:
    assert model_of(cluster, "sgd").jit_compile is False  # Without a GPU.
    devices = tf.config.list_physical_devices()
    with pytest.MonkeyPatch.context() as patch:
        gpu = tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")
        patch.setattr(tf.config, "list_physical_devices", lambda kind=None: [*devices, gpu])
        model = model_of(cluster, "sgd")
    assert model.jit_compile is (cluster.kind == "horovod")  # Keras's choice without a strategy.


@check
def a_train_step_of_ones_own_is_not_compiled(cluster: Cluster) -> Any:
    model = OwnStep(cluster)
    model.compile(jit_compile=True)
    history = model.fit(cluster.dataset(data(16), 8, shuffle=True), verbose=0)
    return history.history["distance"]


@check
def statistics_that_ranks_exchange_are_not_compiled(cluster: Cluster) -> Any:
    if cluster.kind == "horovod":  # Ranks exchange none there.
        return None
    with cluster.scope():
        norm = keras.layers.BatchNormalization(synchronized=True)
        model = keras.Sequential([keras.Input((6,)), norm, keras.layers.Dense(1)])
        model.compile(cluster.optimizer("sgd"), "mse", jit_compile=True)
    history = model.fit(cluster.dataset(data(16), 8, shuffle=True), verbose=0).history
    return history["loss"], [variable.numpy().tolist() for variable in model.variables]


@check
def adasum_works_on_mpi_only(cluster: Cluster) -> Any:
    if cluster.kind != "horovod" or not mpi_is_used():
        refused("`op='adasum'` needs Horovod on MPI", lambda: cluster.optimizer("sgd", op="adasum"))
        return None
    x, y = data(12)
    mine = slice(cluster.rank * 6, cluster.rank * 6 + 6)
    model = model_of(cluster, keras.optimizers.SGD(1.0), how={"op": "adasum"})
    after = steps(model, [(x[mine], y[mine])])
    one, other = (
        steps(model_of(ALONE, keras.optimizers.SGD(1.0)), [piece])
        for piece in ((x[:6], y[:6]), (x[6:], y[6:]))
    )
    for value, before, *ends in zip(after, start(), one, other, strict=True):
        a, b = (before - end for end in ends)
        product = (a * b).sum()
        combined = (1 - product / (2 * (a**2).sum())) * a + (1 - product / (2 * (b**2).sum())) * b
        np.testing.assert_allclose(before - value, combined, rtol=1e-4, atol=1e-5)
    return [value.tolist() for value in after]


def mpi_is_used() -> bool:
    import horovod.tensorflow as hvd

    return bool(hvd.mpi_enabled())


def different_models(cluster: Cluster) -> keras.Model:
    """Models that differ, which shows only when `fit` builds them."""
    model = keras.Sequential([keras.layers.Dense(1 + cluster.rank), keras.layers.Dense(1)])
    model.compile(cluster.optimizer("sgd"), "mse")
    return model


@check
def shared_data_may_be_rounded_otherwise_on_each_rank(cluster: Cluster) -> Any:
    x, y = data(24)
    model = model_of(cluster, "sgd")
    rounded = np.nextafter(x, np.float32(cluster.rank))
    model.fit(cluster.dataset((rounded, y), batch_size=8), verbose=0)
    other = cluster.dataset((np.roll(x, cluster.rank, axis=0), y), batch_size=8)
    with pytest.raises(ConfigurationError, match="`x`: rank 1 has passed other examples"):
        model.fit(other, verbose=0)
    with pytest.raises(ConfigurationError, match="`x`: rank 1 has passed other examples"):
        model.evaluate(other, verbose=0)


@check
def all_ranks_begin_with_what_the_chiefs_layers_learned(cluster: Cluster) -> Any:
    x, y = data(24)
    words = np.array([["a"], ["b"], ["c"]])
    normalization, lookup = keras.layers.Normalization(), keras.layers.StringLookup()
    normalization.adapt(x * (1 + cluster.rank))
    lookup.adapt(words[cluster.rank :])
    numbers = keras.Input((6,))
    model = keras.Model(numbers, keras.layers.Dense(1)(normalization(numbers)))
    model.lookup = lookup
    model.compile(cluster.optimizer("sgd"), "mse")
    model.predict(x, verbose=0)  # A function that was traced holds the old constants.
    model.fit(cluster.dataset((x, y), batch_size=8), verbose=0)
    assert len(lookup.get_vocabulary()) == 4
    return model.predict(x, verbose=0).tolist(), lookup.get_vocabulary()


@check
def a_model_with_optimizers_of_its_own_is_built_from_arrays(cluster: Cluster) -> Any:
    class Pair(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.parts = [keras.layers.Dense(2), keras.layers.Dense(1)]
            self.optimizers = [cluster.optimizer("adam"), cluster.optimizer("sgd")]

        def train_step(self, batch: Any) -> Any:
            for part, optimizer in zip(self.parts, self.optimizers, strict=True):
                with tf.GradientTape() as tape:
                    loss = tf.reduce_sum(part(batch[0]) ** 2)
                optimizer.apply(tape.gradient(loss, part.trainable_weights), part.trainable_weights)
            return {"loss": loss}

    def train(epochs: int, folder: Path) -> Any:
        keras.utils.set_random_seed(1)
        model = Pair()
        model.compile()
        saver = BackupAndRestore(folder, save_freq="epoch")
        model.fit(x, y, batch_size=8, epochs=epochs, verbose=0, callbacks=[saver])
        return [weight.numpy().tolist() for weight in model.weights]

    x, y = data(24)
    folder = Path(cluster.collectives.broadcast(tempfile.mkdtemp()))
    uninterrupted = train(3, folder / "one")
    train(2, folder / "two")
    assert train(3, folder / "two") == uninterrupted
    return uninterrupted


class Parts(keras.utils.PyDataset):
    """Batches of arrays; notes which ones it is asked for."""

    def __init__(self, arrays: Any, batch_size: int) -> None:
        super().__init__()
        self.arrays, self.batch_size = arrays, batch_size
        self.order = np.arange(len(arrays[0]))
        self.asked: list[int] = []

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __getitem__(self, index: int) -> Any:
        self.asked.append(index)
        rows = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        return tuple(array[rows] for array in self.arrays)


class Reshuffled(Parts):
    def on_epoch_end(self) -> None:
        np.random.shuffle(self.order)


@check
def each_rank_builds_its_own_batches_of_a_pydataset(cluster: Cluster) -> Any:
    train, val = Parts(data(24 * cluster.size), 8), Parts(data(29), 4)
    model = model_of(cluster, keras.optimizers.SGD(0.0), metrics=metrics())
    history = model.fit(train, validation_data=val, epochs=2, verbose=0).history
    steps = len(train) // cluster.size
    asked = cluster.collectives.allgather(train.asked)
    for end in (-steps, None):  # What comes first is for shapes, sizes and comparing the ranks.
        epoch = [number for own in asked for number in own[:end][-steps:]]
        assert sorted(epoch) == list(range(len(train)))
    for batches, prefix in ((train, ""), (val, "val_")):
        expected = model.evaluate(*batches.arrays, return_dict=True, verbose=0)
        for name, value in expected.items():
            np.testing.assert_allclose(history[prefix + name], [value] * 2, rtol=1e-6)
    return [np.asarray(value).tolist() for value in history.values()]


@check
def a_step_on_a_pydataset_is_one_on_all_its_examples(cluster: Cluster) -> Any:
    x, y = data(8 * cluster.size - 5)  # The last rank's batch has 3 examples.
    model = model_of(cluster, "sgd")
    model.fit(Parts((x, y), 8), shuffle=False, verbose=0)
    alone = model_of(ALONE, "sgd")
    alone.train_on_batch(x, y)
    for mine, expected in zip(model.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-7)
    return [weight.tolist() for weight in model.get_weights()]


@check
def a_shuffle_between_epochs_is_the_chiefs(cluster: Cluster) -> Any:
    np.random.seed(cluster.rank)
    train = Reshuffled(data(40), 4)
    model_of(cluster, "sgd").fit(train, epochs=2, verbose=0)
    return train.order.tolist()  # Which is compared.


@check
def pydatasets_that_differ_are_refused(cluster: Cluster) -> Any:
    x, y = data(96)
    own = slice(cluster.rank, None, cluster.size)
    refused(
        "Batch 0 of Parts is another one on rank 1 than on rank 0",
        lambda: model_of(cluster, "sgd").fit(Parts((x[own], y[own]), 8), verbose=0),
    )


def main() -> None:
    cluster = distrib.init()
    report = {}
    for name in sys.argv[2:] or CHECKS:
        function = CHECKS[name]
        keras.utils.clear_session()
        failure = None
        try:
            results = cluster.collectives.allgather(function(cluster))
            if any(repr(result) != repr(results[0]) for result in results):
                failure = f"the ranks differ: {results}"
        except Exception:
            failure = traceback.format_exc()
        failures = cluster.collectives.allgather(failure)
        report[name] = next((failure for failure in failures if failure), None)
        print(name, "failed" if report[name] else "passed", flush=True)
    if cluster.is_chief:
        Path(sys.argv[1]).write_text(json.dumps(report))


if __name__ == "__main__":
    main()
