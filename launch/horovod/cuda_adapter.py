"""The header that mends what keeps Horovod's build for GPUs from working, `cuda_adapter.h`."""

from __future__ import annotations

import hashlib
from importlib import resources

ADAPTER = "cuda_adapter.h"


def adapter() -> str:
    """Return the header's text."""
    return (resources.files(__package__) / ADAPTER).read_text()


def adapter_digest() -> str:
    """Return a digest of the header's text, on which the wheel depends."""
    return hashlib.sha256(adapter().encode()).hexdigest()[:12]
