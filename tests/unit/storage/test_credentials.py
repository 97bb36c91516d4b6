from typing import Any

import pytest
from botocore.exceptions import ClientError, NoCredentialsError
from gcsfs.retry import HttpError

from distrib.errors import ConfigurationError, StoreUnavailableError
from distrib.storage.credentials import VARIABLE, may_be_renewed, store_of
from distrib.storage.locate import locate

WRITTEN = {VARIABLE: "gs://other s3://bucket"}


def s3(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code}}, "PutObject")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (s3("ExpiredToken"), True),
        (s3("InvalidAccessKeyId"), True),
        (s3("SignatureDoesNotMatch"), True),
        (s3("RequestTimeTooSkewed"), True),
        (s3("AccessDenied"), True),
        (NoCredentialsError(), True),
        (HttpError({"code": 401, "message": "Invalid Credentials"}), True),
        (OSError("Forbidden: https://storage.googleapis.com"), True),
        (s3("NoSuchBucket"), False),
        (s3("InternalError"), False),
        (ValueError("a bug"), False),
    ],
)
def test_errors(error: BaseException, expected: bool) -> None:
    assert may_be_renewed(error, "s3://bucket/runs/17", WRITTEN) is expected
    assert not may_be_renewed(error, "s3://bucket-2/runs/17", WRITTEN), "not written to before"
    assert not may_be_renewed(error, "s3://bucket/runs/17", {})


def test_the_local_disk_has_no_credentials() -> None:
    assert store_of("/runs/17") == ""
    assert not may_be_renewed(PermissionError(13, "Permission denied"), "/runs/17", {VARIABLE: ""})


@pytest.mark.parametrize(
    ("written", "kind"), [("", ConfigurationError), ("gs://bucket", StoreUnavailableError)]
)
def test_credentials_that_are_missing_at_the_start(
    written: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    import gcsfs
    from google.auth.exceptions import DefaultCredentialsError

    def fail(*_: Any, **__: Any) -> None:
        raise DefaultCredentialsError("no file")

    monkeypatch.setattr(gcsfs.GCSFileSystem, "_post_init", fail, raising=False)
    monkeypatch.setattr(gcsfs.core.GoogleCredentials, "__init__", fail)
    monkeypatch.setenv(VARIABLE, written)
    with pytest.raises(kind, match="no file"):
        locate("gcs://bucket/runs/17", "directory")
