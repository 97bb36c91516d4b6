"""What a run is made of, as the script says it: kept in every checkpoint, to tell a changed script.

It is taken when `fit` begins, before any callback changes a variable. So what callbacks do in
training, such as lowering the learning rate, is no change of the script.
"""

from __future__ import annotations

import platform
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distrib.checkpoint.training_item import unnumbered
from distrib.cluster import current
from distrib.data.contents import contents_of
from distrib.data.dataset import Dataset
from distrib.keras_compat.layers import layers_of
from distrib.keras_compat.trainer import compile_arguments
from distrib.state.data_differences import CONTENTS
from distrib.state.description import (
    constructor_arguments,
    describe,
    describe_class,
    describe_config,
    digest,
    is_user_function,
)
from distrib.state.git_revision import git_revision
from distrib.state.used_code import describe_used
from distrib.state.variables import optimizers_of

_TRAINING = ("x", "y", "sample_weight")
_VALIDATION = "validation_data"
_SECRET = re.compile(r"pass(word|wd)|secret|token|credential|api_?key|auth|header|storage_options")


def versions() -> dict[str, str]:
    """Return the versions of what writes a checkpoint."""
    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "distrib": metadata.version("distrib"),
    }


def record_of(
    model: Any,
    config: Any,
    arguments: Mapping[str, Any],
    callbacks: Sequence[Any],
    fingerprint_of: Callable[[Any], dict[str, Any]] = Dataset.fingerprint,
) -> dict[str, Any]:
    """Return what a run is made of, JSON-able.

    Args:
        model: Compiled.
        config: Its config as Keras serializes it; `None` if there is none.
        arguments: Of `fit`, by name.
        callbacks: Those of the user.
        fingerprint_of: Returns the fingerprint of a `Dataset`. Defaults to its own method, which
            reads arrays.
    """

    def validation(dataset: Any) -> dict[str, Any]:
        return {CONTENTS: fingerprint_of(dataset)[CONTENTS]}

    sections: dict[str, Callable[[], Any]] = {
        "model": lambda: {**describe_class(type(model)), "connections": _connections(config)},
        "layers": lambda: _by_name((each.name, _layer(each)) for each in layers_of(model)[1:]),
        "optimizer": lambda: _by_name(
            (type(each).__name__, _without_name(describe_config(each)))
            for each in optimizers_of(model)
            if each is not None
        ),
        "compile": lambda: _without(compile_arguments(model), "optimizer"),
        "fit": lambda: _without(arguments, *_TRAINING, _VALIDATION, "callbacks"),
        # The checkpoint itself tells what the training data hold.
        "data": lambda: {
            **{name: _data(arguments.get(name)) for name in _TRAINING},
            _VALIDATION: _data(arguments.get(_VALIDATION), validation),
        },
        "callbacks": lambda: _by_name((type(each).__name__, _callback(each)) for each in callbacks),
        "replicas": lambda: current().num_replicas,
        "git": git_revision,
    }
    return {name: _recorded(section) for name, section in sections.items()}


def _recorded(section: Callable[[], Any]) -> Any:
    """Return a section, or the name of the error that a user's object has raised in it.

    A record that is not complete must not cost the run, nor leave other ranks waiting.
    """
    try:
        return section()
    except Exception as error:
        return f"not recorded ({type(error).__name__})"


def _without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: describe(value) for name, value in values.items() if name not in names}


def _by_name(described: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Name what is described by its kind; of equal names all but the first get a number."""
    count: Counter[str] = Counter()
    named = {}
    for name, each in described:
        name = unnumbered(name)
        count[name] += 1
        named[name if count[name] == 1 else f"{name}-{count[name]}"] = each
    return named


def _without_name(described: dict[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in described.items() if name != "name"}


def _layer(layer: Any) -> dict[str, Any]:
    described = _without_name(describe_config(layer))
    if len(layers_of(layer)) > 1:  # The layers within it have descriptions of their own.
        described = {
            name: each for name, each in described.items() if not isinstance(each, dict | list)
        }
    functions = {
        name: describe(each)
        for name, each in vars(layer).items()
        if is_user_function(each) and not hasattr(type(layer), name)
    }
    return {**described, **functions}


def _callback(callback: Any) -> dict[str, Any]:
    """Describe the arguments of a callback that it keeps under the same names."""
    kind, held = type(callback), vars(callback)
    arguments = {name: held[name] for name in constructor_arguments(kind) if name in held}
    functions = {
        name: each
        for name, each in held.items()
        if not name.startswith("_") and is_user_function(each)
    }
    return describe_class(kind) | _without_secrets(describe(arguments | functions))


def _without_secrets(described: Any) -> Any:
    if isinstance(described, list):
        return [_without_secrets(each) for each in described]
    if not isinstance(described, dict):
        return described
    return {
        name: "not recorded" if _SECRET.search(name.lower()) else _without_secrets(each)
        for name, each in described.items()
    }


def _data(value: Any, contents_of_dataset: Callable[[Any], dict[str, Any]] | None = None) -> Any:
    """Describe data by what can be told without reading them.

    Args:
        value: As `fit` is given it.
        contents_of_dataset: Adds what a `Dataset` holds, and with it what arrays hold. Defaults to
            `None`: without.
    """
    match value:
        case None:
            return None
        case Dataset():
            held = contents_of_dataset(value) if contents_of_dataset else {}
            return {**value.description(), "functions": _functions(value.functions), **held}
        case tf.data.Dataset():
            count = int(value.cardinality())
            return {"class": "tf.data.Dataset", "batches": count, "spec": str(value.element_spec)}
        case keras.utils.PyDataset():
            return {**describe_class(type(value)), "batches": value.num_batches}
        case Mapping():
            return {str(name): _data(each, contents_of_dataset) for name, each in value.items()}
        case tuple():
            return {str(i): _data(each, contents_of_dataset) for i, each in enumerate(value)}
        case np.ndarray() | tf.Tensor():
            array = f"{tf.as_dtype(value.dtype).name} {tuple(value.shape)}"
            held = {CONTENTS: contents_of([("", value)])} if contents_of_dataset else {}
            return {"array": array, **held}
    return describe_class(type(value))


def _functions(functions: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the user's code that makes examples; what a library does, its version tells."""
    described: dict[str, Any] = {}
    for name, each in functions.items():
        is_class = isinstance(each, type)
        own = describe_class(each) if is_class else describe(each)
        if not is_class or "code" in own:
            used = describe_used(each)
            described |= {name: own, f"{name} uses": used} if used else {name: own}
    return described


def _connections(config: Any) -> str:
    """Return a hash of how the layers of functional models are connected."""
    return digest(list(_wiring(config)))


def _wiring(config: Any) -> Iterator[Any]:
    if isinstance(config, list):
        for item in config:
            yield from _wiring(item)
    elif isinstance(config, dict):
        if "output_layers" in config:
            layers = config["layers"]
            numbers = {layer["name"]: number for number, layer in enumerate(layers)}
            for layer in layers:
                yield layer["class_name"], _renamed(layer["inbound_nodes"], numbers)
            yield _renamed([config["input_layers"], config["output_layers"]], numbers)
        for item in config.values():
            yield from _wiring(item)


def _renamed(value: Any, numbers: Mapping[str, int]) -> Any:
    """Return a config with numbers in the place of layers' names, which differ by process."""
    if isinstance(value, list):
        return [_renamed(item, numbers) for item in value]
    if isinstance(value, dict):
        return {name: _renamed(item, numbers) for name, item in value.items()}
    return numbers.get(value, value) if isinstance(value, str) else value
