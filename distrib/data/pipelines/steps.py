"""The steps of a `tf.data` pipeline: what they are called, and what of them a checkpoint can hold.

The pipeline's Python objects are walked, by private attributes of TensorFlow 2.21: its own graph of
the pipeline (`DatasetToGraphV2`) would hold copies of all arrays. `test_steps.py` notices
when they change.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import op_def_registry

# Their state does not change, or is the model's.
_HARMLESS = frozenset(
    {
        *("ReadVariableOp", "VarHandleOp", "Assert", "Print", "PrintV2"),
        *("StatefulPartitionedCall", "If", "While", "Case"),  # What they call is looked at.
        *("HashTableV2", "LookupTableFindV2", "LookupTableSizeV2", "LookupTableImportV2"),
        # Made anew with the dataset that a function returns, whose state is saved.
        *("DummySeedGenerator", "ReadFile"),
    }
)
_JOINING = frozenset({"concatenate", "directed_interleave", "choose_from_datasets"})
_PYTHON = frozenset({"PyFunc", "EagerPyFunc", "PyFuncStateless"})
# Source datasets are marked as stateful, only to keep them from being folded into constants.
_SOURCE = re.compile(r"Dataset(V\d+)?$")


@dataclass(frozen=True)
class Step:
    """One step of a pipeline.

    Attributes:
        name: Of the method that made it, with that of its function: `map (augment)`.
        kind: The method alone.
        dataset: The `tf.data.Dataset` that it returned.
        state: Operations of its function that have a state which cannot be saved.
    """

    name: str
    kind: str
    dataset: Any
    state: tuple[str, ...]

    @property
    def is_random(self) -> bool:
        """Whether it draws random numbers from TensorFlow's generators."""
        return any(operation not in _PYTHON for operation in self.state)

    @property
    def described(self) -> str:
        """Return the step and why its state cannot be saved, in words."""
        if not self.is_random:
            return f"`{self.name}` runs Python"
        operations = [operation for operation in self.state if operation not in _PYTHON]
        return f"`{self.name}` has a state of its own ({', '.join(operations)})"


def steps_of(dataset: Any) -> list[Step]:
    """Return the steps of a pipeline, the sources first."""
    found: dict[int, Step] = {}

    def visit(each: Any) -> None:
        if id(each) in found:
            return
        for source in each._inputs():
            visit(source)
        found[id(each)] = _step(each)

    visit(dataset)
    return list(found.values())


def without_repeat(dataset: Any) -> tuple[Any, bool]:
    """Return a pipeline without the endless `repeat` at its end, and whether it had one.

    Args:
        dataset: Batches. A `prefetch` after the `repeat` is kept.
    """
    ends: list[Any] = []
    while _kind_of(dataset) in ("prefetch", "options"):
        ends.append(dataset)
        dataset = dataset._inputs()[0]
    if _kind_of(dataset) != "repeat" or int(dataset._count) != -1:
        return ends[0] if ends else dataset, False
    dataset = dataset._inputs()[0]
    for end in reversed(ends):
        if _kind_of(end) == "prefetch":
            dataset = dataset.prefetch(int(end._buffer_size))
        else:
            dataset = dataset.with_options(end.options())
    return dataset, True


def unsavable(steps: list[Step]) -> list[str]:
    """Return why the state of a pipeline cannot be saved, in words; empty if it can."""
    reasons = [step.described for step in steps if step.state]
    kinds = [step.kind for step in steps]
    after = steps[kinds.index("shuffle") :] if "shuffle" in kinds else []
    # TensorFlow would shuffle otherwise when it fills the cache anew.
    if any(step.kind == "cache" and not step.dataset._filename.numpy() for step in after):
        reasons.append("`cache` keeps the order of the `shuffle` before it")
    joined = [step.kind for step in after if step.kind in _JOINING]
    if joined:  # There is no time at which all of its sources have iterators.
        reasons.append(f"`{joined[0]}` joins data that are shuffled")
    return reasons


