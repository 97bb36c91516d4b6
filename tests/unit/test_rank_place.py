import os
import subprocess
import sys

import pytest

from distrib import rank_place
from distrib.environment import UNSUPERVISED, launched_as, started_by_rank, supervision

RANK = {"HOROVOD_RANK": "1", "HOROVOD_SIZE": "2", "HOROVOD_GLOO_RENDEZVOUS_PORT": "7777"}


@pytest.fixture
def rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is a rank and has joined its job."""
    for name, value in RANK.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DISTRIB_ATTEMPTS", "5")
    monkeypatch.setenv(rank_place.VARIABLE, "")
    rank_place.take()


def in_child(command: str = "", **variables: str) -> str:
    code = (
        "from distrib.environment import *;"
        "print(launched_as(), started_by_rank() is not None, supervision().attempts)"
    )
    python = f"{sys.executable} -P -c '{code}'"
    done = subprocess.run(
        [*("sh", "-c", command or python), python],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.usefixtures("rank")
def test_a_rank_is_no_descendant() -> None:
    rank_place.take()
    assert launched_as() == "horovod"
    assert started_by_rank() is None
    assert supervision().attempts == 5


@pytest.mark.usefixtures("rank")
def test_children_are_no_part_of_the_job() -> None:
    assert in_child() == "None True 0"
    assert in_child(DISTRIB_HEARTBEAT="") == "None True 0"
    pid = os.fork()
    if pid == 0:
        parent = started_by_rank()
        os._exit(0 if parent == os.getppid() and launched_as() is None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert supervision({**os.environ, rank_place.VARIABLE: "1:2/"}) != UNSUPERVISED


@pytest.mark.usefixtures("rank")
def test_ranks_of_a_launcher_that_a_rank_starts_have_places_of_their_own() -> None:
    assert in_child(HOROVOD_GLOO_RENDEZVOUS_PORT="8888") == "horovod False 5"
    assert in_child(OMPI_COMM_WORLD_RANK="1") == "horovod False 5"


def test_what_stands_between_a_launcher_and_its_rank_takes_no_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(rank_place.VARIABLE, raising=False)
    wrapped = 'exec env nice sh -c "true; $0"'
    assert in_child(wrapped.replace("$0", in_shell()), **RANK, DISTRIB_ATTEMPTS="5") == (
        "horovod False 5"
    )


def in_shell() -> str:
    return (
        f"{sys.executable} -P -c 'from distrib.environment import *;"
        "print(launched_as(), started_by_rank() is not None, supervision().attempts)'"
    )


@pytest.mark.usefixtures("rank")
def test_exec_keeps_the_place() -> None:
    code = (
        "import os, sys; from distrib import rank_place;"
        f"os.environ[{rank_place.VARIABLE!r}] = ''; rank_place.take();"
        "again = 'from distrib.environment import *; print(launched_as())';"
        "os.execv(sys.executable, [sys.executable, '-P', '-c', again])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout == "horovod\n", done.stderr
