import json
from typing import Any

import pytest


@pytest.mark.parametrize("command", ["show", "verify"])
def test_no_checkpoint(run: Any, command: str, checkpoints: Any) -> None:
    run.directory.begin(1)
    result = checkpoints(command, run.url)
    assert result.code == 78
    assert result.err == f"distrib: There is no checkpoint in {run.location}.\n"
    assert json.loads(checkpoints("ls", run.url, "--json").out) == []
    assert "There is no checkpoint" in checkpoints("ls", run.url).out


def test_no_such_step(run: Any, checkpoints: Any) -> None:
    run.save(7, 250)
    for command in ("show", "verify"):
        result = checkpoints(command, run.url, 9)
        assert result.code == 78
        assert result.err == f"distrib: {run.location} has no step 9; it has 7, 250.\n"
