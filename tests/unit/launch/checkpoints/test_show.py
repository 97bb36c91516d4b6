import json
import os
from typing import Any

from distrib.checkpoint import attempts
from distrib.checkpoint.attempts import PREEMPTED
from distrib.checkpoint.manifest import NAME


def test_show(run: Any, checkpoints: Any) -> None:
    run.save(7, metrics={"loss": 0.25}).ended(PREEMPTED)
    run.save(250)
    model = {"class_name": "Functional", "config": {"name": "net"}}
    run.save(300, model=model, metrics={"loss": 0.125})
    result = checkpoints("show", run.url)
    assert result.code == 0
    facts = dict(line.split(maxsplit=1) for line in result.out.splitlines()[:12] if line)
    assert facts["checkpoint"] == f"{run.location}/300 (committed)"
    assert facts["position"] == "step 300, epoch 3, batch 0"
    assert facts["attempt"].startswith(f"3, 4 processes, pid {os.getpid()} on ")
    assert "not ended, last seen" in facts["attempt"]
    assert facts["model"] == "Functional net"
    assert facts["optimizer"] == "Adam"
    assert facts["metrics"] == "loss 0.125"
    assert facts["data"] == "source arrays, num_examples 64"
    assert facts["callbacks"] == "EarlyStopping"
    assert facts["versions"] == "keras 3.15.1"
    assert result.table[-1] == ["model", "bn/mean", "(3,)", "float32", "2", "24", "B"]
    older = checkpoints("show", run.url, 7).out
    assert "preempted" in older
    assert "no config saved" in older


def test_what_the_run_is_made_of(run: Any, checkpoints: Any) -> None:
    record = {
        "layers": {"dense": {"units": 3}},
        "compile": {"loss": "mse", "metrics": None},
        "callbacks": {"EarlyStopping": {"patience": 2}},
    }
    run.save(7, record=record)
    result = checkpoints("show", run.url)
    assert ["compile.loss", "mse"] in result.table
    assert ["callbacks.EarlyStopping.patience", "2"] in result.table
    assert "compile.metrics" not in result.out
    assert "layers" not in result.out
    assert json.loads(checkpoints("show", run.url, "--json").out)["script"] == record


def test_json(run: Any, checkpoints: Any) -> None:
    run.save(7, metrics={"loss": 0.25})
    shown = json.loads(checkpoints("show", run.url, "--json").out)
    assert shown["position"]["step"] == 7
    assert (shown["attempt"], shown["world_size"], shown["fingerprint"]) == (1, 4, "finger")
    assert shown["ledger"]["pid"] == os.getpid()
    assert shown["files"] == len(run.directory.checkpoints()[0].manifest.files)
    assert shown["variables"] == [
        {
            "group": "model",
            "path": "bn/mean",
            "shape": [3],
            "dtype": "float32",
            "copies": 2,
            "bytes": 24,
        }
    ]


def test_without_a_ledger(run: Any, checkpoints: Any) -> None:
    run.save(7)
    (run.location / attempts.FOLDER).remove_tree()
    result = checkpoints("show", run.url)
    assert result.code == 0
    assert "not in the ledger" in result.out


def test_a_damaged_checkpoint_is_65(run: Any, checkpoints: Any) -> None:
    run.save(7)
    (run.directory.checkpoints()[0].root / "training/metadata").write_bytes(b"{}")
    result = checkpoints("show", run.url)
    assert result.code == 65
    assert "training/metadata has 2 bytes instead of" in result.err
    (run.location / "7" / NAME).write_bytes(b"{")
    result = checkpoints("show", run.url)
    assert result.code == 65
    assert "is not a readable manifest" in result.err
