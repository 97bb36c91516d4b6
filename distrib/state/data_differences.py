"""Whether the training data at hand is the data that a checkpoint was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from distrib.data.compare_contents import compare_contents
from distrib.data.py_dataset import PY_DATASET
from distrib.errors import CheckpointMismatchError
from distrib.log import log

Description = Mapping[str, Any]

# Keys of a description. Those of `Dataset.fingerprint`, and of arrays that `fit` was given itself.
SOURCE, CONTENTS = "source", "contents"
PLAIN_ARRAYS = "plain arrays"
_KINDS = {PLAIN_ARRAYS: PLAIN_ARRAYS, PY_DATASET: "a PyDataset"}


def check_data(saved: Description | None, here: Description | None) -> None:
    """Raise if the training data differs from the checkpoint's; warn of numbers rounded otherwise.

    Args:
        saved: Description of the data in the checkpoint; `None` if nothing is known of them.
        here: The same of the data at hand.

    Raises:
        CheckpointMismatchError: Names what differs.
    """
    changed = "\n".join(f"  {line}" for line in _differences(saved, here))
    if changed:
        raise CheckpointMismatchError(
            f"The checkpoint was written by a run on other training data:\n{changed}\n"
            "Nothing was changed. Pass the same data, or give this run its own `directory` (and "
            "`initialize_from=...`, to begin with these weights)."
        )


def _differences(saved: Description | None, here: Description | None) -> Iterator[str]:
    one, other = _kind_of(saved), _kind_of(here)
    # Old versions saved nothing of these.
    if one != other and not (saved is None and other in _KINDS.values()):
        yield f"checkpoint has {one}, this run has {other}"
    if saved is None or here is None or one != other:
        return
    changed = [
        key for key in sorted({*saved, *here} - {CONTENTS}) if saved.get(key) != here.get(key)
    ]
    for key in changed:
        yield f"{key}: checkpoint has {saved.get(key)}, this run has {here.get(key)}"
    old, new = saved.get(CONTENTS, {}), here.get(CONTENTS, {})
    if changed or old.keys() != new.keys():
        return  # Also in checkpoints of old versions, and of shards for another number of ranks.
    match compare_contents(old, new):
        case "other":
            yield "other examples, or in another order, of the same number and shape"
        case "rounding":
            log.warning(
                "the training data differs from the checkpoint's by rounding, so the run may not "
                "end the same as without the restart; save the preprocessed data, and load it."
            )


def _kind_of(data: Description | None) -> str:
    if data is None:
        return "data that is not a cluster.dataset"
    return _KINDS.get(data[SOURCE], "a cluster.dataset")
