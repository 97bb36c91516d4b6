"""Forks jobs from a process that has imported everything already.

Importing TensorFlow, Keras and Orbax takes longer than most test jobs. The nursery does it once and
starts nothing of them; each job is a process of its own, forked from there, with real signals.

It listens on an abstract Unix socket, and serves one job a connection. The client sends one line
of JSON, `{"script", "arguments", "environment", "directory"}`, together with the file descriptors
of the job's output and errors; then numbers of signals for the job, a line each. It is answered
with the exit status, negative for a signal. When the client hangs up, the job is killed.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn


def import_all(folder: Path) -> None:
    sys.path.insert(0, str(folder))
    import models  # noqa: F401

    import distrib.callbacks
    import distrib.resume  # noqa: F401

    if importlib.util.find_spec("horovod"):
        import horovod.tensorflow  # noqa: F401


def become(order: dict[str, Any], outputs: list[int]) -> NoReturn:
    for descriptor, output in enumerate(outputs, 1):
        os.dup2(output, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(order["directory"])
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.argv = [order["script"], *order["arguments"]]
    code: Any = 0
    try:
        runpy.run_path(order["script"], run_name="__main__")
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


class Job:
    """One forked process, and the connection of the client that wanted it."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        data, outputs, _, _ = socket.recv_fds(connection, 1 << 16, 2)
        while not data.endswith(b"\n"):
            data += connection.recv(1 << 16)
        self.pid = os.fork()
        if self.pid == 0:
            become(json.loads(data), outputs)
        for output in outputs:
            os.close(output)
        self.end = os.pidfd_open(self.pid)

    def listen(self, selector: selectors.BaseSelector) -> None:
        data = self.connection.recv(1 << 16)
        if not data:
            selector.unregister(self.connection)
            signal.pidfd_send_signal(self.end, signal.SIGKILL)
        for number in map(int, data.split()):
            signal.pidfd_send_signal(self.end, number)

    def bury(self, selector: selectors.BaseSelector) -> None:
        _, status = os.waitpid(self.pid, 0)
        selector.unregister(self.end)
        os.close(self.end)
        if self.connection in selector.get_map():
            selector.unregister(self.connection)
            self.connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
        self.connection.close()


def main() -> None:
    import_all(Path(__file__).parent)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("\0" + sys.argv[1])
    listener.listen()
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)  # It ends with the tests.
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                return
            if key.fileobj is listener:
                job = Job(listener.accept()[0])
                selector.register(job.connection, selectors.EVENT_READ, job.listen)
                selector.register(job.end, selectors.EVENT_READ, job.bury)
            elif key.fd in selector.get_map():
                key.data(selector)


if __name__ == "__main__":
    main()
