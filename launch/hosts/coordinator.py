"""Hosts that come by themselves: the coordinator's side of `distrib run --join`.

Where no ssh leads from one host to the next, as between the pods of Kubernetes, the same command is
started on each of them. The one that the address of `--join` names is the coordinator: it runs the
job as `distrib run` always does, only that it does not go to the hosts, they come to it. A member
(`member.py`) connects, says who it is, and waits. For each of its ranks in an attempt it opens one
more connection and starts a keeper with that for its input and output, so from there on a rank on
a member is like any other.

A member that loses the coordinator ends its ranks and comes again. So a coordinator that has died
and was replaced finds everybody there, and begins the next attempt.

A member never runs a command that it is sent: it has its own.
"""

from __future__ import annotations

import os
import queue
import secrets
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any

from distrib.errors import EXIT_FINISHED, ConfigurationError

from ..process.launcher import Console
from .allocation import Crew, Size, Task, await_hosts, keeper_here, muster
from .channel import Link, LostLink, SocketLink
from .network import UnreachableHostError, View, own_view, view
from .placement import Host, Slot
from .protocol import ANSWER_SECONDS, TOKEN_VARIABLE, limit_reads, prepare, receive, send, token

LOOK_SECONDS = 0.1  # From one look at who has come to the next.


class Registered:
    """A member that is there."""

    def __init__(self, host: Host, channel: Connection, connection: socket.socket) -> None:
        self.host = host
        self.channel = channel
        self._connection = connection
        self.answers: queue.Queue[Mapping[str, Any]] = queue.Queue()
        self.is_leaving = False

    def hang_up(self) -> None:
        """End the connection; whoever reads from it finds that out."""
        with suppress(OSError):  # It may be lost already.
            self._connection.shutdown(socket.SHUT_RDWR)

    def ask(self, message: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Send a question, and return the answer; `None` if there is none in time."""
        number = secrets.token_hex(4)
        try:
            send(self.channel, {**message, "number": number})
            while (answer := self.answers.get(timeout=ANSWER_SECONDS))["number"] != number:
                pass
        except (OSError, queue.Empty):
            return None
        return answer


class Coordinator:
    """A fleet of members, and this host.

    Args:
        port: Where to listen.
        own: This host, and how many ranks it may have.
        size: How many ranks.
        interface: The network interface to use on every host; `None` takes that of the connection.
        task: What each rank runs.
        console: The launcher's.

    Raises:
        ConfigurationError: If the port is taken.
    """

    def __init__(
        self,
        port: int,
        own: Host,
        size: Size,
        interface: str | None,
        task: Task,
        console: Console,
    ) -> None:
        self._own = own
        self._size = size
        self._interface = interface
        self._task = task
        self._console = console
        self._attempt = 0
        self._lock = threading.Lock()
        self._members: dict[str, Registered] = {}
        self._leaving: list[str] = []
        self._awaited: dict[str, queue.Queue[socket.socket]] = {}
        self._crew: set[str] = set()
        self._ended: int | None = None
        self._goodbyes: set[str] = set()
        try:
            self._listener = socket.create_server(("", port), backlog=128)
        except OSError as error:
            raise ConfigurationError(
                f"--join: cannot listen on port {port} of {self._own.name}: {error}. Is another "
                "job running here? Then give this one a port of its own."
            ) from error
        threading.Thread(target=self._accept, daemon=True).start()

    # As a fleet

    def gather(self) -> Crew:
        """See `Fleet`."""
        missing = await_hosts(self._look, self._console, self._size.patience, LOOK_SECONDS)
        views, available = self._survey()
        if available < self._size.least:
            raise UnreachableHostError(
                f"after {self._size.patience:g} s {available} of at least {self._size.least} ranks "
                f"have a place: {missing}. Look at the hosts that are not there; started again, "
                "the job goes on from its last checkpoint."
            )
        crew = muster(views, self._size, self._console)
        self._crew = {host.name for host in crew.views}
        return crew

    def connect(self, slots: Sequence[Slot]) -> list[Link]:
        """See `Fleet`."""
        self._attempt += 1
        asked = {slot: self._ask_for_keeper(slot) for slot in slots if slot.host != self._own}
        deadline = time.monotonic() + ANSWER_SECONDS
        links: list[Link] = []
        for slot in slots:
            if slot.host == self._own:
                links.append(keeper_here())
                continue
            key, waiting = asked[slot]
            try:
                connection = waiting.get(timeout=max(0.0, deadline - time.monotonic()))
                links.append(SocketLink(connection))
            except queue.Empty:
                links.append(LostLink())
            with self._lock:
                del self._awaited[key]
        return links

    def spec(self, slot: Slot) -> Mapping[str, Any]:
        """See `Fleet`: a member has command and folder of its own."""
        if slot.host == self._own:
            return self._task.here(slot)
        return {**self._task.there(), "command": None, "directory": None, "environment": {}}

    def leaving(self) -> list[str]:
        """See `Fleet`."""
        with self._lock:
            names, self._leaving = self._leaving, []
        return names

    def dismiss(self, code: int) -> None:
        """See `Fleet`.

        A coordinator that was itself asked to stop says nothing: another one will take its place.
        """
        is_over = code == EXIT_FINISHED or not self._console.signals.asked_to_stop
        if is_over:
            self._tell_the_end(code)
        self._listener.shutdown(socket.SHUT_RDWR)  # Wakes who waits there.
        self._listener.close()
        with self._lock:
            members = list(self._members.values())
        for member in members:
            if is_over:
                self._send(member.channel, {"over": code})
            member.hang_up()

    def _tell_the_end(self, code: int) -> None:
        """Tell all members; who is only away for the moment is told when it comes again.

        They end when nothing is left to do here but to end as well: if this process is killed
        before that, another one takes its place, and needs them to find out that all is done.
        """
        with self._lock:
            self._ended = code
            members = list(self._members.values())
        for member in members:
            self._send(member.channel, {"end": code})
        patience = self._size.patience if code == EXIT_FINISHED else ANSWER_SECONDS
        deadline = time.monotonic() + patience
        expected = self._crew - {self._own.name}
        while not expected <= self._goodbyes and time.monotonic() < deadline:
            self._console.alive.tick()
            time.sleep(0.05)

    def _send(self, channel: Connection, message: Mapping[str, Any]) -> None:
        with suppress(OSError):  # A member that was lost comes again.
            send(channel, message)

    def _look(self) -> str | None:
        with self._lock:
            members = [member for member in self._members.values() if not member.is_leaving]
        slots = self._own.slots + sum(member.host.slots for member in members)
        if slots >= self._size.most:
            return None
        names = ", ".join(sorted([self._own.name, *(member.host.name for member in members)]))
        return f"{slots} of {self._size.most} ranks have a place, on {names}"

    def _survey(self) -> tuple[dict[Host, View], int]:
        """Return the views of all hosts that answer now, this one first, and how many ranks fit."""
        with self._lock:
            members = [member for member in self._members.values() if not member.is_leaving]
        members.sort(key=lambda member: _natural(member.host.name))
        views, seen_as = {}, []
        with ThreadPoolExecutor(len(members) or 1) as pool:  # One may have to be waited for.
            answers = list(pool.map(lambda member: member.ask({"survey": True}), members))
        for member, answer in zip(members, answers, strict=True):
            if answer is None:
                self._forget(member)
                continue
            views[member.host] = view(member.host.name, answer, self._interface)
            seen_as.append(views[member.host].launcher)
        own = own_view(self._own.slots, seen_as, self._interface)
        views = {self._own: own, **views}
        return views, sum(host.slots for host in views)

    # The connections

    def _ask_for_keeper(self, slot: Slot) -> tuple[str, queue.Queue[socket.socket]]:
        key, waiting = secrets.token_hex(16), queue.Queue[socket.socket]()
        with self._lock:
            self._awaited[key] = waiting
            member = self._members.get(slot.hostname)
        if member is not None:
            try:
                send(member.channel, {"start": key, "attempt": self._attempt})
            except OSError:
                self._forget(member)
        return key, waiting

    def _accept(self) -> None:
        while True:
            try:
                connection, address = self._listener.accept()
            except OSError:  # The job has ended.
                return
            threading.Thread(
                target=self._welcome, args=(connection, address[0]), daemon=True
            ).start()

    def _welcome(self, connection: socket.socket, address: str) -> None:
        prepare(connection)
        limit_reads(connection, ANSWER_SECONDS)
        channel = Connection(os.dup(connection.fileno()))
        try:
            deliver_challenge(channel, token())
            answer_challenge(channel, token())
            hello = receive(channel)
        except AuthenticationError:
            self._console.say(f"--join: {address} does not know the token ({TOKEN_VARIABLE}).")
            channel.close()
            connection.close()
            return
        except (OSError, EOFError):  # Not a member; a port scan, perhaps.
            channel.close()
            connection.close()
            return
        limit_reads(connection, 0)
        if "key" in hello:
            channel.close()
            with self._lock:
                waiting = self._awaited.get(hello["key"])
            if waiting is None:
                connection.close()
            else:
                waiting.put(connection)
            return
        with connection, channel:
            self._register(
                Registered(Host(hello["name"], int(hello["slots"])), channel, connection)
            )

    def _register(self, member: Registered) -> None:
        """Take a member in, and follow it until its connection ends."""
        with self._lock:
            self._members[member.host.name] = member  # A new start takes the place of the old one.
            ended = self._ended
        if ended is not None:
            self._send(member.channel, {"end": ended})
        try:
            while True:
                message = receive(member.channel)
                if "number" in message:
                    member.answers.put(message)
                elif "leave" in message:
                    member.is_leaving = True
                    with self._lock:
                        self._leaving.append(member.host.name)
                elif "goodbye" in message:
                    self._goodbyes.add(member.host.name)
        except OSError:
            self._forget(member)

    def _forget(self, member: Registered) -> None:
        with self._lock:
            if self._members.get(member.host.name) is member:
                del self._members[member.host.name]


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key by which h2 comes before h10."""
    parts = "".join(c if c.isdecimal() else f"\0{c}\0" for c in name).split("\0")
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts if part]
