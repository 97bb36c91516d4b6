"""The contenders: distrib's callback, and what Keras, TensorFlow and Orbax offer."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distrib.callbacks import BackupAndRestore
from distrib.checkpoint.saver import Saver
from distrib.errors import EXIT_CONFIGURATION

from .workload import Workload, variables


@dataclass(frozen=True)
class SaveMethod:
    """How a contender saves.

    Args:
        callbacks: Callbacks for `fit`.
        wait: Waits for the last save. Defaults to `None`: no save runs in the background.
        committed: Path in the run's folder that appears when a save is committed; `{}` stands for
            the step. Defaults to `""`: a save is committed when its call returns.
    """

    callbacks: Sequence[keras.callbacks.Callback] = ()
    wait: Callable[[], Any] | None = None
    committed: str = ""


class SaveEvery(keras.callbacks.Callback):
    """Calls `save(step)` every `save_freq` steps."""

    def __init__(self, save_freq: int, save: Callable[[int], Any]) -> None:
        super().__init__()
        self._save_freq, self._save = save_freq, save

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if (batch + 1) % self._save_freq == 0:
            self._save(batch + 1)


def distrib_backup(folder: Path, model: Any, workload: Workload) -> SaveMethod:
    backup = BackupAndRestore(folder, workload.save_freq, keep_last=1)
    return SaveMethod([backup], committed="checkpoints/{}/manifest.json")


def distrib_delayed_write(folder: Path, model: Any, workload: Workload) -> SaveMethod:
    """The same, but the writer waits until the next step is over.

    Any slowdown of that step is then due to the copy. The slowdown that `distrib_backup` adds to
    it is due to the writer's use of the cores.
    """
    write = Saver._save

    def write_later(saver: Saver, *work: Any) -> None:
        time.sleep(1.0)
        write(saver, *work)

    Saver._save = write_later  # type: ignore[method-assign]
    return distrib_backup(folder, model, workload)


def keras_callback(
    kind: str, filename: str, folder: Path, model: Any, workload: Workload
) -> SaveMethod:
    callback = getattr(keras.callbacks, kind)
    return SaveMethod([callback(str(folder / filename), save_freq=workload.save_freq)])


def keras_orbax(folder: Path, model: Any, workload: Workload) -> SaveMethod:
    if not hasattr(keras.callbacks, "OrbaxCheckpoint"):
        print(f"Keras {keras.__version__} has no OrbaxCheckpoint.", file=sys.stderr)
        raise SystemExit(EXIT_CONFIGURATION)
    callback = keras.callbacks.OrbaxCheckpoint(str(folder), save_freq=workload.save_freq)
    return SaveMethod([callback], callback.wait_until_finished, "{}")


def tf_manager(asynchronous: bool, folder: Path, model: Any, workload: Workload) -> SaveMethod:
    # If the checkpoint holds the model itself, the second asynchronous save fails in Keras 3.15.
    model.optimizer.build(model.trainable_variables)
    checkpoint = tf.train.Checkpoint(variables=[v.value for v in variables(model)])
    manager = tf.train.CheckpointManager(checkpoint, str(folder), max_to_keep=1)
    options = tf.train.CheckpointOptions(enable_async=asynchronous)

    def save(step: int) -> None:
        manager.save(checkpoint_number=step, options=options)

    return SaveMethod([SaveEvery(workload.save_freq, save)], checkpoint.sync, "ckpt-{}.index")


def orbax_manager(folder: Path, model: Any, workload: Workload) -> SaveMethod:
    import orbax.checkpoint as ocp

    manager = ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(max_to_keep=1))

    def save(step: int) -> None:
        tree = {str(number): np.array(v) for number, v in enumerate(variables(model))}
        manager.save(step, args=ocp.args.StandardSave(tree))

    return SaveMethod([SaveEvery(workload.save_freq, save)], manager.wait_until_finished, "{}")


NO_SAVING, DISTRIB = "no saving", "distrib BackupAndRestore"
KERAS_BACKUP = "Keras BackupAndRestore"
CONTENDERS: dict[str, Callable[[Path, Any, Workload], SaveMethod]] = {
    NO_SAVING: lambda folder, model, workload: SaveMethod(),
    DISTRIB: distrib_backup,
    "the same, written later": distrib_delayed_write,
    KERAS_BACKUP: partial(keras_callback, "BackupAndRestore", "backup"),
    "Keras ModelCheckpoint": partial(keras_callback, "ModelCheckpoint", "model.keras"),
    "Keras OrbaxCheckpoint": keras_orbax,
    "tf CheckpointManager": partial(tf_manager, False),
    "tf CheckpointManager, async": partial(tf_manager, True),
    "orbax CheckpointManager": orbax_manager,
}
