"""Fork server for test jobs: forks them from a process that has imported everything already.

Importing TensorFlow, Keras and Orbax takes longer than most test jobs. The nursery imports them
once and starts no thread of theirs. Each job is a forked process of its own and gets real signals.

The nursery listens on a Unix socket; each connection serves one job. The client sends a JSON line,
`{"script", "arguments", "environment", "directory"}`, together with the file descriptors of the
job's stdout, stderr and, if there is one, heartbeat; then signal numbers for the job, one per line.
The nursery answers with the exit status, negative for a signal. When the client hangs up, the
nursery kills the job.

A job runs in its client's network, mount, pid and uts namespaces.
"""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import gc
import importlib.util
import json
import os
import runpy
import selectors
import signal
import socket
import struct
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import distrib.heartbeat


def import_all(folder: Path) -> None:
    sys.path.insert(0, str(folder))
    import models  # noqa: F401

    if importlib.util.find_spec("horovod"):
        import horovod.tensorflow  # noqa: F401
    gc.collect()
    gc.freeze()  # Else the garbage collector of each job visits, and copies, a million objects.


def become(request: dict[str, Any], descriptors: list[int]) -> NoReturn:
    output, errors, *heartbeat = descriptors
    os.dup2(output, 1)
    os.dup2(errors, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if heartbeat:
        os.environ["DISTRIB_HEARTBEAT"] = f"{heartbeat[0]}:{os.fstat(heartbeat[0]).st_ino}"
        # The module was imported before the fork, without this variable.
        vars(distrib.heartbeat.heartbeat).update(vars(distrib.heartbeat.connect()))
    if "PYTHONFAULTHANDLER" in os.environ:
        faulthandler.enable()
    sys.argv = [request["script"], *request["arguments"]]
    code: Any = 0
    try:
        runpy.run_path(request["script"], run_name="__main__")
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        sys.last_type, sys.last_value, sys.last_traceback = sys.exc_info()
        try:
            sys.excepthook(*sys.exc_info())
            code = 1
        except SystemExit as ended:
            code = ended.code
        except BaseException:
            traceback.print_exc()
            code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def enter(client: int, kind: str) -> None:
    """Enter a namespace of a process; a pid namespace applies to children only."""
    theirs, ours = Path(f"/proc/{client}/ns/{kind}"), Path(f"/proc/self/ns/{kind}_for_children")
    ours = ours if ours.exists() else Path(f"/proc/self/ns/{kind}")
    if os.readlink(theirs) == os.readlink(ours):
        return
    descriptor = os.open(theirs, os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, 0) != 0:
        raise OSError(ctypes.get_errno(), f"cannot enter {theirs}")
    os.close(descriptor)


def fork_beside(client: int) -> int:
    """Fork into the namespaces of a process."""
    try:
        enter(client, "pid")
        pid = os.fork()
    except OSError:
        enter(os.getpid(), "pid")
        raise
    if pid > 0:
        enter(os.getpid(), "pid")
        return pid
    try:
        for kind in ("net", "uts", "mnt"):
            enter(client, kind)
    except OSError:  # The client has just died.
        os._exit(1)
    return pid


class Job:
    """A forked process and its client's connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        data, descriptors, _, _ = socket.recv_fds(connection, 1 << 16, 3)
        while not data.endswith(b"\n"):
            more = connection.recv(1 << 16)
            if not more:
                raise ConnectionError("the client has disconnected")
            data += more
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        self.pid = fork_beside(struct.unpack("3i", credentials)[0])
        if self.pid == 0:
            become(json.loads(data), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        self.end = os.pidfd_open(self.pid)

    def listen(self, selector: selectors.BaseSelector) -> None:
        try:
            data = self.connection.recv(1 << 16)
        except ConnectionError:
            data = b""
        if not data:
            selector.unregister(self.connection)
            signal.pidfd_send_signal(self.end, signal.SIGKILL)
        for number in map(int, data.split()):
            signal.pidfd_send_signal(self.end, number)

    def reap(self, selector: selectors.BaseSelector) -> None:
        _, status = os.waitpid(self.pid, 0)
        selector.unregister(self.end)
        os.close(self.end)
        if self.connection in selector.get_map():
            selector.unregister(self.connection)
            with suppress(ConnectionError):  # The client may have been killed too.
                self.connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
        self.connection.close()


def main() -> None:
    import_all(Path(__file__).parent)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen()
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)  # Closed when the tests end.
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                return
            if key.fileobj is listener:
                try:
                    job = Job(listener.accept()[0])
                except OSError:  # The client has just died.
                    continue
                selector.register(job.connection, selectors.EVENT_READ, job.listen)
                selector.register(job.end, selectors.EVENT_READ, job.reap)
            elif key.fd in selector.get_map():
                key.data(selector)


if __name__ == "__main__":
    main()
