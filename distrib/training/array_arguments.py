"""Arrays that `fit` is given, as data that ranks share and that a restart resumes at any step.

Keras checks and splits them. Then they become what `cluster.dataset` makes of them: batches of
`batch_size` examples over all replicas, in an order of (seed, epoch, step). The seed is that of
`keras.utils.set_random_seed` or `tf.random.set_seed`, which a restarted script sets again.

On several ranks this holds if all of them have passed the same arrays, which they compare first. A
script may also have divided the arrays itself, as scripts for Horovod do; then each rank trains on
its own, and Keras batches them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distrib.cluster import current
from distrib.data.compare_contents import compare_contents
from distrib.data.contents import contents_of
from distrib.data.dataset import Dataset
from distrib.data.make_dataset import make_dataset
from distrib.errors import ConfigurationError
from distrib.keras_compat.arrays import are_arrays, batched_inputs, split, to_tensorflow
from distrib.log import log
from distrib.training.fit_alike import CALL, check_same_call
from distrib.training.rank_comparison import gather_aspects

_X, _VALIDATION = "x", "validation_data"
_SEED, _STEPS_DONE = "seed", "steps done"


@dataclass(frozen=True)
class _Arrays:
    """Arrays for training or for validation.

    Attributes:
        inputs: As Keras packs them: `x`, `(x, y)` or `(x, y, sample_weight)`, each maybe nested.
        batch_size: Examples in a batch.
    """

    inputs: Any
    batch_size: int

    @property
    def num_examples(self) -> int:
        return int(next(leaf for _, leaf in self.leaves).shape[0])

    @property
    def leaves(self) -> list[tuple[str, Any]]:
        return [
            ("".join(f"[{part!r}]" for part in path), leaf)
            for path, leaf in keras.tree.flatten_with_path(self.inputs)
            if leaf is not None
        ]

    @property
    def obstacle(self) -> str | None:
        """What of the arrays cannot be divided into rows of one shape."""
        for path, leaf in self.leaves:
            if isinstance(leaf, tf.RaggedTensor | tf.SparseTensor) or not _is_dense(leaf):
                return f"a {type(leaf).__name__}{path and f' at {path}'}"
        return None

    def describe(self) -> dict[str, Any]:
        """Return what tells other arrays apart, as JSON values."""
        return {"examples": self.num_examples, "contents": contents_of(self.leaves)}

    def dataset(self, training: bool, shuffle: bool = False, seed: int = 0) -> Dataset:
        cluster = current()
        flat = tuple(_converted(leaf) for _, leaf in self.leaves)
        packed = keras.tree.lists_to_tuples(self.inputs)
        simple = all(leaf is not None for leaf in keras.tree.flatten(packed))
        source = keras.tree.pack_sequence_as(packed, flat) if simple else flat
        dataset = make_dataset(
            source,
            self.batch_size,
            shuffle,
            seed,
            pad_last_batch=training,
            num_replicas=cluster.num_replicas,
            rank=cluster.rank,
            size=cluster.size,
        )
        casts = [_dtype_in_keras(leaf) for _, leaf in self.leaves]
        if simple and not any(casts):
            return dataset

        def as_keras(*batch: Any) -> Any:
            given = (
                leaf if dtype is None else tf.cast(leaf, dtype)
                for leaf, dtype in zip(tf.nest.flatten(batch), casts, strict=True)
            )
            return keras.tree.map_structure(
                lambda leaf: None if leaf is None else next(given), packed
            )

        return dataset.map(tf.autograph.experimental.do_not_convert(as_keras))


def array_arguments(model: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what to change of the arguments of `fit`; nothing if it is not given arrays.

    On several ranks all of them call it together, whatever data they have.

    Args:
        model: Compiled.
        arguments: Of `fit`, by name, those with defaults included.

    Raises:
        ConfigurationError: If the arrays cannot be shared between ranks.
        ValueError: In Keras's words, if Keras would refuse the arrays.
    """
    train, split_off = _training(arguments)
    size = current().size
    validation = _validation({**arguments, **split_off}) if size > 1 else None
    seed, steps_done = _seed(), _steps_done(model)
    if size > 1:
        given = {_X: train, _VALIDATION: validation}
        aspects = {name: arrays and arrays.describe() for name, arrays in given.items()}
        common = {CALL: "fit", _SEED: seed, _STEPS_DONE: steps_done}
        values = gather_aspects({**common, **aspects}, current().collectives)
        check_same_call(values)
        seed, steps_done = values[_SEED][0], values[_STEPS_DONE][0]
        if train is not None and not _all_have(values[_X]):
            _report_own_arrays(values[_X])
            train, split_off = None, {}
        elif train is not None:
            _check_can_be_shared(train)
        if validation is not None and (validation.obstacle or not _all_have(values[_VALIDATION])):
            validation = None
    changes: dict[str, Any] = {}
    if train is not None and train.obstacle is None:
        changes = {**split_off, **_train_on(train, arguments, seed, steps_done)}
    if validation is not None:
        changes |= _validate_on(validation, arguments)
    if size > 1 and train is not None:
        _report_shared_arrays(train)
    return changes


