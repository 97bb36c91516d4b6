import json
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize(
    "arguments",
    [["ls"], ["show"], ["verify"], ["diff", "1", "2"], ["copy", "there"], ["rm", "1"]],
    ids=lambda arguments: arguments[0],
)
def test_no_such_directory(tmp_path: Path, arguments: list[str], checkpoints: Any) -> None:
    command, *rest = arguments
    result = checkpoints(command, tmp_path / "typo", *rest)
    assert result.code == 78
    assert result.err.startswith(f"distrib: {tmp_path}/typo/checkpoints does not exist: no run")
    assert result.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_store(checkpoints: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distrib.launch.checkpoints.options._TIMEOUT_SECONDS", 0.0)
    options = {
        "endpoint_url": "http://127.0.0.1:1",
        "key": "id",
        "secret": "very-secret",
        "config_kwargs": {"retries": {"max_attempts": 0}},
    }
    result = checkpoints("ls", "s3://bucket/run", "--storage-options", json.dumps(options))
    assert result.code == 78
    assert "s3://bucket/run: the server refuses connections" in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("options", ['{"secret": "xyzzy"', '["xyzzy"]'])
def test_storage_options_must_be_a_json_object(options: str, checkpoints: Any) -> None:
    result = checkpoints("ls", "s3://bucket/run", "--storage-options", options)
    assert result.code == 64
    assert "--storage-options: this is not" in result.err
    assert "xyzzy" not in result.err
