import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from distrib.data.dataset import Dataset
from distrib.data.derived import derivation
from distrib.data.make_dataset import make_dataset
from distrib.errors import ConfigurationError

N = 23
X = np.arange(N)


def new(batch_size=4, shuffle=True, **arguments):
    return make_dataset(arguments.pop("source", X), batch_size, shuffle, seed=5, **arguments)


base = functools.cache(new)  # Each method makes a pipeline, which takes a while.


def listed(dataset):
    return [
        np.hstack([np.ravel(each) for each in tf.nest.flatten(batch)]).tolist() for batch in dataset
    ]


def add_one(batch):
    if tf.reduce_all(batch >= 0):  # AutoGraph has to convert this, at any depth.
        batch = batch + 1
    return batch


# What is called, and on which datasets; `at` is the place among ranks.
KEPT = {
    "take and skip": lambda **at: base(**at).skip(1).map(add_one).take(4),
    "enumerate": lambda **at: base(**at).enumerate(7),
    "cache": lambda **at: base(shuffle=False, **at).cache(),
    "zip": lambda **at: base(**at).zip(base(**at).map(add_one)),
    "concatenate": lambda **at: base(**at).take(2).concatenate(base(6, **at)),
}


@pytest.fixture(params=KEPT)
def make(request):
    return KEPT[request.param]


def test_the_position_is_kept(make):
    whole = make()
    assert isinstance(whole, Dataset)
    whole.seek(0, 0)
    passes = [listed(whole) for _ in range(3)]
    assert [len(each) for each in passes] == [whole.num_batches] * 3
    assert len(whole) == int(whole.cardinality()) == whole.num_batches
    dataset = make()
    for epoch, step in [(0, 1), (1, whole.num_batches - 1), (0, whole.num_batches)]:
        dataset.seek(epoch, step)
        assert listed(dataset) == passes[epoch][step:]
        assert listed(dataset) == passes[epoch + 1]
    endless = dataset.repeat()
    endless.seek(1, 2)
    rest = passes[1][2:] + passes[2]
    assert listed(endless.take(len(rest))) == rest
    assert endless.num_batches == whole.num_batches


@pytest.mark.parametrize(
    "name",
    [
        *("take and skip", "zip"),
        *(pytest.param(it, marks=pytest.mark.exhaustive) for it in ("enumerate", "concatenate")),
    ],
)
def test_ranks_share_each_batch(name):
    make = KEPT[name]
    ranks = [make(rank=rank, size=2) for rank in range(2)]
    single = make()
    single.seek(0, 0)
    expected = listed(single)
    passes = [listed(dataset) for dataset in ranks]
    assert [len(each) for each in passes] == [single.num_batches] * 2
    for step, batch in enumerate(expected):
        # Numbers from `enumerate` are on both ranks.
        assert {*passes[0][step], *passes[1][step]} == {*batch}
        assert sum(dataset.share(step) for dataset in ranks) == pytest.approx(2)
    for dataset in ranks:
        assert dataset.fingerprint() == single.fingerprint()
        assert dataset.every_rank_has_examples
        assert len(dataset) == dataset.num_batches == single.num_batches


@pytest.mark.parametrize(
    "source", ["examples", pytest.param("stream", marks=pytest.mark.exhaustive)]
)
def test_all_kinds_of_sources(source):
    made = {
        "examples": [*map(int, X)],
        "stream": tf.data.Dataset.from_tensor_slices(X),
    }[source]
    mapped = {"map": lambda x, rng: x * 100 + rng.integers(100)} if source == "examples" else {}

    def make():
        one = new(source=made, **mapped)
        return one.take(3).concatenate(one.skip(4)).zip(one)

    passes = [listed(each) for each in [make()] for _ in range(2)]
    dataset = make()
    dataset.seek(0, 2)
    assert listed(dataset) == passes[0][2:]
    assert len(passes[0]) == 5


def test_take_and_skip_count_batches_of_every_epoch():
    first, second = listed(whole := new()), listed(whole)
    for n in (1, 5):
        head, tail = whole.take(n), whole.skip(n)
        assert [listed(head), listed(head)] == [first[:n], second[:n]]
        assert [listed(tail), listed(tail)] == [first[n:], second[n:]]
    for n in (-1, tf.constant(8)):
        assert len(whole.take(n)) == 6
    assert len(whole.skip(0)) == 6


def test_datasets_of_their_own_do_not_move_each_other():
    whole = new()
    head, tail = whole.take(2), whole.skip(2)
    first = listed(new())
    assert listed(head) + listed(tail) == first
    assert listed(whole) == first


