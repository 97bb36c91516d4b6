"""Checkpoints that Orbax itself has written, as distrib did at first: they are read as before.

Orbax imports JAX, which would claim the GPU that TensorFlow trains on, so JAX is told to stay on
the CPU unless somebody has loaded it already.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from distrib.checkpoint.layout import Array
from distrib.checkpoint.orbax_format import ARRAYS, TRAINING


def read_training(path: Path) -> dict[str, Any]:
    """Read the JSON item of the checkpoint at `path`."""
    ocp = _orbax()
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        return dict(checkpointer.restore(path / TRAINING, args=ocp.args.JsonRestore()))


def read_arrays(path: Path) -> dict[str, dict[str, Array]]:
    """Read the arrays of the checkpoint at `path` into host memory, as they were given."""
    ocp = _orbax()
    from etils import epath

    handler = ocp.PyTreeCheckpointHandler()
    with ocp.Checkpointer(handler) as checkpointer:
        names = handler.metadata(epath.Path(path / ARRAYS)).tree
        wanted = {
            group: {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in members}
            for group, members in names.items()
        }
        restored = checkpointer.restore(
            path / ARRAYS, args=ocp.args.PyTreeRestore(restore_args=wanted)
        )
    return {
        group: {name: np.asarray(value) for name, value in members.items()}
        for group, members in restored.items()
    }


def _orbax() -> Any:
    if "jax" not in sys.modules:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import orbax.checkpoint as ocp

    return ocp
