import os
import subprocess
import sys

import pytest

from distrib import startup_noise
from distrib.startup_noise import StartupNoise, may_have_gpu, of_ranks

AT = b"00:00:1795719205.508723    3973 "
ONEDNN = b"I0000 " + AT + b"port.cc:153] oneDNN custom operations are on. You may see.\n"
CPU = (
    b"I0000 " + AT + b"cpu_feature_guard.cc:227] This TensorFlow binary is optimized.\n"
    b"To enable the following instructions: AVX2 FMA, rebuild TensorFlow.\n"
)
NO_DRIVER = b"I0000 " + AT + b"cudart_stub.cc:31] Could not find cuda drivers on your machine\n"
CUINIT = b"E0000 " + AT + b"cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA error\n"
FAULT = b"E0000 " + AT + b"cuda_dnn.cc:1] Could not load library libcudnn.so.9\n"


def test_messages_are_dropped_line_by_line() -> None:
    """As `distrib run` passes them for all ranks but the first."""
    noise = StartupNoise(True, is_chief=False)
    assert [noise.remove(line) for line in CPU.splitlines(keepends=True)] == [b"", b""]


def test_what_is_dropped() -> None:
    everything = ONEDNN + CPU + NO_DRIVER + b"mine\n" + CUINIT + FAULT
    assert StartupNoise(False, is_chief=True).remove(everything) == b"mine\n" + FAULT
    on_gpu = StartupNoise(True, is_chief=True).remove(everything)
    assert on_gpu == NO_DRIVER + b"mine\n" + CUINIT + FAULT
    assert StartupNoise(True, is_chief=False).remove(NO_DRIVER + CUINIT) == CUINIT


def test_lines_in_pieces() -> None:
    noise = StartupNoise(True, is_chief=True)
    pieces = [b"1/2 ", ONEDNN, b"done", b"\n" + ONEDNN, b"\r2/2"]
    shown = [noise.remove(piece) for piece in pieces]
    assert shown == [b"1/2 ", ONEDNN, b"done", b"\n", b"\r2/2"], "a line was not TensorFlow's"


def test_who_expects_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup_noise, "_DEVICES", ())
    assert not may_have_gpu({})
    assert may_have_gpu({"NVIDIA_VISIBLE_DEVICES": "all"})
    assert of_ranks([True], {})[0].remove(CUINIT) == b""
    assert of_ranks([True, False], {})[0].remove(CUINIT) == CUINIT, "the other host may have one"


@pytest.mark.parametrize(("level", "shown"), [("0", True), ("1", False), ("3", False)])
def test_the_user_decides(level: str, shown: bool) -> None:
    assert bool(of_ranks([True], {"TF_CPP_MIN_LOG_LEVEL": level})) is not shown


def test_as_a_program() -> None:
    command = [sys.executable, "-I", startup_noise.__file__]
    done = subprocess.run(command, input=ONEDNN + FAULT, capture_output=True)
    assert (done.stdout, done.stderr) == (FAULT, b"")


def test_quiet() -> None:
    """A fault that ends the process while TensorFlow is loaded is shown; the noise is not."""
    code = (
        "import os, sys, types\n"
        "class Finder:\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name == 'tensorflow':\n"
        f"            os.write(2, {ONEDNN + FAULT!r})\n"
        "            os.abort()\n"
        "sys.meta_path.insert(0, Finder)\n"
        "import distrib.quiet\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run([sys.executable, "-P", "-c", code], env=environment, capture_output=True)
    assert done.returncode == -6
    assert done.stderr.endswith(FAULT)
    assert ONEDNN not in done.stderr
