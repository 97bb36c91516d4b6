"""What errors of a file system or an object store mean, in plain words, and which of them may pass.

Each library words the same fault in its own way: s3fs turns some codes of the server into numbers
of the operating system and hands on others as botocore's exceptions; gcsfs has exceptions of its
own. So an error is reduced to its signs: the server's code, the HTTP status, the name of the number
and those of its classes, also of the errors that caused it. One table gives the meaning of a sign.
Nothing here imports a storage library.
"""

from __future__ import annotations

import errno
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = 120.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0
_SECRET_NAMES = re.compile(r"key|secret|token|passw|credential|connection_string", re.IGNORECASE)
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")


class StorageError(OSError):
    """A store failed in a way that Python has no exception for; the library's is the cause."""


@dataclass(frozen=True)
class Meaning:
    """What some signs mean.

    Attributes:
        signs: Any one of them suffices.
        cause: In plain words; `{bucket}` stands for its name.
        way_out: What a person can do about it.
        passes: Whether trying again may help.
        is_lack: Whether it passes only when somebody makes room.
    """

    signs: frozenset[str]
    cause: str
    way_out: str
    passes: bool = False
    is_lack: bool = False


def _meaning(
    signs: str, cause: str, way_out: str, passes: bool = False, is_lack: bool = False
) -> Meaning:
    return Meaning(frozenset(signs.split()), cause, way_out, passes, is_lack)


# The first that fits counts: what the server says before what it is the number of.
MEANINGS = (
    _meaning(
        "NoSuchBucket",
        "the bucket {bucket!r} does not exist",
        "create it, or correct its name",
    ),
    _meaning(
        "InvalidBucketName ParamValidationError",
        "{bucket!r} cannot be the name of a bucket",
        "correct it",
    ),
    _meaning(
        "InvalidAccessKeyId InvalidClientTokenId UnrecognizedClientException",
        "the server does not know the access key id",
        "correct the credentials (see docs/storage.md)",
    ),
    _meaning(
        "SignatureDoesNotMatch",
        "the secret key does not belong to the access key id",
        "correct the credentials (see docs/storage.md)",
    ),
    _meaning(
        "ExpiredToken ExpiredTokenException TokenRefreshRequired RequestExpired",
        "the credentials have expired",
        "renew them",
    ),
    _meaning(
        "InvalidToken 401",
        "the server does not accept the credentials",
        "correct or renew them (see docs/storage.md)",
    ),
    _meaning(
        "NoCredentialsError PartialCredentialsError CredentialRetrievalError TokenRetrievalError "
        "DefaultCredentialsError SSOTokenLoadError UnauthorizedSSOTokenError ProfileNotFound",
        "no usable credentials were found",
        "set them in the environment or in `storage_options` (see docs/storage.md)",
    ),
    _meaning(
        "RequestTimeTooSkewed",
        "this machine's clock differs too much from the server's",
        "set the clock",
    ),
    _meaning(
        "QuotaExceeded EDQUOT",
        "the quota is used up",
        "remove what is no longer needed, or raise the quota",
        is_lack=True,
    ),
    _meaning(
        "ENOSPC InsufficientCapacity XMinioStorageFull 507",
        "no space is left",
        "free some space",
        is_lack=True,
    ),
    _meaning(
        "PermanentRedirect Redirect TemporaryRedirect 301 307 AuthorizationHeaderMalformed "
        "IllegalLocationConstraintException",
        "the bucket {bucket!r} is in another region or at another endpoint",
        "set AWS_DEFAULT_REGION or AWS_ENDPOINT_URL to those of the bucket",
    ),
    _meaning(
        "AccessDenied AllAccessDisabled AccountProblem UserSuspended NotSignedUp 403 EACCES EPERM "
        "PermissionError",
        "access is denied",
        "ask for the permission, or use other credentials",
    ),
    _meaning("EROFS", "the file system is read-only", "give a place that can be written"),
    _meaning(
        "ENOTDIR EISDIR NotADirectoryError IsADirectoryError",
        "a file is where a folder should be, or the other way round",
        "remove it, or give another place",
    ),
    _meaning("ENAMETOOLONG KeyTooLongError", "the name is too long", "give a shorter one"),
    _meaning(
        "SSLCertVerificationError ClientConnectorCertificateError",
        "the server's certificate is not trusted",
        "set AWS_CA_BUNDLE or REQUESTS_CA_BUNDLE to the file with its authority",
    ),
    _meaning(
        "gaierror ClientConnectorDNSError NameResolutionError",
        "the name of the server is not known",
        "correct the endpoint's address, or the network's name service",
        passes=True,
    ),
    _meaning(
        "ECONNREFUSED ConnectionRefusedError",
        "the server refuses connections",
        "start it, or correct the endpoint's address",
        passes=True,
    ),
    _meaning(
        "ETIMEDOUT TimeoutError ConnectTimeoutError ReadTimeoutError RequestTimeout Timeout "
        "408 504",
        "the server did not answer in time",
        "look whether it runs and whether the network lets through",
        passes=True,
    ),
    _meaning(
        "SlowDown ServiceUnavailable Throttling ThrottlingException RequestLimitExceeded EBUSY "
        "TooManyRequests OperationAborted ConditionalRequestConflict 409 429 503",
        "the server is overloaded",
        "try again later",
        passes=True,
    ),
    _meaning(
        "InternalError 500 502 EREMOTEIO ResponseParserError ProxyError ChecksumError "
        "IncompleteBody BadDigest XAmzContentSHA256Mismatch",
        "the server failed",
        "look into its logs",
        passes=True,
    ),
    _meaning(
        "EndpointConnectionError ClientConnectorError ENETUNREACH EHOSTUNREACH TransportError",
        "the server cannot be reached",
        "look whether it runs, and correct the endpoint's address",
        passes=True,
    ),
    _meaning(
        "RefreshError",
        "the credentials could not be renewed",
        "look whether they are still valid, and whether the network lets through",
        passes=True,
    ),
    _meaning(
        "ECONNRESET EPIPE ECONNABORTED ConnectionError ServerDisconnectedError HTTPClientError "
        "ClientConnectionError ClientPayloadError IncompleteReadError IncompleteRead "
        "ResponseStreamingError ProtocolError ChunkedEncodingError EINTR EAGAIN",
        "the connection was lost",
        "look whether the server runs and whether the network is sound",
        passes=True,
    ),
    _meaning(
        "PreconditionFailed 412 EEXIST FileExistsError",
        "something of that name exists already",
        "remove it, or give another place",
    ),
    _meaning(
        "NoSuchKey 404 ENOENT FileNotFoundError",
        "it does not exist",
        "correct the path",
    ),
)
UNKNOWN = Meaning(frozenset(), "the store failed", "see the error above")


