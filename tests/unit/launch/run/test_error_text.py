"""Errors of this Python and of real programs, as a rank's standard error shows them."""

import subprocess
import sys
from pathlib import Path

import pytest

from distrib.launch.run.error_text import ErrorText, find_error, last_line
from distrib.launch.run.transient import may_pass

NOTES = """
error = ValueError("first line\\nsecond line\\n^^^^")
error.add_note("a note: of one line")
raise error
"""
CHAINED = """
try:
    raise ConnectionResetError(104, "Connection reset by peer")
except OSError as error:
    raise ValueError("cannot load") from error
"""
DURING = """
try:
    {}["a"]
except KeyError:
    int("x")
"""
CAUGHT = """
import traceback
try:
    {}["a"]
except KeyError:
    traceback.print_exc()
int("x")
"""
GROUP = """
raise ExceptionGroup("two tasks", [ValueError("one"), ExceptionGroup("in", [OSError(5, "I/O")])])
"""
LONG_STATEMENT = """
int(
    "x"
    "y")
"""
IGNORED = """
class Late:
    def __del__(self):
        raise RuntimeError("too late")
late = Late()
raise ValueError("the cause")
"""
THREAD = """
import threading
def fail(): raise OSError("not the cause")
thread = threading.Thread(target=fail); thread.start(); thread.join()
raise ValueError("the cause")
"""
MODULE = """
import json
json.loads("{")
"""
ARGPARSE = """
import argparse
parser = argparse.ArgumentParser(prog="train.py")
parser.add_argument("--epochs", type=int)
parser.parse_args(["--epoch", "three"])
"""


def errors_of(script: str) -> str:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True).stderr


