"""Several real processes: they take one step, share an evaluation, survive a loss, and refuse wrong launches."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rethink_imagenet.data.scenes import write_scenes
from rethink_imagenet.data.splits import read_splits
from rethink_imagenet.detection.detectors import DEMO, build
from rethink_imagenet.study.plans import Plan
from rethink_imagenet.study.studies import _evaluator
from rethink_imagenet.training.checkpoints import checkpoints_of, iteration_of, read_checkpoint

from .launch import Started, launch
from .soak import COMMAND, differences

SIZE = ["--model", "demo", "--short", "64", "--long", "64", "--device", "cpu", "--workers", "0"]
LENGTH = ["--schedule", "2", "--unit", "15", "--save-every", "1", "--batch", "4", "--rate", "0.3"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
Done = subprocess.CompletedProcess[str]

STEP = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from torch.nn.parallel import DistributedDataParallel
from rethink_imagenet.data.coco import read_coco
from rethink_imagenet.detection.detectors import DEMO, build
from rethink_imagenet.training.distributed import joined
from rethink_imagenet.randomness import share
from rethink_imagenet.training.processes import is_first, rank, world_size
from rethink_imagenet.randomness import seed_everything
from rethink_imagenet.training.loop import backward
from rethink_imagenet.data.loading import TrainingSamples

source, out = sys.argv[1:]
torch.set_num_threads(1)


def take_a_step(norm, emptied):
    samples = TrainingSamples(read_coco(source), 0, (64, 128), 192)
    seed_everything(0)
    rules = replace(DEMO.conventions, normalize_over="image")
    model = build(replace(DEMO, norm=norm, conventions=rules, num_classes=80)).double().train()
    images, targets = zip(*[samples[p] for p in (0, 1)])
    images = [image.double() for image in images]
    targets = [target | {"boxes": target["boxes"].double()} for target in targets]
    assert images[0].shape != images[1].shape
    if emptied:
        none = slice(0, 0)
        targets[1] |= {key: targets[1][key][none] for key in ("boxes", "labels", "crowd")}
        targets[1] |= {"polygons": targets[1]["polygons"].select([])}
    learner = DistributedDataParallel(model) if world_size() > 1 else model
    mine = [share(items, rank(), world_size()) for items in (images, targets)]
    draws = samples.draws((0, 1)).part(rank(), world_size())
    losses = backward(learner, *mine, batch=2, draws=draws)
    return {name: parameter.grad for name, parameter in model.named_parameters()}


with joined(timeout=2):
    cases = [("gn", False), ("syncbn", False), ("syncbn", True), ("bn", False)]
    gradients = {case: take_a_step(*case) for case in cases}
    if is_first():
        torch.save(gradients, out)
"""
Gradients = dict[tuple[str, bool], dict[str, torch.Tensor]]


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference of a gradient, over the size of the largest in its tensor."""
    return max(((a[name] - b[name]).abs().max() / a[name].abs().max().clamp(min=1e-9)).item() for name in a)


@pytest.fixture(scope="module")
def steps(sample_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> list[Gradients]:
    """The gradients of a step with two photographs of different size: of one process, and of two."""
    source = sample_data("coco_mini_by") / "annotations" / "instances_train2017.json"
    folder = tmp_path_factory.mktemp("steps")
    (folder / "step.py").write_text(STEP)
    found = []
    for start in ([sys.executable], TORCHRUN):
        words = [*start, str(folder / "step.py"), str(source), str(folder / "gradients.pt")]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        found.append(torch.load(folder / "gradients.pt", weights_only=True))
    return found


@pytest.mark.parametrize(
    ("norm", "emptied", "least", "most"),
    [("gn", False, 0, 1e-9), ("syncbn", False, 0, 1e-9), ("syncbn", True, 0, 1e-9), ("bn", False, 1e-3, 1e9)],
)
def test_two_processes_have_the_gradient_of_one(
    steps: list[Gradients], norm: str, emptied: bool, least: float, most: float
) -> None:
    """Where emptied, one photograph is without objects: SyncBN in a head without regions."""
    one, two = (gradients[norm, emptied] for gradients in steps)
    assert least <= difference(one, two) <= most


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", train=12, val=5)


@pytest.fixture(scope="module")
def of_two(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run of two processes."""
    out = tmp_path_factory.mktemp("two") / "out"
    words = [*TORCHRUN, str(COMMAND), "--data", str(scenes), "--out", str(out), *SIZE, *LENGTH]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("images seen") == 1 and done.stdout.count("train:") == 1
    return out / "2x"


