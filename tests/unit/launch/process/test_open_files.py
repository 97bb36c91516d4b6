import os
import resource
from collections.abc import Iterator

import pytest

from distrib.errors import ConfigurationError
from distrib.launch.process.open_files import allow_files, reserve_files

SOFT = 512


@pytest.fixture(autouse=True)
def hard_limit() -> Iterator[int]:
    """The hard limit of this process, which has a low soft one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (SOFT, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def soft_limit() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_the_limit_is_raised_only_as_far_as_needed(hard_limit: int) -> None:
    reserve_files(10)
    assert soft_limit() == SOFT
    reserve_files(SOFT)
    assert SOFT < soft_limit() < SOFT + 2 * len(os.listdir("/proc/self/fd")) + 200
    allow_files(hard_limit)
    assert soft_limit() == hard_limit


def test_a_hard_limit_that_is_too_low(hard_limit: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"and its hard limit is {hard_limit} \("):
        reserve_files(hard_limit)
