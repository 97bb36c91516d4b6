import itertools
import json
import subprocess
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from harness import environment, forked

from distrib.data.make_dataset import make_dataset
from distrib.errors import ConfigurationError

N = 23
X = np.arange(N, dtype=np.float32)[:, None]
Y = np.arange(N)


class Examples:
    def __len__(self):
        return N

    def __getitem__(self, index):
        return X[index], int(Y[index])


def memmap(folder):
    stored = np.lib.format.open_memmap(folder / "x.npy", "w+", X.dtype, X.shape)
    stored[:] = X
    return stored, Y


SOURCES = {
    "arrays": lambda folder: (X, Y),
    "memmap": memmap,
    "examples": lambda folder: Examples(),
    "stream": lambda folder: tf.data.Dataset.from_tensor_slices((X, Y)),
}


@pytest.fixture(params=SOURCES)
def source(request, tmp_path):
    return SOURCES[request.param](tmp_path)


def labels(dataset):
    """Return the labels of one pass, batch by batch; check that the inputs match them."""
    batches = []
    for x, y in dataset:
        np.testing.assert_array_equal(x[:, 0], y)
        batches.append(y.numpy().tolist())
    return batches


def flat(batches):
    return [label for batch in batches for label in batch]


# -- order and position


@pytest.mark.parametrize(
    ("shuffle", "drop_remainder"),
    [
        (True, False),
        (False, True),
        ("blocks", False),
        pytest.param(True, True, marks=pytest.mark.exhaustive),
        pytest.param(False, False, marks=pytest.mark.exhaustive),
        pytest.param("blocks", True, marks=pytest.mark.exhaustive),
    ],
)
def test_after_seek_the_batches_are_those_of_the_uninterrupted_pass(
    source, shuffle, drop_remainder
):
    def new():
        return make_dataset(source, 4, shuffle, seed=5, drop_remainder=drop_remainder)

    whole = new()
    passes = [labels(whole) for _ in range(3)]
    for epoch, step in [(0, 0), (0, 3), (1, 1), (2, len(whole) - 1), (1, 0), (1, len(whole))]:
        for dataset in (whole, new()):
            dataset.seek(epoch, step)
            assert labels(dataset) == passes[epoch][step:]
            if epoch < 2:
                assert labels(dataset) == passes[epoch + 1]


def test_each_epoch_is_a_permutation_of_its_own(source):
    dataset = make_dataset(source, 4, shuffle=True, seed=5)
    first, second = flat(labels(dataset)), flat(labels(dataset))
    assert sorted(first) == sorted(second) == list(range(N))
    assert first != second
    assert first != list(range(N))
    assert flat(labels(make_dataset(source, 4, shuffle=True, seed=6))) != first


def test_without_shuffle_the_order_is_that_of_the_source(source):
    dataset = make_dataset(source, 4)
    assert flat(labels(dataset)) == flat(labels(dataset)) == list(range(N))
    assert flat(labels(make_dataset(source, 4, drop_remainder=True))) == list(range(20))


def test_arrays_and_random_access_have_the_same_order(tmp_path):
    orders = [
        labels(make_dataset(SOURCES[kind](tmp_path), 4, shuffle=True, seed=5))
        for kind in ("arrays", "memmap", "examples")
    ]
    assert orders[0] == orders[1] == orders[2]


def test_order_does_not_depend_on_the_global_seed(source):
    tf.random.set_seed(1)
    first = labels(make_dataset(source, 4, shuffle=True, seed=5))
    tf.random.set_seed(2)
    assert labels(make_dataset(source, 4, shuffle=True, seed=5)) == first


def test_large_seeds_give_different_orders():
    orders = {
        str(labels(make_dataset((X, Y), 4, shuffle=True, seed=seed)))
        for seed in (0, 1, 256, 2**31, 2**32, 2**32 + 1, 2**63 - 1)
    }
    assert len(orders) == 7


