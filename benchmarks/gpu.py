"""A training step and a detection on a GPU, beside torchvision's parts; where the time goes; what each choice is worth.

python benchmarks/gpu.py                              all of it, about five minutes
python benchmarks/gpu.py --seconds 240 --json g.json  the first parts, as far as the time goes; rows into a file as well
python benchmarks/gpu.py --count                      without a GPU: launches, waits and bytes of a training step
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.detector import (
    Sample,
    alternate,
    contenders,
    eager,
    found_by_ours,
    found_by_theirs,
    learned_proposals,
    made_up_batch,
    stepper,
    with_proposals,
)
from rethink_imagenet.data.transforms import batch_images
from rethink_imagenet.detection import detectors
from rethink_imagenet.detection.detectors import DetectorConfig, build
from rethink_imagenet.networks.graphs import Graphs

SIZE = (800, 1333)
Row = dict[str, Any]
KINDS = {  # of a GPU's kernels, by what their names hold; the first that fits
    "group norm, ours": ("_moments", "_join_", "_apply", "_gradient_sums", "_whole"),
    "group norm, PyTorch's": ("GroupNorm", "group_norm", "RowwiseMoments"),
    "convolutions and products": (
        "conv",
        "gemm",
        "cutlass",
        "xmma",
        "cudnn",
        "sm80",
        "sm90",
        "wgrad",
        "dgrad",
        "nvjet",
    ),
    "RoIAlign": ("EmbeddingBag", "embedding", "roi_align", "RoIAlign"),
    "suppression": ("_pairs", "_walk", "nms"),
    "sorting": ("sort", "topk", "radix", "scan"),
    "optimizer": ("multi_tensor", "FusedSgd", "fused_sgd"),
    "copies and conversions": ("Memcpy", "Memset", "copy_kernel", "direct_copy", "transpose", "CatArray"),
    "elementwise": ("elementwise", "vectorized", "reduce_kernel", "index"),
}


def on_gpu(batch: Sample) -> Sample:
    """The images, and the targets' tensors, on the GPU."""
    images, targets = batch
    moved = [{k: v.cuda() if isinstance(v, Tensor) else v for k, v in target.items()} for target in targets]
    return [image.cuda() for image in images], moved


def waiting(run: Callable[[], object]) -> Callable[[], None]:
    """The same, until the GPU has done it."""

    def until_done() -> None:
        run()
        torch.cuda.synchronize()

    return until_done


@contextmanager
def pytorchs_norm() -> Iterator[None]:
    """GN by PyTorch's kernels, as before there were ours."""
    with patch("rethink_imagenet.networks.fused_norm.for_kernels", lambda x: False):
        yield


@contextmanager
def contiguous_images() -> Iterator[None]:
    """Batches whose channels come first in memory, and with them all maps of a model with such weights."""
    with patch.object(detectors, "batch_images", lambda *given, **named: batch_images(*given, **named).contiguous()):
        yield


def within(context: Callable[[], AbstractContextManager[Any]], run: Callable[[], object]) -> Callable[[], None]:
    """A call inside a context."""

    def call() -> None:
        with context():
            run()

    return call


def step_of(which: str, images: int, precision: str) -> Callable[[], None]:
    """A training step of "ours", "ours, in graphs" or "theirs"."""
    batch = made_up_batch(*SIZE, images=images)
    proposals = [boxes.cuda() for boxes in learned_proposals(batch)]
    model = contenders(precision)[which == "theirs"].cuda()
    if which == "ours, in graphs":
        model.graphs = Graphs(model.backbone)
    return waiting(stepper(with_proposals(model, proposals), on_gpu(batch), precision))


def peak_of(run: Callable[[], None]) -> float:
    """GiB that are taken at most."""
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() / 2**30


def measured(which: str, images: int, precision: str, context: Callable[[], Any] = nullcontext) -> Row:
    """Median milliseconds of ten steps of one contender, and its peak of memory."""
    run = within(context, step_of(which, images, precision))
    seconds = alternate(10, 5, run=run)["run"]
    row = {"step of": which, "images": images, "precision": precision, "ms": 1000 * seconds, "GiB": peak_of(run)}
    del run
    torch.cuda.empty_cache()
    return row


