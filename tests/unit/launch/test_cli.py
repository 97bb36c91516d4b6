import subprocess
import sys

import pytest

from distrib.launch.cli import main


def test_help_does_not_import_tensorflow() -> None:
    code = (
        "import sys\nfrom distrib.launch.cli import main\ncode = main(['--help'])\n"
        "heavy = {'tensorflow', 'keras', 'jax', 'orbax'} & set(sys.modules)\n"
        "sys.exit(code or bool(heavy))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "checkpoints" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["nonsense"], ["checkpoints"], ["checkpoints", "ls"]),
        ["checkpoints", "show", "runs/17", "seven"],
        ["checkpoints", "diff", "runs/17", "7"],
        ["checkpoints", "rm", "runs/17", "newest"],
    ],
)
def test_wrong_usage_ends_with_64(arguments: list[str]) -> None:
    assert main(arguments) == 64
