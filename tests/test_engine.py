"""Runs that are killed, stopped, starved of disk, or resumed as something else."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rethink_imagenet.data.scenes import write_scenes
from rethink_imagenet.networks.backbones import Body
from rethink_imagenet.training.checkpoints import checkpoints_of, iteration_of, locked, read_checkpoint
from rethink_imagenet.training.logs import read_log

from .launch import launch
from .soak import COMMAND, differences, soak

SIZE = ["--model", "demo", "--short", "64", "--long", "64", "--batch", "2", "--device", "cpu", "--workers", "1"]
LENGTH = ["--schedule", "2", "--unit", "10", "--save-every", "1"]
Done = subprocess.CompletedProcess[str]


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return write_scenes(tmp_path / "scenes", train=12, val=2)


@pytest.fixture
def train(scenes: Path, tmp_path: Path) -> Callable[..., Done]:
    """Run `rethink_train` on the scenes into a folder, with more options."""

    def run(out: str, *more: str) -> Done:
        return launch([COMMAND, "--data", scenes, "--out", tmp_path / out, *SIZE, *LENGTH, *more])

    return run


def stop_when_started(words: list[str], run: Path, number: signal.Signals) -> tuple[int, str]:
    """Start a run, send it a signal after its first checkpoint; its exit status and what it said."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not checkpoints_of(run):
        time.sleep(0.02)
    process.send_signal(number)
    return process.wait(timeout=120), process.stderr.read() if process.stderr else ""


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_kills(tmp_path: Path, kills: int) -> None:
    """Killed so many times at random moments, writing of checkpoints included, a run ends with the same bits."""
    assert soak(tmp_path, kills) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_stopped_then_without_room_then_finished(
    train: Callable[..., Done], scenes: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """A signal ends with a checkpoint and status 75, a full disk leaves it intact, the bits are a straight run's."""
    out = tmp_path / "out"
    words = [str(COMMAND), "--data", str(scenes), "--out", str(out), *SIZE, *LENGTH]
    status, said = stop_when_started(words, out / "2x", number)
    assert status == 75 and "go on with --resume" in said and "Traceback" not in said, said
    last = checkpoints_of(out / "2x")[-1]
    assert f"after iteration {iteration_of(last)} of 20" in said

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    resume = [*words, "--resume"]
    full = subprocess.run(resume, capture_output=True, text=True, timeout=300, check=False, preexec_fn=no_room)
    assert full.returncode == 1 and "could not be written" in full.stderr and "File too large" in full.stderr
    assert full.stderr.count("rethink_train:") == 1 and "Traceback" not in full.stderr
    assert checkpoints_of(out / "2x")[-1] == last and read_checkpoint(last)["iteration"] == iteration_of(last)
    assert not list((out / "2x").rglob("*.partial"))
    assert train("out", "--resume").returncode == 0
    assert train("straight").returncode == 0
    assert differences(out / "2x", tmp_path / "straight" / "2x") == []


def test_the_newest_checkpoint_is_damaged(train: Callable[..., Done], tmp_path: Path) -> None:
    """The one before it takes its place, with a warning that names the damaged one, and the bits are the same."""
    assert train("out").returncode == 0
    assert train("straight").returncode == 0
    newest = checkpoints_of(tmp_path / "out" / "2x")[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 3] ^= 4
    newest.write_bytes(content)
    (tmp_path / "out" / "2x" / "results.json").unlink()
    done = train("out", "--resume")
    assert done.returncode == 0 and f"{newest}: is damaged" in done.stderr, done.stderr
    assert newest.with_name(newest.name + ".damaged").is_file()
    assert differences(tmp_path / "out" / "2x", tmp_path / "straight" / "2x") == []


def test_a_changed_run_is_refused_unless_named(train: Callable[..., Done], scenes: Path, tmp_path: Path) -> None:
    assert train("out").returncode == 0
    config = tmp_path / "out" / "2x" / "config.json"
    older = json.loads(config.read_text()) | {"code": "0123456789abcdef", "processes": 4}
    config.write_text(json.dumps(older))
    refused = train("out", "--resume")
    assert refused.returncode == 2 and "processes 4, now 1; code 0123456789abcdef, now" in refused.stderr
    assert "--accept processes,code" in refused.stderr
    assert train("out", "--resume", "--accept", "processes,code").returncode == 0
    assert json.loads(config.read_text()) == older  # its results are those of the older code
    annotations = scenes / "annotations" / "instances_train.json"
    content = json.loads(annotations.read_text())
    content["annotations"][0]["bbox"][2] -= 1
    annotations.write_text(json.dumps(content))
    changed = train("out", "--resume")
    assert changed.returncode == 2 and "of a run with other settings (train " in changed.stderr


def test_weights_of_the_same_name_that_are_others(train: Callable[..., Done], tmp_path: Path) -> None:
    """They are refused, also where only a branch would begin; a folder of old, which has no digest, is accepted."""
    weights, out = tmp_path / "body.pth", tmp_path / "out"
    torch.save(Body("resnet10_025").state_dict(), weights)
    words = "--weights", str(weights), "--schedule", "1"
    assert train("out", *words).returncode == 0
    torch.save(Body("resnet10_025").state_dict(), weights)
    refused = train("out", *words, "--resume")
    assert refused.returncode == 2 and "of a run with other settings (weights_digest " in refused.stderr
    assert train("out", *words, "--resume", "--accept", "weights_digest").returncode == 0
    for path, told in ((out / "config.json", "1x/config.json: of a run"), (out / "1x" / "config.json", "")):
        content = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in content.items() if key != "weights_digest"}))
        resumed = train("out", *words, "--resume")
        assert told in resumed.stderr and resumed.returncode == (2 if told else 0)


