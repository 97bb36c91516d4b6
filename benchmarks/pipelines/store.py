"""The records of `records.py` in an S3 server on loopback.

TensorFlow has no S3 file system of its own. Its pipeline reads through fsspec from a generator, or
copies the files to the local disk first, which counts. grain reads single records through fsspec.

The server is moto's, which loads a whole object for each range that is asked for, unless
`AWS_ENDPOINT_URL` names another one, such as Ceph's gateway.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import tensorflow as tf

from pipelines.contenders import Contender, compare, load_grain
from pipelines.records import FILES, distrib_contenders, grain_map, tf_data, write

_HEADER, _FOOTER_SIZE = struct.Struct("<QI"), 4


def compare_store(folder: Path, number: int, batch: int, repeats: int) -> None:
    """Print the table."""
    write(folder, number)
    with _server() as servers:
        filesystem = fsspec.filesystem("s3")
        bucket = f"bench-{os.getpid()}"
        filesystem.mkdir(bucket)
        names = [f"{bucket}/{i}.tfrecord" for i in range(FILES)]
        for name in names:
            filesystem.put_file(str(folder / Path(name).name), name)
        contenders = [
            *distrib_contenders(f"s3://{bucket}/*.tfrecord", batch),
            *_tf_data_contenders(filesystem, names, folder / "copies", batch),
        ]
        if load_grain():
            through_fsspec = grain_map(FsspecRecords(filesystem, folder, names), batch)
            contenders.append(Contender("grain through fsspec, 16 threads", lambda: through_fsspec))
        url = os.environ["AWS_ENDPOINT_URL"]
        compare(f"{number} JPEG images, S3 at {url}", contenders, repeats, servers)
        filesystem.rm(bucket, recursive=True)


class FsspecRecords:
    """Records of TFRecord files by random access, with known offsets."""

    def __init__(self, filesystem: Any, folder: Path, names: list[str]) -> None:
        self.filesystem = filesystem
        self.places: list[tuple[str, int, int]] = []
        for name in names:
            content = (folder / Path(name).name).read_bytes()
            position = 0
            while position < len(content):
                length = _HEADER.unpack_from(content, position)[0]
                position += _HEADER.size
                self.places.append((name, position, position + length))
                position += length + _FOOTER_SIZE

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> bytes:
        name, start, end = self.places[index]
        return bytes(self.filesystem.cat_file(name, start=start, end=end))


def _tf_data_contenders(
    filesystem: Any, names: list[str], copies: Path, batch: int
) -> list[Contender]:
    def records(name: bytes) -> Iterator[bytes]:
        with filesystem.open(name.decode(), "rb", block_size=4 << 20) as file:
            while header := file.read(_HEADER.size):
                yield file.read(_HEADER.unpack(header)[0])
                file.read(_FOOTER_SIZE)

    def read(name: Any) -> Any:
        return tf.data.Dataset.from_generator(
            records, args=[name], output_signature=tf.TensorSpec([], tf.string)
        )

    generator = tf_data(tf.data.Dataset.from_tensor_slices(names).shuffle(FILES), read, batch)

    def copied() -> Any:
        copies.mkdir(exist_ok=True)
        paths = [str(copies / Path(name).name) for name in names]
        filesystem.get(names, paths)
        files = tf.data.Dataset.from_tensor_slices(paths).shuffle(FILES)
        return tf_data(files, tf.data.TFRecordDataset, batch)

    return [
        Contender("tf.data, from_generator through fsspec", lambda: generator),
        Contender("tf.data, copied to the disk before", copied),
    ]


@contextmanager
def _server() -> Iterator[list[int]]:
    """Provide the server that `AWS_ENDPOINT_URL` names; yield the ids of its processes here."""
    if "AWS_ENDPOINT_URL" in os.environ:
        yield []
        return
    server, url = _start_moto()
    os.environ |= {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        yield [server.pid]
    finally:
        server.kill()
        server.wait()


def _start_moto() -> tuple[subprocess.Popen[bytes], str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    program = "from moto.server import main; main()"
    command = [sys.executable, "-P", "-c", program, "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return server, f"http://127.0.0.1:{port}"
        except OSError:
            time.sleep(0.1)
    raise SystemExit("moto's server does not start; `pip install 'moto[s3]' flask flask-cors`.")
