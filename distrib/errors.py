"""Exceptions, and the exit codes that tell a launcher whether to restart the job.

A launcher sees only the exit code: 75 and 76 mean "run me again", all others "a person must look".
So each exception that users meet has an exit code, and `install_exit_codes` makes an uncaught one
end the process with that code, after the usual traceback. The codes follow BSD's sysexits where one
fits; 137 and 143 are never used, because they denote a kill.
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
import threading
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
SCRIPT_ERRORS = (1, 2)  # How Python ends after an uncaught exception, and after wrong options.
NON_RETRYABLE = (EXIT_USAGE, EXIT_NO_LOADABLE_CHECKPOINT, EXIT_NO_PROGRESS, EXIT_CONFIGURATION)


def _unchanged(error: BaseException) -> BaseException:
    return error


# Used by the excepthook; see `install_exit_codes`.
_translate_error: Callable[[BaseException], BaseException] = _unchanged
_replaced_excepthook: Callable[..., object] | None = None


class DistribError(Exception):
    """Base class of all errors that distrib raises on purpose.

    Attributes:
        exit_code: Exit code of the process if the error is not caught.
    """

    exit_code = 1


class ConfigurationError(DistribError, ValueError):
    """An argument or the environment is invalid; raised before training starts."""

    exit_code = EXIT_CONFIGURATION


class UsageError(DistribError):
    """The command line is invalid."""

    exit_code = EXIT_USAGE


class StoreUnavailableError(DistribError, OSError):
    """The object store is unavailable or full; the job itself is sound, so run it again."""

    exit_code = EXIT_LOST_PEER


class CheckpointError(DistribError, OSError):
    """A checkpoint could not be written. Earlier committed checkpoints are intact."""


class CheckpointMismatchError(ConfigurationError):
    """The checkpoint belongs to another model, optimizer or dataset. Nothing was overwritten."""


class SupersededError(DistribError):
    """A newer attempt of the same run has begun, so this process must not save any more."""

    exit_code = EXIT_CONFIGURATION


class NoLoadableCheckpointError(DistribError):
    """Checkpoints exist, but all of them are damaged."""

    exit_code = EXIT_NO_LOADABLE_CHECKPOINT


class NoProgressError(DistribError):
    """Several attempts in a row have made no progress, so another one is not expected to."""

    exit_code = EXIT_NO_PROGRESS


class LostPeerError(DistribError):
    """Another process of the job has been lost, so this one cannot continue.

    Nothing is wrong with this process: when restarted, the job resumes from its last checkpoint.
    """

    exit_code = EXIT_LOST_PEER

    @classmethod
    def of(cls, rank: int, size: int, reason: str = "") -> LostPeerError:
        """Return an error whose message names this rank and its host, and says what to do.

        Args:
            rank: This process's number, 0 to `size - 1`.
            size: Number of processes.
            reason: What is known about the lost rank. Defaults to `""`.
        """
        return cls(
            f"rank {rank} of {size} (pid {os.getpid()} on {socket.gethostname()}) lost another "
            f"rank, which has ended or cannot be reached{reason and f' ({reason})'}. Start the job "
            f"again: it resumes from its last checkpoint (exit code {cls.exit_code})."
        )


class Preempted(SystemExit):
    """The process was preempted after a save; the same command resumes from that checkpoint.

    A `SystemExit`, so an unchanged script ends with exit code 75 and no traceback.
    """

    def __init__(self) -> None:
        super().__init__(EXIT_PREEMPTED)


def in_interactive_session() -> bool:
    """Tell whether a person goes on in this process after an exception: a prompt or a notebook."""
    return hasattr(sys, "ps1") or bool(sys.flags.interactive)


def translate_error(error: BaseException) -> BaseException:
    """Return the `LostPeerError` for an exception that a lost peer causes, else the exception."""
    return _translate_error(error)


def install_exit_codes(
    translation: Callable[[BaseException], BaseException] | None = None,
) -> None:
    """Make an uncaught `DistribError` end the process with its own exit code.

    Args:
        translation: Returns a `LostPeerError` for an exception of TensorFlow or Horovod that a
            lost peer causes, another `DistribError` to explain an exception, else the exception
            itself. Defaults to `None`: the function of an earlier call stays in use.
    """
    global _translate_error
    _translate_error = translation or _translate_error
    global _replaced_excepthook
    if getattr(sys.excepthook, "_distrib", False):
        return
    previous = _replaced_excepthook = sys.excepthook

    def hook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        translated = _translate_error(error)
        if isinstance(translated, (LostPeerError, NoProgressError)):
            # The traceback would show the line at which this process was, which is not the cause.
            log.error(str(translated), extra=ANY_RANK)
        else:
            previous(kind, error, traceback)
            if translated is not error:
                log.error(str(translated), extra=ANY_RANK)
        if in_interactive_session():
            return
        if isinstance(translated, LostPeerError):
            _end_at_once(translated.exit_code)
        if isinstance(translated, DistribError):
            # The interpreter honours a SystemExit raised in an excepthook.
            raise SystemExit(translated.exit_code)

    hook._distrib = True  # type: ignore[attr-defined]
    sys.excepthook = hook


def _end_at_once(code: int) -> None:
    """End the process as the interpreter does, but leave it to the kernel to free its memory.

    The interpreter takes a second or two for TensorFlow's objects, and the job's restart waits for
    it. Threads are joined and exit hooks run with the functions that `multiprocessing` uses for it,
    which are private.
    """
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _forget_in_child() -> None:
    """Let a forked process end as if it had not been forked from a rank."""
    global _translate_error
    _translate_error = _unchanged
    if getattr(sys.excepthook, "_distrib", False) and _replaced_excepthook is not None:
        sys.excepthook = _replaced_excepthook


os.register_at_fork(after_in_child=_forget_in_child)
