"""Checks before training starts that a folder can be written, with a small probe file.

A run that cannot save is worthless, and permissions cannot be queried. So the check writes a probe
file, reads it, lists the folder and removes the file. It gives up on a server that does not answer,
because a job that hangs looks like one that works.

Permanent and transient errors raise different exceptions: a job that restarts while its store is
down must be retried, and not end as a wrong configuration does.
"""

from __future__ import annotations

import random
import secrets
import time
from concurrent.futures import Future
from dataclasses import replace
from threading import Thread

from distrib.errors import ConfigurationError, DistribError, StoreUnavailableError
from distrib.storage.credentials import WRITTEN_BEFORE, may_be_renewed
from distrib.storage.errors import NO_SUCH_BUCKET, classify
from distrib.storage.location import Location, describe_error

# The same name in every process, so that the next check removes the probe of a killed one.
NAME = ".distrib-probe"
_TRIES = 4
# In seconds: for retries of one operation, and for the whole check.
RETRY_TIMEOUT, TIMEOUT = 10.0, 40.0


def check_writable(location: Location, argument: str, timeout: float = TIMEOUT) -> None:
    """Write a probe file in a folder, read it, list it and remove it.

    Args:
        location: The folder; created if necessary.
        argument: Name of the user's argument, for error messages.
        timeout: Seconds to wait for the store. Defaults to `TIMEOUT`.

    Raises:
        ConfigurationError: If an operation fails; the message has the cause and the remedy.
        StoreUnavailableError: The same for a transient error, which a restart may not meet again.

    Example:
    >>> check_writable(locate("s3://bucket/runs/17", "directory"), "directory")
    """
    done: Future[None] = Future()
    # A daemon thread, because the library may wait for the server for ever.
    Thread(target=_run, args=(done, location, argument), daemon=True).start()
    try:
        done.result(timeout)
    except TimeoutError:
        raise StoreUnavailableError(
            f"`{argument}`: {location} did not answer within {timeout:g} s; check that the "
            "server runs, and correct the endpoint's address."
        ) from None


def _run(done: Future[None], location: Location, argument: str) -> None:
    try:
        _check(location, argument)
    except BaseException as error:
        done.set_exception(error)
    else:
        done.set_result(None)


def _check(location: Location, argument: str) -> None:
    # Another process may be checking the same folder, with the same probe file.
    for _ in range(_TRIES):
        if (missing_operation := _probe(location, argument)) is None:
            return
        time.sleep(random.random())
    raise ConfigurationError(
        f"`{argument}`: {location} does not {missing_operation} what was just written to "
        "it; checkpoints need a store that does."
    )


def _probe(location: Location, argument: str) -> str | None:
    """Return which operation, `"return"` or `"list"`, misses the probe; `None` if all is well."""
    content = secrets.token_bytes(16)
    probe = replace(location, timeout=RETRY_TIMEOUT) / NAME
    operation = "write to"
    try:
        _write(probe, content)
        operation = "read from"
        same = probe.read_bytes() == content
        operation = "list"
        listed = NAME in probe.parent.names()
        operation = "remove from"
        probe.remove()
    except FileNotFoundError as error:
        if operation != "read from":
            raise _error(location, argument, operation, error) from error
        return "return"
    except OSError as error:
        raise _error(location, argument, operation, error) from error
    return None if same and listed else "list" if same else "return"


def _write(probe: Location, content: bytes) -> None:
    if probe.local is None:
        probe.write_bytes(content)
        return
    # Without a temporary file, because its random name would stay behind if the process dies.
    probe.local.parent.mkdir(parents=True, exist_ok=True)
    probe.local.write_bytes(content)


def _error(location: Location, argument: str, operation: str, error: OSError) -> DistribError:
    kind = classify(error)
    cause = describe_error(error, location)
    if location.local is None and operation == "write to" and isinstance(error, FileNotFoundError):
        kind = NO_SUCH_BUCKET  # GCS answers 404, without a word about the bucket.
        cause = kind.cause.format(bucket=location.path.split("/")[0])
    if location.local is not None and isinstance(error, FileExistsError):
        cause = f"a file is in the way ({error.filename})"
    message = f"`{argument}`: cannot {operation} {location}: {cause}; {kind.remedy}."
    if may_be_renewed(error, location.url):
        return StoreUnavailableError(f"{message} {WRITTEN_BEFORE}")
    retryable = kind.transient or kind.out_of_space
    return StoreUnavailableError(message) if retryable else ConfigurationError(message)
