"""Notices when another worker is gone, and lets no collective wait for it.

TensorFlow's collectives wait for ever for a worker that has ended or cannot be reached. So a thread
asks every other worker, again and again, whether it is there. TensorFlow's runtime answers for a
worker however busy its Python is. Once one does not answer, all collectives of this process raise,
those under way and those to come.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Sequence

import tensorflow as tf
from tensorflow.python.eager import context

# Seconds between two rounds of questions, and between the repetitions of one.
INTERVAL = 1.0
# A worker that has ended refuses at once, and so does, for a moment, a network in trouble.
_REFUSALS = 3


class PeerMonitor:
    """Watches the other workers until this process ends.

    Args:
        peers: Their names, as in `/job:worker/replica:0/task:1`.
        patience: Seconds after which a worker that does not answer is gone.
    """

    def __init__(self, peers: Sequence[str], patience: float) -> None:
        self._peers = peers
        self._patience = patience
        self._over = threading.Event()

    def start(self) -> None:
        """Begin, when all workers are there."""
        thread = threading.Thread(target=self._run, name="distrib-peers", daemon=True)
        thread.start()
        atexit.register(self._end, thread)

    def _end(self, thread: threading.Thread) -> None:
        # TensorFlow's runtime, which the thread may be using, is destroyed soon. It should not be
        # waited for, though, because of a peer that does not answer.
        self._over.set()
        thread.join(INTERVAL)

    def _run(self) -> None:
        while not self._over.is_set():
            for peer in self._peers:
                failure = self._ask(peer)
                if failure is not None:
                    message = f"{peer} is gone: {failure}"
                    context.context().abort_collective_ops(tf.errors.UNAVAILABLE, message)
                    return
            self._over.wait(INTERVAL)

    def _ask(self, peer: str) -> str | None:
        """Return why a worker is gone; `None` if it is not."""
        for attempt in range(1, _REFUSALS + 1):
            try:
                context.context().check_collective_ops_peer_health(
                    peer, timeout_in_ms=int(1000 * self._patience)
                )
                return None
            except tf.errors.DeadlineExceededError:
                return f"no answer for {self._patience:g} s"
            except tf.errors.FailedPreconditionError:
                return "it has been started anew"
            except tf.errors.UnavailableError:
                if attempt < _REFUSALS:
                    self._over.wait(INTERVAL / 2)
        return "nobody answers at its address"
