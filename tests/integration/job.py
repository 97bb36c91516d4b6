"""The training job that the integration tests kill: real data flow, real callbacks, real SIGKILL.

    python job.py --run DIR [--backend mirrored] [--model NAME] [--kill POINT:NUMBER ...]

`--kill` makes the process send itself SIGKILL at a named point, which a kill from outside would hit
only by luck. The final state and history are written to `DIR/result.json`.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import itertools
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import models
import numpy as np
import tensorflow as tf

import distrib
from distrib.callbacks import (
    BackupAndRestore,
    CSVLogger,
    EarlyStopping,
    LearningRateScheduler,
    LossHistory,
    ModelCheckpoint,
    ReduceLROnPlateau,
    loss_plots,
)
from distrib.checkpoint import commit, transfer
from distrib.state import run_state, training_state
from distrib.storage.locate import locate


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


class Killer(keras.callbacks.Callback):
    """Kills the process at a given step or epoch."""

    def __init__(self, point: str, number: int) -> None:
        super().__init__()
        self.point, self.number = point, number
        self.epoch = 0

    def at(self, point: str, number: int) -> None:
        if (point, number) == (self.point, self.number):
            die()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch
        self.at("epoch_begin", epoch)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        step = self.epoch * self.params["steps"] + batch
        self.at("before_step", step)
        if self.point == "in_step" and step == self.number:
            threading.Timer(random.uniform(0.0, 0.002), die).start()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        step = self.epoch * self.params["steps"] + batch + 1
        if self.point == "after_step" and step >= self.number:
            die()
        if self.point == "bug" and step == self.number:
            raise ValueError(f"a bug in step {step}")
        if self.point == "signal" and step == self.number:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.point == "interrupt" and step == self.number:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch > 0:
            self.at("validation", self.epoch)
            if self.point == "signal_in_validation" and self.epoch == self.number:
                os.kill(os.getpid(), signal.SIGTERM)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.at("epoch_end", epoch)

    def on_train_end(self, logs: Any = None) -> None:
        self.at("train_end", 0)


class SaveCost(keras.callbacks.Callback):
    """Makes steps long enough for each save to finish before the next one is due."""

    def __init__(self, seconds: float, hurry: Path) -> None:
        super().__init__()
        self.seconds, self.hurry = seconds, hurry

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if not self.hurry.exists():
            time.sleep(self.seconds)


def counted(
    call: Callable[..., Any],
    number: int,
    before: Callable[[], object] = lambda: None,
    behind: Callable[[], object] = lambda: None,
) -> Callable[..., Any]:
    """Run `before` and `behind` around the `number`-th call."""
    count = itertools.count(1)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        strikes = next(count) == number
        if strikes:
            before()
        result = call(*args, **kwargs)
        if strikes:
            behind()
        return result

    return wrapped


def after(call: Callable[..., Any], number: int) -> Callable[..., Any]:
    """Kill right after the `number`-th call."""
    return counted(call, number, behind=die)


def during(call: Callable[..., Any], number: int) -> Callable[..., Any]:
    """Kill up to 30 ms after the `number`-th call has begun."""
    return counted(call, number, lambda: threading.Timer(random.uniform(0.0, 0.03), die).start())


def failing(call: Callable[..., Any], number: int) -> Callable[..., Any]:
    """Raise instead of making the `number`-th call."""

    def fail() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return counted(call, number, fail)


def arm(point: str, number: int) -> None:
    """Set a kill point inside distrib, in a save or a restore."""
    if point == "save_arrays":  # somewhere while the data are written
        transfer.write = during(transfer.write, number)
    elif point == "save_uncommitted":  # all data there, no manifest
        transfer.write = after(transfer.write, number)
    elif point == "save_manifest":  # manifest written, not in place
        commit.fsync = after(commit.fsync, 3 * number - 2)
    elif point == "save_committed":  # before the old ones are removed
        commit.publish = after(commit.publish, number)
    elif point == "save_prune":  # an old one removed, or half of it
        commit.remove = during(commit.remove, number)
    elif point == "save_fails":  # as on a full disk; no kill
        transfer.write = failing(transfer.write, number)
    elif point == "restore_read":
        transfer.read = during(transfer.read, number)
    elif point == "restore_weights":  # variables restored, callbacks not
        training_state.TrainingState.restore = after(training_state.TrainingState.restore, number)
    elif point == "restore_callbacks":
        run_state.RunState.restore = after(run_state.RunState.restore, number)


def write_curves(figure: Any, axes: Any, path: Path) -> None:
    """Write a plot's curves as JSON; drawing would take a third of a short run's time."""
    curves = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    path.write_text(json.dumps(curves))


def digest(variables: Any) -> str:
    sha = hashlib.sha256()
    for variable in variables:
        for value in getattr(variable.value, "values", (variable.value,)):
            sha.update(np.ascontiguousarray(value.numpy()).tobytes())
    return sha.hexdigest()


PY_DATASETS = ("py_dataset", "py_dataset_in_processes")


class ShuffledBatches(keras.utils.PyDataset):
    """Batches of arrays in an order that `on_epoch_end` shuffles."""

    def __init__(self, x: Any, y: Any, batch_size: int, processes: bool) -> None:
        super().__init__(workers=2, max_queue_size=3, use_multiprocessing=processes)
        self.x, self.y, self.batch_size = x, y, batch_size
        self.on_epoch_end()

    def __len__(self) -> int:
        return -(-len(self.x) // self.batch_size)

    def __getitem__(self, index: int) -> Any:
        chosen = self.indices[index * self.batch_size : (index + 1) * self.batch_size]
        return self.x[chosen], self.y[chosen]

    def on_epoch_end(self) -> None:
        self.indices = np.random.permutation(len(self.x))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--store", help="write all callbacks' files to this URL instead of --run")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--model", default="small")
    parser.add_argument("--data", choices=("dataset", *PY_DATASETS), default="dataset")
    parser.add_argument("--kill", action="append", default=[])
    parser.add_argument("--kill-rank", type=int, default=0, help="rank to kill")
    parser.add_argument("--save-freq", default="3")
    parser.add_argument("--order", type=int, default=0, help="seed for the order of the callbacks")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--patience", type=int, default=2, help="of EarlyStopping (epochs)")
    parser.add_argument("--samples", type=int, default=173)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument(
        "--deterministic", action="store_true", help="as GPUs need it for equal bits"
    )
    parser.add_argument("--arrays", action="store_true", help="pass arrays to `fit` as they are")
    parser.add_argument(
        "--pace",
        type=float,
        default=0.03,
        help="sleep this long after each step, until a file `hurry` exists beside the run (s)",
    )
    args = parser.parse_args()
    place = locate(args.store or args.run, "store")
    loss_plots._finish = write_curves

    cluster = distrib.init(
        args.backend, devices=args.devices if args.backend == "mirrored" else None
    )
    keras.utils.set_random_seed(5)
    if args.deterministic:
        tf.config.experimental.enable_op_determinism()
    recipe = models.RECIPES[args.model]
    with cluster.scope():
        model = recipe.build()
    x, y = recipe.data(args.samples)
    val_x, val_y = recipe.data(50)
    save_freq = int(args.save_freq) if args.save_freq.isdigit() else args.save_freq
    callbacks = [
        BackupAndRestore(str(place), save_freq=save_freq, keep_last=2),
        LearningRateScheduler(lambda epoch, rate: rate * 0.9) if recipe.schedule else None,
        EarlyStopping(monitor="val_loss", patience=args.patience, restore_best_weights=True),
        ReduceLROnPlateau(monitor="loss", patience=1, factor=0.5) if recipe.schedule else None,
        ModelCheckpoint(f"{place}/best.weights.h5", save_best_only=True, save_weights_only=True),
        CSVLogger(f"{place}/log.csv", append=True),
        LossHistory(f"{place}/plots"),
        *recipe.callbacks(),
        SaveCost(args.pace, args.run.with_name("hurry")),
    ]
    callbacks = [callback for callback in callbacks if callback is not None]
    random.Random(args.order).shuffle(callbacks)
    kills = args.kill if cluster.rank == args.kill_rank else []
    for number_of_kill, kill in enumerate(kills):
        point, number = kill.split(":")
        arm(point, int(number))
        # First one before all other callbacks, then one after them: files are hit in both states.
        callbacks.insert(number_of_kill * len(callbacks), Killer(point, int(number)))

    if args.data in PY_DATASETS:
        # Seeded otherwise on every rank, as by a script that adds the rank to its seed.
        np.random.seed(5 + cluster.rank)
        processes = args.data == "py_dataset_in_processes"
        train = ShuffledBatches(x, y, args.batch_size, processes)
        val = ShuffledBatches(val_x, val_y, 8, processes)
        data = {"x": train, "validation_data": val}
    elif args.arrays:  # The same order as the dataset's.
        tf.random.set_seed(3)
        data = {"x": x, "y": y, "batch_size": args.batch_size, "validation_batch_size": 8}
        data["validation_data"] = val_x, val_y
    else:
        data = {"x": cluster.dataset((x, y), args.batch_size, shuffle=True, seed=3)}
        data["validation_data"] = cluster.dataset((val_x, val_y), 8)
    history = model.fit(
        **data,
        epochs=args.epochs,
        callbacks=callbacks,
        verbose=0,
    )
    gather = cluster.collectives.allgather
    ranks = {
        "model": gather(digest(model.variables)),
        "weights": gather(digest(model.trainable_variables)),
        "optimizer": gather(digest(model.optimizer.variables)),
        "logs": gather(history.history),
    }
    if not cluster.is_chief:
        return
    (loss_history,) = (c for c in callbacks if isinstance(c, LossHistory))
    result = {
        **ranks,
        "history": history.history,
        "epochs": history.epoch,
        "losses": [float(loss) for loss in loss_history.losses],
        "csv": (place / "log.csv").read_bytes().decode(),
        "plots": {
            name: (place / "plots" / name).read_bytes().decode()
            for name in (place / "plots").names()
        },
    }
    args.run.mkdir(exist_ok=True)
    (args.run / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
