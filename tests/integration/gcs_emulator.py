"""Starts `gcp-storage-emulator` with exclusive creation: `gcs_emulator.py PORT FOLDER`.

The emulator ignores `ifGenerationMatch`, so all of several writers that create one object win. Here
`ifGenerationMatch=0`, which gcsfs sends for `mode="create"`, is honoured for uploads in one
request. This is exact, because the emulator serves one request at a time. The emulator also reads
such an upload as an e-mail, whose last carriage return is no content: here every byte is.

Remaining differences from GCS: the emulator accepts a wrong CRC32C; objects `a/b` and `a/b/c`
exclude each other; there is no authentication; generations other than 0 are ignored.
"""

from __future__ import annotations

import functools
import json
import socketserver
import sys
from email.message import Message
from http import HTTPStatus
from typing import Any

from gcp_storage_emulator.handlers import objects

_insert = objects.insert


def _insert_if_allowed(request: Any, response: Any, storage: Any, *arguments: Any) -> Any:
    query = request.query
    if query.get("ifGenerationMatch") == ["0"] and query.get("uploadType") == ["multipart"]:
        name = query["name"][0] if "name" in query else request.data["meta"]["name"]
        if name in storage.objects.get(request.params["bucket_name"], {}):
            response.status = HTTPStatus.PRECONDITION_FAILED
            return response.json({"error": {"code": 412, "message": "conditionNotMet"}})
    return _insert(request, response, storage, *arguments)


def _read_data_exactly(server: Any, read_data: Any, handler: Any, query: Any) -> Any:
    headers = Message()
    headers["Content-Type"] = handler.headers.get("Content-Type") or "application/octet-stream"
    if headers.get_content_type() != "multipart/related":
        return read_data(handler, query)
    raw = server._decode_raw_data(server._read_raw_data(handler), handler)
    boundary = f"--{headers.get_boundary()}".encode()
    newline = b"\r\n" if raw.startswith(boundary + b"\r\n") else b"\n"
    _, meta, rest = raw.split(boundary, 2)
    described, _, content = rest.partition(2 * newline)
    return {
        "meta": json.loads(meta.partition(2 * newline)[2]),
        "content": content[: content.rindex(newline + boundary)],
        "content-type": described.partition(b":")[2].strip().decode(),
    }


def main() -> None:
    objects.insert = _insert_if_allowed
    # Queue connections of many clients, and send small responses at once: a thousand small objects
    # take a tenth of the time.
    socketserver.TCPServer.request_queue_size = 512
    socketserver.StreamRequestHandler.disable_nagle_algorithm = True
    # Imported here, because the import copies the handlers.
    from gcp_storage_emulator import server
    from gcp_storage_emulator.__main__ import main as serve

    server._read_data = functools.partial(_read_data_exactly, server, server._read_data)

    port, folder = sys.argv[1:]
    serve(["--data-dir", folder, "start", "--host", "127.0.0.1", "--port", port, "--quiet"])


if __name__ == "__main__":
    main()
