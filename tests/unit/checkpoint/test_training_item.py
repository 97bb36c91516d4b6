import doctest
import subprocess
import sys

import pytest

from distrib.checkpoint import training_item
from distrib.checkpoint.training_item import identity, unnumbered

KERNEL = {"group": "model", "path": "sequential/dense/kernel", "shape": [5, 8], "dtype": "float32"}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("dense_3/kernel", "dense/kernel"),
        ("adam/sequential_2_dense_11_kernel_momentum", "adam/sequential_dense_kernel_momentum"),
        ("seed_generator_4/seed_generator_state~2", "seed_generator/seed_generator_state~2"),
        ("conv2d/kernel", "conv2d/kernel"),
    ],
)
def test_unnumbered(path: str, expected: str) -> None:
    assert unnumbered(path) == expected


def test_keras_numbers_do_not_change_the_identity() -> None:
    renumbered = {**KERNEL, "path": "sequential_1/dense_7/kernel", "shape": (5, 8)}
    assert identity(renumbered) == identity(KERNEL)


@pytest.mark.parametrize(
    "change",
    [{"group": "other"}, {"path": "sequential/dense/bias"}, {"shape": [8, 5]}, {"dtype": "int32"}],
)
def test_all_else_changes_the_identity(change: dict[str, object]) -> None:
    assert identity({**KERNEL, **change}) != identity(KERNEL)


def test_it_needs_no_tensorflow() -> None:
    code = (
        "import sys, distrib.checkpoint.training_item\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_examples() -> None:
    failed, tried = doctest.testmod(training_item)
    assert (failed, tried) == (0, 2)
