"""The paper's Mask R-CNN beside torchvision's parts (and detectron2, where it imports): time, memory, ratios.

python benchmarks/detector.py            all of it, about 26 minutes on two cores
python benchmarks/detector.py step       one part: step, inference, pooling, detectron2, memory,
                                         recomputing, data or photographs
python benchmarks/detector.py --keep     all of it, and the results into benchmarks/results, for the README
"""

import copy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import roi_align

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.results import PROCESSOR, asked, keep, processor, row, spent
from benchmarks.table import BENCHMARKS
from rethink_imagenet.data.datasets import Polygons
from rethink_imagenet.data.loading import TrainingSamples, training_batches
from rethink_imagenet.data.splits import read_splits
from rethink_imagenet.data.transforms import DETECTRON_STD, resize, resized_size
from rethink_imagenet.detection.conventions import DETECTRON2
from rethink_imagenet.detection.detectors import Detector, DetectorConfig
from rethink_imagenet.detection.mask_head import bitmaps_of
from rethink_imagenet.detection.pooling import roi_align_pyramid
from rethink_imagenet.evaluation.average_precision import coco_results
from rethink_imagenet.tools.conversion import to_detectron2, to_torchvision, torchvision_model
from rethink_imagenet.training.loop import optimizer_of, set_rate

ROOT = Path(__file__).parent.parent
Sample = tuple[list[Tensor], list[dict[str, Any]]]
Row = tuple[str, str, str, str]  # what, ours, the other's, ratio
NO_BOXES = torch.zeros(0, 4)


def alternate(
    repetitions: int, warm_up: int = 1, clock: Callable[[], float] = time.perf_counter, **runs: Callable[[], object]
) -> dict[str, float]:
    """Median seconds of each contender, taking turns, after some rounds to warm up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(repetitions + warm_up):
        for name, run in runs.items():
            start = clock()
            run()
            if round_number >= warm_up:
                times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def made_up_batch(height: int = 480, width: int = 640, images: int = 2, objects: int = 8) -> Sample:
    """Smooth noise with elliptic objects of all sizes, with polygons for us and bitmaps for torchvision."""
    rng, targets, pictures = np.random.default_rng(0), [], []
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    for b in range(images):
        coarse = torch.from_numpy(rng.random((1, 3, 15, 20), np.float32))
        pictures.append(nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0])
        radius = np.exp(rng.uniform(np.log(12), np.log(150), (objects, 2)))
        centre = rng.uniform((0.2 * width, 0.2 * height), (0.8 * width, 0.8 * height), (objects, 2))
        rings = centre[:, None] + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        rings = rings.clip(0, (width, height)).astype(np.float32)
        boxes = np.concatenate([rings.min(axis=1), rings.max(axis=1)], axis=1)
        polygons = Polygons.pack([[ring] for ring in rings])
        target = {"boxes": torch.from_numpy(boxes), "labels": torch.arange(objects) + 1, "polygons": polygons}
        bitmaps = bitmaps_of(polygons, height, width)
        targets.append(target | {"masks": bitmaps, "crowd": torch.zeros(objects, dtype=torch.bool), "image_id": b})
    return pictures, targets


def with_proposals(model: nn.Module, proposals: list[Tensor]) -> nn.Module:
    """Let the first stage do all its work, and then hand on these proposals, as if it had learned already."""
    rpn: Any = model.rpn
    forward = rpn.forward

    def handed_on(*arguments: Any, **named: Any) -> tuple[list[Tensor], dict[str, Tensor]]:
        return proposals, forward(*arguments, **named)[1]

    rpn.forward = handed_on
    return model


def learned_proposals(batch: Sample, number: int = 1000) -> list[Tensor]:
    """Of each image four in ten near an object and the others anywhere, so that each stage gets its full samples."""
    generator, out = torch.Generator().manual_seed(0), []
    for image, target in zip(*batch, strict=True):
        height, width = image.shape[1:]
        objects = target["boxes"][torch.randint(len(target["boxes"]), (4 * number // 10,), generator=generator)]
        sides = (objects[:, 2:] - objects[:, :2]).repeat(1, 2)
        near = objects + 0.12 * sides * torch.randn(objects.shape, generator=generator)
        corners = torch.rand(number - len(near), 2, generator=generator) * torch.tensor([width - 40, height - 40])
        anywhere = torch.cat([corners, corners + 16 + 200 * torch.rand(corners.shape, generator=generator)], dim=1)
        boxes = torch.cat([near, anywhere])
        out.append(boxes.clamp(min=0).minimum(torch.tensor([width, height, width, height])))
        out[-1] = out[-1][((out[-1][:, 2:] - out[-1][:, :2]) > 4).all(dim=1)]
    return out


def contenders(precision: str, channels_last: bool = True) -> tuple[Detector, nn.Module]:
    """Our R50-FPN GN 4conv1fc Mask R-CNN and torchvision's, with the same weights."""
    torch.manual_seed(0)
    ours = Detector(DetectorConfig(precision=precision))
    theirs = torchvision_model(ours.config)
    theirs.load_state_dict(to_torchvision(ours))
    return ours, theirs.to(memory_format=torch.channels_last) if channels_last else theirs


def stepper(model: nn.Module, batch: Sample, precision: str) -> Callable[[], None]:
    """A function that makes one training step."""
    images, targets = batch
    if isinstance(model, Detector):
        optimizer: torch.optim.Optimizer = optimizer_of(model)
        set_rate(optimizer, 1e-4)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)
        targets = [{key: t[key] for key in ("boxes", "labels", "masks")} for t in targets]
    own = isinstance(model, Detector) or precision == "fp32"
    model.train()

    def step() -> None:
        with nullcontext() if own else torch.autocast(images[0].device.type, torch.bfloat16):
            losses = model(images, targets)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

    return step


def multiply_adds(model: nn.Module, run: Callable[[], object]) -> float:
    """FLOP of the convolutions and linear layers of a forward pass (two for each multiply-add)."""
    total, hooks = 0.0, []

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, Tensor)
        positions = output.numel() / output.shape[1]
        if isinstance(module, nn.ConvTranspose2d):
            positions /= weight.shape[2] * weight.shape[3]
        total += 2 * positions * weight.numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            hooks.append(module.register_forward_hook(count))
    run()
    for hook in hooks:
        hook.remove()
    return total


def peak_rate(kind: torch.dtype) -> float:
    """FLOP/s of a 3x3 convolution with 256 channels in channels_last."""
    x = torch.randn(2, 256, 120, 160, dtype=kind).to(memory_format=torch.channels_last)
    conv = nn.Conv2d(256, 256, 3, padding=1, bias=False).to(kind).to(memory_format=torch.channels_last)
    with torch.no_grad():
        seconds = alternate(7, conv=lambda: conv(x))["conv"]
    return 2 * x.numel() * 256 * 9 / seconds


def measure_step() -> Iterator[Row]:
    """Training step on two images of 480x640 with 512 regions each, 128 of them positive."""
    batch = made_up_batch()
    proposals = learned_proposals(batch)
    runs: dict[str, Callable[[], None]] = {}
    models = {"fp32": contenders("fp32"), "bf16": contenders("bf16")}
    for precision, (ours, theirs) in models.items():
        runs[f"ours {precision}"] = stepper(with_proposals(ours, proposals), batch, precision)
        runs[f"theirs {precision}"] = stepper(with_proposals(theirs, proposals), batch, precision)
    default_model = contenders("fp32", channels_last=False)[1]
    runs["theirs default"] = stepper(with_proposals(default_model, proposals), batch, "fp32")
    flop = 3 * multiply_adds(models["fp32"][0], lambda: models["fp32"][0](*batch))
    t = alternate(5, **runs)
    for precision, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        mine, other = t[f"ours {precision}"], t[f"theirs {precision}"]
        yield f"training step, {precision}", f"{mine:.2f} s", f"{other:.2f} s", f"{other / mine:.2f}"
        floor = flop / peak_rate(kind)
        yield f"of it the convolution floor, {precision}", f"{floor:.2f} s", "", f"{100 * floor / mine:.0f} %"
    auto, default = t["ours bf16"], t["theirs default"]
    yield "training step, ours auto, theirs default", f"{auto:.2f} s", f"{default:.2f} s", f"{default / auto:.2f}"


def measure_detectron2() -> Iterator[Row]:
    """Training step beside detectron2's, from its published configuration and with our weights, where it imports."""
    try:
        from detectron2 import model_zoo
        from detectron2.modeling import build_model
        from detectron2.structures import Boxes, Instances, PolygonMasks
        from detectron2.utils.events import EventStorage
    except ImportError:
        return
    rules = replace(DETECTRON2, pixel_std=DETECTRON_STD)
    ours, batch = Detector(DetectorConfig(conventions=rules)), made_up_batch()
    settings = model_zoo.get_config("Misc/scratch_mask_rcnn_R_50_FPN_3x_gn.yaml")
    settings.MODEL.DEVICE = "cpu"
    theirs = build_model(settings)
    theirs.load_state_dict({k: v for k, v in to_detectron2(ours).items() if k in theirs.state_dict()})
    inputs = []
    for image, target in zip(*batch, strict=True):
        polygons = [[ring.ravel() for ring in target["polygons"][n]] for n in range(len(target["labels"]))]
        instances = Instances(tuple(image.shape[1:]), gt_boxes=Boxes(target["boxes"]),
                              gt_classes=target["labels"] - 1, gt_masks=PolygonMasks(polygons))  # fmt: skip
        inputs.append({"image": 255 * image.flip(0), "instances": instances})
    optimizer = torch.optim.SGD(theirs.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        with EventStorage():
            losses = theirs.train()(inputs)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

    t = alternate(5, ours=stepper(ours, batch, "fp32"), theirs=step)
    mine, other = t["ours"], t["theirs"]
    yield "training step, fp32 (theirs: detectron2)", f"{mine:.2f} s", f"{other:.2f} s", f"{other / mine:.2f}"


def eager(precision: str) -> tuple[Detector, nn.Module]:
    """Both in testing, and in favour of one class, so that either finds 100 objects as a trained detector does."""
    ours, theirs = contenders(precision)
    with torch.no_grad():
        ours.box_head.scores.bias[1] = 4
    theirs.load_state_dict(to_torchvision(ours))
    return ours.eval(), theirs.eval()


def found_by_ours(model: Detector, images: list[Tensor]) -> list[dict[str, Any]]:
    """What is in one image, in COCO's results format."""
    size = (images[0].shape[1], images[0].shape[2])
    return coco_results(model.detect(images)[0], {"image_id": 1, "size": size}, size, range(1, 81))


@torch.no_grad()
def found_by_theirs(model: nn.Module, images: list[Tensor], precision: str) -> list[dict[str, Any]]:
    """The same by torchvision, whose masks are pasted by the detector."""
    with nullcontext() if precision == "fp32" else torch.autocast(images[0].device.type, torch.bfloat16):
        found = model(images)[0]
    masks = (found["masks"][:, 0] > 0.5).cpu().numpy().astype(np.uint8)
    encoded = [coco_mask.encode(np.asfortranarray(mask)) for mask in masks]
    records = zip(found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), encoded, strict=True)
    return [{"bbox": box, "category_id": i, "score": score, "segmentation": mask} for box, i, score, mask in records]


def measure_inference() -> Iterator[Row]:
    """Detection in one image of 480x640: 100 objects, their masks pasted and encoded."""
    images = made_up_batch(images=1)[0]
    for precision in ("fp32", "bf16"):
        ours, theirs = eager(precision)
        runs = {"ours": partial(found_by_ours, ours, images)}
        runs["theirs"] = partial(found_by_theirs, theirs, images, precision)
        assert {len(run()) for run in runs.values()} == {100}
        t = alternate(7, **runs)
        yield (
            f"inference, 100 objects, {precision}",
            f"{t['ours']:.2f} s",
            f"{t['theirs']:.2f} s",
            f"{t['theirs'] / t['ours']:.2f}",
        )


def measure_pooling() -> Iterator[Row]:
    """RoIAlign forward and backward on 120x160 maps with 256 channels, two images, 1024 regions of 7x7 bins."""
    torch.manual_seed(0)
    feature = torch.randn(2, 256, 120, 160).to(memory_format=torch.channels_last).requires_grad_()
    corners = torch.rand(1024, 2) * torch.tensor([500, 340])
    rois = torch.cat([torch.randint(2, (1024, 1)), corners, corners + 4 + 108 * torch.rand(1024, 2)], dim=1)
    gradient = torch.randn(1024, 256, 7, 7).to(memory_format=torch.channels_last)
    t = alternate(
        7,
        ours=lambda: roi_align_pyramid([feature], rois, 7).backward(gradient),
        theirs=lambda: roi_align(feature, rois, 7, 0.25, 2).backward(gradient),
    )
    mine, other = 1e3 * t["ours"], 1e3 * t["theirs"]
    yield "RoIAlign, forward and backward", f"{mine:.0f} ms", f"{other:.0f} ms", f"{other / mine:.1f}"


HEADS = ("box_head.convs", "mask_head.convs")
BLOCKS = tuple(f"backbone.body.layer{i}.{j}" for i, blocks in enumerate((3, 4, 6, 3), 1) for j in range(blocks))
RECOMPUTED = {"heads": HEADS, "heads and blocks of the body": HEADS + BLOCKS}  # of an R50-FPN


def recomputing(model: nn.Module, parts: Sequence[str]) -> nn.Module:
    """Let parts of a detector keep their inputs alone for the backward pass, and compute their maps a second time."""
    for name in parts:
        part: Any = model.get_submodule(name)
        part.forward = partial(checkpoint, part.forward, use_reentrant=False)
    return model


def peak_memory(which: str, again: str = "") -> float:
    """GB that a process of its own takes at most for two training steps of one contender; on Linux.

    The kernel's `ru_maxrss` would not do: a new process inherits it from the one that starts it.
    """
    code = (
        "import re, sys; sys.path.insert(0, 'benchmarks'); import detector\n"
        f"model, batch = detector.contenders('fp32')[{which == 'theirs'}], detector.made_up_batch()\n"
        f"detector.recomputing(model, detector.RECOMPUTED.get({again!r}, ()))\n"
        "step = detector.stepper(detector.with_proposals(model, detector.learned_proposals(batch)), batch, 'fp32')\n"
        "step(); step(); status = open('/proc/self/status').read()\n"
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', status)[1]) / 2**20)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout)


def measure_memory() -> Iterator[Row]:
    """Peak memory of a training step."""
    mine, other = peak_memory("ours"), peak_memory("theirs")
    yield "peak memory of a training step, fp32", f"{mine:.1f} GB", f"{other:.1f} GB", f"{other / mine:.2f}"


def measure_recomputing() -> Iterator[Row]:
    """What it costs, and saves, to compute parts again in the backward pass."""
    batch, models = made_up_batch(), {"": contenders("fp32")[0]}
    models |= {what: recomputing(copy.deepcopy(models[""]), parts) for what, parts in RECOMPUTED.items()}
    proposals = learned_proposals(batch)
    steps = {what: stepper(with_proposals(model, proposals), batch, "fp32") for what, model in models.items()}
    seconds, memory = alternate(3, **steps), {what: peak_memory("ours", what) for what in steps}
    for what in RECOMPUTED:
        time_and_memory = (f"{seconds[key]:.1f} s, {memory[key]:.1f} GB" for key in (what, ""))
        yield f"the same, {what} computed again in backward", *time_and_memory, f"{memory[''] / memory[what]:.2f}"


def measure_data() -> Iterator[Row]:
    """Photographs from JPEG to a batch with targets, shorter side 800, two worker processes."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
    from torchvision.transforms import v2

    folder = ROOT.parent / "shared" / "data" / "coco_mini_by"
    if not folder.is_dir():
        return
    train, _ = read_splits(folder)
    steps = [
        v2.Resize(800, max_size=1333),
        v2.RandomHorizontalFlip(),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
    ]
    raw = CocoDetection(str(train.folder), str(train.source), transforms=v2.Compose(steps))
    reference = wrap_dataset_for_transforms_v2(raw, target_keys=("boxes", "labels", "masks"))
    number = len(train) // 2 * 2

    def ours() -> None:
        for _ in training_batches(TrainingSamples(train), 2, 0, number // 2, workers=2):
            pass

    def theirs() -> None:
        for _ in DataLoader(reference, batch_size=2, num_workers=2, collate_fn=list):
            pass

    t = alternate(7, clock=spent, ours=ours, theirs=theirs)
    mine, other = number / t["ours"], len(raw) / t["theirs"]
    yield (
        "data, JPEG to batch",
        f"{mine:.1f} images/s of a core",
        f"{other:.1f} images/s of a core",
        f"{mine / other:.2f}",
    )


def measure_photographs() -> Iterator[Row]:
    """Ways to decode photographs and to enlarge them to 800 pixels: milliseconds of one thread, and what changes."""
    from PIL import Image
    from torchvision.io import ImageReadMode, decode_jpeg

    folder = ROOT.parent / "shared" / "data" / "coco_mini_by"
    if not folder.is_dir():
        return
    files = sorted(folder.rglob("*.jpg"))[:40]
    contents = [torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8) for file in files]
    bytes_ = [torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1) for file in files]
    floats = [photo.float() / 255 for photo in bytes_]
    apart = [photo.contiguous() for photo in floats]

    def at(image: Tensor, size: tuple[int, int]) -> Tensor:
        return nn.functional.interpolate(image[None], size, mode="bilinear")[0]

    def enlarged(image: Tensor) -> Tensor:
        return at(image, resized_size(*image.shape[1:]))

    def width_first(image: Tensor) -> Tensor:
        height, width = resized_size(*image.shape[1:])
        return at(at(image, (image.shape[1], width)), (height, width))

    ways: dict[str, tuple[Callable[[Any], Tensor], Sequence[Any]]] = {
        "decoding by Pillow": (lambda file: torch.from_numpy(np.array(Image.open(file).convert("RGB"))), files),
        "decoding by torchvision": (lambda read: decode_jpeg(read, mode=ImageReadMode.RGB).permute(1, 2, 0), contents),
        "enlarging the colours of a pixel together": (lambda image: resize(image, {"boxes": NO_BOXES})[0], floats),
        "enlarging the colours apart": (enlarged, apart),
        "enlarging the width first, then the height": (width_first, apart),
        "enlarging bytes": (lambda image: enlarged(image).float() / 255, bytes_),
    }

    def all_of(way: Callable[[Any], Tensor], inputs: Sequence[Any]) -> None:
        for one in inputs:
            way(one)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = alternate(5, clock=time.process_time, **{what: partial(all_of, *way) for what, way in ways.items()})
    first = {"decoding": ways["decoding by Pillow"], "enlarging": ways["enlarging the colours of a pixel together"]}
    for what, (way, inputs) in ways.items():
        wanted, others = first[what.split()[0]]
        off = max(
            float((way(one).float() - wanted(other).float()).abs().max())
            for one, other in zip(inputs, others, strict=True)
        )
        same = f"off by {off:.1g} at most" if off else "the same pixels"
        yield what, f"{1000 * seconds[what] / len(files):.1f} ms", "", same
    torch.set_num_threads(threads)


PARTS = {
    "step": measure_step, "inference": measure_inference, "pooling": measure_pooling,
    "detectron2": measure_detectron2, "memory": measure_memory,
    "recomputing": measure_recomputing, "data": measure_data, "photographs": measure_photographs,
}  # fmt: skip


def machine() -> str:
    """Processor, cores and versions."""
    return f"{processor()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__.split('+')[0]}"


ROUNDS = {"recomputing": 3, "step": 5, "detectron2": 5, "inference": 7, "pooling": 7, "data": 7}
WALL = f"wall time of {torch.get_num_threads()} threads, the contenders taking turns in one run; the medians count"


def main() -> None:
    """Measure what was asked for, print a table, and with --keep leave the results of each part."""
    names, kept = asked(__doc__, PARTS)
    print("| | ours | torchvision | ratio |", "|---|---|---|---|", sep="\n", flush=True)
    for name in names:
        rows = []
        for found in PARTS[name]():
            what, mine, other, ratio = found
            whose = {"detectron2": "", "recomputing": "kept: "}.get(name, "torchvision ")
            named = f"{whose}{other}" if other else other
            rows.append(row(what, mine, named, ratio))
            print(f"| {' | '.join(found)} |", flush=True)
        if kept and rows and name in BENCHMARKS:
            keep(name, rows, PROCESSOR if name == "data" else WALL, ROUNDS.get(name, 1))
    print(machine())


if __name__ == "__main__":
    main()
