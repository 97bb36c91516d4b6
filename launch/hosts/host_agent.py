"""The agent of a host that joined a job (`distrib run --join`); `coordinator.py` is its peer."""

from __future__ import annotations

import select
import socket
import subprocess
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from distrib.errors import EXIT_FINISHED, EXIT_LOST_PEER, EXIT_PREEMPTED

from ..process.launcher_context import LauncherContext
from . import probe
from .network import script_command
from .placement import Host
from .protocol import ANSWER_SECONDS, connect, receive, send
from .rank_agent import die_with_parent
from .task import Task

RETRY_SECONDS = 1.0
POLL_SECONDS = 0.5
QUIET_SECONDS = 3.0  # Hosts start some seconds apart, which is worth no message.
LINGER_SECONDS = 5.0  # Between two attempts to connect after the job has finished.


class HostAgent:
    """Serves a coordinator until the job has ended, and each coordinator that replaces it.

    Args:
        coordinator: Host and port.
        token: The secret that the coordinator must know.
        own: This host, and how many ranks it may have.
        task: What each rank runs.
        timeout: Seconds to wait for a coordinator.
        grace: Seconds that ranks have for saving after a request to stop.
        linger: Whether to stay after the job has finished, until this host is asked to stop.
        context: The launcher's.
    """

    def __init__(
        self,
        coordinator: tuple[str, int],
        token: bytes,
        own: Host,
        task: Task,
        timeout: float,
        grace: float,
        linger: bool,
        context: LauncherContext,
    ) -> None:
        self._coordinator = coordinator
        self._token = token
        self._own = own
        self._task = task
        self._timeout = timeout
        self._grace = grace
        self._linger = linger
        self._context = context
        self._attempt = 0
        self._agents: list[subprocess.Popen[bytes]] = []
        self._saving: list[subprocess.Popen[bytes]] = []
        self._spare_agents: dict[str, subprocess.Popen[bytes]] = {}  # By key of the request.

    def serve(self) -> int:
        """Return the exit code: the job's, or 75 if this host was asked to stop, or 76."""
        joined = self._join()
        while not isinstance(joined, int):
            control, connection = joined
            try:
                code = self._follow(control, connection)
            finally:
                control.close()
                connection.close()
                self._kill_all()
            if code == EXIT_FINISHED and self._linger:
                joined = self._linger_until_stopped()
            elif code is not None:
                return code
            else:
                self._context.log(
                    f"lost {self._coordinator[0]}; its ranks here were ended. Joining again."
                )
                joined = self._join()
        return joined

    def _join(self) -> tuple[Connection, socket.socket] | int:
        """Connect as soon as there is a coordinator; return an exit code if none comes."""
        began = time.monotonic()
        reported = ""
        host, port = self._coordinator
        while time.monotonic() < began + self._timeout:
            try:
                return self._connect()
            except OSError as error:
                if str(error) != reported and time.monotonic() - began > QUIET_SECONDS:
                    reported = str(error)
                    self._context.log(
                        f"waiting for {host}:{port}, {self._timeout:g} s at most: {error}"
                    )
            if self._context.wait(RETRY_SECONDS):
                self._context.log(
                    f"asked to stop while no rank was running. (exit code {EXIT_PREEMPTED})"
                )
                return EXIT_PREEMPTED
        self._context.log(
            f"{host}:{port} has not answered for {self._timeout:g} s. Started again, this host "
            f"tries again. (exit code {EXIT_LOST_PEER})"
        )
        return EXIT_LOST_PEER

    def _linger_until_stopped(self) -> tuple[Connection, socket.socket] | int:
        """Stay available after the job has finished.

        A coordinator may be lost after it told its hosts that the job has finished, and before its
        own supervisor (Kubernetes, for one) knows its exit code. Its replacement finds nothing left
        to train, but needs all hosts to find that out. So a host that is stopped while it lingers
        ends with 75, not 0: it may have been lost together with the coordinator.
        """
        self._context.log("the job has finished; this host stays until it is asked to stop.")
        while not self._context.wait(LINGER_SECONDS):
            with suppress(OSError):
                return self._connect()
        self._context.log(f"asked to stop after the job finished. (exit code {EXIT_PREEMPTED})")
        return EXIT_PREEMPTED

    def _connect(self, **hello: Any) -> tuple[Connection, socket.socket]:
        """Connect, and register this host unless `hello` says something else."""
        own = {"name": self._own.name, "slots": self._own.slots}
        return connect(self._coordinator, self._token, hello or own)

    def _follow(self, control: Connection, connection: socket.socket) -> int | None:
        """Do what the coordinator requests; return the exit code, `None` if it was lost."""
        self._context.log(
            f"joined {self._coordinator[0]}, which shows what the ranks of this host write."
        )
        stop_by: float | None = None
        while True:
            self._context.liveness_file.touch()
            if self._context.signals.take() and stop_by is None:
                stop_by = time.monotonic() + self._grace
                self._saving = self._running
                try:
                    send(control, {"leave": True})
                except OSError:
                    return self._stop_after_ranks()
            if stop_by is not None and (not self._running or time.monotonic() > stop_by):
                return self._stop()
            try:
                readable, _, _ = select.select(
                    [control.fileno(), self._context.signals.wakeup_fd], [], [], POLL_SECONDS
                )
                if control.fileno() in readable:
                    message = receive(control)
                    if "end" in message:
                        self._wait_for_ranks()
                        send(control, {"goodbye": True})
                    elif "over" in message:
                        return int(message["over"])
                    else:
                        self._handle(message, control, connection)
            except OSError:
                return None if stop_by is None else self._stop_after_ranks()

    def _handle(
        self, message: Mapping[str, Any], control: Connection, connection: socket.socket
    ) -> None:
        if "survey" in message:
            launcher, own = connection.getpeername()[0], connection.getsockname()[0]
            network = probe.describe_network(launcher, own, self._own.slots)
            send(control, {"number": message["number"], **network})
        elif "start" in message and message["attempt"] is None:
            if not self._start_spare(message["start"]):
                send(control, {"refused": message["start"]})
        elif "start" in message:
            self._begin_attempt(message["attempt"])
            self._agents = [*self._running, self._start_agent(message["start"])]
        elif message.get("use") in self._spare_agents:
            self._begin_attempt(message["attempt"])
            self._agents = [*self._running, self._spare_agents.pop(message["use"])]

    def _start_spare(self, key: str) -> bool:
        """Start the rank agent of a spare, which ends with this process in any case.

        Returns:
            Whether that is possible. If not, the ranks of this host go on all the same.
        """
        if not self._task.is_script:
            return False
        try:
            agent = self._start_agent(key, die_with_parent())
        except OSError:
            return False
        running = {key: each for key, each in self._spare_agents.items() if each.poll() is None}
        self._spare_agents = {**running, key: agent}
        return True

    def _begin_attempt(self, attempt: int) -> None:
        if attempt != self._attempt:
            _kill(self._agents)  # An agent of the attempt before may not have noticed its end.
            self._attempt = attempt

    def _start_agent(
        self, key: str, preexec: Callable[[], None] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a rank agent whose input and output are a new connection."""
        control, connection = self._connect(key=key)
        control.close()
        with connection:
            fd, command = connection.fileno(), script_command("rank_agent.py")
            return subprocess.Popen(
                [*command, *self._task.command],
                stdin=fd,
                stdout=fd,
                start_new_session=True,
                preexec_fn=preexec,
            )

    @property
    def _running(self) -> list[subprocess.Popen[bytes]]:
        return [agent for agent in self._agents if agent.poll() is None]

    def _wait_for_ranks(self) -> None:
        deadline = time.monotonic() + ANSWER_SECONDS
        while self._running and time.monotonic() < deadline:
            time.sleep(0.02)

    def _kill_all(self) -> None:
        """Kill the agents of ranks and spares; the kernel kills a rank together with its agent."""
        _kill([*self._agents, *self._spare_agents.values()])
        self._spare_agents.clear()

    def _stop_after_ranks(self) -> int:
        """Stop without a coordinator, which may have ended before its channels to the ranks did."""
        self._wait_for_ranks()
        return self._stop()

    def _stop(self) -> int:
        """Return 75 if the ranks of this host have saved, else 76."""
        codes = [agent.poll() for agent in self._saving]
        saved = all(code in (EXIT_FINISHED, EXIT_PREEMPTED) for code in codes)
        if saved:
            self._context.log(f"stopped as requested. (exit code {EXIT_PREEMPTED})")
        else:
            self._context.log(
                f"asked to stop; the ranks did not end in time. (exit code {EXIT_LOST_PEER})"
            )
        return EXIT_PREEMPTED if saved else EXIT_LOST_PEER


def _kill(agents: Collection[subprocess.Popen[bytes]]) -> None:
    for agent in agents:
        agent.kill()  # Does nothing to one that has ended.
    for agent in agents:
        agent.wait()