def _training(arguments: Mapping[str, Any]) -> tuple[_Arrays | None, dict[str, Any]]:
    """Return the arrays to train on, and what `validation_split` changes of the arguments."""
    x, y, weight = (arguments[name] for name in ("x", "y", "sample_weight"))
    if x is None or not are_arrays(x, y, weight):
        return None, {}
    split_off: dict[str, Any] = {}
    if arguments["validation_split"] and arguments["validation_data"] is None:
        (x, y, weight), rest = split((x, y, weight), arguments["validation_split"])
        split_off = {"validation_data": rest, "validation_split": 0.0}
    batch_size, class_weight = arguments["batch_size"], arguments["class_weight"]
    train = _Arrays(
        *batched_inputs(x, y, weight, batch_size, _steps(arguments), class_weight=class_weight)
    )
    if not train.num_examples:
        raise ConfigurationError("`x` has no examples.")
    return train, split_off


def _validation(arguments: Mapping[str, Any]) -> _Arrays | None:
    if arguments["validation_data"] is None:
        return None
    x, y, weight = keras.utils.unpack_x_y_sample_weight(arguments["validation_data"])
    if x is None or not are_arrays(x, y, weight):
        return None
    batch_size = arguments["validation_batch_size"] or arguments["batch_size"]
    steps = arguments["validation_steps"]
    validation = _Arrays(*batched_inputs(x, y, weight, batch_size, steps))
    return validation if validation.num_examples else None


def _train_on(
    train: _Arrays, arguments: Mapping[str, Any], seed: int, steps_done: int
) -> dict[str, Any]:
    # "batch" means batches in the order of the arrays, with the examples within each one shuffled.
    shuffle = bool(arguments["shuffle"]) and arguments["shuffle"] != "batch"
    dataset = train.dataset(True, shuffle, seed)
    steps = _steps(arguments)
    if steps == dataset.num_batches:
        steps = None
    if steps:
        dataset = dataset.repeat()
    # Where a `fit` that does not resume begins: a second one goes on where the first has ended.
    done = arguments["initial_epoch"] * (steps or dataset.num_batches) or steps_done
    epoch, step = divmod(done, dataset.num_batches)
    dataset.seek(epoch, step if steps else 0)
    return {
        **{"x": dataset, "y": None, "sample_weight": None, "class_weight": None},
        **{"shuffle": False, "steps_per_epoch": steps},
    }


def _validate_on(validation: _Arrays, arguments: Mapping[str, Any]) -> dict[str, Any]:
    dataset = validation.dataset(False)
    steps = arguments["validation_steps"]
    # A rank may have no examples of the last batch, and Keras would say that it ran out of data.
    all_of_them = steps is not None and steps >= dataset.num_batches
    return {"validation_data": dataset, "validation_steps": None if all_of_them else steps}


def _steps(arguments: Mapping[str, Any]) -> int | None:
    """Return `steps_per_epoch`, or fewer if Keras is configured to limit them."""
    steps: int | None = arguments["steps_per_epoch"]
    limit = keras.config.max_steps_per_epoch()
    return min(limit, steps or limit) if limit else steps


def _all_have(by_rank: list[dict[str, Any] | None]) -> bool:
    """Tell whether all ranks have the same arrays, but for rounding."""
    first = by_rank[0]
    return first is not None and all(
        each is not None
        and each["examples"] == first["examples"]
        and compare_contents(first["contents"], each["contents"]) != "other"
        for each in by_rank
    )


def _check_can_be_shared(train: _Arrays) -> None:
    if train.obstacle is not None:
        raise ConfigurationError(
            f"`fit` was given {train.obstacle} on all ranks, which they cannot share. Convert it "
            "by `.to_tensor()`, `tf.sparse.to_dense` or `.toarray()`, or pass each rank examples "
            "of its own."
        )


def _report_shared_arrays(train: _Arrays) -> None:
    size = current().size
    log.info(
        f"the {size} ranks share the arrays: `batch_size={train.batch_size}` counts the examples "
        "of all ranks."
    )


def _report_own_arrays(by_rank: list[dict[str, Any] | None]) -> None:
    if None in by_rank:
        return  # Some ranks have other data than arrays, which is refused.
    log.warning(
        "the ranks have passed different arrays to `fit`, so each trains on its own, and "
        "`batch_size` counts one rank's examples. To share the work, and to resume at the very "
        "step, pass all examples on every rank, in the same order."
    )


def _converted(leaf: Any) -> Any:
    return leaf if isinstance(leaf, np.memmap) else to_tensorflow(leaf)


def _dtype_in_keras(leaf: Any) -> Any:
    """Return the dtype that Keras converts the batches of an array on disk to, if it does."""
    if not isinstance(leaf, np.memmap):
        return None
    dtype = tf.as_dtype(to_tensorflow(leaf[:0]).dtype)
    return None if dtype == tf.as_dtype(leaf.dtype) else dtype


def _is_dense(leaf: Any) -> bool:
    # The sparse arrays of SciPy and JAX.
    return not any(hasattr(leaf, name) for name in ("tocoo", "todense"))


def _seed() -> int:
    """Return the global seed; TensorFlow has a constant if none was set."""
    seed, _ = tf.compat.v1.get_seed(1)
    return int(seed) % 2**63


def _steps_done(model: Any) -> int:
    iterations = getattr(model.optimizer, "iterations", None)
    return 0 if iterations is None else int(iterations.numpy())