def meaning(error: BaseException) -> Meaning:
    """Return what an error means, `UNKNOWN` if the table does not have it."""
    found = {sign for each in _chain(error) for sign in _signs(each)}
    return next((known for known in MEANINGS if known.signs & found), UNKNOWN)


def retrying(operation: Callable[[], T], patience: float = PATIENCE) -> T:
    """Call `operation` until it succeeds, as long as its errors may pass.

    The pauses between two calls double, up to ten seconds, and vary by chance so that many
    processes do not call in step.

    Args:
        operation: Takes no arguments; doing it twice must be no worse than once.
        patience: Seconds after which no further call is begun.

    Returns:
        What `operation` returned.

    Raises:
        Exception: The last error of `operation`, if it cannot pass or patience is at its end.
    """
    end = time.monotonic() + patience
    pause = _FIRST_PAUSE
    while True:
        try:
            return operation()
        except Exception as error:
            wait = pause * random.uniform(0.5, 1.0)
            if not meaning(error).passes or time.monotonic() + wait > end:
                raise
        time.sleep(wait)
        pause = min(2 * pause, _LONGEST_PAUSE)


def without_secrets(text: str, storage_options: Any) -> str:
    """Return `text` with the secrets of `storage_options`, and users in URLs, blotted out."""
    for secret in _secrets(storage_options, hidden=False):
        text = text.replace(secret, "***")
    return _USER_IN_URL.sub("***@", text)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        context = None if error.__suppress_context__ else error.__context__
        error = error.__cause__ or context


def _signs(error: BaseException) -> Iterator[str]:
    yield from (kind.__name__ for kind in type(error).__mro__)
    number = getattr(error, "errno", None)
    if isinstance(number, int):
        yield errno.errorcode.get(number, "")
    response = getattr(error, "response", None)  # Of botocore.
    if isinstance(response, dict):
        yield str(response.get("Error", {}).get("Code", ""))
        yield str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    for attribute in ("code", "status"):  # Of gcsfs, and of aiohttp.
        yield str(getattr(error, attribute, ""))
    if str(error).startswith("Forbidden: "):  # gcsfs's OSError for status 403, which has no number.
        yield "403"


def _secrets(options: Any, hidden: bool) -> Iterator[str]:
    """All strings in nested options that stand under a name that sounds secret."""
    if isinstance(options, dict):
        for name, value in options.items():
            yield from _secrets(value, hidden or bool(_SECRET_NAMES.search(str(name))))
    elif hidden and isinstance(options, str) and len(options) > 3:
        yield options
