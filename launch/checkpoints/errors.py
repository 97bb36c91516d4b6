"""Errors of a store or of a damaged checkpoint, as one line that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from distrib.checkpoint.manifest import NAME, DamagedCheckpointError
from distrib.checkpoint.stored_checkpoint import StoredCheckpoint
from distrib.errors import ConfigurationError, NoLoadableCheckpointError
from distrib.storage.errors import classify
from distrib.storage.location import Location, describe_error


class RemovedError(ConfigurationError):
    """A checkpoint was removed while it was read: a run that goes on removes old ones."""


@contextmanager
def translate_storage_errors(location: Location) -> Iterator[None]:
    """Translate an `OSError` in the block into one line.

    Args:
        location: What the block works on.

    Raises:
        ConfigurationError: In place of the `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"{location}: {describe_error(error, location)}; {classify(error).remedy}."
        ) from error


@contextmanager
def translate_read_errors(stored: StoredCheckpoint) -> Iterator[None]:
    """Translate errors of the block, which reads a checkpoint, into one line.

    Args:
        stored: The checkpoint.

    Raises:
        NoLoadableCheckpointError: If the checkpoint is damaged; names the file.
        RemovedError: If the checkpoint was removed meanwhile.
        ConfigurationError: If the store cannot be read.
    """
    try:
        with translate_storage_errors(stored.location):
            yield
    except DamagedCheckpointError as error:
        with translate_storage_errors(stored.location):
            exists = (stored.location / NAME).exists()
        if not exists:
            raise RemovedError(
                f"{stored.location} was removed while it was read: the run keeps only its newest "
                "checkpoints. Choose a newer one."
            ) from error
        raise NoLoadableCheckpointError(f"damaged: {error}") from error
