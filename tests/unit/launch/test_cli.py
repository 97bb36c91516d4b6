import json
import subprocess
import sys
from pathlib import Path

import pytest

from distrib.checkpoint import manifest
from distrib.launch.cli import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (10, 200):
        folder = tmp_path / "checkpoints" / str(step)
        folder.mkdir(parents=True)
        (folder / "data").write_bytes(b"x" * 3 * 2**20)
        manifest.commit(folder, step, step // 100, step % 100)
    return tmp_path


def test_help_answers_without_tensorflow() -> None:
    code = (
        "import sys\nfrom distrib.launch.cli import main\ncode = main(['--help'])\n"
        "heavy = {'tensorflow', 'keras', 'jax', 'orbax'} & set(sys.modules)\n"
        "sys.exit(code or bool(heavy))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "checkpoints" in done.stdout


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["checkpoints", "ls"]])
def test_wrong_usage_is_64(arguments: list[str]) -> None:
    assert main(arguments) == 64


def test_ls(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoints", "ls", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["step", "epoch", "batch", "age", "size", "state"]
    assert lines[1].split()[:3] == ["10", "0", "10"]
    assert lines[2].split()[:3] == ["200", "2", "0"]
    assert "3.0 MiB" in lines[2]


def test_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoints", "verify", "--json", str(run)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["step"], row["state"], row["bytes"]) for row in rows] == [
        (10, "sound", 3 * 2**20),
        (200, "sound", 3 * 2**20),
    ]


def test_verify_finds_what_ls_does_not(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = run / "checkpoints" / "200" / "data"
    data.write_bytes(b"y" + data.read_bytes()[1:])
    assert main(["checkpoints", "ls", str(run)]) == 0
    capsys.readouterr()
    assert main(["checkpoints", "verify", str(run)]) == 65
    assert f"damaged: {data} has CRC32C" in capsys.readouterr().out


def test_no_such_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoints", "ls", str(tmp_path / "typo")]) == 78
    assert "typo/checkpoints does not exist" in capsys.readouterr().err