def test_an_unused_iterator_does_not_move_the_position():
    dataset = make_dataset((X, Y), 4, shuffle=True)
    first = labels(dataset)
    dataset.seek(0, 2)
    iterators = [iter(dataset), iter(dataset.map(lambda x, y: (x, y)).prefetch(2))]
    assert labels(dataset) == first[2:]
    assert len(iterators) == 2


def test_length_is_that_of_a_full_epoch_at_any_position(source):
    dataset = make_dataset(source, 4, shuffle=True)
    assert len(dataset) == int(dataset.cardinality()) == dataset.num_batches == 6
    dataset.seek(3, 4)
    assert len(dataset) == int(dataset.cardinality()) == 6
    assert len(labels(dataset)) == 2
    mapped = dataset.map(lambda x, y: (x, y)).prefetch(1)
    assert len(mapped) == int(mapped.cardinality()) == 6
    assert len(make_dataset(source, 4, drop_remainder=True)) == 5


def test_one_example():
    dataset = make_dataset((X[:1], Y[:1]), 4, shuffle=True, seed=3)
    assert labels(dataset) == [[0]]
    assert labels(dataset) == [[0]]


def test_static_shapes(source):
    x, y = make_dataset(source, 4).element_spec
    assert (x.shape.as_list(), y.shape.as_list()) == ([None, 1], [None])
    x, y = make_dataset(source, 4, drop_remainder=True).element_spec
    assert (x.shape.as_list(), y.shape.as_list()) == ([4, 1], [4])
    assert (x.dtype, y.dtype) == (tf.float32, tf.int64)


def test_seek_refuses_positions_that_do_not_exist():
    dataset = make_dataset((X, Y), 4)
    for epoch, step in [(-1, 0), (0, -1), (0, 7), (0.5, 0), (0, True)]:
        with pytest.raises(ConfigurationError, match=r"step=|epoch="):
            dataset.seek(epoch, step)


# -- endless, map, prefetch


def test_an_endless_pass_continues_with_the_next_epoch(source):
    dataset = make_dataset(source, 4, shuffle=True, seed=5)
    epochs = [labels(dataset) for _ in range(4)]
    endless = dataset.repeat()
    assert endless.endless
    assert not dataset.endless
    assert endless.num_batches == 6
    assert int(endless.cardinality()) == tf.data.INFINITE_CARDINALITY
    with pytest.raises(TypeError, match="num_batches"):
        len(endless)
    endless.seek(1, 4)
    assert labels(endless.take(10)) == epochs[1][4:] + epochs[2] + epochs[3][:2]
    # The position of the next pass depends only on where this pass started, not on its length.
    assert labels(endless.take(6)) == epochs[2]


def test_repeat_with_a_count_suggests_epochs():
    with pytest.raises(ConfigurationError, match="epochs=3"):
        make_dataset((X, Y), 4).repeat(3)


def test_map_prefetch_and_repeat_share_the_position(source):
    dataset = make_dataset(source, 4, shuffle=True, seed=5)
    doubled = dataset.map(lambda x, y: (2 * x, 2 * y)).prefetch(2)
    first = labels(dataset)
    doubled.seek(0, 4)
    assert labels(doubled) == [[2 * y for y in batch] for batch in first[4:]]
    dataset.seek(0, 5)
    assert labels(doubled.repeat().take(1)) == [[2 * y for y in first[5]]]
    assert labels(dataset.map(lambda x, y: (x, y), num_parallel_calls=2)) == labels_of(source, 1)


def labels_of(source, epoch):
    dataset = make_dataset(source, 4, shuffle=True, seed=5)
    dataset.seek(epoch, 0)
    return labels(dataset)


# -- fingerprint


