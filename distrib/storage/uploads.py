"""Brings files that callbacks make to their remote places, in the background, one after the other.

A callback writes a file on the local disk, hands it over and goes on: training does not wait for a
store. If the file changes again before its turn has come, only its newest content is sent.

Who saves a checkpoint asks for what is `pending` when the state is taken, and waits for it before
committing: a checkpoint that knows of a best model must not exist before that model's file does.
What fails is raised in the step loop by the next call here, at the latest by the one that ends the
training, and in that wait.
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
from distrib.storage.errors import meaning
from distrib.storage.location import Location, describe_error
from distrib.storage.scratch import scratch

_PATIENCE_AT_EXIT = 10.0


class UploadError(DistribError, OSError):
    """A callback's file could not be brought to its remote place."""


@dataclass
class _Upload:
    """A file on its way. Its source is removed when it has arrived, or a newer one takes over."""

    target: Location
    source: Path
    done: Future[None] = field(default_factory=Future)


@dataclass(frozen=True)
class Pending:
    """The uploads that were under way at some moment."""

    uploads: Sequence[Future[None]]

    def wait(self) -> None:
        """Return when all have arrived.

        Raises:
            UploadError: If one failed.
        """
        for upload in self.uploads:
            upload.result()


class Uploads:
    """A queue of files and the thread that works it off, which exists while there is work."""

    def __init__(self) -> None:
        self._reset()
        # The thread is not in a forked process, and neither is the work its own.
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[Location, _Upload] = {}
        self._running: _Upload | None = None
        self._failed: list[Future[None]] = []  # Those that nobody has been told of.
        self._working = False
        self._waits_at_exit = False

    def upload(self, source: Path, target: Location) -> None:
        """Send a file in the background.

        Args:
            source: Complete, and nobody else's from now on: it is removed in the end.
            target: Remote; takes the content of the last call for it.

        Raises:
            UploadError: If an earlier upload has failed.
        """
        try:
            self.check()
        except UploadError:
            source.unlink()
            raise
        with self._lock:
            if target in self._waiting:
                self._waiting[target].source.unlink(missing_ok=True)
                self._waiting[target].source = source
            else:
                self._waiting[target] = _Upload(target, source)
            if not self._working:
                self._working = True
                threading.Thread(target=self._work, name="distrib-uploads", daemon=True).start()
            self._wait_at_exit()

    @contextmanager
    def replacing(self, target: Location) -> Iterator[Path]:
        """Give a temporary local path; when the block succeeds its file takes `target`'s place.

        On the local disk that has happened when the block ends, as with `local_files.replacing`.
        Elsewhere the file is then sent in the background. When the block raises, `target` stays as
        it is.

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
        # Its name keeps `target`'s suffixes, which libraries go by.
        temporary = scratch() / f"{secrets.token_hex(8)}-{target.name}"
        try:
            yield temporary
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        self.upload(temporary, target)

    def pending(self) -> Pending:
        """Return what is under way now, and what has failed and not been raised yet."""
        with self._lock:
            running = [] if self._running is None else [self._running]
            under_way = [upload.done for upload in (*running, *self._waiting.values())]
            return Pending([*self._failed, *under_way])

    def check(self) -> None:
        """Raise what an upload has failed with since the last call.

        Raises:
            UploadError: The first failure; others are in its notes.
        """
        with self._lock:
            failed, self._failed = self._failed, []
        failures = [failure for upload in failed if (failure := upload.exception()) is not None]
        if failures:
            for other in failures[1:]:
                failures[0].add_note(str(other))
            raise failures[0]

    def finish(self) -> None:
        """Return when everything has arrived.

        Raises:
            UploadError: If an upload has failed.
        """
        for upload in self.pending().uploads:
            upload.exception()
        self.check()

    def _work(self) -> None:
        while (upload := self._next()) is not None:
            failure = _try(upload)
            upload.source.unlink(missing_ok=True)
            self._settle(upload, failure)

    def _next(self) -> _Upload | None:
        with self._lock:
            first = next(iter(self._waiting), None)
            self._running = None if first is None else self._waiting.pop(first)
            self._working = self._running is not None
            return self._running

    def _settle(self, upload: _Upload, failure: UploadError | None) -> None:
        with self._lock:
            self._running = None
            if failure is not None:
                self._failed.append(upload.done)
        if failure is None:
            upload.done.set_result(None)
        else:
            upload.done.set_exception(failure)

    def _wait_at_exit(self) -> None:
        if not self._waits_at_exit:
            self._waits_at_exit = True
            # Private, but the only moment that is not too late: `atexit` comes when threads can no
            # longer be started, which the libraries need to look up a server's address.
            threading._register_atexit(self._leave)  # type: ignore[attr-defined]

    def _leave(self) -> None:
        with self._lock:
            for upload in self._waiting.values():  # One after the other they could take very long.
                upload.target = replace(upload.target, patience=_PATIENCE_AT_EXIT)
        try:
            self.finish()
        except UploadError as error:
            for message in (str(error), *getattr(error, "__notes__", ())):
                log.info(message)


def _try(upload: _Upload) -> UploadError | None:
    try:
        upload.target.upload(upload.source)
    except Exception as error:
        failure = UploadError(
            f"Could not write {upload.target}: {describe_error(error, upload.target)}; "
            f"{meaning(error).way_out}. Then start the same command again: it goes on from its "
            "last checkpoint."
        )
        failure.__cause__ = error
        return failure
    return None


uploads = Uploads()
