"""Error responses of S3 and GCS, as their clients read them and repeat them to users."""

from __future__ import annotations

import json
from typing import Literal, get_args

Refusal = Literal["503", "403", "expired token"]
REFUSALS: tuple[Refusal, ...] = get_args(Refusal)


def refusal(kind: str, protocol: str) -> tuple[int, str, str]:
    """Return status, content type and body of an error response of S3 or GCS.

    Args:
        kind: One of `REFUSALS`.
        protocol: `"s3"` for S3; anything else for GCS.
    """
    if protocol == "s3":
        status, code, message = _S3[kind]
        text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        return status, "application/xml", text
    status, message = _GCS[kind]
    return status, "application/json", json.dumps({"error": {"code": status, "message": message}})


_S3: dict[str, tuple[int, str, str]] = {
    "503": (503, "SlowDown", "Please reduce your request rate."),
    "403": (403, "AccessDenied", "Access Denied"),
    "expired token": (400, "ExpiredToken", "The provided token has expired."),
}
_GCS: dict[str, tuple[int, str]] = {
    "503": (503, "We encountered an internal error. Please try again."),
    "403": (403, "The caller does not have storage.objects.create access to the object."),
    "expired token": (401, "Invalid Credentials"),
}