def test_fingerprint_is_json_and_depends_on_all_that_determines_batches(source):
    prints = [
        make_dataset(source, 4, True, 5, num_replicas=2 * size, rank=size - 1, size=size)
        for size in (1, 2)
    ]
    one, two = (dataset.fingerprint() for dataset in prints)
    assert one == two == json.loads(json.dumps(one))
    assert one["structure"] == [
        {"path": "[0]", "shape": [1], "dtype": "float32"},
        {"path": "[1]", "shape": [], "dtype": "int64"},
    ]
    others = [
        make_dataset(source, 5, True, 5),
        make_dataset(source, 4, False, 5),
        make_dataset(source, 4, True, 6),
        make_dataset(source, 4, True, 5, drop_remainder=True),
        make_dataset((X[1:], Y[1:]), 4, True, 5),
        make_dataset((X, X), 4, True, 5),
    ]
    assert all(other.fingerprint() != one for other in others)
    assert prints[0].map(lambda x, y: x).repeat().fingerprint() == one


def test_fingerprint_of_a_stream_includes_the_shuffle_buffer():
    stream = tf.data.Dataset.from_tensor_slices((X, Y))
    assert make_dataset(stream, 4).fingerprint()["shuffle_buffer"] == N
    assert make_dataset(stream, 4, shuffle_buffer=7).fingerprint()["shuffle_buffer"] == 7
    assert make_dataset((X, Y), 4).fingerprint()["shuffle_buffer"] is None


# -- the last batch


@pytest.mark.parametrize(("replicas", "padded"), [(1, 3), (2, 3), (4, 4), (5, 5), (20, 20)])
def test_a_short_last_batch_leaves_no_replica_of_a_training_set_empty(source, replicas, padded):
    dataset = make_dataset(source, 20, shuffle=True, seed=5, num_replicas=replicas)
    single = labels(make_dataset(source, 20, shuffle=True, seed=5))
    for _ in range(2):
        dataset.seek(0, 0)
        full, last = labels(dataset)
        own = single[1]
        assert full == single[0]
        assert last == [own[i % 3] for i in range(max(padded, 3))]
        dataset.seek(0, 1)
        assert labels(dataset) == [last]
    assert labels(make_dataset(source, 20, num_replicas=replicas))[1] == [20, 21, 22]


# -- ranks


def ranks(source, size, *args, **kwargs):
    return [make_dataset(source, *args, rank=r, size=size, **kwargs) for r in range(size)]


def joined(passes):
    """Join the shards that the ranks have seen into global batches."""
    return [flat(shards) for shards in itertools.zip_longest(*passes, fillvalue=[])]


@pytest.mark.parametrize("batch_size", [4, 6, 11])  # Leaves 3, 5 and 1.
@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("shuffle", [True, False])
def test_shards_of_all_ranks_make_up_the_batches_of_one_process(source, size, shuffle, batch_size):
    single = make_dataset(source, batch_size, shuffle, seed=5)
    datasets = ranks(source, size, batch_size, shuffle, seed=5)
    expected = labels(single)
    tail = expected[-1]
    if shuffle and len(tail) < size:
        expected[-1] = [tail[i % len(tail)] for i in range(size)]
    whole = [labels(dataset) for dataset in datasets]
    assert joined(whole) == expected
    for rank, dataset in enumerate(datasets):
        sizes = [len(np.array_split(batch, size)[rank]) for batch in expected]
        assert [len(batch) for batch in whole[rank]] == [n for n in sizes if n]
        shares = [dataset.share(step) for step in range(dataset.num_batches)]
        assert shares == [n * size / len(b) for n, b in zip(sizes, expected, strict=True)]
        assert dataset.num_batches == len(expected)
        assert len(dataset) == int(dataset.cardinality()) == len(whole[rank])
        for step in (1, len(expected) - 1, len(expected)):
            dataset.seek(0, step)
            assert labels(dataset) == whole[rank][step:]
            assert len(dataset) == len(whole[rank])
        assert dataset._position._epoch == 1


def test_endless_datasets_of_all_ranks_stay_in_step(source):
    expected = labels(make_dataset(source, 6, True, 5).repeat().take(9))
    datasets = [dataset.repeat() for dataset in ranks(source, 4, 6, True, 5)]
    assert joined([labels(dataset.take(9)) for dataset in datasets]) == expected
    for dataset in datasets:
        dataset.seek(1, 2)
    assert joined([labels(dataset.take(3)) for dataset in datasets]) == expected[6:]


