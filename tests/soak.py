"""Kill a run at random moments, let it go on each time, and see that it ends with the same bits.

python tests/soak.py              50 kills, about ten minutes on two cores
python tests/soak.py --kills 5    the short form, which is part of the tests
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rethink_imagenet.data.scenes import write_scenes
from rethink_imagenet.training.checkpoints import checkpoints_of, iteration_of, read_checkpoint
from rethink_imagenet.training.logs import JOULES, read_log

COMMAND = Path(sys.executable).parent / "rethink_train"


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal to the bit, tensor by tensor."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def differences(a: Path, b: Path) -> list[str]:
    """In what two finished runs differ: their last checkpoint, their log without times."""
    first, second = (read_checkpoint(checkpoints_of(folder)[-1]) for folder in (a, b))
    found = [key for key in ("iteration", "model", "optimizer", "skipped") if not same(first[key], second[key])]
    logs = [
        [{k: v for k, v in line.items() if k not in ("seconds", *JOULES)} for line in read_log(folder)]
        for folder in (a, b)
    ]
    return found + ["log"] * (logs[0] != logs[1])


def words(root: Path, out: str, unit: int) -> list[str]:
    """A command that trains a small detector for 2 * unit iterations, with a checkpoint after each."""
    size = ["--model", "demo", "--short", "64", "--long", "64", "--batch", "2", "--device", "cpu", "--workers", "1"]
    length = ["--schedule", "2", "--unit", str(unit), "--save-every", "1", "--resume"]
    return [str(COMMAND), "--data", str(root / "scenes"), "--out", str(root / out), *size, *length]


def kill_once(command: Sequence[str], run: Path, rng: random.Random) -> bool:
    """Start, wait for a new checkpoint or not, kill a random moment later; False if it had ended by then."""
    before = [iteration_of(path) for path in checkpoints_of(run)][-1:]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        if rng.random() < 0.8:  # the others are killed while they start
            while process.poll() is None and [iteration_of(path) for path in checkpoints_of(run)][-1:] == before:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.7))
        else:
            time.sleep(rng.uniform(0, 6))
        return process.poll() is None
    finally:
        process.kill()
        process.wait()


def soak(root: Path, kills: int, seed: int = 0, unit: int = 0) -> list[str]:
    """Run once undisturbed and once killed so many times; what differs in the end."""
    rng, unit = random.Random(seed), unit or 8 * kills
    write_scenes(root / "scenes", train=12, val=2)
    subprocess.run(words(root, "straight", unit), check=True, capture_output=True)
    command, killed = words(root, "killed", unit), 0
    while killed < kills and kill_once(command, root / "killed" / "2x", rng):
        killed += 1
        print(
            f"killed {killed} times, at iteration {[iteration_of(p) for p in checkpoints_of(root / 'killed/2x')][-1:]}"
        )
    if killed < kills:
        return [f"ended after {killed} kills of {kills}; give it more iterations"]
    subprocess.run(command, check=True, capture_output=True)
    return differences(root / "straight" / "2x", root / "killed" / "2x") + left_behind(command)


def left_behind(command: Sequence[str], patience: float = 20.0) -> list[str]:
    """Worker processes that outlive the run they worked for, where the system shows its processes."""
    mark, end = "\0".join(command).encode(), time.monotonic() + patience
    while True:
        lines = [path for path in Path("/proc").glob("[0-9]*/cmdline") if mark in _content(path)]
        if not lines or time.monotonic() > end:
            return [f"process {path.parent.name} outlived its run" for path in lines]
        time.sleep(0.5)


def _content(path: Path) -> bytes:
    """What is in a file that may go away."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found = soak(Path(temporary), given.kills, given.seed)
    print(json.dumps({"kills": given.kills, "differs": found}))
    sys.exit(bool(found))
