"""Reader for format 1: checkpoints that Orbax itself wrote, in early versions of distrib.

Nothing writes this format any more; `orbax_format.py` encodes the current one. Format 1 exists only
on the local disk.

Orbax imports JAX, which would claim the GPU that TensorFlow trains on. So JAX is restricted to the
CPU, unless the program has imported it already.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from distrib.checkpoint.layout import Array
from distrib.checkpoint.orbax_format import ARRAYS, TRAINING

FORMAT = 1
DRAFT_MARKER = ".orbax-checkpoint-tmp"  # In the name of an unfinished checkpoint's folder.


def read_training(path: Path) -> dict[str, Any]:
    """Read the JSON item of the checkpoint at `path`."""
    ocp = _orbax()
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        return dict(checkpointer.restore(path / TRAINING, args=ocp.args.JsonRestore()))


def read_arrays(path: Path) -> dict[str, dict[str, Array]]:
    """Read the arrays of the checkpoint at `path` into host memory, by group and name."""
    ocp = _orbax()
    from etils import epath

    handler = ocp.PyTreeCheckpointHandler()
    with ocp.Checkpointer(handler) as checkpointer:
        names = handler.metadata(epath.Path(path / ARRAYS)).tree
        restore_args = {
            group: {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in members}
            for group, members in names.items()
        }
        restored = checkpointer.restore(
            path / ARRAYS, args=ocp.args.PyTreeRestore(restore_args=restore_args)
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