def test_the_mean_of_the_ranks_weighted_by_share_is_the_mean_of_the_batch():
    datasets = ranks((X, Y), 4, 23, True, 5)
    means = [dataset.share(0) * np.mean(labels(dataset)[0]) for dataset in datasets]
    assert np.mean(means) == pytest.approx(np.mean(Y))
    for step in (-1, 1, 0.5):
        with pytest.raises(ConfigurationError, match="step="):
            datasets[0].share(step)


def test_static_shapes_of_a_rank(source):
    for rank, own in enumerate((4, 3, 3)):
        dataset = make_dataset(source, 10, drop_remainder=True, rank=rank, size=3)
        assert dataset.element_spec[0].shape.as_list() == [own, 1]
        assert [len(batch) for batch in labels(dataset)] == [own, own]
        # Not static, although rank 0 has 2 examples of the batches of 6 and of the 5 that are left.
        uneven = make_dataset(source, 6, rank=rank, size=4)
        assert uneven.element_spec[0].shape.as_list() == [None, 1]


def test_a_rank_without_examples_skips_the_batch(source):
    # 4 ranks, and a last batch of 3.
    datasets = ranks(source, 4, 4)
    assert [len(dataset) for dataset in datasets] == [6, 6, 6, 5]
    assert not any(dataset.every_rank_has_examples for dataset in datasets)
    for dataset in datasets:
        with pytest.raises(ConfigurationError, match="3 examples for 4 processes"):
            dataset.repeat()
    skipping = datasets[3]
    skipping.seek(2, 5)
    assert labels(skipping) == []
    assert len(labels(skipping)) == 5
    assert skipping._position._epoch == 4


def test_every_rank_has_examples():
    def every(batch_size, shuffle=False, **kwargs):
        dataset = make_dataset((X, Y), batch_size, shuffle, rank=3, size=4, **kwargs)
        return dataset.every_rank_has_examples

    assert every(4, shuffle=True)
    assert every(4, drop_remainder=True)
    assert every(6)
    assert every(23)
    assert not every(5)
    assert not every(2, drop_remainder=True)
    assert make_dataset((X, Y), 2).every_rank_has_examples


def test_a_second_split_between_processes_is_refused():
    with pytest.raises(ConfigurationError, match="Delete it"):
        make_dataset((X, Y), 4, rank=1, size=2).shard(2, 1)
    assert len(list(make_dataset((X, Y), 4).shard(2, 1))) == 3


def test_batches_smaller_than_the_number_of_ranks(source):
    datasets = ranks(source, 4, 2)
    assert joined([labels(dataset) for dataset in datasets]) == labels(make_dataset(source, 2))
    assert [len(dataset) for dataset in datasets] == [12, 11, 0, 0]
    with pytest.raises(ConfigurationError, match=r"batch_size=2.*4 replicas in 4 processes"):
        make_dataset(source, 2, shuffle=True, size=4)


# -- Keras


def model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1e-4), "mse", weighted_metrics=["mae"])
    return model


