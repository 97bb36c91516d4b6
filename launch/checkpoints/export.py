"""`distrib checkpoints export`: a checkpoint as a file that plain Keras loads.

A checkpoint holds the model's config, as far as the model can tell it, so the model is made anew,
its variables are restored as a run on one replica would do, and Keras writes the file. Statistics
that differ between replicas are averaged, as `ModelCheckpoint` does.

This is the one command that imports TensorFlow. It leaves the GPUs alone, which may be training.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from distrib.checkpoint.stored_checkpoint import LoadedCheckpoint
from distrib.errors import EXIT_FINISHED, ConfigurationError
from distrib.storage.location import Location
from distrib.storage.write_check import check_writable
from distrib.units import format_size

from .lookup import (
    add_command,
    add_second_storage_options,
    choose,
    open_run,
    plainly,
    reading,
    second_place,
    step,
)

_SUFFIXES = (".keras", ".weights.h5")
_LONGEST_REASON = 300
_WAY_OUT = (
    "Build the model in your script instead, with BackupAndRestore and the same `fit`, and save it "
    "there."
)


def add_commands(commands: Any) -> None:
    """Add `export`."""
    command = add_command(commands, "export", _export, "write a checkpoint as a file for Keras")
    command.add_argument("step", type=step, metavar="STEP", help="which one, or 'newest'")
    text = "a path or URL that ends in .keras or .weights.h5"
    command.add_argument("output", type=_output, metavar="OUTPUT", help=text)
    text = "that registers your own classes by keras.saving.register_keras_serializable"
    add = command.add_argument
    add("--import", dest="modules", action="append", default=[], metavar="MODULE", help=text)
    add_second_storage_options(command, "--output-storage-options", "OUTPUT")


def _export(options: argparse.Namespace) -> int:
    directory = open_run(options)
    output = second_place(options, options.output, "output")
    stored = choose(directory, options.step)
    with reading(stored):
        loaded = stored.read()
    check_writable(output.parent, "output")
    _import(options.modules)
    model, left_out = rebuild(loaded)
    with plainly(output):
        size = _write(model, output)
    if options.json:
        found = {"step": stored.manifest.step, "path": str(output), "bytes": size}
        print(json.dumps({**found, "left_out": left_out}, indent=1))
        return EXIT_FINISHED
    print(f"wrote {output} ({format_size(size)}) from {stored.location}")
    if left_out is not None:
        print(f"without what `compile` was given: {left_out}")
    return EXIT_FINISHED


def rebuild(loaded: LoadedCheckpoint) -> tuple[Any, str | None]:
    """Make the model of a checkpoint anew.

    Args:
        loaded: The checkpoint.

    Returns:
        The model with its variables, and why it is not compiled; `None` if it is, with the
        optimizer's variables.

    Raises:
        ConfigurationError: If the checkpoint has no config of the model, or it leads to no model or
            to another one.
    """
    config = loaded.training.get("model")
    if config is None:
        raise ConfigurationError(
            "The checkpoint does not hold the model's config: the model's class cannot tell it, or "
            f"an old version of distrib wrote the checkpoint. {_WAY_OUT}"
        )
    _start_tensorflow()
    model = _model_of(config)
    left_out = _compile(model, config.get("compile_config"))
    _check_vocabularies(model)
    _restore(model, loaded)
    return model, left_out


def _start_tensorflow() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")


def _model_of(config: Mapping[str, Any]) -> Any:
    import keras

    described = {name: value for name, value in config.items() if name != "compile_config"}
    try:
        return keras.saving.deserialize_keras_object(described)
    except Exception as error:  # Also of the user's own classes.
        raise ConfigurationError(
            f"The model cannot be made from its config: {_reason(error)} Name modules that "
            f"register your own classes by --import. {_WAY_OUT}"
        ) from error


def _compile(model: Any, config: Mapping[str, Any] | None) -> str | None:
    """Compile the model, and return why not if that cannot be: it predicts the same without."""
    reason: str | None = "the model's own `compile` has to be called by hand."
    try:
        model.compile_from_config(config)
    except Exception as error:  # Also of the user's own losses and metrics.
        reason = _reason(error)
    if model.compiled:
        return None
    model.optimizer = None
    return reason


def _check_vocabularies(model: Any) -> None:
    """Refuse layers whose `adapt` has learnt what is not a variable, so it was not saved."""
    for layer in model._flatten_layers():
        if hasattr(layer, "save_assets") and layer.get_config().get("vocabulary") is None:
            raise ConfigurationError(
                f"The layer {layer.name!r} has learnt its vocabulary by `adapt`, and a checkpoint "
                f"does not hold that. {_WAY_OUT}"
            )


def _restore(model: Any, loaded: LoadedCheckpoint) -> None:
    """Assign the checkpoint's variables, in the order in which every program lists them."""
    from distrib.state.training_state import TrainingState

    state = TrainingState(model, metrics=False)
    here = state.describe()["variables"]
    groups = {variable["group"] for variable in here}
    there = [one for one in loaded.training["state"]["variables"] if one["group"] in groups]
    for old, new in zip_longest(there, here):
        if old is None or new is None or not _agree(old, new):
            raise ConfigurationError(
                f"The model's config leads to other variables: {_show(new)} instead of "
                f"{_show(old)}. {_WAY_OUT}"
            )
    state.restore({"variables": there}, loaded.arrays)


def _agree(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Tell whether two variables can be the same one.

    The way to a layer and the numbers in names go by how the model was built, so they do not count.
    """
    if any(old[key] != new[key] for key in ("group", "shape", "dtype")):
        return False
    if old["group"] != "model":  # Such as `adam/sequential_dense_kernel_momentum`.
        return bool(old["path"].split("_")[-1] == new["path"].split("_")[-1])
    ends = [re.sub(r"_\d+(?=[_/~]|$)", "", one["path"]).split("/")[-2:] for one in (old, new)]
    return ends[0] == ends[1]


def _show(variable: Mapping[str, Any] | None) -> str:
    if variable is None:
        return "none"
    return f"{variable['path']} {tuple(variable['shape'])} {variable['dtype']}"


def _write(model: Any, output: Location) -> int:
    """Let Keras write a local file, put it where it belongs, and return its size."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / output.name
        (model.save if path.suffix == ".keras" else model.save_weights)(path)
        output.upload(path)
        return path.stat().st_size


def _import(modules: Sequence[str]) -> None:
    """Import the user's modules, also those in the present folder, as Python does for scripts."""
    if modules:
        sys.path.insert(0, os.getcwd())
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigurationError(f"--import {name}: {error}.") from error


def _reason(error: BaseException) -> str:
    """Return the first line of the error that began it: Keras repeats whole configs around it."""
    while error.__context__ is not None:
        error = error.__context__
    line = str(error).partition("Full object config")[0].strip().partition("\n")[0]
    text = line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]}..."
    return text if text.endswith(".") else f"{text}."


def _output(text: str) -> str:
    if not text.endswith(_SUFFIXES):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .keras or .weights.h5")
    return text
