"""Several hosts on one machine, for tests that need a network, ssh and a power switch.

A host is a process in network, mount, pid and uts namespaces of its own, with an sshd as its PID 1
and one cable, `eth0`, to a common switch: a bridge in one more network namespace. All hosts see the
same files. Nothing exists outside these namespaces, so nothing has to be removed: the processes die
with the test, and the kernel removes the namespaces with them.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
TOOLS = ("ip", "nsenter", "ssh", "ssh-keygen", "sshd", "unshare")
NAMESPACES = ("--net", "--mount", "--pid", "--uts")


def missing() -> str | None:
    """Return why hosts cannot be made here, `None` if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    tools = [tool for tool in TOOLS if shutil.which(tool) is None]
    if tools:
        return f"{', '.join(tools)} not found: apt-get install iproute2 openssh-server"
    tried = subprocess.run(["unshare", *NAMESPACES, "--fork", "true"], capture_output=True)
    return None if tried.returncode == 0 else f"no namespaces: {tried.stderr.decode().strip()}"


def processes(word: str, namespace: str | None = None) -> list[int]:
    """Return the pids of processes with `word` in an argument, in one pid namespace or in all."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            here = namespace in (None, os.readlink(entry / "ns" / "pid"))
            arguments = (entry / "cmdline").read_bytes()
        except OSError:  # It has just ended.
            continue
        if here and word.encode() in arguments:
            found.append(int(entry.name))
    return sorted(found)


@dataclass(frozen=True)
class Host:
    """One host, by its name and address, and its PID 1 as this test sees it."""

    name: str
    address: str
    pid: int
    switch: int
    namespace: str

    def run(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host to its end."""
        return subprocess.run(
            [*self._enter(), *command], capture_output=True, text=True, env=env, timeout=timeout
        )

    def start(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[bytes]:
        """Start a command on the host; the process returned waits for it, with another pid.

        Args:
            command: What to start.
            env: Its environment, `None` for this one.
            options: Of `Popen`.
        """
        return subprocess.Popen([*self._enter(), *command], env=env, **options)

    def processes(self, word: str) -> list[int]:
        """Pids, as this test sees them, of the host's processes with `word` in an argument."""
        return processes(word, self.namespace)

    def kill(self) -> None:
        """Switch the host off: all its processes die at once, and its cable is unplugged."""
        os.kill(self.pid, signal.SIGKILL)

    def cut(self) -> None:
        """Pull the host's cable: packets are lost silently from now on."""
        self._cable("down")

    def mend(self) -> None:
        """Plug the cable in again."""
        self._cable("up")

    def _enter(self) -> list[str]:
        return ["nsenter", "--target", str(self.pid), *NAMESPACES, f"--wd={Path.cwd()}", "--"]

    def _cable(self, state: str) -> None:
        set_cable(self.switch, self.name, state)


def make_switch(stack: ExitStack) -> int:
    """Return the pid of a process that holds a switch until `stack` closes."""
    command = ["unshare", "--net", "--fork", "--kill-child", "sleep", "infinity"]
    _, switch = start(stack, command)
    _net(switch, "ip", "link", "add", "name", "bridge", "type", "bridge")
    _net(switch, "ip", "link", "set", "bridge", "up")
    return switch


def start(
    stack: ExitStack, command: Sequence[str], **options: Any
) -> tuple[subprocess.Popen[bytes], int]:
    """Start `unshare ...`, and return it with the pid of the process that it forks.

    Args:
        stack: Ends it.
        command: What to start.
        options: Of `Popen`.
    """
    libc = ctypes.CDLL(None)
    # `unshare` reports a child that was killed.
    options = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **options}
    process = subprocess.Popen(
        command,
        # Otherwise hosts would outlive a killed test.
        preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
        **options,
    )
    stack.callback(process.wait)
    stack.callback(process.kill)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not (child := children.read_text().split()):
        if process.poll() is not None:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
        time.sleep(0.005)
    return process, int(child[0])


def plug(switch: int, name: str, pid: int, address: str) -> None:
    """Connect a process's network namespace, by a cable of that name."""
    _net(switch, "ip", "link", "add", name, "type", "veth", "peer", "eth0", "netns", pid)
    _net(switch, "ip", "link", "set", name, "master", "bridge", "up")
    _net(pid, "ip", "address", "add", f"{address}/24", "dev", "eth0")
    _net(pid, "ip", "link", "set", "lo", "up")
    _net(pid, "ip", "link", "set", "eth0", "up")


def set_cable(switch: int, name: str, state: str) -> None:
    """Set a cable `"up"` or `"down"`."""
    _net(switch, "ip", "link", "set", name, state)


@contextmanager
def hosts(folder: Path, count: int = 3) -> Iterator[list[Host]]:
    """Make hosts `h0`, `h1`, ... that reach each other by name, and by ssh without a password.

    Args:
        folder: An empty folder for their keys and settings.
        count: How many.
    """
    names = [f"h{number}" for number in range(count)]
    addresses = {name: f"10.77.0.{number + 1}" for number, name in enumerate(names)}
    _write_settings(folder, addresses)
    with ExitStack() as stack:
        switch = make_switch(stack)
        made = []
        for name in names:
            command = ["unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc"]
            _, pid = start(stack, [*command, "bash", "-euc", _BOOT, name, name, str(folder)])
            plug(switch, name, pid, addresses[name])
            namespace = os.readlink(f"/proc/{pid}/ns/pid")
            made.append(Host(name, addresses[name], pid, switch, namespace))
        for host in made:
            _wait_for_ssh(host)
        yield made


# The host's first process; $1 is its name, $2 the folder of the settings.
_BOOT = """
hostname "$1"
mount --bind "$2/hosts" /etc/hosts
mount --bind "$2/ssh_config" /etc/ssh/ssh_config
mount -t tmpfs none /run && mkdir -p /run/sshd
if [ -e ~/.bashrc ]; then mount --bind /dev/null ~/.bashrc; fi  # Not to run it in the test.
exec /usr/sbin/sshd -D -e -f "$2/sshd_config" 2> "$2/$1.log"
"""


def _write_settings(folder: Path, addresses: Mapping[str, str]) -> None:
    for name in ("host_key", "user_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in addresses.items())]
    (folder / "hosts").write_text("\n".join(lines) + "\n")
    (folder / "sshd_config").write_text(
        f"Port 22\nPort 2222\nHostKey {folder}/host_key\nPidFile none\nUsePAM no\n"
        f"StrictModes no\nAuthorizedKeysFile {folder}/user_key.pub\n"
        "PermitRootLogin prohibit-password\nMaxStartups 100\n"
    )
    (folder / "ssh_config").write_text(
        f"IdentityFile {folder}/user_key\nStrictHostKeyChecking no\n"
        "UserKnownHostsFile /dev/null\nLogLevel ERROR\n"
    )


def _net(pid: int, *command: object) -> None:
    """Run a command in the network namespace of a process."""
    words = ["nsenter", "--target", str(pid), "--net", "--", *map(str, command)]
    subprocess.run(words, check=True)


def _wait_for_ssh(host: Host) -> None:
    deadline = time.monotonic() + 20
    while True:
        done = host.run(["ssh", "-o", "BatchMode=yes", host.name, "hostname"])
        if done.stdout.strip() == host.name:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"{host.name}: no answer by ssh: {done.stderr}")
        time.sleep(0.05)