class BatchCounter(keras.callbacks.Callback):
    """Counts the batches of each epoch."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def on_epoch_begin(self, epoch, logs=None):
        self.steps.append(0)

    def on_train_batch_end(self, batch, logs=None):
        self.steps[-1] += 1


class Recorded:
    """Examples that record the order in which they are read."""

    def __init__(self):
        self.indices = []

    def __len__(self):
        return N

    def __getitem__(self, index):
        self.indices.append(index)
        return X[index], Y[index]


def test_fit_reads_each_epoch_in_its_order():
    recorded = Recorded()
    dataset = make_dataset(recorded, 4, shuffle=True, seed=5, num_parallel_reads=1)
    recorded.indices.clear()
    seen = BatchCounter()
    model().fit(dataset, epochs=3, verbose=0, callbacks=[seen])
    assert seen.steps == [6, 6, 6]
    reference = make_dataset((X, Y), 4, shuffle=True, seed=5)
    assert recorded.indices == [i for _ in range(3) for i in flat(labels(reference))]


def test_fit_matches_the_same_batches_given_one_by_one(source):
    one, other = model(), model()
    one.fit(make_dataset(source, 4, shuffle=True, seed=5), epochs=2, verbose=0)
    batches = make_dataset(source, 4, shuffle=True, seed=5)
    for _ in range(2):
        for x, y in batches:
            other.train_on_batch(x, y)
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_fit_after_seek_runs_a_short_epoch_and_full_ones_after_it():
    # Ends the first epoch like distrib's own callbacks, before the iterator is exhausted.
    class EndEpoch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                self.model.stop_training = True

    dataset = make_dataset((X, Y), 4, shuffle=True)
    dataset.seek(0, 4)
    fitted = model()
    fitted.fit(dataset, epochs=1, verbose=0, callbacks=[EndEpoch()])
    seen = BatchCounter()
    fitted.fit(dataset, epochs=2, verbose=0, callbacks=[seen])
    assert seen.steps == [6, 6]


def test_fit_with_validation_class_weight_and_steps_per_epoch(source):
    train = make_dataset(source, 4, shuffle=True)
    validation = make_dataset(source, 5)
    history = (
        model()
        .fit(
            train,
            validation_data=validation,
            class_weight=dict.fromkeys(range(N), 2.0),
            epochs=3,
            verbose=0,
        )
        .history
    )
    assert len(history["val_loss"]) == 3
    seen = BatchCounter()
    model().fit(
        train.repeat(),
        class_weight=dict.fromkeys(range(N), 2.0),
        steps_per_epoch=4,
        epochs=4,
        verbose=0,
        callbacks=[seen],
    )
    assert seen.steps == [4, 4, 4, 4]


def test_validation_matches_keras_on_arrays():
    fitted = model()
    expected = fitted.evaluate(X, Y, batch_size=4, verbose=0)
    assert fitted.evaluate(make_dataset((X, Y), 4), verbose=0) == expected


def test_keras_accepts_a_rank_that_skips_the_last_batch(source):
    validation = make_dataset(source, 4, rank=3, size=4)
    fitted = model()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*ran out of data")
        loss, _ = fitted.evaluate(validation, verbose=0)
        train = make_dataset(source, 4, True, rank=3, size=4)
        history = fitted.fit(train, validation_data=validation, epochs=3, verbose=0).history
    own = X[3:20:4]
    assert loss == pytest.approx(float(model().evaluate(own, Y[3:20:4], verbose=0)[0]))
    assert len(history["val_loss"]) == 3


def test_fit_of_a_rank_after_seek_runs_full_epochs_after_the_short_one():
    class EndEpoch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = self.model.stop_training or batch == 1

    dataset = make_dataset((X, Y), 4, True, rank=2, size=3)
    dataset.seek(0, 4)
    fitted, seen = model(), BatchCounter()
    fitted.fit(dataset, epochs=1, verbose=0, callbacks=[EndEpoch()])
    fitted.fit(dataset, epochs=2, verbose=0, callbacks=[seen])
    assert seen.steps == [6, 6]


def test_fit_with_dict_inputs_and_sample_weights():
    keras.utils.set_random_seed(0)
    a, b = keras.Input((1,), name="a"), keras.Input((2,), name="b")
    joint = keras.Model({"a": a, "b": b}, keras.layers.Dense(1)(keras.layers.Concatenate()([a, b])))
    joint.compile("sgd", "mse", weighted_metrics=["mae"])
    source = ({"a": X, "b": np.hstack([X, X])}, Y, np.zeros(N, np.float32))
    before = joint.get_weights()
    history = joint.fit(make_dataset(source, 4, shuffle=True), epochs=2, verbose=0).history
    assert history["loss"] == [0.0, 0.0]
    np.testing.assert_array_equal(before[0], joint.get_weights()[0])


def test_numpy_integers_are_accepted():
    dataset = make_dataset((X, Y), np.int64(4), True, seed=np.int32(5))
    assert labels(dataset) == labels(make_dataset((X, Y), 4, True, seed=5))
    json.dumps(dataset.fingerprint())


# -- the pipeline


def test_autotune_is_switched_off_in_all_derived_datasets():
    tuned = tf.data.Options()
    tuned.autotune.enabled = True
    stream = tf.data.Dataset.range(8).with_options(tuned)
    for source in (np.arange(8), stream):
        dataset = make_dataset(source, batch_size=2)
        for derived in (dataset, dataset.map(lambda x: x), dataset.prefetch(1), dataset.repeat()):
            assert derived.options().autotune.enabled is False


@pytest.mark.parametrize("size", [1, 2])
def test_autograph_converts_no_function_of_the_pipeline(source, size, converted):
    for shuffle in (False, True):
        dataset = make_dataset(source, 8, shuffle=shuffle, rank=size - 1, size=size)
        assert labels(dataset)
        assert labels(dataset.repeat().take(5))
    assert converted == []

    def users_function(x, y):
        return x, y

    assert labels(dataset.map(users_function))
    assert converted == [users_function]


MIRRORED = """
import keras, numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4)
tf.config.experimental.enable_op_determinism()
from distrib.data.make_dataset import make_dataset

