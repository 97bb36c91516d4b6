import subprocess
import sys
from pathlib import Path
from typing import Any


def test_commands_other_than_export_need_no_tensorflow(local_run: Any, tmp_path: Path) -> None:
    local_run.save(1, 2)
    code = (
        "import sys; from distrib.launch.cli import main; url, copy = sys.argv[1:]\n"
        "for line in (['ls', url], ['show', url], ['verify', url], ['diff', url, '2', '2'],"
        " ['copy', url, copy, '--all'], ['rm', copy, '1'], ['prune', copy, '--keep-last', '1']):\n"
        "    assert main(['checkpoints', *line]) == 0, line\n"
        "assert not {'tensorflow', 'keras', 'jax', 'orbax'} & set(sys.modules)"
    )
    command = [sys.executable, "-P", "-c", code, local_run.url, str(tmp_path / "copy")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
