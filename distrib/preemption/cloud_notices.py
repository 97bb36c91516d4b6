"""Notices of clouds that they will take this machine away, as requests to stop.

Most of the time they come as a SIGTERM: Kubernetes sees to it, and so does a machine's own
shutdown, if it is not too late by then. Google's and Amazon's clouds tell earlier, by a server that
each of their machines can reach. `DISTRIB_PREEMPTION_NOTICES` has every process ask there. It is a
variable and no argument, because it is about the machine and not about the training; and nothing
is asked without it, because elsewhere the address may be anybody's.

A notice stands until the machine is gone, which may be an hour. A job that was started again on the
same machine meanwhile would stop at once, and again, and be given up in the end. So only a notice
that comes while training goes on is a request; one that was there before has been obeyed already.

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
# Between attempts to reach a server that does not answer, or says what nobody understands: at first
# it may be busy, later there is none.
_FIRST_PAUSE_AFTER_FAILURE, _LONGEST_PAUSE = 1.0, 60.0
# The server is on the machine or next to it, whatever the environment says of proxies.
_opener = build_opener(ProxyHandler({}))


class NoticeSource(Protocol):
    """One thing that a cloud tells.

    Attributes:
        pause: Seconds between two questions.
    """

    pause: float

    def ask(self) -> str:
        """Return the notice that stands now, empty for none; may take until it changes.

        Raises:
            OSError: If there is no answer; `HTTPException` and `ValueError` if it is a wrong one.
        """


class Gce:
    """A value of Google's metadata server.

    Args:
        key: Below `instance/`.
        notices: Values that mean the end of the machine.
        environment: Variables of the process; `GCE_METADATA_HOST` is another server's address.
    """

    # The server answers when the value changes, so this is a limit for one that does not wait.
    pause = 1.0
    _LONGEST_WAIT = 60

    def __init__(self, key: str, notices: tuple[str, ...], environment: Mapping[str, str]) -> None:
        host = environment.get("GCE_METADATA_HOST") or "metadata.google.internal"
        self._url = f"http://{host}/computeMetadata/v1/instance/{key}"
        self._key, self._notices = key, notices
        self._etag = "0"  # Of no value, so the first answer comes at once.

    def ask(self) -> str:
        """Return the value if it is a notice; waits for a while until it is another one."""
        query = f"wait_for_change=true&timeout_sec={self._LONGEST_WAIT}&last_etag={self._etag}"
        request = Request(f"{self._url}?{query}", headers={"Metadata-Flavor": "Google"})
        with _opener.open(request, timeout=self._LONGEST_WAIT + _TIMEOUT_SECONDS) as answer:
            if answer.headers.get("Metadata-Flavor") != "Google":
                raise ValueError(f"{self._url} is not Google's metadata server")
            self._etag = answer.headers.get("ETag", "0")
            value = answer.read().decode().strip()
        return f"Google says {self._key}={value}" if value in self._notices else ""


class Ec2:
    """The interruption notice of an Amazon spot instance, by version 2 of its metadata service.

    Args:
        environment: Variables of the process; `AWS_EC2_METADATA_SERVICE_ENDPOINT` is another
            server's URL.
    """

    pause = 5.0  # As Amazon recommends.
    _TOKEN_SECONDS = "21600"  # The longest there is.

    def __init__(self, environment: Mapping[str, str]) -> None:
        endpoint = environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or "http://169.254.169.254"
        self._url = endpoint.rstrip("/") + "/latest"
        self._token = ""

    def ask(self) -> str:
        """Return what will be done to the instance, and when."""
        try:
            return self._ask()
        except HTTPError as error:
            if error.code != 401:
                raise
        self._token = ""
        return self._ask()

    def _ask(self) -> str:
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
        with _opener.open(request, timeout=_TIMEOUT_SECONDS) as answer:
            return str(answer.read().decode())


class NoticePoller:
    """Asks sources, each from a thread of its own, until one has a notice.

    Args:
        sources: What to ask.
        stop: What to set then.
    """

    def __init__(self, sources: list[NoticeSource], stop: StopRequest) -> None:
        self._stop = stop
        self._ended = threading.Event()
        for source in sources:
            # A daemon, because it may be waiting for an answer when the process ends.
            threading.Thread(
                target=self._follow, args=(source,), name="distrib-notices", daemon=True
            ).start()

    def end(self) -> None:
        """Ask for nothing more."""
        self._ended.set()

    def _follow(self, source: NoticeSource) -> None:
        standing: str | None = None
        told = False
        pause = _FIRST_PAUSE_AFTER_FAILURE
        while not self._ended.is_set():
            try:
                notice = source.ask()
            except (OSError, HTTPException, ValueError) as error:
                if not told:
                    told = True
                    log.info(
                        f"cannot ask for notices of preemption ({error}); training goes on, and "
                        "they will be asked for again. "
                        f"Is {NOTICES_VARIABLE} right for this machine?"
                    )
                self._ended.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            pause = _FIRST_PAUSE_AFTER_FAILURE
            if notice and standing is None:
                _tell(f"{notice}, as before training began, which goes on until a signal comes")
            elif notice and notice != standing and not self._ended.is_set():
                _tell(f"{notice}, so all ranks save and stop")
                self._stop.request()
                return
            standing = notice
            self._ended.wait(source.pause)


def sources(environment: Mapping[str, str] = os.environ) -> list[NoticeSource]:
    """Return what this process is to ask.

    Args:
        environment: Variables of the process.

    Raises:
        ConfigurationError: If the variable names no cloud that is known here.
    """
    cloud = environment.get(NOTICES_VARIABLE, "")
    if not cloud:
        return []
    if cloud == "gce":
        return [
            Gce("preempted", ("TRUE",), environment),
            Gce("maintenance-event", ("TERMINATE_ON_HOST_MAINTENANCE",), environment),
        ]
    if cloud == "ec2":
        return [Ec2(environment)]
    raise ConfigurationError(f"{NOTICES_VARIABLE}={cloud!r} must be 'gce' or 'ec2', or not be set.")


def _tell(message: str) -> None:
    """Show a message whichever rank this is: no other rank knows of it."""
    log.warning(f"{socket.gethostname()}: {message}.", extra=ANY_RANK)
