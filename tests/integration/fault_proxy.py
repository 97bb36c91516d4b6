"""Stands between a client and an object store, and fails when a test says so.

    with fault_proxy(ceph) as proxy:
        url = proxy.server.bucket() + "/runs/17"
        proxy.fail("reset", match="PUT .*weights", times=3, after_bytes=1 << 20)
        ...  # in this process or in another, with proxy.server.storage_options or .environment
        assert [exchange.status for exchange in proxy.exchanges("PUT .*weights")] == [None] * 3 + [200]

What it is not told to spoil goes through as it came, byte by byte and piece by piece: the path and
`Host` too, since a request's signature covers them. It runs in a thread, so it also works while
the test waits for a job to end.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web
from multidict import CIMultiDict, CIMultiDictProxy
from stores import Server
from yarl import URL

Kind = Literal["reset", "503", "403", "expired token", "slow", "hang", "lost response"]

# The status and the code that S3 answers with.
_ANSWERS: dict[Kind, tuple[int, str]] = {
    "503": (503, "SlowDown"),
    "403": (403, "AccessDenied"),
    "expired token": (400, "ExpiredToken"),
}
# They are about one connection, not about what is said over it.
_HOP_BY_HOP = ("Connection", "Expect", "Keep-Alive", "Transfer-Encoding")


@dataclass(eq=False)
class Fault:
    """What is done to some requests.

    Attributes:
        struck: How many requests it has been done to.
    """

    kind: Kind
    match: str
    skip: int
    times: float
    after_bytes: int
    bytes_per_second: float
    delay: float
    struck: int = 0
    healed: asyncio.Event = field(default_factory=asyncio.Event)

    def takes(self, line: str) -> bool:
        if self.times == 0 or not re.search(self.match, line):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        return True


@dataclass(frozen=True)
class Exchange:
    """A request that has come to its end.

    Attributes:
        method: Such as `"PUT"`.
        path: With the query, as it came.
        status: What the client was answered; `None` if it was not.
        sent: Bytes of the client's body that have arrived here.
        received: Bytes of the server's body that went on to the client.
        fault: What was done to it.
    """

    method: str
    path: str
    status: int | None
    sent: int
    received: int
    fault: Kind | None


class FaultProxy:
    """Use `fault_proxy`.

    Attributes:
        server: The store as seen through the proxy.
        log: All requests that have ended, in that order.
    """

    server: Server

    def __init__(self, target: Server) -> None:
        self.log: list[Exchange] = []
        self._target = target
        self._faults: list[Fault] = []
        self._loop = asyncio.new_event_loop()
        self._ready, self._stop = threading.Event(), asyncio.Event()

    def fail(
        self,
        kind: Kind,
        match: str = "",
        *,
        times: float = 1,
        skip: int = 0,
        after_bytes: int = 0,
        bytes_per_second: float = float("inf"),
        delay: float = 0,
    ) -> Fault:
        """Spoil requests from now on. Each meets the first fault that still takes it.

        Args:
            kind: One of
                `"reset"`: the connection is torn, and the server gets only a part of the request;
                `"503"`, `"403"`, `"expired token"`: S3's answer SlowDown, AccessDenied or
                ExpiredToken (which is a 400), and the server gets nothing;
                `"slow"`: it takes `delay` and then passes at `bytes_per_second`;
                `"hang"`: it stands still until `heal()`, and then goes on;
                `"lost response"`: the server does it all, and then the connection is torn.
            match: Regular expression to be found in `METHOD /path?query`.
            times: How many requests; `float("inf")` until `heal()`.
            skip: How many matching requests go through before.
            after_bytes: Of the bodies, the client's and then the server's, that pass before a
                reset or a hang or the slowness begins. With 0 the server does not see the request.
            bytes_per_second: Of slow requests.
            delay: Of slow requests, in seconds.

        Returns:
            The fault, which counts.
        """
        fault = Fault(kind, match, skip, times, after_bytes, bytes_per_second, delay)
        self._faults.append(fault)
        return fault

    def heal(self) -> None:
        """Spoil nothing from now on; what hangs or is slow goes on."""
        faults, self._faults = self._faults, []
        for fault in faults:
            self._loop.call_soon_threadsafe(fault.healed.set)

    def exchanges(self, match: str = "") -> list[Exchange]:
        """The requests that have ended and match, as in `fail`."""
        return [done for done in self.log if re.search(match, f"{done.method} {done.path}")]

    def run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    def wait_ready(self) -> None:
        self._ready.wait()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)

    async def _serve(self) -> None:
        # A connection for each request: a server may close one that has been idle as we use it.
        connector = TCPConnector(force_close=True, limit=0)
        async with ClientSession(
            connector=connector,
            timeout=ClientTimeout(total=None),
            auto_decompress=False,
            cookie_jar=DummyCookieJar(),
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        ) as session:

            async def handle(request: web.BaseRequest) -> web.StreamResponse:
                line = f"{request.method} {request.raw_path}"
                fault = next((fault for fault in self._faults if fault.takes(line)), None)
                passage = _Passage(request, fault)
                try:
                    return await passage.go(session, self._target.endpoint)
                finally:
                    self.log.append(passage.exchange())

            runner = web.ServerRunner(
                web.Server(handle, access_log=None, handler_cancellation=True), shutdown_timeout=0.1
            )
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0][:2]
            self.server = self._target.at(f"http://{host}:{port}")
            self._ready.set()
            await self._stop.wait()
            await runner.cleanup()


@contextmanager
def fault_proxy(target: Server) -> Iterator[FaultProxy]:
    """Put a proxy before a server for as long as the block lasts."""
    proxy = FaultProxy(target)
    thread = threading.Thread(target=proxy.run, name="fault-proxy", daemon=True)
    thread.start()
    proxy.wait_ready()
    try:
        yield proxy
    finally:
        proxy.stop()
        thread.join()


class _Torn(Exception):
    """The connection to the client is to be torn."""


class _Passage:
    """One request on its way, and its answer."""

    def __init__(self, request: web.BaseRequest, fault: Fault | None) -> None:
        self.request, self.fault = request, fault
        self.sent = self.received = 0
        self.status: int | None = None
        self.struck = False

    def exchange(self) -> Exchange:
        fault = self.fault.kind if self.fault is not None and self.struck else None
        method, path = self.request.method, self.request.raw_path
        return Exchange(method, path, self.status, self.sent, self.received, fault)

    async def go(self, session: ClientSession, endpoint: str) -> web.StreamResponse:
        try:
            if self.fault is not None and self.fault.kind in _ANSWERS:
                return await self._refuse(*_ANSWERS[self.fault.kind])
            return await self._forward(session, endpoint)
        except (_Torn, ClientError):  # A server that is gone looks like one from here, too.
            self._tear()
            return web.Response()

    async def _refuse(self, status: int, code: str) -> web.StreamResponse:
        async for _ in self._upload():
            pass
        self._strike()
        self.status = status
        text = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code></Error>'
        return web.Response(status=status, text=text, content_type="application/xml")

    async def _forward(self, session: ClientSession, endpoint: str) -> web.StreamResponse:
        request = self.request
        if self.fault is not None and self.fault.delay:
            await self._until_healed(self.fault.delay)
        await self._pass(0)
        async with session.request(
            request.method,
            URL(endpoint + request.raw_path, encoded=True),
            headers=_end_to_end(request.headers),
            data=self._upload() if request.body_exists else None,
            allow_redirects=False,
        ) as answer:
            if self.fault is not None and self.fault.kind == "lost response":
                await answer.read()
                self._strike()
                raise _Torn
            response = web.StreamResponse(
                status=answer.status, reason=answer.reason, headers=_end_to_end(answer.headers)
            )
            await response.prepare(request)
            self.status = answer.status
            async for chunk in answer.content.iter_any():
                await self._pass(len(chunk))
                self.received += len(chunk)
                await response.write(chunk)
            await response.write_eof()
            return response

    async def _upload(self) -> AsyncIterator[bytes]:
        async for chunk in self.request.content.iter_any():
            await self._pass(len(chunk))
            self.sent += len(chunk)
            yield chunk

    async def _pass(self, size: int) -> None:
        """Do to the next bytes of a body what the fault says."""
        fault = self.fault
        if fault is None or self.sent + self.received + size < fault.after_bytes:
            return
        if fault.kind == "reset":
            self._strike()
            raise _Torn
        if fault.kind == "hang":
            self._strike()
            await fault.healed.wait()
        if fault.kind == "slow":
            self._strike()
            await self._until_healed(size / fault.bytes_per_second)

    def _strike(self) -> None:
        if self.fault is not None and not self.struck:
            self.struck = True
            self.fault.struck += 1

    async def _until_healed(self, seconds: float) -> None:
        assert self.fault is not None
        try:
            await asyncio.wait_for(self.fault.healed.wait(), seconds)
        except TimeoutError:
            pass

    def _tear(self) -> None:
        """End the client's connection with a reset, as a machine that has died does."""
        transport = self.request.transport
        if transport is not None:
            linger = struct.pack("ii", 1, 0)
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            transport.abort()


def _end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    kept = CIMultiDict(headers)
    for name in _HOP_BY_HOP:
        kept.popall(name, None)
    return kept
