"""The public API: what it is, and that it and the documentation name the same things.

`public_api.txt` beside this file lists it. A change that is meant is taken over by
`python tests/unit/test_public_api.py`, and shows in the review.
"""

from __future__ import annotations

import ast
import difflib
import doctest
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import keras
import pytest

import distrib
import distrib.callbacks
import distrib.data
import distrib.retention

ROOT = Path(__file__).parents[2]
SNAPSHOT = Path(__file__).with_name("public_api.txt")
MODULES = (distrib, distrib.callbacks, distrib.data, distrib.retention)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What the pages call an object without making it: `cluster.rank`.
VARIABLES = {"cluster": distrib.Cluster, "distrib": distrib}


class Text(str):
    """Shown without quotes in a signature."""

    __repr__ = str.__str__


def signature(function: Any) -> str:
    found = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=Text(parameter.annotation))
        if isinstance(parameter.annotation, str)
        else parameter
        for parameter in found.parameters.values()
        if parameter.name != "self"
    ]
    returns = found.return_annotation
    if isinstance(returns, str):
        returns = Text(returns)
    return str(found.replace(parameters=parameters, return_annotation=returns))


def ours(kind: type) -> bool:
    return kind.__module__.startswith("distrib")


def describe(name: str, item: Any) -> Iterator[str]:
    if isinstance(item, type) and not ours(item):
        yield f"{name} = {item.__module__.replace('.src.', '.').rpartition('.')[0]}.{item.__name__}"
    elif isinstance(item, type):
        bases = [base for base in item.__bases__ if not base.__name__.startswith("_")]
        if issubclass(item, BaseException):
            yield f"{name}({', '.join(base.__name__ for base in bases)})"
        elif getattr(item, "_is_protocol", False):
            yield f"{name}(Protocol)"
        elif "__init__" in vars(item):
            yield name + signature(item).removesuffix(" -> None")
        else:
            yield f"{name}(as {keras_class(item)})"
        yield from members(name, item)
    else:
        yield name + signature(item)


def keras_class(item: type) -> str:
    """The class whose arguments a callback has, whatever they are in the installed Keras."""
    return f"keras.callbacks.{next(k.__name__ for k in item.__mro__ if not ours(k))}"


def members(name: str, item: type) -> Iterator[str]:
    """What distrib adds to the classes that it inherits from."""
    inherited = {key for kind in item.__mro__ if not ours(kind) for key in dir(kind)}
    for key in sorted({key for kind in item.__mro__ if ours(kind) for key in vars(kind)}):
        if key.startswith("_") or key in inherited:
            continue
        member = inspect.getattr_static(item, key)
        if isinstance(member, property):
            yield f"{name}.{key}: {inspect.signature(member.fget).return_annotation}"  # type: ignore[arg-type]
        elif callable(getattr(item, key)):
            yield f"{name}.{key}{signature(getattr(item, key))}"
        elif issubclass(item, BaseException):
            yield f"{name}.{key} = {getattr(item, key)!r}"


def public_names() -> dict[str, Any]:
    """Qualified names to objects; of `distrib.callbacks` those that distrib knows."""
    return {
        f"{module.__name__}.{name}": getattr(module, name)
        for module in MODULES
        for name in module.__all__
    }


def snapshot() -> list[str]:
    return [line for name, item in sorted(public_names().items()) for line in describe(name, item)]


def in_this_keras(line: str) -> bool:
    """Whether the installed Keras has the callback that a line of the snapshot is about."""
    match = re.match(r"distrib\.callbacks\.(OrbaxCheckpoint)\b", line)
    return match is None or hasattr(keras.callbacks, match[1])


def test_public_api_is_that_of_the_snapshot() -> None:
    expected = [line for line in SNAPSHOT.read_text().splitlines() if in_this_keras(line)]
    # A newer Keras may have callbacks that distrib passes on without knowing them.
    found = [line for line in snapshot() if " = keras." not in line or line in expected]
    changes = "\n".join(difflib.unified_diff(expected, found, "snapshot", "now", lineterm="", n=0))
    assert not changes, (
        f"The public API has changed:\n{changes}\nIf that is meant, run "
        "`python tests/unit/test_public_api.py`, and say it in docs/ and CHANGELOG.md."
    )


def first_column(page: Path) -> set[str]:
    """Names in the first cells of a page's tables: "| `name(...)` | ..." ."""
    return set(re.findall(r"^\| `([\w.]+)[^`]*` \|", page.read_text(), re.MULTILINE))