def test_a_short_last_batch_of_an_evaluation():
    ranks = [new(5, shuffle=False, rank=rank, size=4) for rank in range(4)]  # It has 3 examples.
    assert [len(each.skip(2)) for each in ranks] == [3, 3, 3, 2]
    assert [len(each.take(4)) for each in ranks] == [4, 4, 4, 4]
    assert [each.take(4).every_rank_has_examples for each in ranks] == [True] * 4
    tail = ranks[3].skip(2)
    assert not tail.every_rank_has_examples
    for step in (0, 1, 3):
        tail.seek(0, step)
        assert listed(tail) == [[14], [19]][step:]
    assert listed(ranks[3].take(2).concatenate(ranks[3])) == [[4], [9], [4], [9], [14], [19]]
    with pytest.raises(ConfigurationError, match="batch of 3 examples in the middle"):
        ranks[0].concatenate(ranks[0])
    with pytest.raises(ConfigurationError, match="split otherwise among 4 ranks"):
        ranks[0].zip(new(8, shuffle=False, rank=0, size=4))


def test_enumerate_numbers_steps_of_the_epoch_or_of_the_run():
    assert [int(i) for i, _ in new().enumerate()] == [*range(6)]
    numbered = new().repeat().enumerate(10)
    numbered.seek(2, 3)
    assert [int(i) for i, _ in numbered.take(4)] == [25, 26, 27, 28]
    again = new().enumerate().repeat()
    again.seek(2, 3)
    assert [int(i) for i, _ in again.take(4)] == [3, 4, 5, 0]


def test_what_is_cached_is_read_once():
    read = []
    dataset = new(source=[*map(int, X)], shuffle=False, map=lambda x: read.append(x) or x).cache()
    dataset.seek(0, 5)
    assert listed(dataset) == [[20, 21, 22]]
    assert len(read) == N + 1  # Example 0 shows the structure.
    assert len(listed(dataset)) == 6
    assert len(listed(dataset.repeat().take(20))) == 20
    assert len(read) == N + 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: base().cache(), "pass arrays in memory"),
        (lambda: new(shuffle=False, map=lambda x, rng: x).cache(), "first epoch's order"),
        (lambda: base().concatenate(new(shuffle=False)).cache(), "first epoch's order"),
        (lambda: new(shuffle=False).cache("file"), r"cache\(filename='file'\)"),
        (lambda: base().take(0), r"`take\(0\)` leaves none of the 6 batches"),
        (lambda: base().skip(6), r"`skip\(6\)` leaves none"),
        (lambda: base().zip(base().repeat()), "without `repeat"),
        (lambda: base().repeat().zip(base(5).repeat()), "without `repeat"),
        (lambda: base().repeat().concatenate(base()), "concatenate first"),
        (lambda: base().map(add_one, 2, False), "any order"),
        (lambda: base().map(add_one, num_parallel_calls=2, deterministic=False), "any order"),
        (lambda: base().repeat(2), "epochs=2"),
        (lambda: base().rejection_resample(lambda x: 0, [0.5, 0.5]), "before `cluster.dataset`"),
        (lambda: new(rank=0, size=2).shard(2, 0), "leave most examples out"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ConfigurationError, match=message):
        call()


def test_options_that_lose_the_order_are_refused():
    options = tf.data.Options()
    options.deterministic = False
    with pytest.raises(ConfigurationError, match="any order"):
        base().with_options(options)


def test_options_are_set():
    options = tf.data.Options()
    options.threading.private_threadpool_size = 3
    dataset = base().with_options(options)
    assert dataset.options().threading.private_threadpool_size == 3
    assert dataset.options().autotune.enabled is False


def test_fingerprints_differ_where_batches_do():
    prints = [
        str(each.fingerprint())
        for each in (
            base(),
            base().take(3),
            base().skip(3),
            base().zip(base()),
            base().zip(base(6)),
            base().concatenate(base()),
            base().concatenate(base().take(2)),
        )
    ]
    assert len(set(prints)) == len(prints)
    assert base().take(9).take(3).fingerprint() == base().take(3).fingerprint()
    assert base().zip(base(6)).fingerprint()["batch_size of part 1"] == 6
    assert base().zip(base(6)).fingerprint()["contents"].keys() == {"part 0 ", "part 1 "}


def test_functions_are_those_of_the_user():
    class Photos(list):
        pass

    def double(x):
        return 2 * x

    one = new(source=Photos(map(int, X)), map=double).map(add_one).prefetch(1).map(double)
    named = {"map": double, "source": Photos, "Dataset.map": add_one, "Dataset.map-2": double}
    assert one.functions == named
    assert one.take(2).repeat().functions == named
    assert list(one.zip(base()).functions) == [
        *(f"{name} of part 0" for name in named),
        "source of part 1",
    ]


# -- what cannot be resumed

# Methods that return ordinary datasets. Each is called as a user would.
DERIVED = {
    "apply": lambda ds: ds.apply(lambda each: each.unbatch()),
    "batch": lambda ds: ds.batch(2),
    "bucket_by_sequence_length": lambda ds: ds.bucket_by_sequence_length(
        lambda x: tf.size(x), [3], [2, 2]
    ),
    "filter": lambda ds: ds.filter(lambda x: tf.size(x) > 3),
    "flat_map": lambda ds: ds.flat_map(tf.data.Dataset.from_tensor_slices),
    "group_by_window": lambda ds: ds.group_by_window(
        lambda x: tf.constant(0, tf.int64), lambda key, group: group.batch(2), 2
    ),
    "ignore_errors": lambda ds: ds.ignore_errors(),
    "interleave": lambda ds: ds.interleave(tf.data.Dataset.from_tensor_slices),
    "padded_batch": lambda ds: ds.padded_batch(2),
    "ragged_batch": lambda ds: ds.ragged_batch(2),
    "rebatch": lambda ds: ds.rebatch(2),
    "scan": lambda ds: ds.scan(0, lambda state, x: (state, x)),
    "shuffle": lambda ds: ds.shuffle(3),
    "snapshot": lambda ds: ds.snapshot("folder"),
    "sparse_batch": lambda ds: ds.sparse_batch(2, [4]),
    "take_while": lambda ds: ds.take_while(lambda x: True),
    "unbatch": lambda ds: ds.unbatch(),
    "unique": lambda ds: ds.map(lambda x: x[0]).unique(),
    "window": lambda ds: ds.window(2),
    # Static methods of several datasets.
    "choose_from_datasets": lambda ds: tf.data.Dataset.choose_from_datasets(
        [tf.data.Dataset.range(3), ds], tf.data.Dataset.range(2)
    ),
    "sample_from_datasets": lambda ds: tf.data.Dataset.sample_from_datasets([ds, ds]),
}
# What they are made of, where that is another method.
NAMES = {
    "apply": ["unbatch"],
    "bucket_by_sequence_length": ["group_by_window"],
    "choose_from_datasets": ["directed_interleave"],
    "ragged_batch": ["batch"],
    "sample_from_datasets": ["directed_interleave"],
    "snapshot": ["snapshot", "map"],
    "sparse_batch": ["dense_to_sparse_batch"],
}
# Methods that `DatasetMethods` has in a form of its own.
OWN = {
    "map",
    "prefetch",
    "with_options",
    "enumerate",
    "cache",
    "take",
    "skip",
    "zip",
    "concatenate",
    "repeat",
    "shard",
    "rejection_resample",
}
# Methods that read a pass, or nothing at all.
READ = {
    "as_numpy_iterator",
    "cardinality",
    "element_spec",
    "fingerprint",
    "get_single_element",
    "options",
    "reduce",
    "save",
}
# Static methods that make a dataset of something else.
MAKE = {
    "counter",
    "from_generator",
    "from_tensor_slices",
    "from_tensors",
    "list_files",
    "load",
    "random",
    "range",
}


def test_every_method_of_tensorflow_has_a_place():
    """A new method of TensorFlow fails here: does it keep the position, and what if not?"""
    public = {name for name in dir(tf.data.Dataset) if not name.startswith("_")}
    groups = [set(DERIVED), OWN, READ, MAKE]
    assert public - set().union(*groups) == set()
    assert sum(map(len, groups)) == len(set().union(*groups))
    own = {name for name in OWN if name in vars(Dataset.__mro__[1])}
    assert own == OWN


def test_ordinary_datasets_are_recognized():
    dataset = base()
    for name, call in DERIVED.items():
        made = call(dataset)
        assert not isinstance(made, Dataset)
        assert derivation(made) == NAMES.get(name, [name])
        assert derivation(made.map(lambda *x: x)) == [*NAMES.get(name, [name]), "map"]


def test_datasets_within_others_are_recognized():
    plain = tf.data.Dataset.range(3)
    made = base()
    assert derivation(plain.interleave(lambda i: made, num_parallel_calls=2).batch(2)) == [
        "interleave",
        "batch",
    ]
    assert derivation(tf.data.Dataset.zip((plain, base()))) == ["zip"]
    assert derivation(base().zip(plain)) == ["zip"]
    assert derivation(plain.concatenate(plain)) is None
    assert derivation(base().concatenate(base().map(add_one).batch(2).unbatch())) == ["concatenate"]
    assert derivation(base().repeat().take(3)) == ["take"]
    assert derivation(base().take(3)) == []
    assert derivation((X, X)) is None


@pytest.mark.exhaustive
def test_keras_trains_on_zipped_and_sliced_datasets():
    inputs = np.linspace(0, 1, N, dtype=np.float32)[:, None]

    def weights(data):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(data, epochs=2, verbose=0)
        return np.ravel(model.get_weights()[0])

    def train(x):
        return make_dataset(x, 4, shuffle=True, seed=5)

    zipped = train(inputs).zip(train(inputs).map(lambda x: 2 * x)).skip(2)
    assert weights(zipped) == weights(train((inputs, 2 * inputs)).skip(2))
