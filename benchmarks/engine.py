"""What the engine adds to forward, backward and step, where a step's time goes, and what two processes reach together.

python benchmarks/engine.py              all of it, about ten minutes on two cores
python benchmarks/engine.py demo         one part: demo, step, paper, profile or processes
python benchmarks/engine.py step --keep    the demo's step alone, and the result into benchmarks/results
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import Dataset as TorchDataset

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.detector import (
    eager,
    found_by_ours,
    learned_proposals,
    machine,
    made_up_batch,
    multiply_adds,
    peak_rate,
    with_proposals,
)
from benchmarks.results import PROCESSOR, asked, keep, row
from rethink_imagenet.data.coco import read_coco
from rethink_imagenet.data.loading import Batch, TrainingSamples, training_batches
from rethink_imagenet.data.scenes import write_scenes
from rethink_imagenet.detection.detectors import DEMO, DetectorConfig, build
from rethink_imagenet.randomness import seed_everything
from rethink_imagenet.training import loop as training
from rethink_imagenet.training.checkpoints import save_checkpoint
from rethink_imagenet.training.distributed import joined
from rethink_imagenet.training.logs import read_log
from rethink_imagenet.training.loop import Run, RunSettings, RunState, optimizer_of, train
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


def scenes(folder: Path) -> TrainingSamples:
    """What the small detector is trained on: 400 scenes of 96 pixels, 8 at a time."""
    root = write_scenes(folder / "scenes", train=400, val=1)
    return TrainingSamples(read_coco(root / "annotations" / "instances_train.json"), 0, (96, 96), 96)


def small_run(folder: Path) -> tuple[TrainingSamples, Run]:
    """The small detector at the beginning of its training."""
    samples = scenes(folder)
    settings = RunSettings(Schedule(400, (300,), rate=0.02, warmup=20), batch=8, save_every=1000)
    seed_everything(0)
    return samples, Run(build(DEMO).train(), settings, folder / "demo", {})


def demo() -> None:
    """The main job's small detector: batches of 8 scenes, its log and checkpoints as often as they come there."""
    with tempfile.TemporaryDirectory() as temporary:
        samples = scenes(Path(temporary))
        schedule = Schedule(400, (300,), rate=0.02, warmup=20)
        settings = RunSettings(schedule, batch=8, save_every=180)
        seconds, share = overhead(DEMO, samples, settings, workers=1, warm_up=20)
    print(f"demo, 8 scenes of 96 px: {seconds:.3f} s an iteration, {share:.1f} % of it overhead", flush=True)


def step() -> tuple[str, list[dict[str, str]], str, int]:
    """The processor time of a training step of the small detector, data included, on one thread: what to keep of it."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        (samples, run), seconds = small_run(Path(temporary)), []
        start = time.process_time()
        for batch in training_batches(samples, 8, 0, 60, 0):
            run.step(batch)
            seconds.append(time.process_time() - start)
            start = time.process_time()
    taken = statistics.median(seconds[10:])
    print(f"demo, 8 scenes of 96 px: {taken:.3f} s of processor time a step, data included, {machine()}", flush=True)
    what = "training step of the embedded demo, 8 scenes, one thread, data included"
    return "demo", [row(what, f"{taken:.3f} s")], PROCESSOR, len(seconds) - 10


def paper() -> None:
    """The paper's detector on two images of 480x640, with a checkpoint in every 2500 iterations."""
    with tempfile.TemporaryDirectory() as temporary:
        root = write_scenes(Path(temporary) / "scenes", train=40, val=1)
        samples = TrainingSamples(read_coco(root / "annotations" / "instances_train.json"), 0, (554, 554), 1333)
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


FAMILIES = {  # of operations, by their names in PyTorch
    "convolutions, forward": ("convolution",),
    "convolutions, backward": ("convolution_backward",),
    "linear layers and products": ("mm", "addmm", "bmm", "baddbmm"),
    "GN, forward": ("native_group_norm",),
    "GN, backward": ("native_group_norm_backward",),
    "ReLU": ("relu", "relu_", "threshold_backward"),
    "sums in RoIAlign": ("_embedding_bag", "_embedding_bag_forward_only", "sort"),
    "suppression": ("nms",),
    "optimizer": ("_fused_sgd_",),
}
FAMILY_OF = {name: family for family, names in FAMILIES.items() for name in names}


