"""The textbook's training script, with what the README adds to it.

    python textbook_job.py DIR BACKEND [POINT:NUMBER [RANK]]

With a point it kills itself there, on one of the ranks; see `job.py`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
from job import Killer, digest

import distrib
from distrib.callbacks import BackupAndRestore, EarlyStopping, ModelCheckpoint


def images(number: int, seed: int) -> tuple[Any, Any]:
    """Return images of two classes, one brighter above and one brighter below."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, number)
    pixels = rng.normal(size=(number, 4, 4)).astype("float32")
    pixels[:, :2] += 0.4 * labels[:, None, None]
    return pixels, labels


def main() -> None:
    run, backend, kill, kill_rank = (*sys.argv[1:], *("", "0")[len(sys.argv) - 3 :])
    cluster = distrib.init(backend, devices=2 if backend == "mirrored" else None)
    keras.utils.set_random_seed(1)
    (train_images, train_labels), (test_images, test_labels) = images(120, 1), images(60, 2)
    with cluster.scope():
        model = keras.Sequential(
            [
                keras.Input((4, 4)),
                keras.layers.Flatten(),
                keras.layers.Dense(8, activation="relu"),
                keras.layers.Dense(2, activation="softmax"),
            ]
        )
        model.compile(
            optimizer=cluster.optimizer(keras.optimizers.Adam(0.003)),
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
    callbacks = [
        BackupAndRestore(f"{run}/backup", save_freq=2),
        EarlyStopping(monitor="val_accuracy", patience=2, restore_best_weights=True),
        ModelCheckpoint(f"{run}/best.keras", monitor="val_accuracy", save_best_only=True),
    ]
    if kill and cluster.rank == int(kill_rank):
        point, number = kill.split(":")
        callbacks.append(Killer(point, int(number)))
    history = model.fit(
        train_images,
        train_labels,
        batch_size=24,
        epochs=6,
        validation_data=(test_images, test_labels),
        callbacks=callbacks,
        verbose=0,
    )
    digests = cluster.collectives.allgather(digest(model.variables))
    if cluster.is_chief:
        result = {"state": digests, "history": history.history}
        Path(run, "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
