"""Stands in, as a launcher's child, for a job that is forked from the nursery.

    python -I -S stand_in.py SOCKET script.py ...

The job gets its outputs, its environment, its folder and its way to the supervisor; signals are
handed on, and it ends as the job does: with the same exit code, or by the same signal.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys

HANDED_ON = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP),
    *(signal.SIGUSR1, signal.SIGABRT),
)


def main() -> int:
    address, script, *arguments = sys.argv[1:]
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    for number in HANDED_ON:
        signal.signal(number, lambda number, frame: connection.sendall(b"%d\n" % number))
    order = {"script": script, "arguments": arguments}
    order |= {"environment": dict(os.environ), "directory": os.getcwd()}
    heartbeat = os.environ.get("DISTRIB_HEARTBEAT")
    descriptors = [1, 2, *([int(heartbeat.partition(":")[0])] if heartbeat else [])]
    socket.send_fds(connection, [json.dumps(order).encode() + b"\n"], descriptors)
    status = int(connection.makefile().readline())
    if status < 0:
        if -status in HANDED_ON:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
        signal.pause()
    return status


if __name__ == "__main__":
    sys.exit(main())
