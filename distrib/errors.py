"""What can go wrong, and the exit code that tells the launcher what to do about it.

A launcher sees one number. 75 and 76 mean "run me again", everything else means "a person must
look". So each exception that users meet carries its code, and `install_exit_codes` makes the
interpreter end with it when nobody catches the exception; the traceback is printed as usual.
The numbers follow BSD's sysexits where one fits. Never 137 or 143 on purpose: those are a kill.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from types import TracebackType

from distrib.log import ANY_RANK, log

EXIT_FINISHED = 0
EXIT_USAGE = 64
EXIT_NO_LOADABLE_CHECKPOINT = 65
EXIT_NO_PROGRESS = 70
EXIT_PREEMPTED = 75
EXIT_LOST_PEER = 76
EXIT_CONFIGURATION = 78
# In ascending order, as Kubernetes' podFailurePolicy wants them. After a retryable code the same
# command resumes from its last checkpoint; after a non-retryable one it would fail again.
RETRYABLE = (EXIT_PREEMPTED, EXIT_LOST_PEER)
NON_RETRYABLE = (EXIT_USAGE, EXIT_NO_LOADABLE_CHECKPOINT, EXIT_NO_PROGRESS, EXIT_CONFIGURATION)


def _as_it_is(error: BaseException) -> BaseException:
    return error


_translate: Callable[[BaseException], BaseException] = _as_it_is
_last_words: Callable[[BaseException], object] | None = None


class DistribError(Exception):
    """Base of every error that distrib raises on purpose.

    Attributes:
        exit_code: What the process ends with when nobody catches the error.
    """

    exit_code = 1


class ConfigurationError(DistribError, ValueError):
    """An argument or the environment is wrong; found before training starts."""

    exit_code = EXIT_CONFIGURATION


class UsageError(DistribError):
    """The command line asks for something that cannot be."""

    exit_code = EXIT_USAGE


class StoreUnavailableError(DistribError, OSError):
    """A store does not answer, or is full; nothing is wrong with the job, so run it again."""

    exit_code = EXIT_LOST_PEER


class CheckpointError(DistribError, OSError):
    """A checkpoint could not be written. Those committed before are intact."""


class CheckpointMismatchError(ConfigurationError):
    """The checkpoint belongs to another model, optimizer or dataset. Nothing was overwritten."""


class SupersededError(DistribError):
    """A newer attempt of the same run has begun, so this process must not save any more."""

    exit_code = EXIT_CONFIGURATION


class NoLoadableCheckpointError(DistribError):
    """Checkpoints are there, but every one of them is damaged."""

    exit_code = EXIT_NO_LOADABLE_CHECKPOINT


class NoProgressError(DistribError):
    """The attempts before this one have gained no step, so another one would not either."""

    exit_code = EXIT_NO_PROGRESS


class LostPeerError(DistribError):
    """Another process of the job is gone, so this one cannot go on.

    Nothing is wrong with this process: started again, the job resumes from its last checkpoint.
    """

    exit_code = EXIT_LOST_PEER

    @classmethod
    def of(cls, rank: int, size: int, reason: str = "") -> LostPeerError:
        """Return the error of one rank, whose message says which rank, where, and what to do.

        Args:
            rank: Number of this process.
            size: Number of processes.
            reason: What is known of the other rank.
        """
        return cls(
            f"rank {rank} of {size} (pid {os.getpid()} on {socket.gethostname()}) lost another "
            f"rank, which has ended or cannot be reached{reason and f' ({reason})'}. Start the job "
            f"again: it goes on from its last checkpoint (exit code {cls.exit_code})."
        )


class Preempted(SystemExit):
    """The process was asked to stop; the same command goes on from the checkpoint that it left.

    A `SystemExit`, so an unchanged script ends with exit code 75 and no traceback.
    """

    def __init__(self) -> None:
        super().__init__(EXIT_PREEMPTED)


def on_uncaught_error(listener: Callable[[BaseException], object] | None) -> None:
    """Have the exception that ends the process handed to `listener`, in place of the one before.

    Args:
        listener: Must not raise; it is called when the traceback has been printed. `None` for
            nobody.
    """
    global _last_words
    _last_words = listener


def install_exit_codes(
    translate: Callable[[BaseException], BaseException] | None = None,
) -> None:
    """Make an uncaught `DistribError` end the process with its own exit code.

    Args:
        translate: Returns the error that an exception stands for, which may be the same. TensorFlow
            and Horovod know nothing of `LostPeerError`, so a backend tells theirs apart. `None`
            leaves it as it was.
    """
    global _translate
    _translate = translate or _translate
    if getattr(sys.excepthook, "_distrib", False):
        return
    previous = sys.excepthook

    def hook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        meant = _translate(error)
        if isinstance(meant, (LostPeerError, NoProgressError)):
            # The traceback would show where this process was, which is nobody's fault.
            log.error(str(meant), extra=ANY_RANK)
        else:
            previous(kind, error, traceback)
        if _last_words is not None:
            _last_words(meant)
        if isinstance(meant, DistribError):
            # The interpreter honours a SystemExit raised here as it would anywhere else.
            raise SystemExit(meant.exit_code)

    hook._distrib = True  # type: ignore[attr-defined]
    sys.excepthook = hook
