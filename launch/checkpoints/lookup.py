"""The checkpoints of a run and their states: committed, superseded, damaged or quarantined."""

from __future__ import annotations

from dataclasses import dataclass

from distrib.checkpoint import commit
from distrib.checkpoint.directory import CheckpointDirectory
from distrib.checkpoint.manifest import DamagedCheckpointError
from distrib.checkpoint.stored_checkpoint import StoredCheckpoint
from distrib.errors import ConfigurationError, NoLoadableCheckpointError
from distrib.storage.location import Location

from .errors import translate_storage_errors

COMMITTED, SUPERSEDED = "committed", "superseded"
DAMAGED, QUARANTINED = "damaged manifest", "quarantined"


@dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint in any state.

    Attributes:
        step: Its step.
        location: Its folder; of a quarantined one, the renamed folder or manifest.
        state: `COMMITTED`, `SUPERSEDED` (the attempt that committed it had been superseded),
            `DAMAGED` (its manifest cannot be read) or `QUARANTINED`.
        stored: Reads the checkpoint; `None` if it is damaged or quarantined.
        error: Why its manifest cannot be read.
    """

    step: int
    location: Location
    state: str
    stored: StoredCheckpoint | None = None
    error: str = ""


def state_of(stored: StoredCheckpoint) -> str:
    """Return the state of a checkpoint whose manifest can be read."""
    return SUPERSEDED if stored.late else COMMITTED


def list_checkpoints(directory: CheckpointDirectory) -> list[FoundCheckpoint]:
    """Return all checkpoints that have a manifest, by step."""
    found: list[FoundCheckpoint] = []

    def unreadable(step: int, error: DamagedCheckpointError) -> None:
        location = directory.location / str(step)
        found.append(FoundCheckpoint(step, location, DAMAGED, error=str(error)))

    with translate_storage_errors(directory.location):
        for stored in directory.checkpoints(unreadable):
            step = stored.manifest.step
            found.append(FoundCheckpoint(step, stored.location, state_of(stored), stored))
    return sorted(found, key=lambda one: one.step)


def require_checkpoints(directory: CheckpointDirectory) -> list[FoundCheckpoint]:
    """Return all checkpoints that have a manifest, by step.

    Raises:
        ConfigurationError: If there is none.
    """
    found = list_checkpoints(directory)
    if not found:
        raise ConfigurationError(f"There is no checkpoint in {directory.location}.")
    return found


def quarantined(directory: CheckpointDirectory) -> list[FoundCheckpoint]:
    """Return the damaged checkpoints that runs have quarantined."""
    with translate_storage_errors(directory.location):
        locations = commit.quarantined(directory.location)
    return [FoundCheckpoint(_quarantined_step(each), each, QUARANTINED) for each in locations]


def newest(found: list[FoundCheckpoint]) -> FoundCheckpoint | None:
    """Return the one that a run resumes from; a superseded one only if there is no other."""
    readable = [one for one in found if one.stored is not None]
    return max(readable, key=lambda one: (one.state == COMMITTED, one.step), default=None)


def choose(directory: CheckpointDirectory, step: int | None) -> StoredCheckpoint:
    """Return the checkpoint of a step.

    Args:
        directory: Of the run.
        step: `None` for the newest.

    Raises:
        ConfigurationError: If there is no such checkpoint; names the steps that exist.
        NoLoadableCheckpointError: If its manifest is damaged.
    """
    found = require_checkpoints(directory)
    chosen = newest(found) if step is None else pick(directory, found, step)
    chosen = chosen or found[-1]  # All are damaged.
    if chosen.stored is None:
        raise NoLoadableCheckpointError(f"damaged: {chosen.error}")
    return chosen.stored


def pick(
    directory: CheckpointDirectory, found: list[FoundCheckpoint], step: int
) -> FoundCheckpoint:
    """Return the checkpoint of a step.

    Args:
        directory: Of the run.
        found: Its checkpoints.
        step: The step.

    Raises:
        ConfigurationError: If there is none; names the steps that exist.
    """
    for one in found:
        if one.step == step:
            return one
    steps = ", ".join(str(one.step) for one in found) or "no steps at all"
    raise ConfigurationError(f"{directory.location} has no step {step}; it has {steps}.")


def _quarantined_step(location: Location) -> int:
    """`3500.damaged` or, on an object store, `3500/damaged-manifest.json`."""
    name = location.name if location.local is not None else location.parent.name
    return int(name.partition(".")[0])
