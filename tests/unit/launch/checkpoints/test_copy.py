import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import orbax.checkpoint as ocp
import pytest

from distrib.checkpoint import attempts, transfer
from distrib.checkpoint.attempts import FINISHED
from distrib.checkpoint.manifest import NAME, FileEntry, Manifest
from distrib.checkpoint.orbax_format import DataFile
from distrib.launch.checkpoints.options import second_location


@pytest.fixture
def target(run: Any, make_run: Any, tmp_path: Path, memory_url: str) -> Any:
    """A directory that does not exist yet, in the other kind of store."""
    local = run.location.local is not None
    return make_run(f"{memory_url}/copy" if local else str(tmp_path / "copy"))


def test_copies_the_newest_by_default(run: Any, target: Any, checkpoints: Any) -> None:
    run.save(7, 250)
    before = run.contents()
    result = checkpoints("copy", run.url, target.url)
    assert result.code == 0
    assert result.out.startswith(f"250 copied to {target.location}/250 (")
    assert target.directory.steps() == [250]
    (copied,), (*_, original) = target.directory.checkpoints(), run.directory.checkpoints()
    assert copied.read().training == original.read().training
    np.testing.assert_equal(copied.read().arrays, original.read().arrays)
    assert copied.manifest.created == original.manifest.created
    assert copied.manifest.fingerprint == "finger"
    assert run.contents() == before
    assert checkpoints("diff", run.url, 250, 250, "--other", target.url).code == 0


def test_a_run_resumes_from_a_copy(run: Any, target: Any, checkpoints: Any) -> None:
    run.save(7, 250)
    run.save_superseded(300)
    assert checkpoints("copy", run.url, target.url, "--all").code == 0
    assert target.directory.steps() == [7, 250]
    attempt = target.save(260)
    assert target.directory.steps() == [7, 250, 260]
    assert attempt.number == 2
    assert attempt.entry.failures == 0
    assert checkpoints("verify", target.url, "--all").code == 0


def test_one_step(run: Any, target: Any, checkpoints: Any) -> None:
    run.save(7, 250)
    rows = json.loads(checkpoints("copy", run.url, target.url, "--step", 7, "--json").out)
    assert [(row["step"], row["copied"]) for row in rows] == [(7, True)]
    assert target.directory.steps() == [7]


def test_existing_steps_are_left_alone(run: Any, target: Any, checkpoints: Any) -> None:
    run.save(7)
    checkpoints("copy", run.url, target.url)
    before = target.contents()
    result = checkpoints("copy", run.url, target.url)
    assert (result.code, result.out.split(":")[0]) == (0, "7 already exists")
    assert target.contents() == before


def test_other_content_of_a_step_is_not_replaced(run: Any, target: Any, checkpoints: Any) -> None:
    run.save(7, 8)
    target.save(8, values=1.5).ended(FINISHED)
    before = target.contents()
    result = checkpoints("copy", run.url, target.url, "--all")
    assert result.code == 78
    assert f"{target.location}/8 exists and differs from" in result.err
    assert target.contents() == before


def test_damage_is_found_while_copying(run: Any, target: Any, checkpoints: Any) -> None:
    run.save(7)
    place = run.damage(7)
    result = checkpoints("copy", run.url, target.url)
    assert result.code == 65
    assert f"damaged: {place} has CRC32C" in result.err
    assert target.directory.checkpoints() == []
    entry = attempts.newest(target.location)
    assert entry is not None
    assert entry.end == FINISHED
    run.damage(7)  # The bit is flipped back.
    assert checkpoints("copy", run.url, target.url).code == 0


