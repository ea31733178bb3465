"""The double of a GPU itself, and on it whole training steps, detection, augmented testing, evaluation and resumption:
nothing mixes host and device, all numbers are the CPU's, and the host hardly ever waits.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset

from rethink_imagenet.data.datasets import Dataset
from rethink_imagenet.data.loading import Batch, EvaluationSamples, TrainingSamples
from rethink_imagenet.data.scenes import write_scenes
from rethink_imagenet.data.splits import read_splits
from rethink_imagenet.data.transforms import read_sample, resize
from rethink_imagenet.detection.conventions import DETECTRON2, TORCHVISION
from rethink_imagenet.detection.detectors import DEMO, VGG16, Detector, DetectorConfig, build
from rethink_imagenet.evaluation.augmented_testing import AugmentedDetector, WholeSamples, passes_at
from rethink_imagenet.evaluation.average_precision import predict
from rethink_imagenet.randomness import Draws
from rethink_imagenet.study.plans import Plan
from rethink_imagenet.study.studies import switch_over
from rethink_imagenet.training.checkpoints import checkpoints_of, iteration_of, read_checkpoint
from rethink_imagenet.training.loop import Run, RunSettings, train
from rethink_imagenet.training.schedules import Schedule
from tests.device_double import Device, OnDevice


def on_device(*values: float) -> Tensor:
    """A vector on the device, moved there without waiting."""
    return torch.tensor(values).to("cuda", non_blocking=True)


try:
    import triton
    from triton import language as tl

    @triton.jit
    def _twice(x):
        return 2 * x

    @triton.jit
    def _sums(source, target, row, to, length, BLOCK: tl.constexpr):
        place = tl.arange(0, BLOCK)
        values = tl.load(source + tl.program_id(0) * row + place, place < length, other=0.0)
        tl.store(target + tl.program_id(0) * to, _twice(tl.sum(values, 0)))
except ImportError:  # it comes with PyTorch's builds for CUDA
    triton = None


WAITS: dict[str, tuple[Callable[[Tensor], object], int]] = {
    "item": (lambda x: x[0].item(), 1),
    "bool": (lambda x: bool(x[0] > 0), 1),
    "int": (lambda x: int(x[0]), 1),
    "float": (lambda x: float(x[0]), 1),
    "index of a slice": (lambda x: x[: x.argmax()], 1),
    "tolist": (lambda x: x.tolist(), 1),
    "cpu": (lambda x: x.cpu(), 1),
    "to the host, not blocking": (lambda x: x.to("cpu", non_blocking=True), 1),
    "copy_ to the host": (lambda x: torch.zeros(3).copy_(x), 1),
    "copy_ from the host": (lambda x: x.copy_(torch.zeros(3)), 1),
    "copy_ from the host, not blocking": (lambda x: x.copy_(torch.zeros(3), non_blocking=True), 0),
    "to the device": (lambda x: torch.zeros(3).to("cuda"), 1),
    "to the device, not blocking": (lambda x: torch.zeros(3).to("cuda", non_blocking=True), 0),
    "cuda()": (lambda x: torch.zeros(3).cuda(), 1),
    "to what is like another": (lambda x: torch.zeros(3).to(x), 1),
    "tensor": (lambda x: torch.tensor([1.0], device="cuda"), 1),
    "as_tensor": (lambda x: torch.as_tensor([1.0], device=x.device), 1),
    "new_tensor": (lambda x: x.new_tensor([1.0]), 1),
    "zeros": (lambda x: torch.zeros(3, device="cuda"), 0),
    "arange": (lambda x: torch.arange(3, device=x.device), 0),
    "new_zeros": (lambda x: x.new_zeros(3), 0),
    "nonzero": (lambda x: x.nonzero(), 1),
    "where": (lambda x: torch.where(x > 0), 1),
    "argwhere": (lambda x: torch.argwhere(x), 1),
    "where of three": (lambda x: torch.where(x > 0, x, 0), 0),
    "masked_select": (lambda x: x.masked_select(x > 0), 1),
    "mask": (lambda x: x[x > 0], 1),
    "mask on the host": (lambda x: x[torch.tensor([True, False, True])], 1),
    "tensor into a mask": (lambda x: x.index_put_((x > 0,), x[:2].clone()), 1),
    "number into a mask": (lambda x: x.__setitem__(x > 0, 0.0), 0),
    "masked_fill": (lambda x: x.masked_fill(x > 0, 0), 0),
    "positions": (lambda x: x[x.argsort()], 0),
    "positions on the host": (lambda x: x[torch.tensor([0, 1])], 1),
    "list of positions": (lambda x: x[[0, 1]], 1),
    "number into a position": (lambda x: x.__setitem__(0, 1.0), 1),
    "number into a slice": (lambda x: x.__setitem__(slice(2), 1.0), 0),
    "unique": (lambda x: x.unique(), 1),
    "bincount, which reads smallest and largest": (lambda x: x.long().bincount(minlength=3), 2),
    "repeat_interleave": (lambda x: torch.repeat_interleave(x, x.long()), 1),
    "repeat_interleave of a known size": (lambda x: torch.repeat_interleave(x, x.long(), output_size=3), 0),
    "equal": (lambda x: torch.equal(x, x), 1),
    "nms": (lambda x: torchvision.ops.nms(torch.ones(2, 4, device="cuda"), x[:2], 0.5), 1),
    "one_hot": (lambda x: nn.functional.one_hot(x.long()), 1),
    "synchronize": (lambda x: torch.cuda.synchronize(), 1),
    "arithmetic": (lambda x: (x * 2 + torch.tensor(1.0)).sum().sqrt(), 0),
}  # fmt: skip


@pytest.mark.parametrize("what", WAITS)
def test_each_kind_of_wait_is_counted(what: str) -> None:
    run, expected = WAITS[what]
    with Device() as device:
        x = on_device(1.0, 0.0, 2.0)
        device.reset()
        run(x)
        assert device.waits == expected, device.table()
        assert all(place.startswith("test_device.py:") for place, _ in device.places)


def test_host_and_device_do_not_mix() -> None:
    """As CUDA: numbers and positions may come from the host, other tensors not, and nothing goes there unasked."""
    with Device():
        x, host = on_device(1.0, 2.0), torch.tensor([1.0, 2.0])
        for mix in (
            lambda: x + host, lambda: torch.cat([x, host]), lambda: torch.where(x > 0, x, host), lambda: host.add_(x),
            lambda: torch.tensor(1.0).add_(x[0]), lambda: host[x.long() - 1], lambda: nn.Linear(2, 2)(x),
            lambda: x.index_select(0, torch.tensor(0)), lambda: x.__setitem__(x > 0, host),
        ):  # fmt: skip
            with pytest.raises(RuntimeError, match="same device"):
                mix()
        with pytest.raises(TypeError, match="cuda:0 device type"):
            x.numpy()
        assert isinstance(x * torch.tensor(2.0), OnDevice) and not isinstance(x.cpu(), OnDevice)


def test_it_says_that_it_is_a_gpu() -> None:
    with Device():
        x = torch.zeros(2, 3, 4, 5, device="cuda").to(memory_format=torch.channels_last)
        assert str(x.device) == "cuda:0" and x.is_cuda and not x.is_cpu and torch.cuda.is_available()
        assert x.stride() == (60, 1, 15, 3) and x.is_contiguous(memory_format=torch.channels_last)
        assert x.new_zeros(2).is_cuda and torch.zeros_like(x).is_cuda and x.to("cuda:0") is x
        with torch.autocast("cuda", torch.bfloat16):
            assert torch.is_autocast_enabled("cuda") and (x @ x.mT).dtype == torch.bfloat16
        assert not torch.is_autocast_enabled("cuda") and (x @ x.mT).dtype == torch.float32
    assert not isinstance(torch.zeros(2), OnDevice)


@pytest.mark.skipif(triton is None, reason="Triton comes with PyTorch's builds for CUDA")
def test_kernels_of_triton_run() -> None:
    """A kernel of no use elsewhere, with a helper, a reduction and views; afterwards kernels can be compiled again."""
    parts = triton.language, triton.language.core, triton.language.tensor, triton.language.math
    before = [dict(vars(part)) for part in parts]
    with Device() as device:
        x = torch.arange(24.0, device="cuda").view(4, 6)
        out = torch.zeros(4, 2, device="cuda")
        device.reset()
        _sums[(4,)](x[:, 1:], out[:, 1], x.stride(0), out.stride(0), 5, triton.next_power_of_2(5), num_warps=4)
        assert device.waits == 0 and device.operations["_sums"] == 1
        assert out[:, 1].tolist() == [30.0, 90.0, 150.0, 210.0] and out[:, 0].tolist() == [0.0] * 4
        assert any(dict(vars(part)) != was for part, was in zip(parts, before, strict=True))
    assert [dict(vars(part)) for part in parts] == before


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_network_learns_as_on_the_cpu(precision: torch.dtype) -> None:
    """Five steps of a small network with all that ours has, to the bit; no wait, and every launch counted."""
    weights = []
    for name in ("cpu", "cuda"):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.ConvTranspose2d(8, 4, 2),
            nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 49, 5),
        )  # fmt: skip
        x, y = torch.rand(2, 3, 14, 14), torch.tensor([1, 3])
        with Device() as device:
            net.to(name, memory_format=torch.channels_last)
            x, y = x.to(name), y.to(name)
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True)
            device.reset()
            for _ in range(5):
                optimizer.zero_grad()
                with torch.autocast(name, precision, enabled=precision == torch.bfloat16):
                    loss = nn.functional.cross_entropy(net(x).float().max(dim=1, keepdim=True).values + net(x), y)
                loss.backward()
                nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                optimizer.step()
            assert device.waits == 0, device.table()
            assert device.launches > 200 if name == "cuda" else device.launches == 0
            assert device.operations["_fused_sgd_"] == (5 if name == "cuda" else 0)
            assert all(p.is_cuda == (name == "cuda") and p.grad.is_cuda == p.is_cuda for p in net.parameters())
            weights.append({key: value.cpu() for key, value in net.state_dict().items()})
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


FEW = (50, 50)  # proposals of an image
CONFIGS = {
    "mask": DEMO,
    "mask, torchvision": replace(DEMO, conventions=replace(TORCHVISION, post_nms=FEW)),
    "mask, detectron2": replace(DEMO, conventions=replace(DETECTRON2, post_nms=FEW)),
    "mask, bf16": replace(DEMO, precision="bf16"),
    "keypoints": replace(DEMO, masks=False, keypoints=3),
    "cascade": replace(DEMO, cascade=True),
    "cascade, detectron2": replace(DEMO, cascade=True, conventions=replace(DETECTRON2, post_nms=FEW)),
    "SyncBN": replace(DEMO, norm="syncbn"),
    "VGG": replace(VGG16, num_classes=8, hidden=64, pre_nms=(100, 100), box_number=24,
                   conventions=replace(VGG16.conventions, post_nms=FEW)),
}  # fmt: skip


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Dataset]:
    """Scenes whose objects have keypoints as well: two that change places in a mirror, and their middle."""
    folder = write_scenes(tmp_path_factory.mktemp("device") / "scenes", train=8, val=3)
    for file in (folder / "annotations").glob("*.json"):
        content = json.loads(file.read_text())
        for category in content["categories"]:
            category |= {"keypoints": ["left_end", "right_end", "middle"], "skeleton": []}
        for record in content["annotations"]:
            x, y, width, height = record["bbox"]
            points = [x + width / 4, y + height / 4, 2, x + 3 * width / 4, y + height / 4, 2]
            record |= {"keypoints": [*points, x + width / 2, y + height / 2, 1], "num_keypoints": 3}
        file.write_text(json.dumps(content))
    return read_splits(folder)


class Watched(TorchDataset):
    """Samples that note, whenever an iteration's first is taken, what the device has been given until then."""

    def __init__(self, samples: TrainingSamples, device: Device):
        self.samples, self.device = samples, device
        self.counts: list[tuple[int, int]] = []

    def __getitem__(self, p: int) -> Any:
        if p % 2 == 0:
            self.counts.append((self.device.waits, self.device.launches))
        return self.samples[p]

    def draws(self, positions: Sequence[int]) -> Draws:
        """Those of the samples."""
        return self.samples.draws(positions)


