"""The parent's side of one worker process."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from typing import Any

from distrib import rank_place
from distrib.data.workers import program
from distrib.data.workers.messages import MAX_MESSAGE, Region, pack, shared_file, unpack
from distrib.data.workers.pickling import Pickled

# Seconds that a worker has for ending by itself, and for its death to be complete.
_END_SECONDS = 1.0
_CAUSES = {
    "SIGKILL": "Linux does so if memory runs out: try fewer workers.",
    "SIGSEGV": "Compiled code that it called has crashed.",
}


class WorkerDiedError(Exception):
    """A worker process has ended; the message says how, and at which example."""


class WorkerProcess:
    """A worker process, which computes a task for each request, in their order.

    Args:
        objects: The user's objects.
        task: What it computes, pickled; see `WorkerPool`.
        name: For messages, such as "Data worker 1 of 2".
        unit: What the task counts, for messages, such as "example".
    """

    def __init__(self, objects: Pickled, task: bytes, name: str, unit: str) -> None:
        self._name, self._unit = name, unit
        self._sent = self._received = 0
        shared = shared_file(program.REGIONS)
        self._regions = [Region(shared, number) for number in range(program.REGIONS)]
        self._progress = self._regions[program.PROGRESS].view(8)
        struct.pack_into("<q", self._progress, 0, -1)
        self._connection, connection = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        life, ours = os.pipe()
        self._descriptors = [shared, ours]
        descriptors = (connection.fileno(), life, shared, objects.file)
        arguments = [str(number) for number in (*descriptors, objects.table_size)]
        # Until the worker has handlers, a signal to the process group would end it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, program.STOP_SIGNALS)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-u", program.__file__, *arguments],
                stdin=subprocess.DEVNULL,
                pass_fds=descriptors,
                env=rank_place.without_place(os.environ) | {"CUDA_VISIBLE_DEVICES": ""},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            connection.close()
            os.close(life)
        with suppress(ConnectionError):  # `receive` says why.
            self._connection.send(json.dumps([str(path) for path in sys.path]).encode())
            self._connection.send(task)

    def send(self, request: Any) -> None:
        """Send a request; at most 2 may be without a reply."""
        region = self._regions[program.request_region(self._sent)]
        self._sent += 1
        with suppress(ConnectionError):  # `receive` says why.
            self._connection.send(pack(request, region))

    def receive(self) -> Any:
        """Wait for the reply to the oldest request.

        Arrays in it hold until the next `send`.

        Raises:
            RuntimeError: If the task raised.
            WorkerDiedError: If the worker has ended.
        """
        try:
            message = self._connection.recv(MAX_MESSAGE)
        except ConnectionError:
            message = b""
        if not message:
            raise WorkerDiedError(self._how_it_ended())
        region = self._regions[program.reply_region(self._received)]
        self._received += 1
        succeeded, result = unpack(message, region)
        if not succeeded:
            raise RuntimeError(result)
        return result

    def hang_up(self) -> None:
        """Let the worker end after its present task, and `receive` raise `WorkerDiedError`."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """End the worker, and wait until it has ended."""
        self.hang_up()
        self._wait()
        self.close()

    def close(self) -> None:
        """Close what the worker and this process share, as a forked process must as well."""
        self._connection.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    def _wait(self) -> int:
        try:
            return self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _how_it_ended(self) -> str:
        code = self._wait()
        (index,) = struct.unpack_from("<q", self._progress)
        where = f"at {self._unit} {index}" if index >= 0 else "while it was idle"
        who = f"{self._name} (process {self._process.pid})"
        if code >= 0:
            return f"{who} ended {where} with exit code {code}: code that it called has done this."
        name = next((each.name for each in signal.Signals if each == -code), f"signal {-code}")
        return f"{who} was killed by {name} {where}. {_CAUSES.get(name, '')}".rstrip()
