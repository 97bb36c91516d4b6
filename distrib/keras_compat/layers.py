"""Private attributes of Keras's layers and seed generators. Tried with Keras 3.12 and 3.15.

- `Layer._flatten_layers()`: the layers within a layer, at any depth
- `Layer._trainable_variables`, `Layer._non_trainable_variables`: by what they are made for, whether
  or not the layer is frozen
- `Layer._seed_generators`
- `Discretization` keeps what `adapt` learned in the attribute `bin_boundaries`, which no hook saves
- the global attribute under which Keras keeps the seed generator of `keras.random`
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
from keras.src.backend.common import global_state
from keras.src.random import seed_generator

_GLOBAL_SEED_GENERATOR = "global_seed_generator"  # Keras 3.12 has no constant for it.


def layers_of(model: Any) -> list[Any]:
    """Return a model and all layers within it."""
    return list(model._flatten_layers())


def own_weights(layer: Any) -> list[Any]:
    """Return a layer's own variables that gradients change, or would if it were not frozen."""
    return list(layer._trainable_variables)


def own_statistics(layer: Any) -> list[Any]:
    """Return a layer's own variables that it updates itself, such as moving averages."""
    return list(layer._non_trainable_variables)


def own_seed_generators(layer: Any) -> Iterator[Any]:
    """Yield a layer's own `keras.random.SeedGenerator`s."""
    yield from getattr(layer, "_seed_generators", ())


def global_seed_generator(create: bool) -> Any:
    """Return the generator that `keras.random` draws from if no seed is given.

    Args:
        create: Whether to make it if nothing has used it yet; else `None` is returned then.
    """
    if create:
        return seed_generator.global_seed_generator()
    return global_state.get_global_attribute(_GLOBAL_SEED_GENERATOR)


def keeps_more_than_variables(layer: Any) -> bool:
    """Tell whether a layer may hold state that is no variable, or is derived from variables.

    These are layers with `adapt` or files of their own, and those whose own class, and not one of
    Keras's, defines how they are saved. (Keras's weight layers override that for quantization.)
    """
    return hasattr(layer, "adapt") or hasattr(layer, "save_assets") or defines_store(layer)


def defines_store(layer: Any) -> bool:
    """Tell whether a layer's own class, and not one of Keras's, defines how it is saved."""
    hooks = (type(layer).save_own_variables, type(layer).load_own_variables)
    return any(not hook.__module__.startswith("keras.") for hook in hooks)


def learned_attributes(layer: Any) -> dict[str, Any]:
    """Return the attributes that `adapt` has set and that no hook of Keras saves, by name."""
    if isinstance(layer, keras.layers.Discretization) and layer.num_bins is not None:
        return {"bin_boundaries": layer.bin_boundaries}
    return {}


def forget_traces(model: Any) -> None:
    """Have a model trace its step functions anew: they hold constants of the layers."""
    model.make_train_function(force=True)
    model.test_function = model.predict_function = None