@dataclass
class Went:
    """What a training has come to."""

    losses: list[dict[str, float]]  # of each line of the log
    state: dict[str, Any]  # the last checkpoint
    waits: int  # of an iteration
    launches: int
    table: str  # of all waits


def groups_by_pytorch() -> AbstractContextManager[Any]:
    """PyTorch's GN on the device as well, for equal bits: our kernels add up in another order."""
    return patch("rethink_imagenet.networks.fused_norm.for_kernels", lambda x: False)


def trained(
    config: DetectorConfig, data: Dataset, folder: Path, name: str, steps: int = 4, about: Any = None,
    fused: bool = False, **pace: Any,
) -> Went:  # fmt: skip
    """Train for some iterations of two images on a device, from the folder's newest checkpoint if there is one."""
    torch.manual_seed(0)
    model = build(config)
    schedule = Schedule(steps, (), rate=0.02, warmup=2)
    fields = {"batch": 2, "log_every": 100, "evaluate_every": 100, "save_every": 100}
    fields["updates"] = Plan(config).updates
    with Device() as device, nullcontext() if fused else groups_by_pytorch():
        source = TrainingSamples(data, 0, (96, 96), 160, keypoints=config.keypoints > 0)
        samples = Watched(source, device)
        settings = RunSettings(schedule, **fields | pace)
        log = train(model.to(name), samples, settings, folder, about=about or {}, workers=0)
        first, *_, last = samples.counts[1:] if len(samples.counts) > 2 else 2 * samples.counts
        between = max(1, len(samples.counts) - 2)
        table = device.table()
    state = read_checkpoint(max(checkpoints_of(folder), key=iteration_of))
    waits, launches = ((last[k] - first[k]) // between for k in (0, 1))
    return Went([line["losses"] for line in log if "losses" in line], state, waits, launches, table)


def tolerance(what: str) -> dict[str, float]:
    """None, but for detectron2's pooling with a number of samples by size, which a GPU adds up in another order."""
    return {"rtol": 1e-3, "atol": 1e-5} if "detectron2" in what else {"rtol": 0, "atol": 0}


def assert_same_course(mine: Went, other: Went, what: str = "") -> None:
    """Losses, weights, statistics and momentum."""
    assert len(mine.losses) == len(other.losses) > 0
    for one, two in zip(mine.losses, other.losses, strict=True):
        assert one == pytest.approx(two, rel=tolerance(what)["rtol"], abs=0)
    for tensors in zip(tensors_of(mine.state), tensors_of(other.state), strict=True):
        torch.testing.assert_close(*tensors, **tolerance(what))


def tensors_of(state: dict[str, Any]) -> list[Tensor]:
    """Weights and statistics of the model, then the momentum."""
    held = state["optimizer"]["state"].values()
    return [*state["model"].values(), *(each["momentum_buffer"] for each in held)]


def laid_out(tensor: Tensor) -> list[int]:
    """Strides of the dimensions that have more than one row."""
    return [stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True) if length > 1]


