"""What the engine adds to forward, backward and step, and what two processes reach together.

python benchmarks/engine.py              all of it, about five minutes on two cores
python benchmarks/engine.py demo         one part: demo, paper or processes
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset as TorchDataset

from rethink_imagenet.data.coco import read_coco
from rethink_imagenet.data.loading import TrainingSamples
from rethink_imagenet.data.scenes import write_scenes
from rethink_imagenet.detection.detectors import DEMO, DetectorConfig, build
from rethink_imagenet.randomness import seed_everything
from rethink_imagenet.training import loop as training
from rethink_imagenet.training.checkpoints import save_checkpoint
from rethink_imagenet.training.distributed import joined
from rethink_imagenet.training.logs import read_log
from rethink_imagenet.training.loop import RunSettings, RunState, optimizer_of, train
from rethink_imagenet.training.processes import is_first, world_size
from rethink_imagenet.training.schedules import Schedule


class Clock:
    """Seconds spent within functions, after some calls to warm up."""

    def __init__(self, warm_up: int):
        self.seconds, self.calls, self.warm_up, self.began = 0.0, 0, warm_up, 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, on this clock."""

        def call(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments, **named)
            self.calls += 1
            if self.calls == 2 * self.warm_up:  # backward and step of each iteration
                self.began = time.perf_counter()
            elif self.calls > 2 * self.warm_up:
                self.seconds += time.perf_counter() - start
            return result

        return call


def overhead(
    config: DetectorConfig, samples: TorchDataset, settings: RunSettings, workers: int, warm_up: int
) -> tuple[float, float]:
    """Seconds of an iteration, and the percentage of it that is neither forward, backward nor step."""
    clock, backward, make = Clock(warm_up), training.backward, training.optimizer_of

    def timed_optimizer(*arguments: Any, **named: Any) -> torch.optim.Optimizer:
        optimizer = make(*arguments, **named)
        optimizer.step = clock.timed(optimizer.step)
        return optimizer

    training.backward, training.optimizer_of = clock.timed(backward), timed_optimizer
    try:
        with tempfile.TemporaryDirectory() as temporary:
            seed_everything(0)
            train(build(config), samples, settings, Path(temporary) / "run", workers=workers)
            wall = time.perf_counter() - clock.began
    finally:
        training.backward, training.optimizer_of = backward, make
    return wall / (settings.schedule.iterations - warm_up), 100 * (1 - clock.seconds / wall)


def demo() -> None:
    """The main job's small detector: batches of 8 scenes, its log and checkpoints as often as they come there."""
    with tempfile.TemporaryDirectory() as temporary:
        root = write_scenes(Path(temporary) / "scenes", train=400, val=1)
        samples = TrainingSamples(read_coco(root / "annotations" / "instances_train.json"), 0, (96, 96), 96, batch=8)
        schedule = Schedule(400, (300,), rate=0.02, warmup=20)
        settings = RunSettings(schedule, batch=8, save_every=180)
        seconds, share = overhead(DEMO, samples, settings, workers=1, warm_up=20)
    print(f"demo, 8 scenes of 96 px: {seconds:.3f} s an iteration, {share:.1f} % of it overhead", flush=True)


def paper() -> None:
    """The paper's detector on two images of 480x640, with a checkpoint in every 2500 iterations."""
    with tempfile.TemporaryDirectory() as temporary:
        root = write_scenes(Path(temporary) / "scenes", train=40, val=1)
        samples = TrainingSamples(
            read_coco(root / "annotations" / "instances_train.json"), 0, (554, 554), 1333, batch=2
        )
        schedule = Schedule(8, (7,), rate=0.0025, warmup=2)
        settings = RunSettings(schedule, batch=2, log_every=4, save_every=100, evaluate_every=100)
        seconds, share = overhead(DetectorConfig(), samples, settings, workers=1, warm_up=3)
        model = build(DetectorConfig())
        state = RunState(model, optimizer_of(model))
        start = time.perf_counter()
        save_checkpoint(Path(temporary), state.content({}))
        saving = time.perf_counter() - start
    share -= 100 * saving / (5 * seconds)  # the last iteration wrote one
    share += 100 * saving / (2500 * seconds)
    print(f"R50-FPN GN, two images as large as 480x640: {seconds:.2f} s an iteration, {share:.1f} % of it overhead")
    print(f"its checkpoint: {saving:.2f} s", flush=True)


def train_alone_or_together(root: str, out: str, batch: str) -> None:
    """What the processes of the comparison below do; prints images a second of each iteration after the warm-up."""
    torch.set_num_threads(1)
    with joined(timeout=5):
        scenes = read_coco(Path(root) / "scenes" / "annotations" / "instances_train.json")
        images = int(batch) * world_size()
        samples = TrainingSamples(scenes, 0, (96, 96), 96, batch=images)
        settings = RunSettings(Schedule(120, (100,), rate=0.01, warmup=20), images, log_every=20, save_every=1000)
        seed_everything(0)
        model = build(replace(DEMO, channels=64, box_number=64))
        train(model, samples, settings, Path(root) / out, workers=0)
        if is_first():
            lines = read_log(Path(root) / out)
            print(images * 100 / (lines[-1]["seconds"] - lines[0]["seconds"]))


def processes() -> None:
    """Two processes that exchange gradients, beside two that know nothing of each other, all with one thread."""
    with tempfile.TemporaryDirectory() as temporary:
        write_scenes(Path(temporary) / "scenes", train=200, val=1)
        words = [sys.executable, __file__, "worker", temporary]
        alone = [subprocess.Popen([*words, f"alone{i}", "4"], stdout=subprocess.PIPE, text=True) for i in range(2)]
        apart = sum(float(process.communicate()[0]) for process in alone)
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        job = subprocess.run([*launcher, *words[1:], "both", "4"], capture_output=True, text=True, check=True)
        together = float(job.stdout.split()[-1])
    print(f"two processes together: {together:.1f} images/s, apart: {apart:.1f}, {100 * together / apart:.0f} %")


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        train_alone_or_together(*sys.argv[2:])
    else:
        print(f"{torch.get_num_threads()} threads, PyTorch {torch.__version__}")
        for part in sys.argv[1:] or ["demo", "paper", "processes"]:
            {"demo": demo, "paper": paper, "processes": processes}[part]()
