"""A proxy between a client and an object store that injects faults for a test.

    with fault_proxy(ceph) as proxy:
        url = proxy.server.bucket() + "/runs/17"
        proxy.fail("reset", match="PUT .*weights", times=3, after_bytes=1 << 20)
        ...  # in this process or in another, with proxy.server.storage_options or .environment
        assert [one.status for one in proxy.exchanges("PUT .*weights")] == [None, None, None, 200]

All other requests pass unchanged, including the path and the `Host` header, which a request's
signature covers. The proxy runs in a thread, so it also works while the test waits for a job.
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
# Headers of one connection, which a proxy must not forward.
_HOP_BY_HOP = ("Connection", "Expect", "Keep-Alive", "Transfer-Encoding")


@dataclass(eq=False)
class Fault:
    """A fault for some requests.

    Attributes:
        struck: Number of requests that it has hit.
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

    def matches(self, line: str) -> bool:
        return self.struck < self.times and re.search(self.match, line) is not None

    def strikes(self) -> bool:
        """Return whether the fault hits a request that has reached its point."""
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.struck >= self.times:  # Another request reached the point first.
            return False
        self.struck += 1
        return True


@dataclass
class Exchange:
    """A request and its response so far.

    Attributes:
        method: Such as `"PUT"`.
        path: With the query, still encoded.
        status: HTTP status that the client received; `None` for no response.
        sent: Bytes of the client's body that were forwarded to the server.
        received: Bytes of the server's body that were forwarded to the client.
        fault: The fault that hit the request.
    """

    method: str
    path: str
    status: int | None = None
    sent: int = 0
    received: int = 0
    fault: Kind | None = None


class FaultProxy:
    """The proxy that `fault_proxy` yields.

    Attributes:
        server: The store at the proxy's address.
        log: All requests in the order of arrival.
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
        """Inject a fault. The first fault that matches a request and is not used up hits it.

        Args:
            kind: One of
                `"reset"`: reset the connection after a part of the request;
                `"503"`, `"403"`, `"expired token"`: answer for the server, as S3 or GCS do if they
                are overloaded, access is denied or the token has expired (status 400 or 401);
                `"slow"`: wait for `delay`, and then forward `bytes_per_second`;
                `"hang"`: stop until `heal()`, and then continue;
                `"lost response"`: reset the connection after the server has done the request.
            match: Regular expression to search in `METHOD /path?query`.
            times: Number of requests to hit; `float("inf")` for all until `heal()`.
            skip: Number of matching requests that pass before.
            after_bytes: Bytes of the client's and then the server's body that pass before a
                reset, a hang or the slowness begins. With 0 the server does not see the request.
            bytes_per_second: For `"slow"`.
            delay: For `"slow"`, in seconds.
        """
        fault = Fault(kind, match, skip, times, after_bytes, bytes_per_second, delay)
        self._faults.append(fault)
        return fault

    def heal(self) -> None:
        """Remove all faults; requests that hang or are slow continue."""
        faults, self._faults = self._faults, []
        for fault in faults:
            self._loop.call_soon_threadsafe(fault.healed.set)

    def exchanges(self, match: str = "") -> list[Exchange]:
        """Return the requests that match, as in `fail`."""
        return [one for one in self.log if re.search(match, f"{one.method} {one.path}")]

    async def _serve(self) -> None:
        # One connection per request, because a server may close an idle one just as we use it.
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
                fault = next((fault for fault in self._faults if fault.matches(line)), None)
                exchange = Exchange(request.method, request.raw_path)
                self.log.append(exchange)
                return await _Forwarding(request, exchange, fault).go(session, self._target)

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
    """Run a proxy in front of a server during the block."""
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


class _ResetError(Exception):
    """The connection to the client must be reset."""


class _Forwarding:
    """Forwards one request, and the response to it."""

    def __init__(self, request: web.Request, exchange: Exchange, fault: Fault | None) -> None:
        self.request, self.exchange, self.fault = request, exchange, fault
        self._striking: bool | None = None

    async def go(self, session: ClientSession, target: Server) -> web.StreamResponse:
        try:
            if self.fault is not None and self._strikes(*REFUSALS):
                return await self._refuse(*refusal(self.fault.kind, target.protocol))
            return await self._forward(session, target.endpoint)
        except (_ResetError, ClientError):  # A dead server must look dead through the proxy.
            self._reset()
            return web.Response()

    async def _refuse(self, status: int, content_type: str, text: str) -> web.StreamResponse:
        async for _ in self.request.content.iter_any():
            pass
        self.exchange.status = status
        return web.Response(status=status, content_type=content_type, text=text)

    async def _forward(self, session: ClientSession, endpoint: str) -> web.StreamResponse:
        request, exchange = self.request, self.exchange
        await self._delay(0)
        async with session.request(
            request.method,
            URL(endpoint + request.raw_path, encoded=True),
            headers=_end_to_end(request.headers),
            data=self._upload() if request.body_exists else None,
            allow_redirects=False,
        ) as answer:
            if self._strikes("lost response"):
                await answer.read()
                raise _ResetError
            response = web.StreamResponse(
                status=answer.status, reason=answer.reason, headers=_end_to_end(answer.headers)
            )
            exchange.status = answer.status
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await self._delay(len(chunk))
                exchange.received += len(chunk)
                await response.write(chunk)
            await response.write_eof()
            return response

    async def _upload(self) -> AsyncIterator[bytes]:
        async for chunk in self.request.content.iter_any():
            await self._delay(len(chunk))
            self.exchange.sent += len(chunk)
            yield chunk

    async def _delay(self, size: int) -> None:
        """Delay or refuse the next bytes of a body, if the fault hits the request."""
        fault = self.fault
        passed = self.exchange.sent + self.exchange.received
        begins = self._striking is None
        if fault is None or passed + size < fault.after_bytes:
            return
        if not self._strikes("reset", "hang", "slow"):
            return
        if fault.kind == "reset":
            raise _ResetError
        seconds = size / fault.bytes_per_second + (fault.delay if begins else 0)
        with suppress(TimeoutError):
            await asyncio.wait_for(fault.healed.wait(), None if fault.kind == "hang" else seconds)

    def _strikes(self, *kinds: Kind) -> bool:
        """Return whether a fault of these kinds hits the request; decided once per request."""
        if self.fault is None or self.fault.kind not in kinds:
            return False
        if self._striking is None:
            self._striking = self.fault.strikes()
            self.exchange.fault = self.fault.kind if self._striking else None
        return self._striking

    def _reset(self) -> None:
        """Reset the client's connection, as after a crash of the server's machine."""
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
