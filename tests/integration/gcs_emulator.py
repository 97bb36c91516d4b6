"""Starts `gcp-storage-emulator`, with what it lacks: `gcs_emulator.py PORT FOLDER`.

It ignores `ifGenerationMatch`, so that of several writers who want to create one object all win.
Here `ifGenerationMatch=0`, which is what `mode="create"` of gcsfs sends, is honoured for uploads in
one request. That is exact, since the emulator serves one request at a time.

What remains different from GCS: it takes a wrong CRC32C; an object `a/b` rules out another one
`a/b/c`; nobody has to say who he is; other generations than 0 are ignored.
"""

from __future__ import annotations

import socketserver
import sys
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


def main() -> None:
    objects.insert = _insert_if_allowed
    # Many clients at once wait instead of being sent away, and small answers go out at once: a
    # thousand small objects take a tenth of the time.
    socketserver.TCPServer.request_queue_size = 512
    socketserver.StreamRequestHandler.disable_nagle_algorithm = True
    # Only now, because this takes the handlers as they are.
    from gcp_storage_emulator.__main__ import main as serve

    port, folder = sys.argv[1:]
    serve(["--data-dir", folder, "start", "--host", "127.0.0.1", "--port", port, "--quiet"])


if __name__ == "__main__":
    main()
