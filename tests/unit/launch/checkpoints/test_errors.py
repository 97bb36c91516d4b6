from typing import Any

import pytest

from distrib.checkpoint import commit
from distrib.launch.checkpoints.errors import RemovedError, translate_read_errors


def test_a_checkpoint_removed_while_it_is_read_is_not_damaged(run: Any) -> None:
    run.save(1, 2)
    stored = run.directory.checkpoints()[0]
    commit.remove(run.location, 1)
    with (
        pytest.raises(RemovedError, match="was removed while it was read"),
        translate_read_errors(stored),
    ):
        stored.verify()
