"""Private names of other libraries stand where they are looked after, and nowhere else."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# Modules that say in their docstrings which private names of TensorFlow, fsspec or Python they
# use, and why. Of Keras there must be none outside of `keras_compat`.
OTHERS: dict[str, set[str]] = {
    "distrib/backends/worker_strategy.py": {
        "_all_reduce",
        "_communication_options",
        "_cross_device_ops",
    },
    "distrib/data/dataset.py": {"_variant_tensor"},
    "distrib/data/derived.py": {"_variant_tensor", "_inputs", "_functions"},
    "distrib/data/pipelines/feed.py": {"_variant_tensor"},
    "distrib/data/pipelines/passes.py": {"_iterator_resource"},
    "distrib/data/pipelines/steps.py": {
        *("_inputs", "_functions", "_batch_size", "_buffer_size"),
        *("_count", "_filename", "_seed", "_seed2"),
    },
    "distrib/data/py_dataset.py": {"_variant_tensor"},
    "distrib/errors.py": {"_shutdown", "_run_exitfuncs"},
    "distrib/storage/locate.py": {"_get_kwargs_from_urls", "_strip_protocol"},
    "distrib/storage/uploads.py": {"_register_atexit"},
    "distrib/training/fit_pipelines.py": {"_AutoShardDataset"},
}
FILES = sorted(
    path
    for folder in ("distrib", "callbacks", "launch")
    for path in (ROOT / folder).rglob("*.py")
    if "keras_compat" not in path.parts
)


def private_names(tree: ast.AST) -> Iterator[str]:
    """Attributes that begin with an underscore, of anything but what the module itself defines."""
    own = {
        name.attr if isinstance(name, ast.Attribute) else name
        for node in ast.walk(tree)
        for name in (
            [node]
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
            else [node.name]
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
            else [node.target.id]
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
            else [target.id for target in node.targets if isinstance(target, ast.Name)]
            if isinstance(node, ast.Assign)
            else []
        )
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from (each.name for each in node.names if each.name.startswith("_"))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            name, of_self = node.attr, isinstance(node.value, ast.Name) and node.value.id == "self"
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "setattr"):
            argument = node.args[1]
            name = str(argument.value) if isinstance(argument, ast.Constant) else ""
            of_self = False
        else:
            continue
        if name.startswith("_") and not name.startswith("__") and not of_self and name not in own:
            yield name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_names(path: Path) -> None:
    found = set(private_names(ast.parse(path.read_text())))
    # `os._exit` is documented, and the only way for a fork to leave.
    assert found - {"_distrib", "_exit"} <= OTHERS.get(str(path.relative_to(ROOT)), set())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_private_modules_of_keras(path: Path) -> None:
    imported = [
        node.module or ""
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
    ]
    assert not [name for name in imported if name.startswith("keras.src")]


def test_a_private_name_is_seen() -> None:
    tree = ast.parse(
        "from ops import _Private, Public; model._symbolic_build(x); getattr(layer, '_seeds', ()); "
        "self._own = own._own"
    )
    assert set(private_names(tree)) == {"_Private", "_symbolic_build", "_seeds"}
