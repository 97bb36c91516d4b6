"""Credentials that a store has accepted before and accepts no more: new ones may be on their way.

Short-lived credentials expire, and what renews them, such as a sidecar or a mounted secret, may be
minutes late. To a process that starts in between, they look like wrong ones. Its supervisor knows
better: if an earlier attempt has written to the same store, a later one may do so again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from distrib.storage.errors import classify

# Set by `distrib run`: the stores that earlier attempts have written to, separated by spaces.
VARIABLE = "DISTRIB_WRITTEN_STORES"
WRITTEN_BEFORE = "An earlier attempt could write there, so the job waits for new credentials."


def store_of(url: str) -> str:
    """Return protocol and bucket of a URL; empty for a local path.

    Example:
    >>> store_of("s3://bucket/runs/17")
    's3://bucket'
    """
    protocol, found, path = url.partition("://")
    return f"{protocol}://{path.partition('/')[0]}" if found else ""


def may_be_renewed(
    error: BaseException, url: str, environment: Mapping[str, str] = os.environ
) -> bool:
    """Return whether an error is due to credentials that were valid in an earlier attempt.

    Args:
        error: Raised by the file system.
        url: What could not be accessed.
        environment: Variables of the process. Defaults to `os.environ`.
    """
    return classify(error).credentials and store_of(url) in environment.get(VARIABLE, "").split()
