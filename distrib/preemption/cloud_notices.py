"""Preemption notices of clouds, as requests to stop.

Usually a preemption arrives as a SIGTERM, from Kubernetes or from the machine's own shutdown, which
may be too late. Google's and Amazon's clouds announce it earlier, through a metadata server that
their machines can reach. With `DISTRIB_PREEMPTION_NOTICES` every process polls that server. It is
an environment variable, not an argument, because it depends on the machine and not on the training.
Without it no process polls, because outside of these clouds the address may belong to any server.

A notice lasts until the machine is gone, for up to an hour. A job restarted on the same machine
meanwhile would stop at once, again and again, and be given up in the end. So only a notice that
appears during training is a request; a job has already obeyed one that was there before.

- https://cloud.google.com/compute/docs/instances/spot#detect-preemption
- https://cloud.google.com/compute/docs/metadata/getting-live-migration-notice
- https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
- https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-metadata-v2-how-it-works.html
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Mapping
from http.client import HTTPException
from typing import Protocol
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from distrib.environment import NOTICES_VARIABLE
from distrib.errors import ConfigurationError
from distrib.log import ANY_RANK, log
from distrib.preemption.stop_request import StopRequest

_TIMEOUT_SECONDS = 5.0
# Seconds between attempts to reach a server that does not answer, or answers wrongly. At first the
# server may be busy; after many failures there probably is none.
_FIRST_RETRY_DELAY, _MAX_RETRY_DELAY = 1.0, 60.0
# The server is on the machine or next to it, so proxies of the environment do not apply.
_opener = build_opener(ProxyHandler({}))


class NoticeSource(Protocol):
    """A value of a cloud's metadata server that announces a preemption.

    Attributes:
        interval: Seconds between two polls.
    """

    interval: float

    def poll(self) -> str:
        """Return the present notice, or an empty string; may block until it changes.

        Raises:
            OSError: If the server does not answer.
            HTTPException, ValueError: If its answer is invalid.
        """


class GceNotices:
    """Notices in a value of Google's metadata server.

    Args:
        key: Path of the value below `instance/`.
        notices: Values that announce the end of the machine.
        environment: Environment variables of the process; `GCE_METADATA_HOST` replaces the server's
            address.
    """

    # The server answers when the value changes; the interval is for a server that answers at once.
    interval = 1.0
    _MAX_WAIT_SECONDS = 60

    def __init__(self, key: str, notices: tuple[str, ...], environment: Mapping[str, str]) -> None:
        host = environment.get("GCE_METADATA_HOST") or "metadata.google.internal"
        self._url = f"http://{host}/computeMetadata/v1/instance/{key}"
        self._key, self._notices = key, notices
        self._etag = "0"  # Matches no value, so the first answer comes at once.

    def poll(self) -> str:
        """Return the value if it is a notice; blocks for a while until the value changes."""
        query = f"wait_for_change=true&timeout_sec={self._MAX_WAIT_SECONDS}&last_etag={self._etag}"
        request = Request(f"{self._url}?{query}", headers={"Metadata-Flavor": "Google"})
        timeout = self._MAX_WAIT_SECONDS + _TIMEOUT_SECONDS
        with _opener.open(request, timeout=timeout) as response:
            if response.headers.get("Metadata-Flavor") != "Google":
                raise ValueError(f"{self._url} is not Google's metadata server")
            self._etag = response.headers.get("ETag", "0")
            value = response.read().decode().strip()
        return f"Google says {self._key}={value}" if value in self._notices else ""


class Ec2Notices:
    """Interruption notices of an Amazon spot instance, from version 2 of its metadata service.

    Args:
        environment: Environment variables of the process; `AWS_EC2_METADATA_SERVICE_ENDPOINT`
            replaces the server's URL.
    """

    interval = 5.0  # Amazon's recommendation.
    _TOKEN_SECONDS = "21600"  # The maximum.

    def __init__(self, environment: Mapping[str, str]) -> None:
        endpoint = environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or "http://169.254.169.254"
        self._url = endpoint.rstrip("/") + "/latest"
        self._token = ""

    def poll(self) -> str:
        """Return the announced action and its time."""
        try:
            return self._poll()
        except HTTPError as error:
            if error.code != 401:
                raise
        self._token = ""
        return self._poll()

    def _poll(self) -> str:
        if not self._token:
            self._token = self._open("PUT", "api/token", "ttl-seconds", self._TOKEN_SECONDS)
        try:
            text = self._open("GET", "meta-data/spot/instance-action", "", self._token)
        except HTTPError as error:
            if error.code == 404:
                return ""
            raise
        notice = json.loads(text)
        if not isinstance(notice, dict):
            raise ValueError(f"{text!r} is not Amazon's notice")
        return f"Amazon will {notice.get('action')} this instance at {notice.get('time')}"

    def _open(self, method: str, path: str, header: str, value: str) -> str:
        name = "-".join(["X-aws-ec2-metadata-token", header]).rstrip("-")
        request = Request(f"{self._url}/{path}", headers={name: value}, method=method)
        with _opener.open(request, timeout=_TIMEOUT_SECONDS) as response:
            return str(response.read().decode())


class NoticePoller:
    """Polls each source from a thread of its own, until one has a notice.

    Args:
        sources: The sources to poll.
        stop: The request to stop that a notice makes.
    """

    def __init__(self, sources: list[NoticeSource], stop: StopRequest) -> None:
        self._stop = stop
        self._ended = threading.Event()
        for source in sources:
            # A daemon, because it may be waiting for an answer when the process ends.
            threading.Thread(
                target=self._run, args=(source,), name="distrib-notices", daemon=True
            ).start()

    def end(self) -> None:
        """Stop polling."""
        self._ended.set()

    def _run(self, source: NoticeSource) -> None:
        previous: str | None = None
        failure_reported = False
        retry_delay = _FIRST_RETRY_DELAY
        while not self._ended.is_set():
            try:
                notice = source.poll()
            except (OSError, HTTPException, ValueError) as error:
                if not failure_reported:
                    failure_reported = True
                    log.info(
                        f"cannot poll for preemption notices ({error}); training goes on, and "
                        f"polling too. Is {NOTICES_VARIABLE} right for this machine?"
                    )
                self._ended.wait(retry_delay)
                retry_delay = min(2 * retry_delay, _MAX_RETRY_DELAY)
                continue
            retry_delay = _FIRST_RETRY_DELAY
            if notice and previous is None:
                _warn(f"{notice}, as before training began, which goes on until a signal comes")
            elif notice and notice != previous and not self._ended.is_set():
                _warn(f"{notice}, so all ranks save and stop")
                self._stop.request()
                return
            previous = notice
            self._ended.wait(source.interval)


def sources(environment: Mapping[str, str] = os.environ) -> list[NoticeSource]:
    """Return the sources that `DISTRIB_PREEMPTION_NOTICES` names; none without the variable.

    Args:
        environment: Environment variables of the process. Defaults to `os.environ`.

    Raises:
        ConfigurationError: If the variable names no supported cloud.
    """
    cloud = environment.get(NOTICES_VARIABLE, "")
    if not cloud:
        return []
    if cloud == "gce":
        return [
            GceNotices("preempted", ("TRUE",), environment),
            GceNotices("maintenance-event", ("TERMINATE_ON_HOST_MAINTENANCE",), environment),
        ]
    if cloud == "ec2":
        return [Ec2Notices(environment)]
    raise ConfigurationError(f"{NOTICES_VARIABLE}={cloud!r} must be 'gce', 'ec2' or unset.")


def _warn(message: str) -> None:
    """Log a warning on any rank, because the other ranks have not seen the notice."""
    log.warning(f"{socket.gethostname()}: {message}.", extra=ANY_RANK)
