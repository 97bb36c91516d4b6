"""Begins a new run with the state of another run.

The chief reads it and assigns it before `on_train_begin`, after which every `fit` on several ranks
gives the chief's state to all (`multi_rank_fit.py`). The other run's directory is only read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from distrib.checkpoint.directory import load_from
from distrib.cluster import current
from distrib.errors import ConfigurationError, DistribError, StoreUnavailableError
from distrib.log import log
from distrib.state.run_checkpoint import RunCheckpoint
from distrib.state.run_state import RunState
from distrib.storage.errors import classify
from distrib.storage.location import Location, describe_error


@dataclass(frozen=True)
class Initialization:
    """What a new run begins with.

    Attributes:
        source: Directory of another run, or one of its checkpoints.
        restore: `("model",)` or `("model", "optimizer")`.
    """

    source: Location
    restore: Sequence[str]

    def apply(self, state: RunState) -> None:
        """Take over what the new run has in common with the other. All ranks call it together.

        Args:
            state: Of the new run, with all its variables.

        Raises:
            ConfigurationError: If there is no checkpoint.
            CheckpointMismatchError: If the other run has nothing in common with this one.
            NoLoadableCheckpointError: If all checkpoints are damaged.
            StoreUnavailableError: If the store does not answer.
        """
        cluster = current()
        failure = self._try_to_apply(state) if cluster.is_chief else None
        failure = cluster.collectives.broadcast(failure)
        if failure is not None:
            raise failure

    def _try_to_apply(self, state: RunState) -> DistribError | None:
        try:
            self._apply(state)
        except DistribError as error:
            return type(error)(f"`initialize_from={str(self.source)!r}`: {error}")
        return None

    def _apply(self, state: RunState) -> None:
        try:
            checkpoint = load_from(self.source, RunCheckpoint.load)
        except OSError as error:
            _translate(error, self.source)
        if checkpoint is None:
            raise ConfigurationError(
                "there is no checkpoint. Name the directory that another BackupAndRestore was "
                "given, or one of the folders in its `checkpoints`."
            )
        matches = state.initialize(checkpoint, self.restore)
        position = checkpoint.position
        log.info(
            f"new run with {len(matches.pairs)} variables ({' and '.join(self.restore)}) of "
            f"{checkpoint.place}, saved after {position.step} steps (epoch {position.epoch})."
        )
        for line in matches.lines():
            log.warning(f"initialize_from: {line}.")


def _translate(error: OSError, source: Location) -> NoReturn:
    if isinstance(error, DistribError):
        raise error
    kind = classify(error)
    raised = StoreUnavailableError if kind.transient else ConfigurationError
    raise raised(f"{describe_error(error, source)}; {kind.remedy}.") from error
