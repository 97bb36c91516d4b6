import json
from typing import Any

from distrib.checkpoint.manifest import NAME


def test_verify_finds_damaged_bytes(run: Any, checkpoints: Any) -> None:
    run.save(1, 2, 3)
    file = run.damage(2)
    assert checkpoints("verify", run.url).code == 0
    assert checkpoints("verify", run.url, 1).table[1][-1] == "sound"
    result = checkpoints("verify", run.url, "--all")
    assert result.code == 65
    assert f"damaged: {file} has CRC32C" in result.out
    assert [
        row["state"] for row in json.loads(checkpoints("verify", run.url, "--all", "--json").out)
    ] == [
        "sound",
        "damaged",
        "sound",
    ]
    assert checkpoints("verify", run.url, 2).code == 65


def test_verify_does_not_skip_a_damaged_manifest(run: Any, checkpoints: Any) -> None:
    run.save(1, 2)
    (run.location / "2" / NAME).write_bytes(b"{")
    result = checkpoints("verify", run.url)
    assert result.code == 65
    assert "damaged manifest" in result.out
