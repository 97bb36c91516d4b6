"""A `PyDataset` that a `fit` trains on or validates with: its hooks, and its state in checkpoints.

`on_epoch_begin` and `on_epoch_end` are the user's code, called in the main thread as Keras calls
them: `on_epoch_end` also once before the first epoch. Batches are the same on all ranks only if the
hooks do the same on all of them, so after each one all ranks take over the chief's result.
"""

from __future__ import annotations

from typing import Any

import keras

from distrib.collectives import Collectives
from distrib.data.compare_contents import compare_contents
from distrib.data.contents import contents_of
from distrib.data.py_dataset import PyDatasetBatches, num_batches_of
from distrib.data.py_dataset_order import BatchOrder, EvaluationOrder
from distrib.errors import ConfigurationError
from distrib.log import log
from distrib.state import codec
from distrib.state.callback_state import StatefulCallback
from distrib.state.hook_state import HookState
from distrib.state.value_kinds import attributes_of

_SEED, _WITHIN_EPOCH, _ATTRIBUTES = "seed", "within_epoch", "attributes"


class FitPyDataset(PyDatasetBatches):
    """The batches of a `PyDataset` in a `fit`.

    Args:
        py_dataset: The `PyDataset`.
        order: Which batches this rank takes.
        seed: Seed of the order, 0 to 2**63 - 1; the chief's counts.
        collectives: Of the job.
    """

    acts_in_validation = True  # Training and validation data may be one object of the user's.

    def __init__(
        self,
        py_dataset: Any,
        order: BatchOrder | EvaluationOrder,
        seed: int,
        collectives: Collectives,
    ) -> None:
        self._collectives = collectives
        self._within_epoch = False
        # Before any hook and any `__getitem__` is called.
        self._hooks = HookState(py_dataset)
        super().__init__(py_dataset, order, seed)

    def begin_fit(self) -> None:
        """Call `on_epoch_end`, as Keras does before it trains.

        Raises:
            ConfigurationError: If the ranks have other batches under the same number.
        """
        self.seed = self._collectives.broadcast(self.seed)
        self._call("on_epoch_end")
        first = self._first_batch()
        is_random = compare_contents(first, self._first_batch()) == "other"
        if is_random and isinstance(self.order, BatchOrder):
            self._warn_about_random_batches()
        if self.order.shard.size > 1:
            self._check_ranks(None if is_random else first)
            self.share(0)  # It builds batches, which may not be done beside the threads of a pass.

    def begin_epoch(self, epoch: int) -> None:
        """Call `on_epoch_begin`.

        Raises:
            ConfigurationError: If the number of batches has changed.
        """
        self.epoch = epoch
        self._within_epoch = True
        self._call("on_epoch_begin")
        count = num_batches_of(self.py_dataset)
        if isinstance(self.order, BatchOrder) and count != self.order.num_batches:
            raise ConfigurationError(
                f"{type(self.py_dataset).__name__} had {self.order.num_batches} batches when `fit` "
                f"began and has {count} in epoch {epoch + 1}, but Keras goes by the first number. "
                "Return the same number in every epoch, or call `fit` anew."
            )

    def end_epoch(self) -> None:
        """Call `on_epoch_end`, once an epoch."""
        self.stop_reading()  # Of an epoch that was left early.
        if self._within_epoch:
            self._within_epoch = False
            self._call("on_epoch_end")

    def get_state(self) -> dict[str, Any]:
        """Return what the batches of this and later epochs depend on, beside their numbers."""
        attributes = self._holder.get_state()
        return {_SEED: self.seed, _WITHIN_EPOCH: self._within_epoch, _ATTRIBUTES: attributes}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from what `get_state` returned, perhaps in another process."""
        if _ATTRIBUTES not in state:
            return  # Of validation data of another kind.
        self._holder.set_state(state[_ATTRIBUTES])
        self.seed, self._within_epoch = state[_SEED], state[_WITHIN_EPOCH]

    def changing_attributes(self) -> dict[str, Any]:
        """See `PyDatasetBatches`; with a state of its own, any attribute may change."""
        own = self._holder is self.py_dataset
        return attributes_of(self.py_dataset) if own else self._hooks.attributes()

    @property
    def _holder(self) -> StatefulCallback:
        """Who decides what the state is: the user's object if it can."""
        own = isinstance(self.py_dataset, StatefulCallback)
        return self.py_dataset if own else self._hooks

    def _call(self, name: str) -> None:
        hook = getattr(self.py_dataset, name)
        if getattr(hook, "__func__", None) is getattr(keras.utils.PyDataset, name):
            return
        if self._holder is self._hooks:
            self._hooks.call(hook)
        else:
            hook()
        if self.order.shard.size > 1:
            self._share_state()

    def _share_state(self) -> None:
        """Give the chief's state to all ranks, if theirs differ."""
        state = self._holder.get_state()
        if len(set(self._collectives.allgather(codec.digest(state)))) == 1:
            return
        chiefs = self._collectives.broadcast(state)
        if self._holder is self._hooks:
            self._hooks.share_state(chiefs)
        else:
            self._holder.set_state(chiefs)

    def _first_batch(self) -> dict[str, Any]:
        leaves = keras.tree.flatten_with_path(self.build(0))
        return contents_of((str(path), leaf) for path, leaf in leaves if leaf is not None)

    def _check_ranks(self, first: dict[str, Any] | None) -> None:
        """Refuse ranks that have other data, also shards that the script has made."""
        chiefs, *others = self._collectives.allgather(first)
        for rank, theirs in enumerate(others, start=1):
            if chiefs and theirs and compare_contents(chiefs, theirs) == "other":
                raise ConfigurationError(
                    f"Batch 0 of {type(self.py_dataset).__name__} is another one on rank {rank} "
                    "than on rank 0. Pass all batches on every rank, in the same order (seed what "
                    "shuffles them): each rank takes its own of every step."
                )

    def _warn_about_random_batches(self) -> None:
        log.warning(
            f"`{type(self.py_dataset).__name__}.__getitem__` returns another batch each time that "
            "it is asked for batch 0, so a resumed run trains on other batches than it would have "
            "without the restart. Draw random numbers from `np.random.default_rng((seed, "
            "self.epoch, index))`, and count `self.epoch` up in `on_epoch_end`."
        )