def measure_steps() -> Iterator[Row]:
    """Two and eight images of 800x1333, 512 regions each, 128 of them positive."""
    for images, precision in ((2, "bf16"), (8, "bf16"), (8, "fp32")):
        other = measured("theirs", images, precision)
        yield other
        ways: list[tuple[str, Callable[[], Any]]] = [("ours", nullcontext)]
        if precision == "bf16":
            ways += [("ours, in graphs", nullcontext), ("ours", pytorchs_norm)]
        for which, context in ways:
            row = measured(which, images, precision, context)
            told = {"norm": "PyTorch's"} if context is pytorchs_norm else {}
            yield row | told | {"times as fast": other["ms"] / row["ms"], "memory": row["GiB"] / other["GiB"]}


def measure_inference() -> Iterator[Row]:
    """Detection in one image: 100 objects, their masks pasted and encoded."""
    images = on_gpu(made_up_batch(*SIZE, images=1))[0]
    for precision in ("bf16", "fp32"):
        ours, theirs = (model.cuda() for model in eager(precision))
        runs = {"ours": partial(found_by_ours, ours, images)}  # which ends on the host
        runs["theirs"] = partial(found_by_theirs, theirs, images, precision)
        t = alternate(10, 5, **runs)
        yield {"inference": "1 image, 100 objects", "precision": precision, "ours, ms": 1000 * t["ours"],
               "theirs, ms": 1000 * t["theirs"], "times as fast": t["theirs"] / t["ours"]}  # fmt: skip


def kind_of(kernel: str) -> str:
    """The kind that a kernel belongs to, by its name."""
    return next((kind for kind, parts in KINDS.items() if any(part in kernel for part in parts)), "rest")


def measure_profile() -> Iterator[Row]:
    """Where the GPU's time goes in a step of two images in bf16; launches, and waits of the host."""
    run = step_of("ours", 2, "bf16")
    for _ in range(5):
        run()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run()
    spent: dict[str, float] = defaultdict(float)
    events = profiler.key_averages()
    for event in events:
        if event.self_device_time_total and not event.self_cpu_time_total:
            spent[kind_of(event.key)] += event.self_device_time_total / 1000
    for kind, ms in sorted(spent.items(), key=lambda item: -item[1]):
        yield {"kernels": kind, "ms": ms}
    calls = {event.key: event.count for event in events}
    launches = sum(number for name, number in calls.items() if "LaunchKernel" in name)
    yield {"launches": launches, "waits": calls.get("cudaStreamSynchronize", 0)}  # ours at the end has another name


def measure_choices() -> Iterator[Row]:
    """What the settings of the chapter on training are worth: two images in bf16, fp32 for TF32."""

    @contextmanager
    def setting(holder: Any, name: str, value: Any) -> Iterator[None]:
        before = getattr(holder, name)
        setattr(holder, name, value)
        try:
            yield
        finally:
            setattr(holder, name, before)

    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    for name, holder, field, value, precision in (
        ("cuDNN's search", cudnn, "benchmark", True, "bf16"),
        ("no TF32 in convolutions", cudnn, "allow_tf32", False, "fp32"),
        ("TF32 in products", matmul, "allow_tf32", True, "fp32"),
    ):
        plain = measured("ours", 2, precision)
        with setting(holder, field, value):
            row = measured("ours", 2, precision)
        yield {"choice": name, "precision": precision, "ms": row["ms"], "times as fast": plain["ms"] / row["ms"]}
    batch = on_gpu(made_up_batch(*SIZE))
    model = build(DetectorConfig(precision="bf16")).cuda().to(memory_format=torch.contiguous_format)
    run = waiting(within(contiguous_images, stepper(model, batch, "bf16")))
    seconds = alternate(10, 5, run=run)["run"]
    yield {"choice": "contiguous maps, own proposals", "precision": "bf16", "ms": 1000 * seconds}


class Norm(NamedTuple):
    """A group norm as it is called."""

    values: int  # of the map
    residual: bool
    relu: bool