def assert_strides_agree(run: Run) -> None:
    """Fused SGD refuses parameters whose momentum or gradient is laid out differently."""
    for parameter, state in run.state.optimizer.state.items():
        for other in (state["momentum_buffer"], parameter.grad):
            assert other is None or laid_out(other) == laid_out(parameter)


@pytest.mark.parametrize("what", CONFIGS)
def test_training(what: str, scenes: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    """Four iterations in one go have the CPU's losses and weights, and the host hardly ever waits."""
    config = CONFIGS[what]
    alike = replace(config, norm="bn") if config.norm == "syncbn" else config  # PyTorch's, over the images of a process
    here = trained(alike, scenes[0], tmp_path / "cpu", "cpu")
    there = trained(config, scenes[0], tmp_path / "cuda", "cuda")
    print(f"{what}: {there.waits} waits and {there.launches} launches in an iteration\n{there.table}")
    assert_same_course(here, there, what)
    assert here.launches == 0 and there.waits <= (20 if config.cascade else 12)


@pytest.mark.parametrize(("what", "near"), [("mask", (1e-6, 1e-5)), ("mask, bf16", (1e-3, 1e-2))])
def test_training_with_fused_norm(
    what: str, near: tuple[float, float], scenes: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    """GN by our kernels: the losses of two iterations agree as far as sums in another order do."""
    pace: dict[str, Any] = {"steps": 2, "log_every": 1, "fused": True}
    here, there = (trained(CONFIGS[what], scenes[0], tmp_path / name, name, **pace) for name in ("cpu", "cuda"))
    print(f"{what}: {there.waits} waits and {there.launches} launches in an iteration\n{there.table}")
    for one, two, within in zip(here.losses, there.losses, near, strict=True):
        assert one == pytest.approx(two, rel=within, abs=0)


def test_accumulation_and_resumption(scenes: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    """One image at a time, stopped in the middle, goes on with the bits of the CPU's straight run."""
    here = trained(DEMO, scenes[0], tmp_path / "cpu", "cpu", at_once=1, log_every=1)
    trained(DEMO, scenes[0], tmp_path / "cuda", "cuda", steps=2, at_once=1, log_every=1)
    there = trained(DEMO, scenes[0], tmp_path / "cuda", "cuda", at_once=1, log_every=1)
    assert_same_course(here, there)
    assert len(here.losses) == 4


def test_late_cascade(scenes: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    """A run that switches to a cascade takes its steps with fused SGD, as on the CPU."""
    plan = Plan(replace(DEMO, cascade=True), schedules=(1,), unit=4, batch=2, cascade_last=2)
    went = []
    for name in ("cpu", "cuda"):
        before, folder = tmp_path / name / "before", tmp_path / name / "after"
        trained(plan.before_switch.detector, scenes[0], before, name, steps=2, about={"plan": "before"})
        switch_over(before, plan, folder, {"plan": "before"}, {"plan": "after"})
        went.append(trained(plan.detector, scenes[0], folder, name, about={"plan": "after"}))
    assert_same_course(*went)


def test_layouts_of_parameters_and_momentum(scenes: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    """After steps, after resumption, and after the switch to a cascade: fused SGD compares strides."""
    plan = Plan(replace(DEMO, cascade=True), schedules=(1,), unit=4, batch=2, cascade_last=2)
    trained(plan.before_switch.detector, scenes[0], tmp_path / "before", "cuda", steps=2, about={"plan": 1})
    switch_over(tmp_path / "before", plan, tmp_path / "after", {"plan": 1}, {"plan": 2})
    samples = TrainingSamples(scenes[0], 0, (96, 96), 160)
    images, targets = zip(*(samples[p] for p in (4, 5)), strict=True)
    for folder, config, about in (("before", plan.before_switch.detector, 1), ("after", plan.detector, 2)):
        with Device():
            model = build(config).to("cuda", memory_format=torch.channels_last).train()
            run = Run(model, RunSettings(plan.schedule(1), batch=2), tmp_path / folder, {"plan": about})
            assert len(run.state.optimizer.state) == len(list(model.parameters()))
            assert_strides_agree(run)
            run.step(Batch(list(images), list(targets), samples.draws((4, 5))))
            assert_strides_agree(run)


def looked_at(
    config: DetectorConfig, look: Callable[[Detector, Callable[[Tensor], Tensor]], Any]
) -> tuple[Any, Any, Device]:
    """What a detector with random weights gives on the CPU and on the device, and what the latter counted."""
    given = []
    for name in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = build(config).eval()
        with Device() as device, groups_by_pytorch():
            model.to(name)
            device.reset()
            given.append(look(model, lambda x: x.to(name, non_blocking=True)))  # noqa: B023
    print(device.table())
    return given[0], given[1], device


def assert_same_detections(mine: dict[str, Tensor], other: dict[str, Tensor], what: str) -> None:
    """And not none."""
    assert len(mine["boxes"]) > 0 and mine.keys() == other.keys()
    for key in mine:
        torch.testing.assert_close(mine[key], other[key].cpu(), **tolerance(what))


@pytest.mark.parametrize("what", CONFIGS)
def test_detection(what: str, scenes: tuple[Dataset, Dataset]) -> None:
    """The same boxes, labels, scores, masks and keypoints as on the CPU, with few waits."""
    image, _ = resize(*read_sample(scenes[1], 0), 96, 160)
    here, there, device = looked_at(CONFIGS[what], lambda model, sent: model.detect([sent(image)])[0])
    assert_same_detections(here, there, what)
    few = {"keypoints": 8, "cascade, detectron2": 7}  # each pooling by size waits once: four of them
    assert device.waits <= few.get(what, 6)


@pytest.mark.parametrize("what", ["mask", "keypoints", "cascade"])
def test_augmented_testing(what: str, scenes: tuple[Dataset, Dataset]) -> None:
    """Four looks at an image, one of them mirrored."""
    passes, (image, _) = passes_at(96, 160)[:4], WholeSamples(scenes[1])[0]

    def look(model: Detector, sent: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        return AugmentedDetector(model, passes, scenes[1].keypoint_names).detect([sent(image)])[0]

    here, there, device = looked_at(CONFIGS[what], look)
    assert_same_detections(here, there, what)
    assert device.waits <= 6 * len(passes)


@pytest.mark.parametrize("what", ["mask", "keypoints", "mask, torchvision", "mask, detectron2"])
def test_results_for_coco(what: str, scenes: tuple[Dataset, Dataset]) -> None:
    """Evaluation writes the same file, and the results cost few waits beside those of detection."""
    samples = EvaluationSamples(scenes[1], 96, 160)
    here, there, device = looked_at(CONFIGS[what], lambda model, sent: predict(model, samples, workers=0))
    assert len(here) == len(there) > 0
    for mine, other in zip(here, there, strict=True):
        scores = mine.pop("score"), other.pop("score")
        assert mine.keys() == other.keys() and mine["bbox"] == pytest.approx(other["bbox"], rel=tolerance(what)["rtol"])
        assert scores[0] == pytest.approx(scores[1], rel=tolerance(what)["rtol"], abs=0)
        assert "detectron2" in what or mine == other
    assert device.waits <= len(scenes[1]) * (6 + (8 if CONFIGS[what].keypoints else 6))
