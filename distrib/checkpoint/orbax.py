"""The state in Orbax's format: arrays as a PyTree, everything else as JSON.

A checkpoint folder is an Orbax composite of two items, `arrays` and `training`, so plain
`orbax.checkpoint` reads it. Compression is off: float weights hardly shrink, and it costs ten
times the CPU that training wants. Orbax imports JAX, which would claim the GPU that TensorFlow
trains on, so JAX is told to stay on the CPU unless somebody has loaded it already.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ArrayGroups = Mapping[str, Mapping[str, npt.NDArray[Any]]]

ARRAYS = "arrays"
TRAINING = "training"


def write(path: Path, arrays: ArrayGroups, training: Mapping[str, Any]) -> None:
    """Write a checkpoint's content to `path`, which must not exist.

    Args:
        path: Absolute path of the new folder.
        arrays: Two levels: group, then name; none may be empty.
        training: JSON-able.

    Raises:
        Exception: Whatever Orbax and the file system raise; nothing is left at `path` then, but
            perhaps beside it.
    """
    ocp = _orbax()
    with _composite(ocp) as checkpointer:
        checkpointer.save(
            path,
            args=ocp.args.Composite(
                **{
                    ARRAYS: ocp.args.PyTreeSave(
                        {group: dict(members) for group, members in arrays.items() if members}
                    ),
                    TRAINING: ocp.args.JsonSave(dict(training)),
                }
            ),
        )


def read_training(path: Path) -> dict[str, Any]:
    """Read the JSON item of the checkpoint at `path`."""
    ocp = _orbax()
    with _composite(ocp) as checkpointer:
        restored = checkpointer.restore(
            path, args=ocp.args.Composite(**{TRAINING: ocp.args.JsonRestore()})
        )
    return dict(restored[TRAINING])


def read_arrays(path: Path) -> dict[str, dict[str, npt.NDArray[Any]]]:
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


def _composite(ocp: Any) -> Any:
    return ocp.Checkpointer(
        ocp.CompositeCheckpointHandler(
            **{
                ARRAYS: ocp.PyTreeCheckpointHandler(use_compression=False),
                TRAINING: ocp.JsonCheckpointHandler(),
            }
        )
    )