def test_an_evaluation_is_shared(of_two: Path, scenes: Path, tmp_path: Path) -> None:
    """What two processes detected together is what one detects, image by image and in the same order."""
    _, val = read_splits(scenes)
    config = json.loads((of_two / "config.json").read_text())
    model = build(config["detector"])
    model.load_state_dict(read_checkpoint(checkpoints_of(of_two)[-1])["model"])
    figures = _evaluator(Plan(model.config, short=(64, 64), long=64), val, tmp_path, workers=0)(model.eval())
    alone, shared = (json.loads((folder / "detections.json").read_text()) for folder in (tmp_path, of_two))
    assert [d["image_id"] for d in alone] == [d["image_id"] for d in shared] and len(alone) > 5
    for a, b in zip(alone, shared, strict=True):
        assert a["category_id"] == b["category_id"]
        assert [a["score"], *a["bbox"]] == pytest.approx([b["score"], *b["bbox"]], abs=1e-4)
    assert json.loads((of_two / "results.json").read_text())["box"]["ap"] == pytest.approx(figures["box"]["ap"])


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_one_process_is_killed_and_all_go_on(of_two: Path, scenes: Path, tmp_path: Path) -> None:
    """torchrun starts them anew, they go on from the checkpoint, and end with the bits of an undisturbed run."""
    out = tmp_path / "out"
    words = [*TORCHRUN, "--max-restarts", "2", str(COMMAND), "--data", str(scenes), "--out", str(out)]
    process = subprocess.Popen([*words, *SIZE, *LENGTH, "--resume"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while process.poll() is None and [iteration_of(p) for p in checkpoints_of(out / "2x")][-1:] < [3]:
        time.sleep(0.02)
    workers = [pid for pid in children(process.pid) if b"rethink_train" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said.decode()
    assert differences(out / "2x", of_two) == []


ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def environments(many: int) -> list[dict[str, str]]:
    """What torchrun gives to each of some processes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(many), "LOCAL_WORLD_SIZE": str(many)}
    return [os.environ | ONE_THREAD | job | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(many)]


def by_hand(words: list[str]) -> list[subprocess.Popen[str]]:
    """Start two processes as torchrun would."""
    return [
        subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for environment in environments(2)
    ]


def pair(*words: object, own: Sequence[Sequence[object]] = ((), ())) -> list[Done]:
    """A command in two processes, perhaps with more words of each one's own."""
    started = [
        Started([*words, *more], environment=environment)
        for environment, more in zip(environments(2), own, strict=True)
    ]
    return [process.ended(100) for process in started]


def alone_and_in_pair(name: str, *words: object, out: Path | None = None) -> tuple[str, str]:
    """What a command says as one process, and as two of which the second says nothing; files in out/1 and out/2."""
    line, places = [COMMAND.with_name(name), *words], [["--out", out / number] if out else [] for number in "12"]
    alone = launch([*line, *places[0]], timeout=100, environment=os.environ | ONE_THREAD)
    first, second = pair(*line, *places[1])
    assert [done.returncode for done in (alone, first, second)] == [0, 0, 0], (alone, first, second)
    assert (second.stdout, second.stderr) == ("", "")
    return alone.stdout.replace(f"{out}/1", "OUT"), first.stdout.replace(f"{out}/2", "OUT")


def test_two_processes_evaluate_a_run_as_one_does(of_two: Path, scenes: Path, tmp_path: Path) -> None:
    """Figures, detections and pictures equal to the bit; written and said once."""
    here = ["--device", "cpu"]
    alone, two = alone_and_in_pair(
        "rethink_eval", of_two, "--data", scenes, *here, "--workers", 0, "--submission", "us", out=tmp_path / "eval"
    )
    assert two == alone and two.count("box  ap") == 1 and two.count("OUT/detections.json") == 1
    for name in ("detections.json", "config.json"):
        one, two = ((tmp_path / "eval" / number / name).read_bytes() for number in "12")
        assert one == two and len(one) > 100, name
    assert len(json.loads((tmp_path / "eval" / "2" / "detections.json").read_text())) > 5
    photos = sorted((scenes / "val").iterdir())[:3]
    alone, two = alone_and_in_pair(
        "rethink_detect", of_two, *photos, "--score", 0.1, *here, "--augmented", out=tmp_path / "seen"
    )
    assert two == alone and "in 3 images" in two
    seen = [sorted(path.relative_to(folder) for path in folder.rglob("*")) for folder in (tmp_path / "seen").iterdir()]
    assert seen[0] == seen[1] and sum(path.suffix == ".png" for path in seen[0]) == 3
    existing = tmp_path / "eval" / "1" / "detections.json"
    words = ["--annotations", scenes / "annotations" / "instances_val.json", "--detections", existing]
    alone, two = alone_and_in_pair("rethink_eval", *words)
    assert two == alone and two.count("box  ap") == 1


def test_a_fault_in_an_evaluation_is_told_once(of_two: Path, scenes: Path, tmp_path: Path) -> None:
    words = [COMMAND.with_name("rethink_eval"), of_two, "--device", "cpu", "--out", tmp_path / "out"]
    for more, message in (
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--data", scenes, "--timeout", "0"], "takes minutes, above 0"),
        (["--val", tmp_path / "other.json"], "its categories are not those"),
    ):
        content = json.loads((scenes / "annotations" / "instances_val.json").read_text())
        content["categories"][0]["name"] = "potato"
        (tmp_path / "other.json").write_text(json.dumps(content))
        both = pair(*words, *more, "--images", scenes / "val")
        said = "".join(done.stderr for done in both)
        assert [done.returncode for done in both] == [2, 2] and said.count("\n") == 1 and message in said, both


OBJECTS = """
import os
from datetime import timedelta
from torch import distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from rethink_imagenet.training.processes import from_first, gather, rank, to_first, fail_together

dist.init_process_group("cpu:gloo,cuda:fake", timeout=timedelta(seconds=30))
with fail_together():
    found = to_first({"rank": rank()})
print(found, gather(rank()), from_first("all" if rank() == 0 else None), flush=True)
os._exit(0)  # the fake group does not end well
"""


def test_objects_go_over_the_backend_of_the_cpu(tmp_path: Path) -> None:
    """In a group like that of a job on GPUs, whose other backend moves nothing; the list reaches the first alone."""
    (tmp_path / "objects.py").write_text(OBJECTS)
    said = [process.communicate(timeout=60) for process in by_hand([sys.executable, str(tmp_path / "objects.py")])]
    assert said[0][0] == "[{'rank': 0}, {'rank': 1}] [0, 1] all\n", said
    assert said[1][0] == "[] [0, 1] all\n", said


GPUS = """
import sys
from types import SimpleNamespace
from unittest.mock import patch
import torch
from torch import distributed as dist
from rethink_imagenet.errors import InputError
from rethink_imagenet.training.distributed import device_of, joined
from rethink_imagenet.training.processes import rank

serials, init = sys.argv[1:], dist.init_process_group
only = patch.multiple(
    torch.cuda, is_available=lambda: True, device_count=lambda: 1, set_device=print, current_device=lambda: 0,
    get_device_properties=lambda _: SimpleNamespace(uuid=serials[rank()]),
)
with only, patch.object(dist, "init_process_group", lambda backend, **place: (print(backend), init("gloo", **place))):
    try:
        with joined(device_of("cuda"), timeout=1):
            print("joined", flush=True)
    except InputError as error:
        print(error, flush=True)
"""


@pytest.mark.parametrize(("second", "end"), [("GPU-b", "joined"), ("GPU-a", "processes 0 and 1 have the same GPU")])
def test_each_process_sees_one_gpu(tmp_path: Path, second: str, end: str) -> None:
    """As with SLURM's --gpus-per-task=1: each takes the one that it sees, unless it is the same for both."""
    (tmp_path / "gpus.py").write_text(GPUS)
    for process in by_hand([sys.executable, str(tmp_path / "gpus.py"), "GPU-a", second]):
        said = process.communicate(timeout=60)
        assert said[0].startswith(f"cuda:0\ncpu:gloo,cuda:nccl\n{end}"), said


FULL = """
import sys, time
from unittest.mock import patch
import torch
from torch import distributed as dist
from rethink_imagenet.training import distributed
from rethink_imagenet.tools.commands import one_line_faults
from rethink_imagenet.errors import InputError
from rethink_imagenet.training.distributed import joined
from rethink_imagenet.training.processes import rank, fail_together

leave = dist.destroy_process_group


def farewell():  # as NCCL's, it waits for the others
    dist.barrier()
    leave()


def command():
    if sys.argv[1] == "both":
        with fail_together():
            raise InputError("a.json: no such file")
    elif rank() == 1:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    time.sleep(120)


def meet(device, timeout):
    dist.init_process_group("gloo", timeout=timeout)


with (
    patch.object(torch.cuda, "set_device"), patch.object(distributed, "_meet", meet),
    patch.object(dist, "destroy_process_group", farewell), joined("cuda:0", timeout=2),
):
    one_line_faults(command)()
"""


def test_a_process_whose_gpu_is_full_does_not_wait_for_the_others(tmp_path: Path) -> None:
    """Its farewell would be heard only when they leave too; a fault that all know of ends in good order."""
    (tmp_path / "full.py").write_text(FULL)
    first, second = by_hand([sys.executable, str(tmp_path / "full.py"), "one"])
    said = second.communicate(timeout=60)[1]
    assert second.returncode == 2 and said.startswith("command: CUDA out of memory. Tried to allocate 2.00 GiB; take a")
    assert first.poll() is None
    first.kill()
    first.communicate()
    both = by_hand([sys.executable, str(tmp_path / "full.py"), "both"])
    told = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [2, 2] and told == ["command: a.json: no such file\n", ""], told


def test_a_process_that_hangs_ends_with_an_error(scenes: Path, tmp_path: Path) -> None:
    """The other one does not wait longer than it was told."""
    out = tmp_path / "out"
    words = [str(COMMAND), "--data", str(scenes), "--out", str(out), *SIZE, *LENGTH, "--unit", "500"]
    first, second = by_hand([*words, "--timeout", "0.2"])
    try:
        while first.poll() is None and not checkpoints_of(out / "2x"):
            time.sleep(0.02)
        second.send_signal(signal.SIGSTOP)
        _, said = first.communicate(timeout=60)
        assert first.returncode == 1, said
        assert "process 0: another process is gone or hangs" in said and "Traceback" not in said
    finally:
        second.kill()
        second.wait()


def finished(both: Sequence[subprocess.Popen[str]]) -> list[Done]:
    """What processes that were started by hand have said, at their end."""
    said = [process.communicate(timeout=100) for process in both]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *texts)
        for process, texts in zip(both, said, strict=True)
    ]


def ends(both: Sequence[Done]) -> tuple[list[int], list[str]]:
    """The exit statuses of processes, and the lines of all that begin with the command's name."""
    lines = [line for done in both for line in done.stderr.splitlines() if line.startswith("rethink_train:")]
    return [done.returncode for done in both], lines


def test_wrong_launches_end_with_one_message(scenes: Path, tmp_path: Path) -> None:
    words = [COMMAND, "--data", scenes, "--out", tmp_path / "out", *SIZE, *LENGTH]
    statuses, lines = ends([launch(words, environment=os.environ | {"RANK": "1"}, timeout=100)])
    assert statuses == [2] and "RANK is set but not WORLD_SIZE" in lines[0]
    statuses, lines = ends(pair(*words, "--batch", 1))
    assert statuses == [2, 2] and len(lines) == 1 and "some would have no image to look at" in lines[0], lines
    statuses, lines = ends(pair(*words, "--data", "nowhere"))
    assert statuses == [2, 2] and len(lines) == 1 and "nowhere: no such folder" in lines[0], lines


def test_a_fault_of_one_is_told_once(scenes: Path, tmp_path: Path) -> None:
    """An image that does not open in one of two processes, and a disk that is full for the first."""
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    for image in (data / "train").iterdir():
        if image.name in ("000003.png", "000008.png"):
            image.write_bytes(b"no image")
    statuses, lines = ends(pair(COMMAND, "--data", data, "--out", tmp_path / "one", *SIZE, *LENGTH))
    assert statuses == [2, 2] and len(lines) == 1 and ".png: cannot be read" in lines[0], lines

    script = tmp_path / "start.sh"
    words = [str(COMMAND), "--data", str(scenes), "--out", str(tmp_path / "two"), *SIZE, *LENGTH]
    script.write_text(f'[ "$RANK" = 1 ] || ulimit -f 100\nexec {" ".join(words)}\n')
    statuses, lines = ends(finished(by_hand(["bash", str(script)])))
    assert statuses == [1, 1] and len(lines) == 1 and "could not be written" in lines[0], lines


def test_both_processes_are_asked_to_stop(tmp_path: Path) -> None:
    """SIGTERM to both, wherever they are, in iterations or in a long evaluation: status 75 and one line, then on."""
    scenes = write_scenes(tmp_path / "scenes", train=12, val=60)
    words = [str(COMMAND), "--data", str(scenes), "--out", str(tmp_path / "out"), *SIZE, *LENGTH, "--resume"]
    for _ in range(3):  # every second iteration is followed by an evaluation
        before = checkpoints_of(tmp_path / "out" / "2x")[-1:]
        both = by_hand([*words, "--unit", "9"])
        while both[0].poll() is None and checkpoints_of(tmp_path / "out" / "2x")[-1:] == before:
            time.sleep(0.02)
        for process in both:
            process.send_signal(signal.SIGTERM)
        statuses, lines = ends(finished(both))
        assert statuses == [75, 75] and len(lines) == 1 and "stopped" in lines[0], lines


def test_a_dry_run_of_two_processes() -> None:
    first, second = pair(COMMAND, "--dry-run", *SIZE, *LENGTH)
    assert (first.returncode, second.returncode) == (0, 0), (first, second)
    assert "30 iterations, 4 images each" in first.stdout and second.stdout == ""


def test_more_processes_than_images_and_uneven_shares(tmp_path: Path) -> None:
    """One image to evaluate on, five an iteration to train on."""
    scenes = write_scenes(tmp_path / "scenes", train=12, val=1)
    both = pair(COMMAND, "--data", scenes, "--out", tmp_path / "out", *SIZE, *LENGTH, "--batch", 5)
    assert ends(both) == ([0, 0], [])
    assert json.loads((tmp_path / "out" / "2x" / "results.json").read_text())["images"] == 5 * 30


SKIPS = """
import math
import sys
from pathlib import Path
import torch
from torch import nn
from rethink_imagenet.training.distributed import joined
from rethink_imagenet.training.processes import is_first
from rethink_imagenet.training.schedules import Schedule
from rethink_imagenet.training.loop import RunSettings, train

torch.set_num_threads(1)


class Samples:
    def __getitem__(self, p):
        return torch.full((3, 2, 2), p / 100, dtype=torch.float64), {"image_id": p}


class Linear(nn.Module):
    "Its loss is infinite on image 11, which the first process sees, and so is a statistic"

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))

    def forward(self, images, targets):
        bad = math.inf if any(target["image_id"] == 11 for target in targets) else 1.0
        self.mean += bad
        values = [(image.mean(dim=(1, 2)) * self.weight).sum() * bad for image in images]
        return {"loss": torch.stack(values).square().mean()}


with joined(timeout=2):
    model = Linear()
    settings = RunSettings(Schedule(5, (4,), rate=0.1, warmup=1), 5, log_every=5, on_nan="skip")
    log = train(model, Samples(), settings, Path(sys.argv[1]), workers=0)
    if is_first():
        torch.save({"weight": model.weight.detach(), "mean": model.mean, "skipped": log[-1]["skipped"]}, sys.argv[2])
"""


def test_a_bad_loss_in_one_process_is_skipped_by_both(tmp_path: Path) -> None:
    """Batches of five over two processes; the weights agree with those of one, and no statistic stays infinite."""
    (tmp_path / "skips.py").write_text(SKIPS)
    found = []
    for name, start in (("one", [sys.executable]), ("two", TORCHRUN)):
        words = [*start, str(tmp_path / "skips.py"), str(tmp_path / name), str(tmp_path / f"{name}.pt")]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        found.append(torch.load(tmp_path / f"{name}.pt", weights_only=True))
    assert found[0]["skipped"] == found[1]["skipped"] == 1
    assert found[0]["mean"] == found[1]["mean"] == 4
    assert torch.allclose(found[0]["weight"], found[1]["weight"], rtol=1e-12, atol=0)


def test_a_process_that_sees_other_data(scenes: Path, tmp_path: Path) -> None:
    other = write_scenes(tmp_path / "other", train=12, val=5, seed=1)
    words = [COMMAND, "--out", tmp_path / "out", *SIZE, *LENGTH]
    statuses, lines = ends(pair(*words, own=(["--data", scenes], ["--data", other])))
    assert statuses == [2, 2] and len(lines) == 1 and "process 1 has another data set than process 0" in lines[0], lines


def test_more_processes_than_another_count_is_refused(of_two: Path, scenes: Path) -> None:
    done = launch([COMMAND, "--data", scenes, "--out", of_two.parent, *SIZE, *LENGTH, "--resume"], timeout=100)
    assert done.returncode == 2 and "processes 2, now 1" in done.stderr and "--accept processes" in done.stderr


def test_a_detector_learns_in_two_processes_as_in_one() -> None:
    """A model that DistributedDataParallel wraps has a gradient in every parameter, also without any object."""
    torch.manual_seed(0)
    model = build(replace(DEMO, norm="syncbn")).train()
    target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "masks": torch.zeros(0, 64, 64)}
    sum(model([torch.rand(3, 64, 64)], [target]).values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