def reshuffling(steps: list[Step]) -> int:
    """Return the number of steps whose order is another one in each pass."""
    return sum(step.kind == "shuffle" for step in steps)


def is_sharded(steps: list[Step]) -> bool:
    """Whether a pipeline calls `shard`, as scripts written for Horovod do."""
    return any(step.kind == "shard" for step in steps)


def unseeded_shuffles(steps: list[Step]) -> list[str]:
    """Return the names of the steps whose order depends on no seed, and differs in each process."""
    return [step.name for step in steps if step.kind == "shuffle" and _seed_of(step) == (0, 0)]


def seeds(steps: list[Step]) -> list[int]:
    """Return the seeds of all `shuffle`s, two of each; 0 for none."""
    return [seed for step in steps if step.kind == "shuffle" for seed in _seed_of(step)]


def sizes(steps: list[Step]) -> list[str]:
    """Return the sizes of batches, and of sources whose size is known, in words."""
    found = []
    for step in steps:
        elements = int(step.dataset.cardinality())
        if step.kind in ("batch", "padded_batch"):
            found.append(f"{step.kind}: {int(step.dataset._batch_size)}")
        elif not step.dataset._inputs() and elements >= 0:
            found.append(f"{step.kind}: {elements} elements")
    return found


def buffered_bytes(step: Step) -> int:
    """Return the size of the elements that a step keeps in memory; 0 if that cannot be told."""
    if step.kind == "shuffle":
        count = int(step.dataset._buffer_size)
    elif step.kind == "cache" and not step.dataset._filename.numpy():
        count = int(step.dataset.cardinality())
    else:
        return 0
    elements = int(step.dataset.cardinality())
    kept = min(count, elements) if elements >= 0 else count
    return max(kept, 0) * _bytes_of(step.dataset.element_spec)


def _step(dataset: Any) -> Step:
    kind = _kind_of(dataset)
    functions = dataset._functions()
    operations = {operation for function in functions for operation in _operations(function)}
    if "GeneratorDataset" in operations:
        kind = "from_generator"
    name = _function_name(functions[0], kind) if functions else ""
    state = tuple(sorted(filter(_is_stateful, operations)))
    return Step(f"{kind} ({name})" if name else kind, kind, dataset, state)


def _kind_of(dataset: Any) -> str:
    """Return `map` for `_ParallelMapDataset`, `from_tensor_slices` for `_TensorSliceDataset`."""
    name = type(dataset).__name__.strip("_").removesuffix("V2").removesuffix("V1")
    words = re.sub(r"(?<!^)(?=[A-Z][a-z])", "_", name.removesuffix("Dataset")).lower()
    return words.removeprefix("parallel_")


def _function_name(function: Any, kind: str) -> str:
    """Return `augment` for `__inference_Dataset_map_augment_42`; empty for a lambda."""
    found = re.search(rf"_Dataset_{kind}_(\w+)_\d+$", tf.compat.as_str(function.function.name))
    return found[1] if found and "lambda" not in found[1] else ""


def _operations(function: Any) -> Iterator[str]:
    graph = function.function.graph.as_graph_def()
    for part in (graph.node, *(each.node_def for each in graph.library.function)):
        yield from (node.op for node in part)


def _is_stateful(operation: str) -> bool:
    definition = op_def_registry.get(operation)
    if definition is None or operation in _HARMLESS or _SOURCE.search(operation):
        return False
    return bool(definition.is_stateful)


def _seed_of(step: Step) -> tuple[int, int]:
    return int(step.dataset._seed), int(step.dataset._seed2)


def _bytes_of(spec: Any) -> int:
    """Return the size of an element; 0 if its shape is not known."""
    total = 0
    for leaf in tf.nest.flatten(spec, expand_composites=True):
        size = leaf.shape.num_elements() if leaf.shape.rank is not None else None
        if size is None or leaf.dtype in (tf.string, tf.variant):
            return 0
        total += size * leaf.dtype.size
    return total