def test_a_run_in_use_is_refused(train: Callable[..., Done], tmp_path: Path) -> None:
    assert train("out", "--schedule", "1").returncode == 0
    with locked(tmp_path / "out" / "1x"):
        for words in (("--resume",), ("--overwrite",)):
            done = train("out", "--schedule", "1", *words)
            assert done.returncode == 2 and "1x: in use by another live process" in done.stderr


def test_a_family_handed_out(train: Callable[..., Done], tmp_path: Path) -> None:
    """The trunk by one process and a branch by another give the straight run; without its trunk a branch says so."""
    family = ["--schedule", "2,3"]
    early = train("parts", *family, "--only", "2")
    assert early.returncode == 2 and "3x: has no checkpoint of iteration 13 to branch off from" in early.stderr
    assert train("parts", *family, "--only", "3", "--resume").returncode == 0
    branch = train("parts", *family, "--only", "2", "--resume")
    assert branch.returncode == 0 and branch.stdout.rstrip().endswith("parts/2x/results.json")
    together = train("whole", *family)
    assert "a trunk of 30 iterations, branches after 13: 37 iterations instead of 50" in together.stdout
    assert "with all that follows" in together.stderr
    assert train("straight").returncode == 0
    logs = {name: read_log(tmp_path / name / "2x") for name in ("parts", "whole", "straight")}
    losses = {
        name: [(line["iteration"], line["losses"]) for line in log if "losses" in line] for name, log in logs.items()
    }
    assert losses["parts"] == losses["whole"] == losses["straight"] and len(losses["whole"]) > 1
    for name in ("parts", "whole"):
        found = differences(tmp_path / name / "2x", tmp_path / "straight" / "2x")
        assert set(found) <= {"log"}, found  # evaluations are set by the longest schedule
    (point,) = (path for path in checkpoints_of(tmp_path / "whole" / "3x") if iteration_of(path) == 13)
    point.write_bytes(point.read_bytes()[:1000])
    for file in (tmp_path / "whole" / "2x" / "checkpoints").glob("*.pt"):
        file.unlink()
    (tmp_path / "whole" / "2x" / "results.json").unlink()
    damaged = train("whole", *family, "--resume")
    assert damaged.returncode == 2 and f"{point}: is damaged" in damaged.stderr


def test_all_checkpoints_are_damaged(train: Callable[..., Done], tmp_path: Path) -> None:
    """A branch branches off again, with the same bits; a straight run is not begun anew in silence."""
    family = ["--schedule", "2,3"]
    for name in ("out", "undisturbed"):
        assert train(name, *family).returncode == 0
    for name in ("2x", "3x"):
        for checkpoint in checkpoints_of(tmp_path / "out" / name):
            if iteration_of(checkpoint) != 13 or name == "2x":
                checkpoint.write_bytes(b"rotten")
        (tmp_path / "out" / name / "results.json").unlink()
    assert train("out", *family, "--only", "2", "--resume").returncode == 0
    assert differences(tmp_path / "out" / "2x", tmp_path / "undisturbed" / "2x") == []
    for checkpoint in checkpoints_of(tmp_path / "out" / "3x"):
        checkpoint.write_bytes(b"rotten")
    for _ in range(2):
        refused = train("out", *family, "--resume")
        assert refused.returncode == 2 and "3x: all its checkpoints are damaged" in refused.stderr, refused.stderr


def test_a_log_with_a_hole_is_told(train: Callable[..., Done], tmp_path: Path) -> None:
    assert train("out").returncode == 0
    log, results = tmp_path / "out" / "2x" / "log.jsonl", tmp_path / "out" / "2x" / "results.json"
    whole = log.read_text()
    results.write_text("[1, 2")
    told = train("out", "--resume")
    assert told.returncode == 2 and "results.json: is damaged" in told.stderr
    results.unlink()
    log.write_text("3\n" + whole)
    told = train("out", "--resume")
    assert told.returncode == 2 and "log.jsonl: line 1 is no line of a log" in told.stderr


def test_dry_run_and_tensorboard(train: Callable[..., Done], tmp_path: Path) -> None:
    told = train("out", "--dry-run")
    assert told.returncode == 0 and not (tmp_path / "out").exists()
    assert "20 iterations, 2 images each" in told.stdout and "checkpoints: 2 of" in told.stdout
    assert train("out", "--tensorboard").returncode == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "out" / "2x" / "tensorboard")).Reload()
    log = [json.loads(line) for line in (tmp_path / "out" / "2x" / "log.jsonl").read_text().splitlines()]
    lines, points = [line for line in log if "losses" in line], events.Scalars("losses/loss_mask")
    assert [point.step for point in points] == [line["iteration"] for line in lines] == list(range(1, 21))
    assert [point.value for point in points] == pytest.approx([line["losses"]["loss_mask"] for line in lines])


def test_import_leaves_signals_alone() -> None:
    code = (
        "import signal; was = signal.getsignal(2); import rethink_imagenet.tools.cli; assert signal.getsignal(2) is was"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, env=dict(os.environ)).returncode == 0
