import sys

import pytest

from distrib.launch.hosts.task import Task


@pytest.mark.parametrize(
    ("command", "is_script"),
    [
        ([sys.executable, "train.py", "-x"], True),
        ([sys.executable, "-m", "train"], True),
        ([sys.executable, "-u", "train.py"], False),
        ([sys.executable], False),
        (["sh", "train.py"], False),
        (["train"], False),
    ],
)
def test_commands_of_which_there_can_be_a_spare(command: list[str], is_script: bool) -> None:
    assert Task(command, {}).is_script == is_script
