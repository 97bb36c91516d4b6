"""Whether a folder or an object store can hold checkpoints."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator

from distrib.errors import DistribError
from distrib.storage.locate import locate
from distrib.storage.location import Location
from distrib.storage.write_check import check_writable
from distrib.units import format_duration, format_size

from .finding import OK, PROBLEM, WARNING, Finding

LEAST_DISK = 1e9
MAX_SKEW = 60.0  # Seconds. S3 refuses requests from 15 minutes on.


def check_store(url: str) -> Iterator[Finding]:
    """Write a probe file in a folder, read, list and remove it, and see what the store is like.

    Args:
        url: Local path or fsspec URL of the folder.
    """
    try:
        location = locate(url, "store", None)
        check_writable(location, "store")
    except DistribError as error:
        cause, _, remedy = str(error).removeprefix("`store`: ").rpartition("; ")
        yield Finding(PROBLEM, url, cause or remedy, remedy.rstrip(".") if cause else "")
        return
    yield Finding(OK, url, "can be written, read and listed")
    probe = location / f".distrib-probe-{secrets.token_hex(6)}"
    try:
        yield from _check_conditional_writes(probe, url)
        yield from _check_clock(probe, url)
    finally:
        probe.remove()
    if location.local is not None:
        free = shutil.disk_usage(location.local).free
        if free < LEAST_DISK:
            yield Finding(WARNING, url, f"{format_size(free)} free", "free some, or use another")


def _check_conditional_writes(probe: Location, url: str) -> Iterator[Finding]:
    """See whether a file can be created exclusively, by which one of several attempts wins."""
    probe.create(secrets.token_bytes(16))
    if not probe.honours_conditions():
        text = "ignores conditional writes: two jobs that save here at once may mix"
        remedy = "start one job a folder, or use a store that honours If-None-Match"
        yield Finding(WARNING, url, text, remedy)


def _check_clock(probe: Location, url: str) -> Iterator[Finding]:
    """Compare the store's clock with this machine's, by the time of a file of this moment."""
    before = time.time()
    probe.write_bytes(b"now")
    after = time.time()
    try:
        written = probe.filesystem.modified(probe.path).timestamp()
    except (NotImplementedError, OSError, KeyError):  # It does not tell.
        return
    skew = max(before - written, written - after, 0.0)
    if skew > MAX_SKEW:
        text = f"its clock and this machine's differ by {format_duration(round(skew))}"
        yield Finding(WARNING, url, text, "set this machine's clock (NTP)")