def test_the_reference_lists_the_public_names_and_no_others() -> None:
    names = {name for name in public_names() if not name.startswith("distrib.callbacks.")}
    names |= {f"cluster.{name}" for name in dir(distrib.Cluster) if not name.startswith("_")}
    assert first_column(ROOT / "docs" / "api.md") == names


def test_the_page_of_callbacks_lists_them_and_no_others() -> None:
    page = first_column(ROOT / "docs" / "callbacks.md")
    listed = set(re.findall(r"^distrib\.callbacks\.(\w+)", SNAPSHOT.read_text(), re.MULTILINE))
    assert page == listed


def sources() -> dict[str, str]:
    """Python code in the pages and in the docstrings of what is public, by where it stands."""
    found = {}
    for page in PAGES:
        blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        found |= {f"{page.name}, block {number}": block for number, block in enumerate(blocks, 1)}
    documented = {module.__name__: module for module in MODULES} | public_names()
    for name, item in documented.items():
        if isinstance(item, ModuleType) or ours(item):
            examples = doctest.DocTestParser().get_examples(item.__doc__ or "")
            found[name] = "".join(example.source for example in examples)
    return {place: code for place, code in found.items() if code}


def resolve(path: str) -> Any:
    """The object of a dotted name that begins with `distrib` or `cluster`.

    Raises:
        AttributeError: If there is none.
    """
    first, *rest = path.split(".")
    item: Any = VARIABLES[first]
    for number, part in enumerate(rest, 1):
        if isinstance(item, ModuleType) and not hasattr(item, part):
            try:
                importlib.import_module(".".join([first, *rest[:number]]))
            except ModuleNotFoundError as error:
                raise AttributeError(path) from error
        if isinstance(item, property):
            item = get_type_hints(item.fget)["return"]
        item = getattr(item, part)
    return item


def dotted(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return None


def check_call(call: ast.Call, item: Any) -> None:
    """Check that the arguments exist.

    Raises:
        TypeError: If not.
    """
    keywords = [keyword.arg for keyword in call.keywords]
    if None in keywords or any(isinstance(argument, ast.Starred) for argument in call.args):
        return
    found = inspect.signature(item)
    has_self = next(iter(found.parameters), None) == "self"
    found.bind(*[None] * (has_self + len(call.args)), **dict.fromkeys(map(str, keywords)))


def check_code(code: str) -> int:
    """Check all that Python code says about distrib; returns the number of names looked up."""
    names = {name.rpartition(".")[2]: item for name, item in public_names().items()}
    looked_up = 0
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "distrib":
            for alias in node.names:
                names[alias.asname or alias.name] = resolve(f"{node.module}.{alias.name}")
                looked_up += 1
    for node in ast.walk(ast.parse(code)):
        path = dotted(node)
        if path and "." in path and path.split(".")[0] in VARIABLES:
            resolve(path)
            looked_up += 1
        if isinstance(node, ast.Call) and (path := dotted(node.func)):
            item = names.get(path)
            if "." in path and path.split(".")[0] in VARIABLES:
                item = resolve(path)
            if item is not None:
                check_call(node, item)
                looked_up += 1
    return looked_up


@pytest.mark.parametrize("place", sources())
def test_code_in_the_documentation_names_what_exists(place: str) -> None:
    check_code(sources()[place])


def test_names_in_the_text_of_the_documentation_exist() -> None:
    count = 0
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for span in re.findall(r"`([^`\n]+)`", text):
            for path in re.findall(
                r"(?<![\w./-])(?:distrib|cluster)(?:\.[A-Za-z_]\w*)+(?![\w/])", span
            ):
                resolve(path)
                count += 1
    assert count >= 30


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("from distrib.callbacks import EarlyStoping", AttributeError),
        ("import distrib\ndistrib.start()", AttributeError),
        ("cluster.ranks", AttributeError),
        ("cluster.collectives.reduce(1)", AttributeError),
        ("distrib.retention.Best(3)", AttributeError),
        ("distrib.nowhere.Best(3)", AttributeError),
        ('BackupAndRestore("runs/17", keep_first=2)', TypeError),
        ('BackupAndRestore("runs/17", 500, False, True, 3)', TypeError),
        ("cluster.dataset(x, batch=3)", TypeError),
        ("cluster.dataset(x)", TypeError),
    ],
)
def test_the_checks_find_mistakes(code: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        check_code(code)


def test_the_checks_look_things_up() -> None:
    assert sum(map(check_code, sources().values())) > 100


if __name__ == "__main__":
    SNAPSHOT.write_text("".join(f"{line}\n" for line in snapshot()))
