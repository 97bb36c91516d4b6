"""Detects lost workers and aborts the collectives that would wait for them.

TensorFlow's collectives wait for ever for a worker that has ended or is unreachable. So a thread
checks the health of every other worker in turn. TensorFlow's runtime answers such a check even if
the worker's Python is busy. Once a worker fails its check, all current and later collectives of
this process raise.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Sequence

import tensorflow as tf
from tensorflow.python.eager import context

# Seconds between two rounds of checks.
INTERVAL = 1.0
# A worker that has ended refuses connections at once, but so may a faulty network for a moment.
_MAX_REFUSALS = 3


class PeerMonitor:
    """Monitors the other workers until this process ends.

    Args:
        peers: Names of the other workers, such as `/job:worker/replica:0/task:1`.
        timeout: Seconds after which a worker that does not answer counts as lost.
    """

    def __init__(self, peers: Sequence[str], timeout: float) -> None:
        self._peers = peers
        self._timeout = timeout
        self._stopped = threading.Event()

    def start(self) -> None:
        """Start monitoring; call this when all workers are connected."""
        thread = threading.Thread(target=self._run, name="distrib-peers", daemon=True)
        thread.start()
        atexit.register(self._stop, thread)

    def _stop(self, thread: threading.Thread) -> None:
        # The thread must not use TensorFlow's runtime when that is destroyed. But a peer that does
        # not answer must not delay the exit, so the join has a timeout.
        self._stopped.set()
        thread.join(INTERVAL)

    def _run(self) -> None:
        while not self._stopped.is_set():
            for peer in self._peers:
                failure = self._check_health(peer)
                if failure is not None:
                    message = f"{peer}: {failure}"
                    context.context().abort_collective_ops(tf.errors.UNAVAILABLE, message)
                    return
            self._stopped.wait(INTERVAL)

    def _check_health(self, peer: str) -> str | None:
        """Return why a worker counts as lost; `None` if it is healthy."""
        for attempt in range(1, _MAX_REFUSALS + 1):
            try:
                context.context().check_collective_ops_peer_health(
                    peer, timeout_in_ms=int(1000 * self._timeout)
                )
                return None
            except tf.errors.DeadlineExceededError:
                return f"no answer for {self._timeout:g} s"
            except tf.errors.FailedPreconditionError:
                return "it was restarted"
            except tf.errors.UnavailableError:
                if attempt < _MAX_REFUSALS:
                    self._stopped.wait(INTERVAL / 2)
        return "it does not accept connections"
