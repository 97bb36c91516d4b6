"""Each fault of a real server ends in an intact checkpoint or in a clear error.

After an error the checkpoint before is intact. The saver is the one that `fit` uses.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
from fault_proxy import FaultProxy, fault_proxy
from stores import Server

from distrib.checkpoint import layout
from distrib.checkpoint.directory import CheckpointDirectory
from distrib.checkpoint.saver import Content, Saver
from distrib.errors import CheckpointError
from distrib.storage.locate import locate
from distrib.storage.location import Location

RETRY_TIMEOUT = 60.0


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MAX_FILE_BYTES", 1 << 20)


@pytest.fixture(scope="module")
def proxy(ceph: Server) -> Iterator[FaultProxy]:
    with fault_proxy(ceph) as proxy:
        yield proxy


@pytest.fixture
def run(proxy: FaultProxy) -> Iterator[Location]:
    place = locate(proxy.server.bucket() + "/runs/17", "directory", proxy.server.storage_options)
    yield replace(place, timeout=RETRY_TIMEOUT)
    proxy.heal()


def content(step: int) -> Content:
    """About 5 MB in 6 objects."""
    weights = {f"w{i}": np.full((500, 500), step + i, np.float32) for i in range(5)}
    return Content(step, 0, step, {"model": weights}, {"step": step})


def read_newest(run: Location) -> int:
    """Return the step of the newest checkpoint after reading all of it."""
    loaded = CheckpointDirectory(run).load_newest(lambda stored: stored.read())
    assert loaded is not None
    step = int(loaded.training["step"])
    for name, value in content(step).arrays["model"].items():
        np.testing.assert_array_equal(loaded.arrays["model"][name], value)
    return step


def save(run: Location, *steps: int, before_last: Callable[[], object] = lambda: None) -> None:
    directory = CheckpointDirectory(run)
    with ExitStack() as stack:
        saver = Saver(directory, directory.begin(1), None)
        stack.callback(saver.close)
        for step in steps:
            if step == steps[-1]:
                before_last()
            saver.save(content(step))
            saver.wait()


FAULTS: dict[str, Callable[[FaultProxy], object]] = {
    "reset in the middle of uploads": lambda proxy: proxy.fail(
        "reset", match="PUT .*/arrays/d/", times=4, after_bytes=300_000
    ),
    "a storm of 503": lambda proxy: proxy.fail("503", times=6),
    "responses lost while uploading": lambda proxy: proxy.fail(
        "lost response", match="PUT .*/d/", times=3
    ),
    "response of the commit lost": lambda proxy: proxy.fail(
        "lost response", match="PUT .*manifest.json", times=2
    ),
    "response of the ledger lost": lambda proxy: proxy.fail(
        "lost response", match="PUT .*/attempts/", times=1
    ),
    "slow": lambda proxy: proxy.fail("slow", times=float("inf"), bytes_per_second=2e6, delay=0.05),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_transient_fault_costs_no_checkpoint(
    fault: str, run: Location, proxy: FaultProxy
) -> None:
    done = len(proxy.log)
    save(run, 1, 2, before_last=lambda: FAULTS[fault](proxy))
    assert any(exchange.fault for exchange in proxy.log[done:]), "no request was hit"
    assert read_newest(run) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "cause"),
    [("403", "does not allow|permission|denied"), ("expired token", "expired")],
)
def test_a_permanent_fault_is_an_error_and_the_checkpoint_before_is_intact(
    kind: str, cause: str, run: Location, proxy: FaultProxy
) -> None:
    def expire() -> None:
        proxy.fail(kind, match="PUT .*/d/", times=float("inf"))  # type: ignore[arg-type]

    began = time.monotonic()
    with pytest.raises(CheckpointError, match=rf"(?s)step 2 .*({cause}).*step 1 is intact"):
        save(run, 1, 2, before_last=expire)
    assert time.monotonic() - began < RETRY_TIMEOUT, "the save was retried"
    proxy.heal()
    assert read_newest(run) == 1
    save(run, 2)
    assert read_newest(run) == 2


@pytest.mark.slow
def test_a_server_that_stays_down_is_an_error_after_the_timeout(
    run: Location, proxy: FaultProxy
) -> None:
    # Otherwise botocore itself retries for half a minute.
    options = proxy.server.storage_options | {"config_kwargs": {"retries": {"max_attempts": 0}}}
    short = replace(locate(run.url, "directory", options), timeout=2.0)
    with pytest.raises(CheckpointError, match=r"(?s)step 2 .*step 1 is intact"):
        save(short, 1, 2, before_last=lambda: proxy.fail("503", match="PUT", times=float("inf")))
    proxy.heal()
    assert read_newest(run) == 1


@pytest.mark.slow
def test_reads_are_retried_after_resets_and_503(run: Location, proxy: FaultProxy) -> None:
    save(run, 1)
    proxy.fail("reset", match="GET .*/d/", times=3, after_bytes=200_000)
    proxy.fail("503", match="GET", times=5, skip=4)
    done = len(proxy.log)
    assert read_newest(run) == 1
    assert {exchange.fault for exchange in proxy.log[done:]} >= {"reset", "503"}


@pytest.mark.slow
@pytest.mark.parametrize("daemons", [("client.rgw",), ()])
def test_a_server_killed_and_restarted_in_the_middle_of_a_save(
    daemons: tuple[str, ...], ceph: Server, run: Location, proxy: FaultProxy
) -> None:
    """Once the gateway alone, and once the whole store."""
    reached = proxy.fail("slow", match="PUT .*/arrays/d/", times=float("inf"), delay=0.2)

    def kill_when_reached() -> None:
        while reached.struck == 0:
            time.sleep(0.01)
        ceph.kill9(*daemons)

    def restart() -> None:
        killer.join()
        time.sleep(0.5)
        ceph.start()

    killer = threading.Thread(target=kill_when_reached)
    try:
        save_thread = threading.Thread(target=lambda: save(run, 1))
        killer.start()
        save_thread.start()
        # In the main thread, because the kernel kills the server with the thread that started it.
        restart()
        save_thread.join()
    finally:
        ceph.start()
    assert read_newest(run) == 1


@pytest.mark.slow
def test_a_damaged_checkpoint_is_quarantined_and_the_one_before_is_loaded(run: Location) -> None:
    save(run, 1, 2)
    directory = CheckpointDirectory(run)
    data = directory.checkpoints()[-1].root / "arrays/d/000001"
    intact = data.read_bytes()
    data.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    with pytest.warns(UserWarning, match=r"Checkpoint 2 is damaged: s3://.*000001 has CRC32C"):
        assert read_newest(run) == 1
    assert data.exists()
    assert read_newest(run) == 1
    save(run, 2)
    assert read_newest(run) == 2
