"""Tells errors that may pass by themselves from mistakes that no restart mends.

Errors of stores, lost peers and kills have exit codes that say so. What is left is an exception of
the script's own, of which only the text is known: a download from a server that does not answer may
succeed a minute later, an unknown argument never does. Whatever is not known to pass is a mistake.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable

# Parts of types' names: of Python, requests, urllib3, botocore, aiohttp, gRPC, and of TensorFlow's
# errors that devices and networks cause.
_TYPES = re.compile(
    "Connect|Timeout|TimedOut|Unavailable|BrokenPipe|URLError|gaierror|RemoteDisconnected"
    "|IncompleteRead|ChunkedEncoding|ProtocolError|SSLError|SSLEOFError|Throttl|SlowDown"
    "|DeadlineExceeded|AbortedError|CancelledError|ResourceExhausted|InternalError|UnknownError"
    "|BrokenProcessPool|LostPeer"
)
_HTTP_STATUS = re.compile(r"(?:HTTP|fetch failure).*\b(?:408|425|429|5\d\d)\b")
_ERRNO = re.compile(r"\[Errno (-?\d+)\]")
_ERRNOS = {
    *(errno.EIO, errno.EAGAIN, errno.ESTALE, errno.EREMOTEIO),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOBUFS),
    *(errno.ECONNABORTED, errno.ECONNRESET, errno.ECONNREFUSED, errno.ETIMEDOUT, errno.EPIPE),
    *(-2, -3),  # Of getaddrinfo: the name server does not answer, or not yet.
}


def may_pass(chain: Iterable[str]) -> bool:
    """Tell whether an error may be gone when the job is started again.

    Args:
        chain: The exceptions that led to it, each as `Type: message`.
    """
    return any(_may_pass(error) for error in chain)


def _may_pass(error: str) -> bool:
    kind = error.partition(":")[0]
    if _TYPES.search(kind) or _HTTP_STATUS.search(error):
        return True
    return any(int(number) in _ERRNOS for number in _ERRNO.findall(error))
