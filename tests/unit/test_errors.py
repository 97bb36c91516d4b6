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


def test_after_the_loss_of_a_peer_only_the_kernel_frees_memory() -> None:
    """Everything that Python promises to do at the end is done, in its order."""
    done = run(
        "import atexit, threading, time\n"
        "from distrib.errors import *\n"
        "class Large:\n"
        "    def __del__(self): print('freed')\n"
        "large = Large()\n"
        "install_exit_codes()\n"
        "atexit.register(print, 'second hook', end='')\n"
        "atexit.register(print, 'first hook')\n"
        "threading.Thread(target=lambda: (time.sleep(0.3), print('thread'))).start()\n"
        "raise LostPeerError('x')\n"
    )
    assert done.returncode == 76
    assert done.stdout == "thread\nfirst hook\nsecond hook"
    assert "distrib: x" in done.stderr


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


def test_an_error_does_not_end_an_interactive_session() -> None:
    install = "from distrib.errors import *; install_exit_codes()"
    console = f"import code, sys; {install}; code.interact(local=globals())"
    session = "raise ConfigurationError('a typo')\nprint('still', 'here')\n"
    done = subprocess.run(
        [sys.executable, "-P", "-c", console], input=session, capture_output=True, text=True
    )
    assert "ConfigurationError: a typo" in done.stderr
    assert "still here" in done.stdout
    assert done.returncode == 0


def test_a_forked_process_ends_as_if_its_parent_had_no_exit_codes() -> None:
    done = run(
        "import os; from distrib.errors import *; install_exit_codes();"
        "pid = os.fork()\n"
        "if pid == 0: raise ConfigurationError('of a child')\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    assert done.returncode == 1
    assert "ConfigurationError: of a child" in done.stderr


def test_configuration_errors_are_value_errors() -> None:
    assert issubclass(errors.ConfigurationError, ValueError)
    assert issubclass(errors.CheckpointError, OSError)


def test_importing_distrib_is_cheap() -> None:
    heavy = ["tensorflow", "keras", "jax", "orbax", "s3fs", "gcsfs", "matplotlib"]
    done = run(f"import sys, distrib; print([m for m in {heavy} if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr
