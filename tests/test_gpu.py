"""On a GPU: the numbers are the CPU's, to stated tolerances, and the commands run. `bash scripts/gpu.sh` runs this."""

import itertools
import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from rethink_imagenet.data.datasets import Dataset, Polygons
from rethink_imagenet.data.loading import Batch, TrainingSamples
from rethink_imagenet.data.rasters import outlines_of, raster_regions
from rethink_imagenet.data.transforms import read_sample, resize
from rethink_imagenet.detection.detectors import DEMO, Detector, DetectorConfig, build
from rethink_imagenet.detection.suppression import suppress
from rethink_imagenet.networks.fused_norm import apply_norm
from rethink_imagenet.networks.graphs import Graphs
from rethink_imagenet.training.loop import optimizer_of, set_rate
from tests.test_device import CONFIGS, scenes

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("exact_products")]
__all__ = ["scenes"]  # a fixture


@pytest.fixture(scope="module")
def device() -> torch.device:
    """The GPU; skips where there is none."""
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no GPU here")
    return torch.device("cuda")


@pytest.fixture
def exact_products() -> Iterator[None]:
    """Convolutions in 32 bits, without TF32; products are without it unless somebody asks."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


SHAPES = [(2, 256, 200, 336), (2, 64, 400, 672), (3, 2048, 25, 42), (64, 256, 14, 14), (1, 96, 13, 7)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_group_norm(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """Output and all gradients against PyTorch's in 64 bits on the CPU."""
    torch.manual_seed(0)
    layer = nn.GroupNorm(32, shape[1])
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    nn.init.uniform_(layer.bias, -0.5, 0.5)
    x, residual, gradient = (torch.randn(shape).to(dtype) for _ in range(3))
    found = []
    for place, kind in (("cpu", torch.float64), (device, dtype)):
        here = layer.to(place, torch.float64 if place == "cpu" else torch.float32)
        layer.zero_grad()
        inputs = [t.to(place, kind, memory_format=torch.channels_last).requires_grad_() for t in (x, residual)]
        out = apply_norm(here, inputs[0], inputs[1], relu=True)
        out.backward(gradient.to(place, out.dtype))
        gradients = [inputs[0].grad, inputs[1].grad, here.weight.grad, here.bias.grad]
        found.append([t.detach().cpu().double() for t in (out, *gradients)])
    nearest = [5e-5, *[1e-2] * 4] if dtype == torch.float32 else [4e-2] * 5  # a value near 0 may pass the ReLU or not
    for mine, exact, near in zip(found[1], found[0], nearest, strict=True):
        assert (mine - exact).norm() <= near * exact.norm()


def test_suppression(device: torch.device) -> None:
    """The boxes that torchvision keeps, in its order, for images and groups at once."""
    torch.manual_seed(0)
    corners = 200 * torch.rand(4000, 2, device=device)
    boxes = torch.cat([corners, corners + 5 + 60 * torch.rand(4000, 2, device=device)], dim=1)
    scores, groups = torch.rand(4000, device=device), torch.arange(4000, device=device) % 10
    expected = torch.zeros(4000, dtype=torch.bool, device=device)
    expected[batched_nms(boxes, scores, groups, 0.5)] = True
    assert torch.equal(suppress(boxes[None], scores[None], groups, 0.5, 10, 400)[0], expected)


def test_rasters(device: torch.device) -> None:
    """The pixels that the CPU draws."""
    rng = np.random.default_rng(0)
    polygons = Polygons.pack([[rng.uniform(0, 100, (20, 2)).astype(np.float32)] for _ in range(30)])
    corner = torch.from_numpy(rng.uniform(0, 60, (300, 2)).astype(np.float32))
    boxes = torch.cat([corner, corner + torch.from_numpy(rng.uniform(1, 60, (300, 2)).astype(np.float32))], dim=1)
    objects, outlines = torch.from_numpy(rng.integers(0, 30, 300)), outlines_of(polygons)
    there = raster_regions(outlines.to(device), boxes.to(device), objects.to(device), 300 * outlines.longest)
    assert torch.equal(there.cpu(), raster_regions(outlines, boxes, objects, 0))


def batch_of(data: Dataset, number: int = 2, side: int = 96, keypoints: bool = False) -> Batch:
    """Some samples as training sees them, with the seeds of their draws."""
    samples = TrainingSamples(data, 0, (side, side), 2 * side, keypoints=keypoints)
    images, targets = zip(*(samples[p] for p in range(number)), strict=True)
    return Batch(list(images), list(targets), samples.draws(range(number)))


def losses_and_gradients(config: DetectorConfig, batch: Batch, place: Any) -> tuple[dict[str, float], list[Tensor]]:
    """Of a new model, always the same."""
    torch.manual_seed(0)
    model = build(config).to(place).train()
    losses = model([image.to(place) for image in batch.images], batch.targets, batch.draws)
    torch.stack(list(losses.values())).sum().backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return {key: value.item() for key, value in losses.items()}, [g.cpu() for g in gradients]


CASES = {name: config for name, config in CONFIGS.items() if "bf16" not in name and name != "SyncBN"}
CASES["R50"] = replace(DetectorConfig(), num_classes=12)


@pytest.mark.parametrize("what", CASES)
def test_losses_and_gradients(what: str, scenes: tuple[Dataset, Dataset], device: torch.device) -> None:
    """Losses to 1e-4, and the gradient of each tensor to 1e-2 of its norm: signs of ReLUs flip in the last digit."""
    config = CASES[what]
    batch = batch_of(scenes[0], keypoints=config.keypoints > 0)
    here, there = (losses_and_gradients(config, batch, place) for place in ("cpu", device))
    assert there[0] == pytest.approx(here[0], rel=1e-4)
    largest = max(g.norm() for g in here[1])
    for mine, other in zip(there[1], here[1], strict=True):
        assert (mine - other).norm() <= 1e-2 * other.norm() + 1e-4 * largest


