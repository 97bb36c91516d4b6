from contextlib import suppress
from types import SimpleNamespace

import pytest

from distrib.errors import ConfigurationError, Preempted
from distrib.launch.run.hang_detector import HangTimeouts
from distrib.launch.run.job import Job, JobOptions

OPTIONS = JobOptions("local", None, HangTimeouts(), 0, 1.0, None, spares=False)


class Pool:
    """Hosts that cannot be allocated."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.ended_with: list[int] = []

    def allocate(self) -> None:
        raise self.error

    def connect_spare(self) -> None:
        raise AssertionError

    def shut_down(self, code: int) -> None:
        self.ended_with.append(code)


@pytest.mark.parametrize(
    ("error", "code"),
    [(RuntimeError(), 1), (ConfigurationError(""), 78), (Preempted(), 75)],
)
def test_all_hosts_end_with_the_jobs_exit_code(error: BaseException, code: int) -> None:
    pool = Pool(error)
    job = Job(pool, SimpleNamespace(log=print), OPTIONS)
    with suppress(RuntimeError, ConfigurationError):
        assert job.run() == code
    assert pool.ended_with == [code]
