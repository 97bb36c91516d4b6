"""Whether a place can be written, found out before training starts by doing it once.

A run that cannot save is worth nothing, and permissions cannot be asked for: only a write, a read,
a listing and a removal show that each is allowed. So a small file goes there and back.
Servers that never answer are given up on, because a job that hangs looks like one that works.

What is wrong for good and what may pass are told apart: a job that is started again in the middle
of a night, while its store is down, must not end as one that was set up wrong.
"""

from __future__ import annotations

import random
import secrets
import time
from concurrent.futures import Future
from dataclasses import replace
from threading import Thread

from distrib.errors import ConfigurationError, DistribError, StoreUnavailableError
from distrib.storage.errors import MEANINGS, meaning
from distrib.storage.location import Location, describe_error

# One name for all, so that the next start removes what a killed one has left.
NAME = ".distrib-probe"
_TRIES = 4
# For errors that may pass, and for everything together, in seconds.
PATIENCE, LIMIT = 10.0, 40.0


def check_writable(location: Location, argument: str, limit: float = LIMIT) -> None:
    """Write a small file in a folder, read it, list it and remove it again.

    Args:
        location: The folder; made if need be.
        argument: Name of the user's argument, for the message.
        limit: Seconds after which a store that has not answered is given up.

    Raises:
        ConfigurationError: Says what failed, why, and what to do.
        StoreUnavailableError: The same, if it may pass without a change of the job.

    Example:
    >>> check_writable(locate("s3://bucket/runs/17", "directory"), "directory")
    """
    done: Future[None] = Future()
    # A daemon, because the library may wait for the server for ever.
    Thread(target=_fulfil, args=(done, location, argument), daemon=True).start()
    try:
        done.result(limit)
    except TimeoutError:
        raise StoreUnavailableError(
            f"`{argument}`: {location} did not answer within {limit:g} s; look whether the server "
            "runs, and correct the endpoint's address."
        ) from None


def _fulfil(done: Future[None], location: Location, argument: str) -> None:
    try:
        _check(location, argument)
    except BaseException as error:
        done.set_exception(error)
    else:
        done.set_result(None)


def _check(location: Location, argument: str) -> None:
    # Another process may be at it in the same folder.
    for _ in range(_TRIES):
        if (missing := _try(location, argument)) is None:
            return
        time.sleep(random.random())
    raise ConfigurationError(
        f"`{argument}`: {location} does not {missing} what was written to it a moment ago; "
        "checkpoints need a store that does."
    )


def _try(location: Location, argument: str) -> str | None:
    """Return what the store does not do with the probe, or `None` if it is as it should be."""
    content = secrets.token_bytes(16)
    probe = replace(location, patience=PATIENCE) / NAME
    doing = "write to"
    try:
        _write(probe, content)
        doing = "read from"
        same = probe.read_bytes() == content
        doing = "list"
        listed = NAME in probe.parent.names()
        doing = "remove from"
        probe.remove()
    except FileNotFoundError as error:
        if doing != "read from":
            raise _error(location, argument, doing, error) from error
        return "return"
    except OSError as error:
        raise _error(location, argument, doing, error) from error
    return None if same and listed else "list" if same else "return"


def _write(probe: Location, content: bytes) -> None:
    if probe.local is None:
        probe.write_bytes(content)
        return
    # Not by way of a temporary file, whose name would be another one every time.
    probe.local.parent.mkdir(parents=True, exist_ok=True)
    probe.local.write_bytes(content)


def _error(location: Location, argument: str, doing: str, error: OSError) -> DistribError:
    known = meaning(error)
    cause = describe_error(error, location)
    if location.local is None and doing == "write to" and isinstance(error, FileNotFoundError):
        known = MEANINGS[0]  # GCS does not say what it is that does not exist.
        cause = known.cause.format(bucket=location.path.split("/")[0])
    if location.local is not None and isinstance(error, FileExistsError):
        cause = f"a file is in the way ({error.filename})"
    message = f"`{argument}`: cannot {doing} {location}: {cause}; {known.way_out}."
    may_pass = known.passes or known.is_lack
    return StoreUnavailableError(message) if may_pass else ConfigurationError(message)