def test_bfloat16(scenes: tuple[Dataset, Dataset], device: torch.device) -> None:
    """Losses in bfloat16 are those in 32 bits to five in a hundred."""
    batch = batch_of(scenes[0])
    exact, rounded = (losses_and_gradients(replace(DEMO, precision=p), batch, device)[0] for p in ("fp32", "bf16"))
    assert rounded == pytest.approx(exact, rel=5e-2)


@pytest.mark.parametrize("what", ["mask", "keypoints", "cascade", "mask, detectron2"])
def test_detections(what: str, scenes: tuple[Dataset, Dataset], device: torch.device) -> None:
    """The same boxes to a twentieth of a pixel, and scores to 1e-4."""
    image, _ = resize(*read_sample(scenes[1], 0), 96, 160)
    found = []
    for place in ("cpu", device):
        torch.manual_seed(0)
        model = build(CONFIGS[what]).to(place).eval()
        found.append({key: value.cpu() for key, value in model.detect([image.to(place)])[0].items()})
    here, there = found
    assert len(here["boxes"]) == len(there["boxes"]) > 0
    assert (here["scores"] - there["scores"]).abs().max() < 1e-4
    distance = (here["boxes"][:, None] - there["boxes"][None]).abs().amax(dim=-1)
    same = here["labels"][:, None] == there["labels"][None]
    assert (distance.masked_fill(~same, torch.inf).amin(dim=1) < 0.05).float().mean() > 0.98  # ties change places


def steps_of(model: Detector, batches: list[list[Batch]], place: Any) -> list[float]:
    """The loss of each step of SGD; the gradients of several parts of a step are added up."""
    optimizer, losses = optimizer_of(model), []
    set_rate(optimizer, 0.01)
    for parts in batches:
        optimizer.zero_grad()
        total = 0.0
        for images, targets, draws in parts:
            found = torch.stack(list(model([image.to(place) for image in images], targets, draws).values())).sum()
            found.backward()
            total += found.item()
            del found  # a recording asks that nothing of an earlier step is left
        optimizer.step()
        losses.append(total)
    return losses


def test_graphs(scenes: tuple[Dataset, Dataset], device: torch.device) -> None:
    """Played back from graphs, whole or in two parts, the same losses; three sizes, of which two are recorded."""
    sizes = [96, 128, 96, 96, 128, 128, 160, 96, 128]
    batches = [[batch_of(scenes[0], side=side)] * (1 + k % 2) for k, side in enumerate(sizes)]
    found, graphs = [], None
    for most in (0, 2):
        torch.manual_seed(0)
        model = build(DEMO).to(device).train()
        model.graphs = graphs = Graphs(model.backbone, most, has_room=lambda device: True)
        found.append(steps_of(model, batches, device))
    assert graphs is not None and len(graphs.graphs) == 2
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_waits(scenes: tuple[Dataset, Dataset], device: torch.device) -> None:
    """The host waits at most 12 times in a step of two images, by PyTorch's own count."""
    batch, model = batch_of(scenes[0]), build(DEMO).to(device).train()
    images = [image.to(device) for image in batch[0]]
    for _ in range(2):
        torch.stack(list(model(images, batch[1]).values())).sum().backward()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        torch.stack(list(model(images, batch[1]).values())).sum().backward()
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(w.message) for w in caught if "synchroniz" in str(w.message)]
    print(f"{len(waits)} waits")
    assert len(waits) <= 12


SHORT = ["--model", "demo", "--schedule", "1", "--unit", "12", "--device", "cuda", "--save-every", "6"]


def run(command: str, *arguments: str, launcher: tuple[str, ...] = ()) -> None:
    """A command of the library, to its end; started by a launcher if there is one."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / command
        file.write_text(f"from rethink_imagenet.tools.cli import {command}\n{command}()\n")
        line = [sys.executable, *launcher, str(file), *arguments]
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def log_of(folder: Path) -> list[dict[str, float]]:
    """The losses in a run's log."""
    (file,) = folder.glob("**/log.jsonl")
    return [line["losses"] for line in map(json.loads, file.read_text().splitlines()) if "losses" in line]


def test_commands(tmp_path: Path, device: torch.device) -> None:
    """Twice the same bits with --deterministic, and near them without; then evaluation and pictures."""
    for name, more in (("a", ["--deterministic"]), ("b", ["--deterministic"]), ("c", ["--graphs"])):
        run("rethink_train", *SHORT, *more, "--out", str(tmp_path / name))
    logs = [log_of(tmp_path / name) for name in "abc"]
    assert logs[0] == logs[1] and len(logs[0]) > 0
    for mine, other in itertools.zip_longest(logs[2], logs[0]):
        assert mine == pytest.approx(other, rel=0.2)
    run("rethink_eval", str(tmp_path / "a" / "1x"), "--data", str(tmp_path / "a" / "scenes"), "--device", "cuda",
        "--out", str(tmp_path / "eval"))  # fmt: skip


@pytest.mark.parametrize("norm", ["gn", "syncbn"])
def test_several_processes(norm: str, tmp_path: Path, device: torch.device) -> None:
    """As many processes as there are GPUs meet by NCCL and take the steps of a run."""
    count = torch.cuda.device_count()
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count))
    run("rethink_train", *SHORT, "--norm", norm, "--out", str(tmp_path / "out"), launcher=launcher)
    assert len(log_of(tmp_path / "out")) > 0
