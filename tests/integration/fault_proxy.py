"""Stands between a client and an object store, and fails when a test says so.

    with fault_proxy(ceph) as proxy:
        url = proxy.server.bucket() + "/runs/17"
        proxy.fail("reset", match="PUT .*weights", times=3, after_bytes=1 << 20)
        ...  # in this process or in another, with proxy.server.storage_options or .environment
        assert [one.status for one in proxy.exchanges("PUT .*weights")] == [None, None, None, 200]

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
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web
from multidict import CIMultiDict, CIMultiDictProxy
from refusals import REFUSALS, Refusal, refusal
from stores import Server
from yarl import URL

Kind = Refusal | Literal["reset", "slow", "hang", "lost response"]
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
        return self.struck < self.times and re.search(self.match, line) is not None

    def strikes(self) -> bool:
        """Whether it is done to a request that has come to the point where it would be."""
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.struck >= self.times:  # Another request has come there first.
            return False
        self.struck += 1
        return True


@dataclass
class Exchange:
    """A request, and what has become of it so far.

    Attributes:
        method: Such as `"PUT"`.
        path: With the query, as it came.
        status: What the client was answered; `None` if it was not.
        sent: Bytes of the client's body that went on to the server.
        received: Bytes of the server's body that went on to the client.
        fault: What was done to it.
    """

    method: str
    path: str
    status: int | None = None
    sent: int = 0
    received: int = 0
    fault: Kind | None = None


class FaultProxy:
    """Use `fault_proxy`.

    Attributes:
        server: The store as seen through the proxy.
        log: All requests in the order in which they came.
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
        """Spoil requests from now on: each by the first fault that matches and is not used up.

        Args:
            kind: One of
                `"reset"`: the connection is torn, and the server gets only a part of the request;
                `"503"`, `"403"`, `"expired token"`: the answer of S3 or GCS that it is too busy,
                that this is forbidden or that the login has run out (which is a 400 or a 401),
                and the server gets nothing;
                `"slow"`: it takes `delay` and then passes at `bytes_per_second`;
                `"hang"`: it stands still until `heal()`, and then goes on;
                `"lost response"`: the server does it all, and then the connection is torn.
            match: Regular expression to be found in `METHOD /path?query`.
            times: How many requests; `float("inf")` until `heal()`.
            skip: How many requests go through before, of those that it would be done to.
            after_bytes: Of the bodies, the client's and then the server's, that pass before a
                reset or a hang or the slowness begins. With 0 the server does not see the request.
            bytes_per_second: Of slow requests.
            delay: Of slow requests, in seconds.
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
        """The requests that match, as in `fail`."""
        return [one for one in self.log if re.search(match, f"{one.method} {one.path}")]

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

            async def handle(request: web.Request) -> web.StreamResponse:
                line = f"{request.method} {request.raw_path}"
                fault = next((fault for fault in self._faults if fault.takes(line)), None)
                exchange = Exchange(request.method, request.raw_path)
                self.log.append(exchange)
                return await _Passage(request, exchange, fault).go(session, self._target)

            application = web.Application()
            application.router.add_route("*", "/{path:.*}", handle)
            runner = web.AppRunner(
                application, access_log=None, handler_cancellation=True, shutdown_timeout=0.1
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
    loop = proxy._loop
    thread = threading.Thread(target=loop.run_until_complete, args=(proxy._serve(),), daemon=True)
    thread.start()
    proxy._ready.wait(10)
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(proxy._stop.set)
        thread.join()
        loop.close()


class _TornError(Exception):
    """The connection to the client is to be torn."""


class _Passage:
    """One request on its way, and its answer on the way back."""

    def __init__(self, request: web.Request, exchange: Exchange, fault: Fault | None) -> None:
        self.request, self.exchange, self.fault = request, exchange, fault
        self._striking: bool | None = None

    async def go(self, session: ClientSession, target: Server) -> web.StreamResponse:
        try:
            if self.fault is not None and self._strikes(*REFUSALS):
                return await self._refuse(*refusal(self.fault.kind, target.protocol))
            return await self._forward(session, target.endpoint)
        except (_TornError, ClientError):  # So a server that is gone looks like one from here, too.
            self._tear()
            return web.Response()

    async def _refuse(self, status: int, content_type: str, text: str) -> web.StreamResponse:
        async for _ in self.request.content.iter_any():
            pass
        self.exchange.status = status
        return web.Response(status=status, content_type=content_type, text=text)

    async def _forward(self, session: ClientSession, endpoint: str) -> web.StreamResponse:
        request, exchange = self.request, self.exchange
        await self._let_pass(0)
        async with session.request(
            request.method,
            URL(endpoint + request.raw_path, encoded=True),
            headers=_end_to_end(request.headers),
            data=self._upload() if request.body_exists else None,
            allow_redirects=False,
        ) as answer:
            if self._strikes("lost response"):
                await answer.read()
                raise _TornError
            response = web.StreamResponse(
                status=answer.status, reason=answer.reason, headers=_end_to_end(answer.headers)
            )
            exchange.status = answer.status
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await self._let_pass(len(chunk))
                exchange.received += len(chunk)
                await response.write(chunk)
            await response.write_eof()
            return response

    async def _upload(self) -> AsyncIterator[bytes]:
        async for chunk in self.request.content.iter_any():
            await self._let_pass(len(chunk))
            self.exchange.sent += len(chunk)
            yield chunk

    async def _let_pass(self, size: int) -> None:
        """Hold up the next bytes of a body, or refuse them, if the fault says so."""
        fault = self.fault
        passed = self.exchange.sent + self.exchange.received
        begins = self._striking is None
        if fault is None or passed + size < fault.after_bytes:
            return
        if not self._strikes("reset", "hang", "slow"):
            return
        if fault.kind == "reset":
            raise _TornError
        seconds = size / fault.bytes_per_second + (fault.delay if begins else 0)
        with suppress(TimeoutError):
            await asyncio.wait_for(fault.healed.wait(), None if fault.kind == "hang" else seconds)

    def _strikes(self, *kinds: Kind) -> bool:
        """Whether a fault of these kinds is done to this request, which is decided once."""
        if self.fault is None or self.fault.kind not in kinds:
            return False
        if self._striking is None:
            self._striking = self.fault.strikes()
            self.exchange.fault = self.fault.kind if self._striking else None
        return self._striking

    def _tear(self) -> None:
        """End the client's connection with a reset, as a machine that has died does."""
        transport = self.request.transport
        if transport is not None:
            client = transport.get_extra_info("socket")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()


def _end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    kept = CIMultiDict(headers)
    for name in _HOP_BY_HOP:
        kept.popall(name, None)
    return kept
