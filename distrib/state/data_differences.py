"""Whether the training data at hand is the data that a checkpoint was trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from distrib.data.compare_contents import compare_contents
from distrib.data.pipelines.feed import RANKS, SIZES
from distrib.data.py_dataset import PY_DATASET
from distrib.errors import CheckpointMismatchError
from distrib.log import log

Description = Mapping[str, Any]

# Keys of a description. Those of `Dataset.fingerprint`, and of arrays that `fit` was given itself.
SOURCE, CONTENTS = "source", "contents"
PLAIN_ARRAYS = "plain arrays"
# Path of the weights of examples in arrays that Keras has packed.
WEIGHTS = "[2]"
_KINDS = {
    PLAIN_ARRAYS: PLAIN_ARRAYS,
    PY_DATASET: "a PyDataset",
    "a tf.data pipeline": "a `tf.data` pipeline",
}
# Whether `fit` was given the data in another form, and distrib made them resumable.
CONVERTED = "converted"


def check_data(saved: Description | None, here: Description | None) -> None:
    """Raise if the training data differs from the checkpoint's; warn of numbers rounded otherwise.

    Args:
        saved: Description of the data in the checkpoint; `None` if nothing is known of them.
        here: The same of the data at hand.

    Raises:
        CheckpointMismatchError: Names what differs.
    """
    if saved and here and saved[SOURCE] == PLAIN_ARRAYS and WEIGHTS not in _paths(here):
        saved = without_weights(saved)  # Old versions saved those of `class_weight` as data.
    was_not_resumable = False
    if here is not None and _was_not_resumable(saved, here):
        was_not_resumable = True
        saved, here = _without_order(saved, here)
    changed = "\n".join(f"  {line}" for line in _differences(saved, here))
    if changed:
        raise CheckpointMismatchError(
            f"The checkpoint was written by a run on other training data:\n{changed}\n"
            "Nothing was changed. Pass the same data, or give this run its own `directory` (and "
            "`initialize_from=...`, to begin with these weights)."
        )
    if was_not_resumable:
        log.info(
            "the checkpoint was written by a version that left this data to Keras. From here on "
            "its order is distrib's, and is resumed at the very step."
        )


def _was_not_resumable(saved: Description | None, here: Description) -> bool:
    """Tell whether an old version has saved a run on data that only this one can resume.

    It has saved at the end of an epoch, after which any order may follow.
    """
    return bool(here.get(CONVERTED)) and (saved is None or saved[SOURCE] == PLAIN_ARRAYS)


def _differences(saved: Description | None, here: Description | None) -> Iterator[str]:
    one, other = kind_of(saved), kind_of(here)
    # Old versions saved nothing of arrays.
    if one != other and not (saved is None and other == PLAIN_ARRAYS):
        yield f"checkpoint has {one}, this run has {other}"
    if saved is None or here is None or one != other:
        return
    keys = sorted({*saved, *here} - _not_compared(saved, here))
    changed = [key for key in keys if saved.get(key) != here.get(key)]
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


def _not_compared(saved: Description, here: Description) -> set[str]:
    ignored = {CONTENTS, CONVERTED, RANKS}
    if saved.get(RANKS) != here.get(RANKS):  # The parts of more ranks are smaller.
        ignored |= {"batches_per_epoch", "cardinality", SIZES}
    if saved.get(SIZES) is None:  # As in checkpoints of old versions.
        ignored.add(SIZES)
    return ignored


def _paths(data: Description) -> list[str]:
    return [part["path"] for part in data.get("structure", ())]


def without_weights(data: Description) -> dict[str, Any]:
    """Return the description without the weights that Keras has made of `class_weight`."""
    structure = [part for part in data["structure"] if part["path"] != WEIGHTS]
    contents = {path: held for path, held in data.get(CONTENTS, {}).items() if path != WEIGHTS}
    return {**data, "structure": structure, CONTENTS: contents}


def _without_order(
    saved: Description | None, here: Description
) -> tuple[Description | None, Description | None]:
    """Return what an old version has saved of the data, and the same of the data at hand."""
    if saved is None:
        return None, None
    kept = {"num_examples", "batch_size"}
    if saved["structure"] == here["structure"]:  # Else Keras has converted the dtype since.
        kept.add(CONTENTS)
    one, other = (
        {SOURCE: PLAIN_ARRAYS, **{key: each[key] for key in kept if key in each}}
        for each in (saved, here)
    )
    return one, other


def kind_of(data: Description | None) -> str:
    """Return what a user calls data of this description; `None` if nothing is known of them."""
    if data is None:
        return "data that is not a cluster.dataset"
    return _KINDS.get(data[SOURCE], "a cluster.dataset")
