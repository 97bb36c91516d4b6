"""Table of the throughput to and from an object store, next to what plain clients reach."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np

from common.measuring import column_medians, seconds_of
from distrib.checkpoint import transfer
from distrib.checkpoint.manifest import FileEntry
from distrib.checkpoint.orbax_format import DataFile
from distrib.storage.locate import locate

from .jobs import newest_files, run_in_fresh_process

PutAndGet = tuple[Callable[[], Any], Callable[[], Any]]
TRANSFER, RUN = "distrib, the files alone", "distrib, a run's save and start"


def plain_transfers(files: Sequence[Path], store: Any, root: str) -> dict[str, PutAndGet]:
    """Return ways to put `files`, all of one folder, into a store and to get them back."""
    folder = files[0].parent
    back = folder.with_name("back")
    back.mkdir(exist_ok=True)

    def in_threads(work: Callable[[Path], Any]) -> Callable[[], None]:
        def run() -> None:
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(work, files))

        return run

    ways: dict[str, PutAndGet] = {
        "put, get, recursive": (
            lambda: store.put(f"{folder}/", f"{root}/", recursive=True),
            lambda: store.get(f"{root}/", f"{back}/", recursive=True),
        ),
        "pipe_file, cat_file in threads": (
            in_threads(lambda file: store.pipe_file(f"{root}/{file.name}", file.read_bytes())),
            in_threads(lambda file: store.cat_file(f"{root}/{file.name}")),
        ),
    }
    if "s3" in store.protocol:
        import boto3
        from boto3.s3.transfer import TransferConfig

        client, config = boto3.client("s3"), TransferConfig(max_concurrency=10)
        bucket, _, prefix = root.partition("/")
        put, get = client.upload_file, client.download_file
        ways["boto3 in threads"] = (
            in_threads(lambda f: put(str(f), bucket, f"{prefix}/{f.name}", Config=config)),
            in_threads(lambda f: get(bucket, f"{prefix}/{f.name}", back / f.name, Config=config)),
        )
    return ways


def distrib_transfer(files: Sequence[Path], url: str) -> PutAndGet:
    """Return distrib's own way, from arrays and back into memory, with all bytes checksummed."""
    contents = [np.fromfile(file, np.uint8) for file in files]
    data = [
        DataFile(file.name, len(content), [(0, content)])
        for file, content in zip(files, contents, strict=True)
    ]
    location = locate(url, "directory")
    entries: list[FileEntry] = []

    def put() -> None:
        entries[:] = transfer.write(data, location, None)

    return put, lambda: transfer.read(entries, location, None, {})


def random_files(folder: Path) -> list[Path]:
    """Write files of random bytes, with the sizes of a checkpoint's files."""
    run_in_fresh_process("save once", f"{folder}/run")
    sizes = [file.stat().st_size for file in newest_files(f"{folder}/run")]
    files = [folder / "files" / str(number) for number in range(len(sizes))]
    files[0].parent.mkdir()
    for file, size in zip(files, sizes, strict=True):
        file.write_bytes(np.random.default_rng(0).bytes(size))
    return files


def measure(files: Sequence[Path], rounds: int, url: str) -> dict[str, list[tuple[float, float]]]:
    """Return the seconds of save and restore in each round, for each way."""
    url = f"{url.rstrip('/')}/{secrets.token_hex(4)}"
    store, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    ways = {
        **plain_transfers(files, store, f"{root}/plain"),
        TRANSFER: distrib_transfer(files, f"{url}/plain"),
    }
    # A server may be slower right after a write, and a run's last save comes after its first.
    before = {
        **plain_transfers(files, store, f"{root}/before"),
        TRANSFER: distrib_transfer(files, f"{url}/before"),
    }
    seconds: dict[str, list[tuple[float, float]]] = {}
    try:
        for number in range(rounds):
            for name, (put, get) in ways.items():
                before[name][0]()
                seconds.setdefault(name, []).append((seconds_of(put), seconds_of(get)))
                store.rm([f"{root}/plain", f"{root}/before"], recursive=True)
            run = f"{url}/{number}"
            if (saved := run_in_fresh_process("save once", run)) is not None:
                restored = run_in_fresh_process("restore", run)
                seconds.setdefault(RUN, []).append((saved, restored))
                store.rm(f"{root}/{number}", recursive=True)
    finally:
        if store.exists(root):
            store.rm(root, recursive=True)
    return seconds


def compare_store(rounds: int, url: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        files = random_files(Path(folder))
        sizes = [file.stat().st_size for file in files]
        seconds = measure(files, rounds, url)
    medians = {name: column_medians(rows) for name, rows in seconds.items()}
    plain = [row for name, row in medians.items() if name not in (TRANSFER, RUN)]
    size, fastest = sum(sizes), [min(column) for column in zip(*plain, strict=True)]
    yield f"{len(sizes)} files, {size / 1e6:.0f} MB, medians of {rounds} rounds"
    yield f"\n{'':32}{'save':>20}{'restore':>20}"
    yield f"{'':32}" + f"{'x fastest':>10}{'MB/s':>10}" * 2
    for name, row in medians.items():
        columns = zip(fastest, row, strict=True)
        yield f"{name:32}" + "".join(f"{b / t:10.2f}{size / t / 1e6:10.0f}" for b, t in columns)