class ProcessorTime(TorchDispatchMode):
    """Processor seconds and number of operations of each family, while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = time.thread_time()
        result = func(*args, **(kwargs or {}))
        spent = time.thread_time() - start
        family = FAMILY_OF.get(func.overloadpacket.__name__, "all other operations")
        self.seconds[family] += spent
        self.operations[family] += 1
        return result


def profiled(title: str, actions: Sequence[Callable[[], object]], floor: float | None = None) -> None:
    """Print the median share of each family in the processor time of an action, by those after the second.

    Looking on takes time itself, so each action is done twice: once for the whole, once for its operations.
    What looking on costs is a little part of each operation's time, and so is missing in the line of Python.
    """
    whole, rounds = [], []
    for action in actions:
        start = time.process_time()
        action()
        whole.append(time.process_time() - start)
        with ProcessorTime() as seen:
            action()
        rounds.append(seen)
    whole, rounds = whole[2:], rounds[2:]
    step = statistics.median(whole)
    print(f"\n{title}: {step:.3f} s of processor time, {machine()}")
    print("| | ms | of the whole | operations |\n|---|---|---|---|")
    left, most = step, rounds[-1].operations
    for family in [*FAMILIES, "all other operations"]:
        spent = statistics.median(seen.seconds[family] for seen in rounds)
        left -= spent
        if most[family]:
            print(f"| {family} | {1e3 * spent:.1f} | {100 * spent / step:.0f} % | {most[family]:,} |")
    print(f"| Python, and PyTorch between operations | {1e3 * left:.1f} | {100 * left / step:.0f} % | |")
    if floor is not None:
        print(f"| the convolution floor | {1e3 * floor:.0f} | {100 * floor / step:.0f} % | |", flush=True)


def profile() -> None:
    """Where the time goes: a step of the small detector on 8 scenes, a step of the paper's, and its detection."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        samples, run = small_run(Path(temporary))
        batches = list(training_batches(samples, 8, 0, 40, 0))
        profiled("demo, a step on 8 scenes of 96 px", [partial(run.step, batch) for batch in batches])
        pictures, targets = made_up_batch()
        seed_everything(0)
        model = build(DetectorConfig()).train()
        with_proposals(model, learned_proposals((pictures, targets)))
        flop = 3 * multiply_adds(model, lambda: model(pictures, targets))
        settings = RunSettings(Schedule(8, (7,), rate=1e-4, warmup=2), batch=2, save_every=1000)
        run = Run(model, settings, Path(temporary) / "paper", {})
        step, rate = partial(run.step, Batch(pictures, targets)), peak_rate(torch.float32)
        profiled("R50-FPN GN, a step on two images of 480x640", [step] * 4, flop / rate)
    detect = partial(found_by_ours, eager("fp32")[0], pictures[:1])
    floor = multiply_adds(detect.args[0], detect) / rate
    profiled("R50-FPN GN, 100 objects in one image of 480x640, masks pasted and encoded", [detect] * 6, floor)


def train_alone_or_together(root: str, out: str, batch: str) -> None:
    """What the processes of the comparison below do; prints images a second of each iteration after the warm-up."""
    torch.set_num_threads(1)
    with joined(timeout=5):
        scenes = read_coco(Path(root) / "scenes" / "annotations" / "instances_train.json")
        images = int(batch) * world_size()
        samples = TrainingSamples(scenes, 0, (96, 96), 96)
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


PARTS: dict[str, Callable[[], Any]] = {
    "demo": demo,
    "step": step,
    "paper": paper,
    "profile": profile,
    "processes": processes,
}

if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        train_alone_or_together(*sys.argv[2:])
    else:
        parts, kept = asked(__doc__, PARTS)
        print(f"{torch.get_num_threads()} threads, PyTorch {torch.__version__}")
        for part in parts:
            found = PARTS[part]()
            if kept and found:
                keep(*found)
