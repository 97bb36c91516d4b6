"""What distrib tells the user while a job runs: one line each, on stderr, from the chief only.

Stderr, because Keras draws its progress bar on stdout.
"""

from __future__ import annotations

import sys

from distrib.cluster import current


def say(message: str) -> None:
    """Print one line that begins with `distrib:`."""
    if current().is_chief:
        print(f"\ndistrib: {message}", file=sys.stderr, flush=True)