def norms_of(images: int) -> list[Norm]:
    """All group norms of a training step, found by a pass over shapes without values."""
    from rethink_imagenet.networks import backbones, fused_norm

    found: list[Norm] = []
    original = fused_norm.apply_norm

    def noted(norm: nn.Module, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        if isinstance(norm, nn.GroupNorm):
            found.append(Norm(x.numel(), residual is not None, relu))
        return original(norm, x, residual, relu)

    model = build(DetectorConfig()).to("meta")
    height, width = (-(-side // 32) * 32 for side in SIZE)
    with patch.object(fused_norm, "apply_norm", noted), patch.object(backbones, "apply_norm", noted), torch.no_grad():
        model.backbone(torch.empty(images, 3, height, width, device="meta"))
        for head, regions, side in ((model.box_head, 512, 7), (model.mask_head, 128, 14)):
            layers = next(part for part in head.modules() if isinstance(part, fused_norm.FusedSequential))
            layers(torch.empty(images * regions, 256, side, side, device="meta"))
    assert len(found) == sum(isinstance(part, nn.GroupNorm) for part in model.modules())
    return found


def traffic(norms: list[Norm], ours: bool) -> float:
    """Bytes that the norms of a step move, forwards and backwards, with maps in bf16 in channels_last order.

    Ours: the map is read twice and written once, then read twice more with its gradient, which is written once; a
    residual is read and its gradient written, and the output is read twice to know where the ReLU let pass.
    PyTorch's, under autocast: to 32 bits, to contiguous, statistics, output, back to channels_last, and the sum, the
    ReLU and the next layer's rounding on their own; the same on the way back, with map and gradient.
    """
    moved = 0.0
    for norm in norms:
        if ours:
            half = 2 * (3 + 5 + norm.residual * (1 + 1 + (2 if norm.relu else 0)))
            moved += norm.values * half
        else:
            forward = (2 + 4) + (4 + 4) + 4 + (4 + 4) + (4 + 4) + norm.residual * (4 + 2 + 4) + norm.relu * 8 + (4 + 2)
            backward = (2 + 4) + norm.relu * 12 + (4 + 4) + 8 + (8 + 4) + (4 + 4) + (4 + 2)
            moved += norm.values * (forward + backward)
    return moved


def launches_and_waits() -> tuple[int, int]:
    """Of a training step of one small image, on the double of a GPU of the tests."""
    from tests.device_double import Device

    torch.manual_seed(0)
    model, batch = build(DetectorConfig(precision="bf16")), made_up_batch(64, 96, images=1, objects=2)
    with Device() as device:
        step = stepper(model.to("cuda"), batch_on(batch, "cuda"), "bf16")
        step()
        device.reset()
        step()
        return device.launches, device.waits


def batch_on(batch: Sample, device: str) -> Sample:
    """A batch whose images are sent without waiting."""
    return [image.to(device, non_blocking=True) for image in batch[0]], batch[1]


def count() -> Iterator[Row]:
    """What can be known without a GPU, and what it predicts for an H100, by the times that were measured on one."""
    saved, before, after = 0.330 - 0.186, traffic(norms_of(8), ours=False), traffic(norms_of(8), ours=True)
    rate = (before - after) / saved  # bytes a second that the change of the norm alone has shown on an H100
    for images in (2, 8):
        norms = norms_of(images)
        theirs, ours = traffic(norms, ours=False), traffic(norms, ours=True)
        yield {"images": images, "norms": len(norms), "bytes, PyTorch's GN (GB)": theirs / 1e9,
               "bytes, ours (GB)": ours / 1e9, "of them saved (GB)": (theirs - ours) / 1e9,
               "by the rate shown (ms)": 1000 * (theirs - ours) / rate}  # fmt: skip
    yield {"rate shown (TB/s)": rate / 1e12, "of an H100's 3.35": rate / 3.35e12}
    launches, waits = launches_and_waits()
    yield {"launches of a step, R50, one small image": launches, "waits": waits}


PARTS = {
    "steps": measure_steps, "inference": measure_inference, "profile": measure_profile, "choices": measure_choices,
}  # fmt: skip


def told(row: Row) -> str:
    """A row as a line."""
    return ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
    )


def main() -> None:
    """Measure, print each row at once, and stop when the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--seconds", type=float, default=600.0, help="no row is begun after so many")
    parser.add_argument("--json", type=Path, help="file for the rows as well")
    parser.add_argument("--count", action="store_true", help="without a GPU")
    given, start = parser.parse_args(), time.perf_counter()
    if not given.count and not torch.cuda.is_available():
        parser.exit(2, "PyTorch finds no GPU here; --count needs none\n")
    rows: list[Row] = [] if given.count else [{"card": torch.cuda.get_device_name(), "torch": torch.__version__}]
    print(*map(told, rows), sep="\n", flush=True)
    for part in [count] if given.count else [PARTS[name] for name in given.parts or PARTS]:
        for row in part():
            rows.append(row)
            print(told(row), flush=True)
            if given.json:
                given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
            if time.perf_counter() - start > given.seconds:
                return


if __name__ == "__main__":
    main()
