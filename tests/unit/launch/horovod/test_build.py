import subprocess
import sys
from pathlib import Path

import pytest

from distrib.launch.cli import main
from distrib.launch.horovod.build import default_cache


def test_help_imports_no_tensorflow() -> None:
    code = (
        "import sys\nfrom distrib.launch.cli import main\n"
        "code = main(['horovod', 'build', '--help'])\n"
        "sys.exit(code or bool({'tensorflow', 'horovod'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--no-check" in done.stdout


@pytest.mark.parametrize("arguments", [["horovod"], ["horovod", "build", "--nonsense"]])
def test_wrong_usage_is_64(arguments: list[str]) -> None:
    assert main(arguments) == 64


def test_the_default_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache() == Path("/somewhere/distrib/horovod")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache().expanduser() == Path.home() / ".cache/distrib/horovod"
