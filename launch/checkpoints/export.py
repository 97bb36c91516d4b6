"""`distrib checkpoints export`: writes a checkpoint as a file that plain Keras loads.

The command rebuilds the model from the config in the checkpoint, restores its variables as a run on
one replica would, and lets Keras write the file. Statistics that differ between replicas are
averaged, as in `ModelCheckpoint`.

This is the one command that imports TensorFlow. It hides the GPUs, which may be in use.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from distrib.checkpoint.stored_checkpoint import LoadedCheckpoint
from distrib.checkpoint.training_item import (
    LAYERS,
    MODEL_CONFIG,
    VARIABLES_STATE,
    format_variable,
    unnumbered,
)
from distrib.errors import EXIT_FINISHED, ConfigurationError
from distrib.storage.location import Location
from distrib.storage.write_check import check_writable
from distrib.units import format_size

from .errors import translate_read_errors, translate_storage_errors
from .lookup import choose
from .options import add_command, add_second_storage_options, open_run, second_location, step

_SUFFIXES = (".keras", ".weights.h5")
_MAX_REASON = 300
_ADVICE = (
    "Build the model in your script instead, restore it with BackupAndRestore and the same `fit`, "
    "and save it there."
)


def add_commands(commands: Any) -> None:
    """Add `export`."""
    command = add_command(commands, "export", _export, "write a checkpoint as a Keras file")
    command.add_argument("step", type=step, metavar="STEP", help="a step, or 'newest'")
    text = "path or URL that ends in .keras or .weights.h5"
    command.add_argument("output", type=_output, metavar="OUTPUT", help=text)
    text = "import a module that registers your own classes with Keras; may be repeated"
    add = command.add_argument
    add("--import", dest="modules", action="append", default=[], metavar="MODULE", help=text)
    add_second_storage_options(command, "--output-storage-options", "OUTPUT")


def _export(options: argparse.Namespace) -> int:
    directory = open_run(options)
    output = second_location(options, options.output, "output")
    stored = choose(directory, options.step)
    with translate_read_errors(stored):
        loaded = stored.read()
    check_writable(output.parent, "output")
    _import_modules(options.modules)
    model, left_out = rebuild(loaded)
    with translate_storage_errors(output):
        size = _write(model, output)
    if options.json:
        found = {"step": stored.manifest.step, "path": str(output), "bytes": size}
        print(json.dumps({**found, "left_out": left_out}, indent=1))
        return EXIT_FINISHED
    print(f"wrote {output} ({format_size(size)}) from {stored.location}")
    if left_out is not None:
        print(f"not compiled: {left_out}")
    return EXIT_FINISHED


def rebuild(loaded: LoadedCheckpoint) -> tuple[Any, str | None]:
    """Rebuild the model of a checkpoint.

    Args:
        loaded: The checkpoint.

    Returns:
        The model with its variables, and the reason why it is not compiled; `None` if it is
        compiled, with the optimizer's variables.

    Raises:
        ConfigurationError: If the checkpoint has no config of the model, or the config gives no
            model or another one.
    """
    config = loaded.training.get(MODEL_CONFIG)
    if config is None:
        raise ConfigurationError(
            "The checkpoint does not hold the model's config: the model's class has no "
            f"`get_config`, or an old version of distrib wrote the checkpoint. {_ADVICE}"
        )
    _start_tensorflow()
    model = _build_model(config)
    left_out = _compile(model, config.get("compile_config"))
    if LAYERS not in loaded.training:
        _check_vocabularies(model)
    _restore(model, loaded)
    return model, left_out


def _start_tensorflow() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")


def _build_model(config: Mapping[str, Any]) -> Any:
    import keras

    architecture = {name: value for name, value in config.items() if name != "compile_config"}
    try:
        return keras.saving.deserialize_keras_object(architecture)
    except Exception as error:  # Of any kind, raised by the user's own classes.
        raise ConfigurationError(
            f"The model cannot be built from its config: {_reason(error)} Name the modules that "
            f"register your own classes with --import. {_ADVICE}"
        ) from error


def _compile(model: Any, config: Mapping[str, Any] | None) -> str | None:
    """Compile the model, or return why not: an uncompiled model predicts the same."""
    reason: str | None = "call the model's own `compile` yourself."
    try:
        model.compile_from_config(config)
    except Exception as error:  # Of any kind, raised by the user's own losses and metrics.
        reason = _reason(error)
    if model.compiled:
        return None
    model.optimizer = None
    return reason


def _check_vocabularies(model: Any) -> None:
    """Refuse layers with a vocabulary from `adapt`, which old checkpoints do not hold."""
    from distrib.keras_compat.layers import layers_of

    for layer in layers_of(model):
        if hasattr(layer, "save_assets") and layer.get_config().get("vocabulary") is None:
            raise ConfigurationError(
                f"The layer {layer.name!r} learned its vocabulary by `adapt`, which a checkpoint "
                f"does not hold. {_ADVICE}"
            )


def _restore(model: Any, loaded: LoadedCheckpoint) -> None:
    """Assign the checkpoint's variables; every program lists them in the same order."""
    from distrib.state.run_checkpoint import RunCheckpoint
    from distrib.state.training_state import TrainingState

    layers = RunCheckpoint("", loaded.training, loaded.arrays).layers
    state = TrainingState(model, metrics=False)
    if layers is not None:
        state.layers.check(layers)
    here = state.describe()["variables"]
    groups = {variable["group"] for variable in here}
    there = [one for one in loaded.training[VARIABLES_STATE]["variables"] if one["group"] in groups]
    for old, new in zip_longest(there, here):
        if old is None or new is None or not _may_be_same(old, new):
            shown = [format_variable(one) if one else "none" for one in (new, old)]
            raise ConfigurationError(
                f"The model's config gives other variables: {shown[0]} instead of {shown[1]}. "
                f"{_ADVICE}"
            )
    state.restore({"variables": there}, loaded.arrays, layers)


def _may_be_same(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Tell whether two descriptions can be of one variable.

    A layer's path and the numbers in names depend on how the model was built, so they do not count.
    """
    if any(old[key] != new[key] for key in ("group", "shape", "dtype")):
        return False
    if old["group"] != "model":  # Such as `adam/sequential_dense_kernel_momentum`.
        return bool(old["path"].split("_")[-1] == new["path"].split("_")[-1])
    ends = [unnumbered(one["path"]).split("/")[-2:] for one in (old, new)]
    return ends[0] == ends[1]


def _write(model: Any, output: Location) -> int:
    """Let Keras write a local file, upload it, and return its size in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / output.name
        (model.save if path.suffix == ".keras" else model.save_weights)(path)
        output.upload(path)
        return path.stat().st_size


def _import_modules(modules: Sequence[str]) -> None:
    """Import the user's modules, also from the working directory."""
    if modules:
        sys.path.insert(0, os.getcwd())
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigurationError(f"--import {name}: {error}.") from error


def _reason(error: BaseException) -> str:
    """Return the first line of the original error: Keras wraps it and repeats whole configs."""
    while error.__context__ is not None:
        error = error.__context__
    line = str(error).partition("Full object config")[0].strip().partition("\n")[0]
    text = line if len(line) <= _MAX_REASON else f"{line[:_MAX_REASON]}..."
    return text if text.endswith(".") else f"{text}."


def _output(text: str) -> str:
    if not text.endswith(_SUFFIXES):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .keras or .weights.h5")
    return text