@pytest.mark.parametrize(
    ("script", "line"),
    [
        (NOTES, "ValueError: first line"),
        (CHAINED, "ValueError: cannot load"),
        (DURING, "ValueError: invalid literal for int() with base 10: 'x'"),
        (CAUGHT, "ValueError: invalid literal for int() with base 10: 'x'"),
        (GROUP, "ExceptionGroup: two tasks (2 sub-exceptions): ValueError: one"),
        (LONG_STATEMENT, "ValueError: invalid literal for int() with base 10: 'xy'"),
        (IGNORED, "ValueError: the cause"),
        (THREAD, "ValueError: the cause"),
        (MODULE, "JSONDecodeError: Expecting property name enclosed in double quotes: line 1"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("def f(:\n  pass", "SyntaxError: invalid syntax"),
        ("if 1:\npass", "IndentationError: expected an indented block after 'if' statement"),
        (ARGPARSE, "train.py: error: argument --epochs: invalid int value: 'three'"),
        ("import os; os.abort()", ""),
    ],
)
def test_what_python_reports(script: str, line: str) -> None:
    assert find_error(errors_of(script)).line.startswith(line)
    assert bool(find_error(errors_of(script)).line) == bool(line)


def test_no_such_script(tmp_path: Path) -> None:
    command = [sys.executable, str(tmp_path / "train.py")]
    text = subprocess.run(command, capture_output=True, text=True).stderr
    assert "can't open file" in find_error(text).line
    text = subprocess.run([sys.executable, "-m", "nope"], capture_output=True, text=True).stderr
    assert "No module named nope" in find_error(text).line


def test_the_chain() -> None:
    assert find_error(errors_of(CHAINED)).chain == (
        "ConnectionResetError: [Errno 104] Connection reset by peer",
        "ValueError: cannot load",
    )
    assert len(find_error(errors_of(CAUGHT)).chain) == 1
    assert find_error(errors_of(CHAINED)).type == "ValueError"


IN_A_MAP = """\
Traceback (most recent call last):
  File "train.py", line 6, in <module>
    model.fit(data)
tensorflow.python.framework.errors_impl.InvalidArgumentError: Graph execution error:

Detected at node EagerPyFunc defined at (most recent call last):
<stack traces unavailable>
Error in user-defined function passed to MapDataset:1 transformation: ValueError: bad row 7
Traceback (most recent call last):

  File "script_ops.py", line 267, in __call__
    return func(device, token, args)
^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^

ValueError: bad row 7


\t [[{{node EagerPyFunc}}]]
\t [[IteratorGetNext]] [Op:__inference_multi_step_on_iterator_180]
"""
IN_A_GRAPH = """\
Traceback (most recent call last):
  File "execute.py", line 53, in quick_execute
    tensors = pywrap_tfe.TFE_Py_Execute(ctx._handle, device_name, op_name,
^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
tensorflow.python.framework.errors_impl.InvalidArgumentError: Graph execution error:

Detected at node MatMul/b defined at (most recent call last):
  File "train.py", line 11, in <module>

segment_ids[0] = 7 is out of range [0, 4)
\t [[{{node MatMul/b}}]] [Op:__inference_multi_step_on_iterator_243]
"""
IN_A_LAYER = """\
Traceback (most recent call last):
  File "input_spec.py", line 239, in assert_input_compatibility
    raise ValueError(
ValueError: Exception encountered when calling Sequential.call().

\x1b[1mInput 0 of layer 'dense' is incompatible with the layer\x1b[0m

Arguments received by Sequential.call():
  • inputs=tf.Tensor(shape=(None, 5), dtype=float32)
"""
IN_USER_CODE = """\
Traceback (most recent call last):
  File "train.py", line 14, in <module>
    model.fit(data)
ValueError: in user code:

    File "trainer.py", line 132, in one_step_on_data  **
        return self.train_step(data)
    File "train.py", line 7, in train_step  *
        raise ValueError(f"weights: {weights}")

    ValueError: weights: 3


distrib: saved
"""
IN_A_LAYER_IN_USER_CODE = """\
Traceback (most recent call last):
  File "train.py", line 14, in <module>
    model.fit(data)
keras.src.errors.ShapeError: in user code:

    File "trainer.py", line 132, in one_step_on_data  **
        return self.train_step(data)

    ShapeError: Exception encountered when calling Mine.call().
\x20\x20\x20\x20
    \x1b[1mno such axis\x1b[0m
\x20\x20\x20\x20
    Arguments received by Mine.call():

"""
TERMINATED = """\
terminate called after throwing an instance of 'gloo::IoException'
  what():  [transport/tcp/pair.cc:598] Connection closed by peer [127.0.0.1]:2022
Fatal Python error: Aborted

Current thread 0x00007f (most recent call first):
  File "train.py", line 4 in <module>
"""
CHECK_FAILED = """\
F0000 00:00:1795719859.724920   13928 tensor.cc:1858] Check failed: dtype() == 1 (3 vs. 1)
Fatal Python error: Aborted
"""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (IN_A_MAP, "ValueError: bad row 7"),
        (IN_A_GRAPH, "InvalidArgumentError: segment_ids[0] = 7 is out of range [0, 4)"),
        (
            IN_A_LAYER,
            "ValueError: Exception encountered when calling Sequential.call(). "
            "Input 0 of layer 'dense' is incompatible with the layer",
        ),
        (IN_USER_CODE, "ValueError: weights: 3"),
        (
            IN_A_LAYER_IN_USER_CODE,
            "ShapeError: Exception encountered when calling Mine.call(). no such axis",
        ),
        (
            TERMINATED,
            "gloo::IoException: [transport/tcp/pair.cc:598] Connection closed by peer "
            "[127.0.0.1]:2022",
        ),
        (CHECK_FAILED, "Check failed: dtype() == 1 (3 vs. 1)"),
        ("Fatal Python error: Segmentation fault\n", "Fatal Python error: Segmentation fault"),
        ("", ""),
        ("W0000 00:00:17 1 x.cc:1] Traceback: none\n", ""),
    ],
)
def test_what_tensorflow_and_keras_report(text: str, line: str) -> None:
    assert find_error(text).line == line


def test_the_last_line_without_an_exception() -> None:
    text = "no data in /data\n  detail\nI0000 00:00:17 1 x.cc:1] bye\ndistrib: saved\n\n"
    assert find_error(text) == ErrorText()
    assert last_line(text) == "no data in /data"
    assert last_line("") == ""


@pytest.mark.parametrize(
    "error",
    [
        "URLError: <urlopen error [Errno -2] Name or service not known>",
        "HTTPError: HTTP Error 503: Service Unavailable",
        "HTTPError: 429 Client Error: Too Many Requests for url: http://h/x",
        "Exception: URL fetch failure on http://h/x: 502 -- Bad Gateway",
        "EndpointConnectionError: Could not connect to the endpoint URL",
        "ReadTimeout: HTTPSConnectionPool(host='h', port=443): Read timed out.",
        "OSError: [Errno 116] Stale file handle",
        "ResourceExhaustedError: failed to allocate memory",
    ],
)
def test_errors_that_may_pass(error: str) -> None:
    assert may_pass(["KeyError: 'a'", error, "ValueError: cannot load"])


@pytest.mark.parametrize(
    "error",
    [
        "ModuleNotFoundError: No module named 'foo'",
        "FileNotFoundError: [Errno 2] No such file or directory: '/data'",
        "PermissionError: [Errno 13] Permission denied: '/data'",
        "HTTPError: HTTP Error 404: Not Found",
        "InvalidArgumentError: shapes 503 and 500",
        "KeyError: 'TimeoutError'",
        "ValueError: 503",
    ],
)
def test_errors_that_do_not_pass(error: str) -> None:
    assert not may_pass([error])