def test_files_are_copied_a_few_at_a_time(
    local_run: Any,
    make_run: Any,
    memory_url: str,
    checkpoints: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("distrib.checkpoint.layout.MAX_FILE_BYTES", 12)
    local_run.save(7)
    target = make_run(memory_url)
    (stored,) = local_run.directory.checkpoints()
    held = []
    write = transfer.write

    def spy(some: list[DataFile], *rest: Any) -> Any:
        held.append(len(some))
        return write(some, *rest)

    monkeypatch.setattr(transfer, "write", spy)
    monkeypatch.setattr("distrib.launch.checkpoints.copy.WORKERS", 3)
    assert checkpoints("copy", local_run.url, target.url).code == 0
    assert max(held) == 3
    assert sum(held) == len(stored.manifest.files)
    assert len(held) > 1
    (copied,) = target.directory.checkpoints()
    copied.verify()


def test_a_live_local_run_is_left_alone(
    run: Any, make_run: Any, tmp_path: Path, training_into: Any, checkpoints: Any
) -> None:
    run.save(7)
    target = make_run(str(tmp_path / "alive"))
    target.save(1)
    with training_into(target) as pid:
        result = checkpoints("copy", run.url, target.url)
    assert result.code == 78
    assert f"pid {pid}" in result.err
    assert target.directory.steps() == [1]


def test_a_run_on_a_store_that_may_be_alive_is_left_alone(
    run: Any, make_run: Any, memory_url: str, checkpoints: Any
) -> None:
    run.save(7)
    target = make_run(f"{memory_url}/alive")
    alive = target.save(1)
    result = checkpoints("copy", run.url, target.url)
    assert result.code == 78
    assert "Attempt 1 of the run in" in result.err
    alive.check()
    assert checkpoints("copy", run.url, target.url, "--force").code == 0
    assert target.directory.steps() == [1, 7]


def test_the_source_as_target_is_refused(run: Any, checkpoints: Any) -> None:
    run.save(7)
    result = checkpoints("copy", run.url, run.url)
    assert result.code == 78
    assert "is the source directory" in result.err


def test_plain_orbax_reads_a_copy(
    make_run: Any, memory_url: str, tmp_path: Path, checkpoints: Any
) -> None:
    make_run(memory_url).save(7)
    checkpoints("copy", memory_url, tmp_path / "copy")
    tree = ocp.PyTreeCheckpointer().restore(tmp_path / "copy/checkpoints/7/arrays")
    np.testing.assert_array_equal(tree["model"]["bn/mean@0"], np.full(3, 7, np.float32))


def test_format_1_can_be_copied_to_a_store(
    local_run: Any, make_run: Any, memory_url: str, checkpoints: Any, tmp_path: Path
) -> None:
    """Orbax wrote it, and reads it on a local disk only."""
    target = make_run(memory_url)
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    place = tmp_path / "run/checkpoints/7"
    handlers = {"arrays": ocp.PyTreeCheckpointHandler(), "training": ocp.JsonCheckpointHandler()}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers)) as checkpointer:
        arrays = ocp.args.PyTreeSave({"model": {"w": weights}})
        item = ocp.args.JsonSave({"position": {"step": 7}})
        checkpointer.save(place, args=ocp.args.Composite(arrays=arrays, training=item))
    entries = [
        FileEntry(
            str(path.relative_to(place)),
            path.stat().st_size,
            google_crc32c.value(path.read_bytes()),
        )
        for path in sorted(place.rglob("*"))
        if path.is_file()
    ]
    (place / NAME).write_bytes(Manifest(7, 0, 7, 1.0, tuple(entries), format=1).encode())
    assert checkpoints("copy", local_run.url, target.url).code == 0
    (copied,) = target.directory.checkpoints()
    assert copied.manifest.format == 2
    assert copied.read().training == {"position": {"step": 7}}
    np.testing.assert_array_equal(copied.read().arrays["model"]["w"], weights)


def test_within_one_kind_of_store(run: Any, make_run: Any, checkpoints: Any) -> None:
    run.save(7)
    target = make_run(f"{run.url}-copy")
    assert checkpoints("copy", run.url, target.url).code == 0
    assert checkpoints("diff", run.url, 7, 7, "--other", target.url).code == 0


def test_to_s3(local_run: Any, s3_server: Any, checkpoints: Any) -> None:
    local_run.save(7)
    place, options = s3_server.folder().url, json.dumps(s3_server.options)
    result = checkpoints("copy", local_run.url, place, "--target-storage-options", options)
    assert result.code == 0, result.err
    assert checkpoints("ls", place, "--storage-options", options).table[1][0] == "7"


def test_storage_options_of_the_second_location() -> None:
    first, second = {"endpoint_url": "http://one"}, {"endpoint_url": "http://two"}

    def used(directory: str, url: str, given: Any) -> Any:
        options = Namespace(directory=directory, storage_options=first, second_options=given)
        return second_location(options, url, "target").filesystem.storage_options.get(
            "endpoint_url"
        )

    assert used("s3://bucket/a", "s3://bucket/b", None) == "http://one"
    assert used("s3://bucket/a", "s3://bucket/b", second) == "http://two"
    assert used("gs://bucket/a", "s3://bucket/b", second) == "http://two"
    assert used("s3://bucket/a", "runs/17", None) is None
