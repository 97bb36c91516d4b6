"""A host that comes by itself: the other side of `join.py`."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any

from distrib.errors import EXIT_FINISHED, EXIT_LOST_PEER, EXIT_PREEMPTED, ConfigurationError

from ..process.launcher import Console
from . import probe
from .allocation import Task
from .network import beside
from .placement import Host
from .protocol import ANSWER_SECONDS, TOKEN_VARIABLE, limit_reads, prepare, receive, send, token

RETRY_SECONDS = 1.0
TICK_SECONDS = 0.5
QUIET_SECONDS = 3.0  # Hosts never start at the very same moment.
LINGER_SECONDS = 5.0  # From one look for a coordinator to the next, when nothing is left to do.


class Member:
    """Serves a coordinator until the job has ended, and each new one that takes its place.

    Args:
        coordinator: Host and port.
        own: This host, and how many ranks it may have.
        task: What they run.
        patience: Seconds to wait for a coordinator.
        grace: Seconds that ranks have for saving after a request to stop.
        linger: Whether to stay after the job has finished, until this host is asked to stop.
        console: The launcher's.
    """

    def __init__(
        self,
        coordinator: tuple[str, int],
        own: Host,
        task: Task,
        patience: float,
        grace: float,
        linger: bool,
        console: Console,
    ) -> None:
        self._coordinator = coordinator
        self._own = own
        self._task = task
        self._patience = patience
        self._grace = grace
        self._linger = linger
        self._console = console
        self._attempt = 0
        self._keepers: list[subprocess.Popen[bytes]] = []
        self._asked: list[subprocess.Popen[bytes]] = []  # To save.

    def serve(self) -> int:
        """Return the exit code: the job's, or 75 if this host was asked to stop, or 76."""
        met = self._meet()
        while not isinstance(met, int):
            channel, connection = met
            try:
                code = self._follow(channel, connection)
            finally:
                channel.close()
                connection.close()
                self._end_ranks()
            if code == EXIT_FINISHED and self._linger:
                met = self._await_stop()
            elif code is not None:
                return code
            else:
                self._console.say(
                    f"lost {self._coordinator[0]}; its ranks here were ended. Joining again."
                )
                met = self._meet()
        return met

    def _meet(self) -> tuple[Connection, socket.socket] | int:
        """Connect as soon as there is a coordinator; an exit code if that is never."""
        began = time.monotonic()
        told = ""
        host, port = self._coordinator
        while time.monotonic() < began + self._patience:
            try:
                return self._dial()
            except OSError as error:
                if str(error) != told and time.monotonic() - began > QUIET_SECONDS:
                    told = str(error)
                    self._console.say(
                        f"waiting for {host}:{port}, {self._patience:g} s at most: {error}"
                    )
            if self._console.wait(RETRY_SECONDS):
                self._console.say(
                    f"asked to stop while no rank was running. (exit code {EXIT_PREEMPTED})"
                )
                return EXIT_PREEMPTED
        self._console.say(
            f"{host}:{port} has not answered for {self._patience:g} s. Started again, this host "
            f"tries again. (exit code {EXIT_LOST_PEER})"
        )
        return EXIT_LOST_PEER

    def _await_stop(self) -> tuple[Connection, socket.socket] | int:
        """Stay at hand when the job has finished.

        A coordinator may be lost when it has told its members, and before whoever started it knows
        its exit code. Its successor finds nothing left to train, but it finds that out with all. So
        a host that is stopped meanwhile is not done either: it may have been lost together with it.
        """
        self._console.say("the job has finished; this host stays until it is asked to stop.")
        while not self._console.wait(LINGER_SECONDS):
            with suppress(OSError):
                return self._dial()
        self._console.say(f"asked to stop when all was done. (exit code {EXIT_PREEMPTED})")
        return EXIT_PREEMPTED

    def _dial(self, **hello: Any) -> tuple[Connection, socket.socket]:
        """Connect, and say who is there."""
        connection = socket.create_connection(self._coordinator, timeout=ANSWER_SECONDS)
        connection.settimeout(None)
        prepare(connection)
        limit_reads(connection, ANSWER_SECONDS)
        channel = Connection(os.dup(connection.fileno()))
        try:
            answer_challenge(channel, token())
            deliver_challenge(channel, token())
            send(channel, hello or {"name": self._own.name, "slots": self._own.slots})
        except AuthenticationError as error:
            raise ConfigurationError(
                f"{self._coordinator[0]} has another token than this host; give both the same "
                f"{TOKEN_VARIABLE}."
            ) from error
        except EOFError as error:
            raise ConnectionError("the connection was closed") from error
        limit_reads(connection, 0)
        return channel, connection

    def _follow(self, channel: Connection, connection: socket.socket) -> int | None:
        """Do what the coordinator says; return the exit code, `None` if it was lost."""
        self._console.say(
            f"joined {self._coordinator[0]}, which shows what the ranks of this host write."
        )
        leave_by: float | None = None
        while True:
            self._console.alive.tick()
            if self._console.signals.take() and leave_by is None:
                leave_by = time.monotonic() + self._grace
                self._asked = self._running
                try:
                    send(channel, {"leave": True})
                except OSError:
                    return self._leave_after_ranks()
            if leave_by is not None and (not self._running or time.monotonic() > leave_by):
                return self._leave()
            try:
                ready, _, _ = select.select(
                    [channel.fileno(), self._console.signals.waker], [], [], TICK_SECONDS
                )
                if channel.fileno() in ready:
                    message = receive(channel)
                    if "end" in message:
                        self._wait_for_ranks()
                        send(channel, {"goodbye": True})
                    elif "over" in message:
                        return int(message["over"])
                    else:
                        self._do(message, channel, connection)
            except OSError:
                return None if leave_by is None else self._leave_after_ranks()

    def _do(
        self, message: Mapping[str, Any], channel: Connection, connection: socket.socket
    ) -> None:
        if "survey" in message:
            launcher, own = connection.getpeername()[0], connection.getsockname()[0]
            found = probe.surroundings(launcher, own, self._own.slots)
            send(channel, {"number": message["number"], **found})
        elif "start" in message:
            if message["attempt"] != self._attempt:
                self._end_ranks()  # Of the one before: a keeper may be deaf, and its rank alive.
                self._attempt = message["attempt"]
            self._start_keeper(message["start"])

    def _start_keeper(self, key: str) -> None:
        """Start a keeper whose input and output are a new connection."""
        channel, connection = self._dial(key=key)
        channel.close()
        with connection:
            fd, command = connection.fileno(), [*beside("rank_agent.py"), *self._task.command]
            keeper = subprocess.Popen(command, stdin=fd, stdout=fd, start_new_session=True)
            self._keepers = [*self._running, keeper]

    @property
    def _running(self) -> list[subprocess.Popen[bytes]]:
        return [keeper for keeper in self._keepers if keeper.poll() is None]

    def _wait_for_ranks(self) -> None:
        deadline = time.monotonic() + ANSWER_SECONDS
        while self._running and time.monotonic() < deadline:
            time.sleep(0.02)

    def _end_ranks(self) -> None:
        """End what still runs: the kernel kills a rank with its keeper."""
        for keeper in self._running:
            keeper.kill()
        for keeper in self._keepers:
            keeper.wait()

    def _leave_after_ranks(self) -> int:
        """Leave without a coordinator: it has ended before its connections to the ranks did."""
        self._wait_for_ranks()
        return self._leave()

    def _leave(self) -> int:
        codes = [keeper.poll() for keeper in self._asked]
        saved = all(code in (0, EXIT_PREEMPTED) for code in codes)
        if saved:
            self._console.say(f"stopped as asked to. (exit code {EXIT_PREEMPTED})")
        else:
            self._console.say(
                f"asked to stop; the ranks did not end in time. (exit code {EXIT_LOST_PEER})"
            )
        return EXIT_PREEMPTED if saved else EXIT_LOST_PEER
