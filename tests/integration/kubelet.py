"""The part of Kubernetes that turns manifests into running pods, emulated on one machine.

A pod is a host of `hosts.py` whose first process is the container's command itself, without a
shell, with the environment and volumes of the manifests. The container's image is this machine,
without the test's own environment. A new pod gets another address than the one before; the names of
the headless Service resolve to pods that have not ended, as with `publishNotReadyAddresses`.

Not emulated: images and security contexts (`test_pod.py` has those), probes, scheduling, the
NetworkPolicy, and that answers of a DNS server may be some seconds old.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hosts

JOB_LABEL = "batch.kubernetes.io/job-name"
HOSTS_FILE_BYTES = 4096
SECRETS = {"distrib-join-token": {"token": "token of the test"}}


@dataclass
class Pod:
    """One pod.

    Attributes:
        index: Its number in the Job.
        address: In the network of all pods.
        folder: Of its log and its volumes.
        disrupted: Whether it has the condition DisruptionTarget.
        reachable: Whether its node is.
        kill_at: When its grace period ends.
        ended: Whether the API reports that it has ended.
    """

    index: int
    address: str
    folder: Path
    process: subprocess.Popen[bytes]
    pid: int
    handle: int
    switch: int
    disrupted: bool = False
    reachable: bool = True
    kill_at: float | None = None
    ended: bool = False

    @property
    def log(self) -> str:
        """Its output."""
        return (self.folder / "log").read_text()

    @property
    def exit_code(self) -> int | None:
        """The exit code that the kubelet reports; `None` while the pod runs."""
        return self.process.poll()

    def send(self, number: int) -> None:
        """Send a signal to its first process."""
        with suppress(ProcessLookupError):  # It has just ended.
            signal.pidfd_send_signal(self.handle, number)

    def processes(self, word: str) -> list[int]:
        """Pids, as the test sees them, of its processes with `word` in an argument."""
        return hosts.processes(word, os.readlink(f"/proc/{self.pid}/ns/pid"))

    def cut(self) -> None:
        """Drop all of its packets from now on."""
        hosts.set_cable(self.switch, self.folder.name, "down")

    def mend(self) -> None:
        """Deliver its packets again."""
        hosts.set_cable(self.switch, self.folder.name, "up")


class Kubelet:
    """Starts the pods of one Job.

    Args:
        stack: Ends them.
        folder: Empty; for volumes and logs.
        objects: Manifests: a Job and its ConfigMap.
        image: Environment that the container's image sets.
        disk: Where pods' own volumes are. Defaults to `folder`.

    Attributes:
        job: The Job's manifest.
        started: All pods that were ever started.
        switch: Process that holds the network that connects them.
    """

    def __init__(
        self,
        stack: ExitStack,
        folder: Path,
        objects: Sequence[Mapping[str, Any]],
        image: Mapping[str, str],
        disk: Path | None = None,
    ) -> None:
        (self.job,) = (each for each in objects if each["kind"] == "Job")
        self._pod_spec = self.job["spec"]["template"]["spec"]
        self._config_maps = [each["data"] for each in objects if each["kind"] == "ConfigMap"]
        self._stack = stack
        self._folder = folder
        self._image = image
        self._disk = disk or folder
        self.switch = hosts.make_switch(stack)
        self.started: list[Pod] = []

    def start(self, index: int) -> Pod:
        """Start a pod of an index."""
        number = len(self.started) + 1
        folder = self._folder / f"pod{index}-{number}"  # A cable's name, so at most 15 letters.
        folder.mkdir()
        (container,) = self._pod_spec["containers"]
        hostname = f"{self.job['metadata']['name']}-{index}"
        volumes = self._volumes(container, folder)
        environment = self._environment(container, volumes)
        words = [_mapped(word, volumes) for word in container["command"]]
        words = [_expanded(word, environment) for word in [*words, *container.get("args", [])]]
        names = folder / "hosts"
        names.write_bytes(bytes(HOSTS_FILE_BYTES))
        with (folder / "log").open("wb") as log:
            process, pid = hosts.start(
                self._stack,
                [*_RUN, "bash", "-euc", _BOOT, "pod", hostname, str(names), *words],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
            )
        address = f"10.77.0.{number}"
        hosts.plug(self.switch, folder.name, pid, address)
        pod = Pod(index, address, folder, process, pid, os.pidfd_open(pid), self.switch)
        self._stack.callback(os.close, pod.handle)
        self.started.append(pod)
        self.publish_names()
        assert process.stdin is not None
        process.stdin.close()
        return pod

    def _volumes(self, container: Mapping[str, Any], folder: Path) -> dict[str, Path]:
        """Return the folder of each volume, by its path in the container."""
        found = {}
        for mount in container.get("volumeMounts", []):
            (volume,) = (v for v in self._pod_spec["volumes"] if v["name"] == mount["name"])
            # All pods share a claim; other volumes belong to one pod.
            is_claim = "persistentVolumeClaim" in volume
            place = self._folder if is_claim else self._disk / folder.name
            found[mount["mountPath"]] = place / volume["name"]
            found[mount["mountPath"]].mkdir(parents=True, exist_ok=True)
        return found

    def _environment(
        self, container: Mapping[str, Any], volumes: Mapping[str, Path]
    ) -> dict[str, str]:
        found = dict(self._image)
        for data in self._config_maps:
            found |= {name: _mapped(value, volumes) for name, value in data.items()}
        for variable in container.get("env", []):
            source = variable.get("valueFrom", {})
            if "value" in variable:
                found[variable["name"]] = _mapped(variable["value"], volumes)
            elif "fieldRef" in source:
                assert source["fieldRef"]["fieldPath"] == f"metadata.labels['{JOB_LABEL}']"
                found[variable["name"]] = self.job["metadata"]["name"]
            else:
                key = source["secretKeyRef"]
                found[variable["name"]] = SECRETS[key["name"]][key["key"]]
        return found

    def publish_names(self) -> None:
        """Write the Service's names into each pod's /etc/hosts, in place of DNS."""
        name, service = self.job["metadata"]["name"], self._pod_spec.get("subdomain", "")
        there = [pod for pod in self.started if not pod.ended]
        records = [f"{pod.address} {name}-{pod.index}.{service}" for pod in there]
        for pod in there:
            lines = ["127.0.0.1 localhost", f"{pod.address} {name}-{pod.index}", *records]
            text = "\n".join(lines) + "\n"
            with (pod.folder / "hosts").open("r+b", buffering=0) as file:  # It is mounted.
                file.write(text.encode().ljust(HOSTS_FILE_BYTES, b"\n"))


# Starts the first process of a pod and ends with its exit code, 137 if it was killed, which
# `unshare` alone does not report.
_REPORT = 'exec 3>&2 2>/dev/null; "$@" 2>&3 3>&-; exit $?'
_RUN = [
    "unshare",
    *hosts.NAMESPACES,
    "bash",
    "-c",
    _REPORT,
    "pod",
    "setpriv",
    "--pdeathsig",
    "KILL",
]
# That process, until it is connected; $1 is its name, $2 its /etc/hosts.
_BOOT = """
hostname "$1"
mount -t proc proc /proc
mount --bind "$2" /etc/hosts
read -r _ || true
shift 2
exec "$@" < /dev/null
"""


def _mapped(word: str, volumes: Mapping[str, Path]) -> str:
    """Return a word of the manifests with a path in a volume replaced by the real one."""
    for path, folder in volumes.items():
        word = re.sub(rf"(^|=){re.escape(path)}(?=/|$)", rf"\g<1>{folder}", word)
    return word


def _expanded(word: str, environment: Mapping[str, str]) -> str:
    """Return a word with each known `$(NAME)` replaced, as the kubelet does."""
    return re.sub(r"\$\((\w+)\)", lambda match: environment.get(match[1], match[0]), word)
