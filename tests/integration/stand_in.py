"""Represents a job that the nursery forks, as the child process that a launcher expects.

    python -I -S stand_in.py SOCKET script.py ...

The job inherits its outputs, environment, working directory and heartbeat pipe. The stand-in
forwards signals to the job and ends as the job does: with its exit code, or by its signal.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys

FORWARDED = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP),
    *(signal.SIGUSR1, signal.SIGABRT),
)


def main() -> int:
    address, script, *arguments = sys.argv[1:]
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    for number in FORWARDED:
        signal.signal(number, lambda number, frame: connection.sendall(b"%d\n" % number))
    order = {"script": script, "arguments": arguments}
    order |= {"environment": dict(os.environ), "directory": os.getcwd()}
    heartbeat = os.environ.get("DISTRIB_HEARTBEAT")
    descriptors = [1, 2, *([int(heartbeat.partition(":")[0])] if heartbeat else [])]
    socket.send_fds(connection, [json.dumps(order).encode() + b"\n"], descriptors)
    status = int(connection.makefile().readline())
    if status < 0:
        if -status in FORWARDED:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
        signal.pause()
    return status


if __name__ == "__main__":
    sys.exit(main())
