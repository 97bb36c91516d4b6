"""The training job of `test_data_kills.py`: a small model on one of the `data_recipes.py`.

python data_job.py --write FOLDER
python data_job.py --run DIR --files FOLDER --data NAME [--kill POINT:NUMBER] [--backend mirrored]
"""

from __future__ import annotations

import argparse
import json
import threading
from pathlib import Path
from typing import Any

import data_recipes
import keras
from job import Killer, arm, counted, die, digest

import distrib
from distrib.callbacks import BackupAndRestore
from distrib.checkpoint import commit
from distrib.training.fit_call import fit_of

committed = threading.Event()


class MiddleKiller(Killer):
    """Also kills in the middle of an epoch, after about three quarters of its steps.

    At the point `middle_after_save` it waits until a checkpoint of trained weights is committed.
    """

    def __init__(self, point: str, number: int) -> None:
        super().__init__(point, number)
        # After that of step 0.
        commit.publish = counted(commit.publish, 2, behind=committed.set)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.point == "middle":  # A save that is not committed would not be resumed from.
            fit_of(self.model).callbacks._session._saves.wait()
        if batch + 1 == max(1, self.params["steps"] * 3 // 4):
            self.at("middle", self.epoch)
            if self.point == "middle_after_save" and self.epoch == self.number:
                committed.wait(60)
                die()
        super().on_train_batch_end(batch, logs)


def model_of(cluster: Any) -> keras.Model:
    layers = keras.layers
    with cluster.scope():
        model = keras.Sequential(
            [
                keras.Input((data_recipes.WIDTH,)),
                layers.Rescaling(1 / 255),
                layers.Dropout(0.2),
                layers.Dense(3, activation="softmax"),
            ]
        )
        model.compile(
            optimizer=cluster.optimizer(keras.optimizers.SGD(0.1, momentum=0.9)),
            loss="sparse_categorical_crossentropy",
            metrics=["accuracy"],
            # Tracing the steps would take longer than all of them.
            run_eagerly=cluster.num_replicas == cluster.size,
        )
    return model


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", type=Path)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--files", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--kill", default="")
    parser.add_argument("--kill-rank", type=int, default=0)
    args = parser.parse_args()
    if args.write:
        data_recipes.write_files(args.write)
        return
    devices = 2 if args.backend == "mirrored" else None
    cluster = distrib.init(args.backend, devices=devices)
    keras.utils.set_random_seed(5)
    recipe = data_recipes.ALL[args.data]
    model = model_of(cluster)
    options: dict[str, Any] = {} if recipe.resume is None else {"resume": recipe.resume}
    options["save_freq"] = "epoch" if recipe.resume == "epoch" else 2
    callbacks: list[Any] = [BackupAndRestore(args.run / "backup", keep_last=2, **options)]
    if args.kill and cluster.rank == args.kill_rank:
        point, number = args.kill.split(":")
        arm(point, int(number))
        callbacks.append(MiddleKiller(point, int(number)))
    arguments = recipe.fit(cluster, args.files)
    if "validation_split" not in arguments:
        x, y = data_recipes.rows()
        validation = {"validation_data": cluster.dataset((x[:30], y[:30]), 15)}
        arguments = validation | arguments
    history = model.fit(**arguments, epochs=2, callbacks=callbacks, verbose=0)
    digests = cluster.collectives.allgather(digest([*model.variables, *model.optimizer.variables]))
    if cluster.is_chief:
        result = {"state": digests, "history": history.history, "epochs": history.epoch}
        (args.run / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
