"""Classifies errors of file systems and object stores: cause, remedy, transient or permanent.

Each library reports the same fault in its own way: s3fs turns some of the server's error codes into
an errno and passes others on as botocore exceptions; gcsfs has its own exceptions. Here an error is
reduced to a set of codes: the server's error code, the HTTP status, the name of the errno and the
names of the exception's classes, including those of the errors that caused it. One table maps codes
to kinds of errors. This module imports no storage library.
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

RETRY_TIMEOUT = 120.0
_FIRST_BACKOFF, _MAX_BACKOFF = 0.2, 10.0
_SECRET_NAMES = re.compile(r"key|secret|token|passw|credential|connection_string", re.IGNORECASE)
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")


class StorageError(OSError):
    """A store's error without a Python equivalent; the library's exception is the cause."""


@dataclass(frozen=True)
class ErrorKind:
    """A kind of error.

    Attributes:
        codes: An error with any of these codes is of this kind.
        cause: In plain words; `{bucket}` stands for the bucket's name.
        remedy: What the user can do about it.
        transient: Whether a retry may succeed.
        out_of_space: Whether a retry succeeds only after someone frees space.
        credentials: Whether a retry succeeds only with other credentials.
    """

    codes: frozenset[str]
    cause: str
    remedy: str
    transient: bool = False
    out_of_space: bool = False
    credentials: bool = False


def _kind(codes: str, cause: str, remedy: str, **flags: bool) -> ErrorKind:
    return ErrorKind(frozenset(codes.split()), cause, remedy, **flags)


NO_SUCH_BUCKET = _kind(
    "NoSuchBucket",
    "the bucket {bucket!r} does not exist",
    "create it, or correct its name",
)
# The first match wins, so specific error codes come before HTTP statuses and errnos.
ERROR_KINDS = (
    NO_SUCH_BUCKET,
    _kind(
        "InvalidBucketName ParamValidationError",
        "{bucket!r} is not a valid bucket name",
        "correct it",
    ),
    _kind(
        "InvalidAccessKeyId InvalidClientTokenId UnrecognizedClientException",
        "the server does not know the access key id",
        "correct the credentials (see docs/storage.md)",
        credentials=True,
    ),
    _kind(
        "SignatureDoesNotMatch",
        "the secret key does not match the access key id",
        "correct the credentials (see docs/storage.md)",
        credentials=True,
    ),
    _kind(
        "ExpiredToken ExpiredTokenException TokenRefreshRequired RequestExpired",
        "the credentials have expired",
        "renew them",
        credentials=True,
    ),
    _kind(
        "InvalidToken 401",
        "the server does not accept the credentials",
        "correct or renew them (see docs/storage.md)",
        credentials=True,
    ),
    _kind(
        "NoCredentialsError PartialCredentialsError CredentialRetrievalError TokenRetrievalError "
        "DefaultCredentialsError SSOTokenLoadError UnauthorizedSSOTokenError ProfileNotFound",
        "no usable credentials were found",
        "set them in the environment or in `storage_options` (see docs/storage.md)",
        credentials=True,
    ),
    _kind(
        "RequestTimeTooSkewed",
        "this machine's clock differs too much from the server's",
        "set the clock",
        credentials=True,
    ),
    _kind(
        "QuotaExceeded EDQUOT",
        "the quota is used up",
        "remove what is no longer needed, or raise the quota",
        out_of_space=True,
    ),
    _kind(
        "ENOSPC InsufficientCapacity XMinioStorageFull 507",
        "no space is left",
        "free some space",
        out_of_space=True,
    ),
    _kind(
        "PermanentRedirect Redirect TemporaryRedirect 301 307 AuthorizationHeaderMalformed "
        "IllegalLocationConstraintException",
        "the bucket {bucket!r} is in another region or at another endpoint",
        "set AWS_DEFAULT_REGION or AWS_ENDPOINT_URL to those of the bucket",
    ),
    _kind(
        "AccessDenied AllAccessDisabled AccountProblem UserSuspended NotSignedUp 403 EACCES EPERM "
        "PermissionError",
        "access is denied",
        "ask for the permission, or use other credentials",
        credentials=True,
    ),
    _kind("EROFS", "the file system is read-only", "give a writable path"),
    _kind(
        "ENOTDIR EISDIR NotADirectoryError IsADirectoryError",
        "a file exists where a folder should be, or the reverse",
        "remove it, or give another path",
    ),
    _kind("ENAMETOOLONG KeyTooLongError", "the name is too long", "give a shorter one"),
    _kind(
        "SSLCertVerificationError ClientConnectorCertificateError",
        "the server's certificate is not trusted",
        "set AWS_CA_BUNDLE or REQUESTS_CA_BUNDLE to the file with its authority",
    ),
    _kind(
        "gaierror ClientConnectorDNSError NameResolutionError",
        "the server's name cannot be resolved",
        "correct the endpoint's address, or the DNS configuration",
        transient=True,
    ),
    _kind(
        "ECONNREFUSED ConnectionRefusedError",
        "the server refuses connections",
        "start it, or correct the endpoint's address",
        transient=True,
    ),
    _kind(
        "ETIMEDOUT TimeoutError ConnectTimeoutError ReadTimeoutError RequestTimeout Timeout "
        "408 504",
        "the server did not answer in time",
        "check that it runs, and that the network lets requests through",
        transient=True,
    ),
    _kind(
        "SlowDown ServiceUnavailable Throttling ThrottlingException RequestLimitExceeded EBUSY "
        "TooManyRequests OperationAborted ConditionalRequestConflict 409 429 503",
        "the server is overloaded",
        "try again later",
        transient=True,
    ),
    _kind(
        "InternalError 500 502 EREMOTEIO ResponseParserError ProxyError ChecksumError "
        "IncompleteBody BadDigest XAmzContentSHA256Mismatch",
        "the server failed",
        "check its logs",
        transient=True,
    ),
    _kind(
        "EndpointConnectionError ClientConnectorError ENETUNREACH EHOSTUNREACH TransportError",
        "the server cannot be reached",
        "check that it runs, and correct the endpoint's address",
        transient=True,
    ),
    _kind(
        "RefreshError",
        "the credentials could not be renewed",
        "check that they are still valid, and that the network lets requests through",
        transient=True,
    ),
    _kind(
        "ECONNRESET EPIPE ECONNABORTED ConnectionError ServerDisconnectedError HTTPClientError "
        "ClientConnectionError ClientPayloadError IncompleteReadError IncompleteRead "
        "ResponseStreamingError ProtocolError ChunkedEncodingError EINTR EAGAIN",
        "the connection was lost",
        "check that the server runs and that the network is stable",
        transient=True,
    ),
    _kind(
        "PreconditionFailed 412 EEXIST FileExistsError",
        "the name exists already",
        "remove it, or give another path",
    ),
    _kind(
        "NoSuchKey 404 ENOENT FileNotFoundError",
        "it does not exist",
        "correct the path",
    ),
)
UNKNOWN = ErrorKind(frozenset(), "the store failed", "see the error above")


def classify(error: BaseException) -> ErrorKind:
    """Return the kind of an error; `UNKNOWN` if the table does not have it."""
    found = {code for cause in _chain(error) for code in _codes(cause)}
    return next((known for known in ERROR_KINDS if known.codes & found), UNKNOWN)


def retry(operation: Callable[[], T], timeout: float = RETRY_TIMEOUT) -> T:
    """Call `operation` until it succeeds or raises an error that is not transient.

    The backoff between two calls doubles, up to ten seconds, with random jitter so that many
    processes do not call in step.

    Args:
        operation: Takes no arguments; must be idempotent.
        timeout: Seconds after which no further call is made. Defaults to `RETRY_TIMEOUT`.

    Returns:
        What `operation` returned.

    Raises:
        Exception: The last error of `operation`, if it is permanent or the time is up.
    """
    deadline = time.monotonic() + timeout
    backoff = _FIRST_BACKOFF
    while True:
        try:
            return operation()
        except Exception as error:
            pause = backoff * random.uniform(0.5, 1.0)
            if not classify(error).transient or time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        backoff = min(2 * backoff, _MAX_BACKOFF)


def redact_secrets(text: str, storage_options: Any) -> str:
    """Return `text` with `***` for the secrets of `storage_options` and for users in URLs."""
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


def _codes(error: BaseException) -> Iterator[str]:
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
    """Yield all strings in nested options whose name, or a parent's, sounds secret."""
    if isinstance(options, dict):
        for name, value in options.items():
            yield from _secrets(value, hidden or bool(_SECRET_NAMES.search(str(name))))
    elif hidden and isinstance(options, str) and len(options) > 3:
        yield options
