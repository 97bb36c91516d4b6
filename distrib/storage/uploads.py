"""Uploads the files of callbacks to object stores in the background, one at a time.

A callback writes a file on the local disk, queues it and continues, so training does not wait for a
store. If a file is queued again before its upload begins, only the newest content is uploaded.

A save takes the `pending` uploads together with the state, and waits for them before its commit: a
checkpoint that refers to a best model must not exist before that model's file does. A failed upload
raises its error in that wait, and in the step loop at the next call of `upload`, `check` or
`finish`; callbacks call `finish` at the end of training.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from distrib.errors import DistribError
from distrib.log import log
from distrib.storage import local_files
from distrib.storage.errors import classify
from distrib.storage.location import Location, describe_error
from distrib.storage.scratch import scratch

_TIMEOUT_AT_EXIT = 10.0


class UploadError(DistribError, OSError):
    """A callback's file could not be uploaded."""


@dataclass
class _Upload:
    """A queued file. Its source is removed after the upload, or when a newer source replaces it."""

    target: Location
    source: Path
    done: Future[None] = field(default_factory=Future)


@dataclass(frozen=True)
class PendingUploads:
    """The uploads that were queued or running at one moment."""

    uploads: Sequence[Future[None]]

    def wait(self) -> None:
        """Wait until all are done.

        Raises:
            UploadError: If one failed.
        """
        for upload in self.uploads:
            upload.result()


class UploadQueue:
    """A queue of files, and a thread that exists while the queue is not empty."""

    def __init__(self) -> None:
        self._reset()
        # A forked process has no copy of the thread, and must not repeat its parent's uploads.
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._queued: dict[Location, _Upload] = {}
        self._running: _Upload | None = None
        self._failed: list[Future[None]] = []  # Their errors have not been raised yet.
        self._working = False
        self._registered_at_exit = False

    def upload(self, source: Path, target: Location) -> None:
        """Upload a file in the background.

        Args:
            source: A complete file. This queue owns it from now on, and removes it.
            target: Remote; gets the content of the last call with this target.

        Raises:
            UploadError: If an earlier upload has failed.
        """
        try:
            self.check()
        except UploadError:
            source.unlink()
            raise
        with self._lock:
            if target in self._queued:
                self._queued[target].source.unlink(missing_ok=True)
                self._queued[target].source = source
            else:
                self._queued[target] = _Upload(target, source)
            if not self._working:
                self._working = True
                threading.Thread(target=self._work, name="distrib-uploads", daemon=True).start()
            self._register_at_exit()

    @contextmanager
    def replacing(self, target: Location) -> Iterator[Path]:
        """Yield a temporary local path; if the block succeeds, its file replaces `target`.

        A local `target` is replaced when the block ends, as with `local_files.replacing`. For a
        remote one the upload is queued then. If the block raises, `target` is unchanged.

        Raises:
            UploadError: If an earlier upload has failed.

        Example:
        >>> with uploads.replacing(locate("s3://bucket/best.keras", "filepath")) as temporary:
        ...     model.save(temporary)
        """
        if target.local is not None:
            with local_files.replacing(target.local) as temporary:
                yield temporary
            return
        # The name keeps `target`'s suffixes, by which libraries choose a file format.
        temporary = scratch() / f"{secrets.token_hex(8)}-{target.name}"
        try:
            yield temporary
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        self.upload(temporary, target)

    def pending(self) -> PendingUploads:
        """Return queued and running uploads, and failed ones whose error was not raised yet."""
        with self._lock:
            running = [] if self._running is None else [self._running]
            unfinished = [upload.done for upload in (*running, *self._queued.values())]
            return PendingUploads([*self._failed, *unfinished])

    def check(self) -> None:
        """Raise the errors of uploads that have failed since the last call.

        Raises:
            UploadError: The first error; the others are in its notes.
        """
        with self._lock:
            failed, self._failed = self._failed, []
        failures = [failure for upload in failed if (failure := upload.exception()) is not None]
        if failures:
            for other in failures[1:]:
                failures[0].add_note(str(other))
            raise failures[0]

    def finish(self) -> None:
        """Wait until all uploads are done.

        Raises:
            UploadError: If an upload has failed.
        """
        for upload in self.pending().uploads:
            upload.exception()
        self.check()

    def _work(self) -> None:
        while (upload := self._next()) is not None:
            failure = _run(upload)
            upload.source.unlink(missing_ok=True)
            self._complete(upload, failure)

    def _next(self) -> _Upload | None:
        with self._lock:
            first = next(iter(self._queued), None)
            self._running = None if first is None else self._queued.pop(first)
            self._working = self._running is not None
            return self._running

    def _complete(self, upload: _Upload, failure: UploadError | None) -> None:
        with self._lock:
            self._running = None
            if failure is not None:
                self._failed.append(upload.done)
        if failure is None:
            upload.done.set_result(None)
        else:
            upload.done.set_exception(failure)

    def _register_at_exit(self) -> None:
        if not self._registered_at_exit:
            self._registered_at_exit = True
            # Private API, but `atexit` is too late: Python starts no more threads by then, and the
            # libraries need one to resolve a server's name.
            threading._register_atexit(self._finish_at_exit)  # type: ignore[attr-defined]

    def _finish_at_exit(self) -> None:
        with self._lock:
            # Many uploads in turn, each with its full retries, would delay the exit for too long.
            for upload in self._queued.values():
                upload.target = replace(upload.target, timeout=_TIMEOUT_AT_EXIT)
        try:
            self.finish()
        except UploadError as error:
            for message in (str(error), *getattr(error, "__notes__", ())):
                log.info(message)


def _run(upload: _Upload) -> UploadError | None:
    try:
        upload.target.upload(upload.source)
    except Exception as error:
        failure = UploadError(
            f"Could not write {upload.target}: {describe_error(error, upload.target)}; "
            f"{classify(error).remedy}. Then start the same command again: it resumes from its "
            "last checkpoint."
        )
        failure.__cause__ = error
        return failure
    return None


uploads = UploadQueue()
