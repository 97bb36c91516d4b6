import subprocess
import sys

import pytest

from distrib import errors


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        ("ConfigurationError('x')", 78),
        ("CheckpointMismatchError('x')", 78),
        ("NoLoadableCheckpointError('x')", 65),
        ("CheckpointError('x')", 1),
        ("NoProgressError('x')", 70),
        ("Preempted()", 75),
    ],
)
def test_uncaught_error_gives_the_exit_code(raised: str, code: int) -> None:
    done = run(f"from distrib.errors import *; install_exit_codes(); raise {raised}")
    assert done.returncode == code
    assert ("Traceback" in done.stderr) == (code not in (70, 75))
    assert ("distrib: x" in done.stderr) == (code == 70)


def test_other_errors_are_left_alone() -> None:
    done = run("from distrib.errors import *; install_exit_codes(); raise ValueError('mine')")
    assert done.returncode == 1
    assert done.stderr.count("ValueError: mine") == 1


def test_installing_twice_prints_once() -> None:
    done = run(
        "from distrib.errors import *; install_exit_codes(); install_exit_codes();"
        "raise ConfigurationError('x')"
    )
    assert done.stderr.count("ConfigurationError: x") == 1


def test_the_listener_is_called_after_the_traceback() -> None:
    listen = "on_uncaught_error(lambda error: print('noted', type(error), file=sys.stderr));"
    start = f"import sys; from distrib.errors import *; install_exit_codes(); {listen}"
    done = run(f"{start} raise ValueError('mine')")
    assert done.returncode == 1
    assert done.stderr.endswith("ValueError: mine\nnoted <class 'ValueError'>\n")
    done = run(f"{start} on_uncaught_error(None); raise ValueError('mine')")
    assert done.stderr.endswith("ValueError: mine\n")


def test_configuration_errors_are_value_errors() -> None:
    assert issubclass(errors.ConfigurationError, ValueError)
    assert issubclass(errors.CheckpointError, OSError)


def test_importing_distrib_is_cheap() -> None:
    heavy = ["tensorflow", "keras", "jax", "orbax", "s3fs", "gcsfs", "matplotlib"]
    done = run(f"import sys, distrib; print([m for m in {heavy} if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr
