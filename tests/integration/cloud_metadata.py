"""Fake metadata servers of Google's and Amazon's clouds, as strict as the real ones.

Google's requires its header, and can delay its answer until the value changes. Amazon's requires a
token, which a client gets by PUT and which expires.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from urllib.parse import SplitResult, parse_qs, urlsplit


class Metadata:
    """The state of both servers, which share one address.

    Attributes:
        address: HOST:PORT of the servers.
        flavor: The `Metadata-Flavor` header of Google's answers.
        log: `METHOD path?query` of each request.
    """

    def __init__(self) -> None:
        self.address = ""
        self.flavor = "Google"
        self.log: list[str] = []
        self.changed = threading.Condition()
        self._google = {"preempted": ("FALSE", "1"), "maintenance-event": ("NONE", "1")}
        self._amazon: str | None = None
        self._tokens: set[str] = set()

    @property
    def environment(self) -> dict[str, str]:
        """Variables that direct clients to these servers."""
        return {
            "GCE_METADATA_HOST": self.address,
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://{self.address}/",
        }

    def set_google(self, key: str, value: str) -> None:
        with self.changed:
            self._google[key] = value, secrets.token_hex(8)
            self.changed.notify_all()

    def set_amazon(self, notice: str) -> None:
        self._amazon = notice

    def expire_tokens(self) -> None:
        self._tokens.clear()

    def wait_for_requests(self, match: str, times: int) -> None:
        with self.changed:
            done = self.changed.wait_for(
                lambda: sum(match in line for line in self.log) >= times, 60
            )
        assert done, self.log

    def answer_google(self, key: str, query: dict[str, list[str]]) -> tuple[str, str]:
        """Return value and ETag, at once unless the client knows them already."""

        def is_new() -> bool:
            return query.get("last_etag") != [self._google[key][1]]

        with self.changed:
            if query.get("wait_for_change") == ["true"]:
                self.changed.wait_for(is_new, float(query["timeout_sec"][0]))
            return self._google[key]

    def token(self) -> str:
        token = secrets.token_hex(8)
        self._tokens.add(token)
        return token

    def answer_amazon(self, token: str | None) -> tuple[int, str]:
        if token not in self._tokens:
            return 401, ""
        return (404, "") if self._amazon is None else (200, self._amazon)


@contextmanager
def metadata_server() -> Iterator[Metadata]:
    """Run the servers during the `with` block."""
    metadata = Metadata()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = self._note()
            google, _, key = url.path.partition("/computeMetadata/v1/instance/")
            if google == "" and key:
                if self.headers["Metadata-Flavor"] != "Google":
                    return self._answer(403)
                value, etag = metadata.answer_google(key, parse_qs(url.query))
                return self._answer(200, value, {"ETag": etag, "Metadata-Flavor": metadata.flavor})
            if url.path == "/latest/meta-data/spot/instance-action":
                token = self.headers["X-aws-ec2-metadata-token"]
                return self._answer(*metadata.answer_amazon(token))
            return self._answer(404)

        def do_PUT(self) -> None:
            seconds = self.headers["X-aws-ec2-metadata-token-ttl-seconds"] or "0"
            if self._note().path != "/latest/api/token" or not 1 <= int(seconds) <= 21600:
                return self._answer(400)
            return self._answer(200, metadata.token())

        def _note(self) -> SplitResult:
            with metadata.changed:
                metadata.log.append(f"{self.command} {self.path}")
                metadata.changed.notify_all()
            return urlsplit(self.path)

        def _answer(
            self, code: int, text: str = "", headers: Mapping[str, str] = MappingProxyType({})
        ) -> None:
            body = text.encode()
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.block_on_close = False  # A client may still be waiting for a change.
    metadata.address = f"127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield metadata
    finally:
        server.shutdown()
        server.server_close()