keras.utils.set_random_seed(0)
x = np.random.default_rng(0).normal(size=(37, 3)).astype("float32")

class Examples:
    def __len__(self):
        return len(x)
    def __getitem__(self, index):
        return x[index], x[index, 0]

strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(4)])
with strategy.scope():
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.BatchNormalization(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    sources = [(x, x[:, 0]), Examples(), tf.data.Dataset.from_tensor_slices((x, x[:, 0]))]
    datasets = [make_dataset(s, 16, shuffle=True, num_replicas=4) for s in sources]
for dataset in datasets:
    distributed = strategy.experimental_distribute_dataset(dataset)
    iter(distributed)
    pieces = [[len(v) for v in strategy.experimental_local_results(xs)] for xs, _ in distributed]
    assert pieces == [[4] * 4, [4] * 4, [2] * 4], pieces
    assert dataset._position._epoch == 1
    history = model.fit(dataset, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all(), history
assert all(np.isfinite(w).all() for w in model.get_weights())
"""


@pytest.mark.slow
def test_under_a_mirrored_strategy_with_deterministic_operations(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(MIRRORED)
    subprocess.run(forked(script), env=environment(), check=True, timeout=300)


@pytest.mark.parametrize("steps", [None, 2, 9])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_what_processes_have_is_joined_in_the_order_of_the_examples(
    size: int, steps: int | None
) -> None:
    x = np.arange(22).reshape(11, 2)
    made = [make_dataset(x, 4, rank=rank, size=size) for rank in range(size)]
    batches = [[batch.numpy() for batch in each.take(steps or 3)] for each in made]
    parts = [np.concatenate(each) if each else None for each in batches]
    expected = x[: 4 * (steps or 3)]
    assert made[0].join(parts, steps).tolist() == expected.tolist()


def test_what_cannot_be_joined() -> None:
    made = make_dataset(np.arange(5), 3, size=2, pad_last_batch=False)
    made.check_order()
    assert made.join([np.arange(3), np.arange(2)]).tolist() == [0, 1, 0, 2, 1]
    with pytest.raises(ConfigurationError, match=r"have \[3, 0\] rows for \[3, 2\] examples"):
        made.join([np.arange(3), None])
    for other in (make_dataset(np.arange(5), 3, shuffle=True), made.repeat()):
        with pytest.raises(
            ConfigurationError, match=r"Each pass over this cluster\.dataset differs"
        ):
            other.check_order()
