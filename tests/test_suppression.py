"""Suppression without waiting: the kernels, run by Triton's interpreter, leave exactly torchvision's boxes."""

import re
import sys
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

from rethink_imagenet.detection import suppression
from rethink_imagenet.detection.suppression import best_first, suppress
from rethink_imagenet.networks.kernels import interpreted, kernel
from tests.kernels import AMPERE, HOPPER, Launch, compiled, recorded, resources, triton

Problem = tuple[Tensor, Tensor, Tensor, float, int]  # boxes, scores, groups, overlap, number of groups


@pytest.fixture
def by_kernels() -> Iterator[None]:
    """The kernels run on a CPU, one program after another."""
    with interpreted(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(invalid value|divide by zero|overflow)", RuntimeWarning)
        yield


def test_the_interpreter_leaves_the_language_as_it_was() -> None:
    """It changes the language for a device function, and does not undo that: nothing could be compiled afterwards."""
    parts = triton.language, triton.language.core, triton.language.tensor, triton.language.math
    before = [dict(vars(part)) for part in parts]
    from triton.runtime.interpreter import _patch_lang

    with interpreted():
        _patch_lang(suppression._pairs.fn)
        assert any(dict(vars(part)) != was for part, was in zip(parts, before, strict=True))
    assert [dict(vars(part)) for part in parts] == before


@kernel
def doubled(x: int) -> int:
    """A function of a kernel."""
    return x + x


def test_the_interpreter_of_triton_3_2(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no descriptors of tensors, and what it changes in the language comes with nothing to undo it."""
    from triton.runtime import interpreter

    monkeypatch.setattr(interpreter, "_patch_lang", lambda function: None)
    monkeypatch.setattr(interpreter.InterpretedFunction, "rewrite", lambda self: self.fn)
    monkeypatch.delattr(triton.language.core, "tensor_descriptor_base")
    with interpreted():
        assert doubled(2) == 4


def by_definition(boxes: Tensor, scores: Tensor, groups: Tensor, overlap: float, number: int) -> Tensor:
    """torchvision's nms for each group of each image by itself."""
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for b in range(len(scores)):
        for g in range(number):
            here = torch.where((groups[b] == g) & (scores[b] != -torch.inf))[0]
            kept[b, here[nms(boxes[b, here], scores[b, here], overlap)]] = True
    return kept


def longest_group(problem: Problem) -> int:
    _, scores, groups, _, number = problem
    real = [torch.bincount(of[score != -torch.inf], minlength=number) for of, score in zip(groups, scores, strict=True)]
    return int(torch.stack(real).max())


def at_once(problem: Problem, more: int = 0) -> Tensor:
    """By the kernels, with one tile for a whole segment: the interpreter's time goes by operations, not by numbers."""
    longest = max(1, longest_group(problem) + more)
    words = triton.next_power_of_2(-(-longest // 32))
    return suppression._at_once(*problem, longest, tile=(32 * words, words))


def draw(seed: int, number: int) -> Problem:
    """Clusters of boxes, with equal scores, overlaps that equal the threshold, rows without a box and empty groups."""
    g = torch.Generator().manual_seed(seed)
    images, groups = (int(torch.randint(1, 4, (), generator=g)) for _ in range(2))
    shape = (images, -(-number // images))
    integer, scale = bool(torch.rand((), generator=g) < 0.6), 10 ** float(torch.randint(0, 4, (), generator=g) - 1)
    side = int(torch.randint(4, 40, (), generator=g))
    corner = torch.randint(-3, side, (*shape, 2), generator=g).float()
    size = torch.randint(0, 2 + side // 2, (*shape, 2), generator=g).float()  # 0: no area
    boxes = torch.cat([corner, corner + size], dim=-1)
    if not integer:
        boxes = (boxes + torch.rand(boxes.shape, generator=g)) * scale
    scores = torch.randn(shape, generator=g)
    if torch.rand((), generator=g) < 0.7:
        scores = (scores * 8).round() / 8
    scores[torch.rand(shape, generator=g) < 0.1] = -torch.inf
    overlap = (0.3, 0.5, 0.7, 1 / 3, 0.25, 0.6, 0.0)[int(torch.randint(0, 7, (), generator=g))]
    return boxes, scores, torch.randint(0, groups, shape, generator=g), overlap, groups + 1


def check_draws(first: int, total: int) -> None:
    """As many boxes as asked for, in problems of 1 to 700, until all are done."""
    done = left = tied = 0
    sizes = (700, 64, 300, 33, 500, 1, 128, 600, 96, 31)
    for seed in range(first, sys.maxsize):
        problem = draw(seed, sizes[seed % len(sizes)])
        expected = by_definition(*problem)
        more = (0, 1, 40)[seed % 3]
        assert torch.equal(at_once(problem, more), expected), f"draw {seed}"
        done, left = done + expected.numel(), left + int(expected.sum())
        tied += problem[1].numel() - len(problem[1].unique())
        if done >= total:
            break
    assert 0.02 < left / done < 0.9 and tied > done / 4


@pytest.mark.usefixtures("by_kernels")
def test_draws_leave_the_same_boxes() -> None:
    check_draws(0, 15_000)


class PlainWalk:
    """What `_walk` does, box by box, without Triton, whose interpreter takes long for so many small steps."""

    def __getitem__(self, programs: tuple[int]) -> Callable[..., None]:
        return self.walk

    def walk(self, bits: Tensor, starts: Tensor, order: Tensor, kept: Tensor, *rest: int, **options: int) -> None:
        """As the interpreter is called."""
        later = np.unpackbits(bits.numpy().view(np.uint8), axis=1, bitorder="little").astype(bool)
        for start, stop in pairwise(starts.tolist()):
            removed = np.zeros(later.shape[1], bool)
            for k in range(stop - start):
                if not removed[k]:
                    kept.view(-1)[order[start + k]] = 1
                    removed |= later[start + k]


@pytest.mark.usefixtures("by_kernels")
def test_overlaps_of_more_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel that computes, at a hundred thousand boxes."""
    monkeypatch.setattr(suppression, "_walk", PlainWalk())
    check_draws(100_000, 100_000)


@pytest.mark.slow
@pytest.mark.usefixtures("by_kernels")
@pytest.mark.parametrize("part", range(8))
def test_a_million_draws_leave_the_same_boxes(part: int) -> None:
    check_draws(1_000_000 * (part + 1), 125_000)


@pytest.mark.usefixtures("by_kernels")
@pytest.mark.parametrize("number", [1, 31, 32, 33, 63, 64, 65, 96, 128, 129])
def test_groups_that_end_at_a_border_of_words(number: int) -> None:
    problem = draw(number, number)
    boxes, scores = (part.flatten(0, 1)[None, :number] for part in problem[:2])
    scores = scores.nan_to_num(neginf=0.5)
    single = (boxes, scores, torch.zeros(scores.shape, dtype=torch.int64), 0.5, 1)
    assert longest_group(single) == number
    assert torch.equal(at_once(single), by_definition(*single))


@pytest.mark.usefixtures("by_kernels")
def test_small_tiles_as_on_a_gpu() -> None:
    """The tile that is launched on a GPU, and odd ones: many programs a segment, some of them outside of it."""
    boxes, scores, groups, overlap, number = draw(5, 300)
    expected = by_definition(boxes, scores, groups, overlap, number)
    longest = longest_group((boxes, scores, groups, overlap, number))
    for tile in ((64, 1), (32, 2), (16, 4), (128, 1)):
        found = suppression._at_once(boxes, scores, groups, overlap, number, longest + 70, tile=tile)
        assert torch.equal(found, expected)


@pytest.mark.usefixtures("by_kernels")
def test_chains_are_followed_to_their_end() -> None:
    """Each box overlaps its neighbours only, so that every other one is left, however long the row is."""
    x = torch.arange(200.0)[:, None]
    boxes = torch.cat([x, 0 * x, x + 2, 0 * x + 1], dim=1)[None]
    scores = torch.arange(200.0, 0, -1)[None]
    problem = boxes, scores, torch.zeros(1, 200, dtype=torch.int64), 0.3, 1
    assert at_once(problem)[0].tolist() == [True, False] * 100
    assert torch.equal(at_once(problem), by_definition(*problem))


@pytest.mark.usefixtures("by_kernels")
def test_odd_numbers() -> None:
    """No boxes, only rows without a box, coordinates that are no numbers or infinite, scores that are none."""
    for shape in ((0, 5), (2, 0)):
        empty = torch.zeros(shape)
        assert at_once_shape(empty) == shape
    boxes, scores, groups, overlap, number = draw(8, 200)
    nothing = torch.full_like(scores, -torch.inf)
    assert not suppression._at_once(boxes, nothing, groups, overlap, number, 5).any()
    g = torch.Generator().manual_seed(0)
    for odd in (torch.nan, torch.inf, -torch.inf, 1e30):
        spoilt = boxes.masked_fill(torch.rand(boxes.shape, generator=g) < 0.05, odd)
        problem = spoilt, scores, groups, overlap, number
        assert torch.equal(at_once(problem), by_definition(*problem))
        problem = boxes, scores.masked_fill(torch.rand(scores.shape, generator=g) < 0.05, abs(odd)), *problem[2:]
        assert torch.equal(at_once(problem), by_definition(*problem))


def at_once_shape(empty: Tensor) -> tuple[int, ...]:
    found = suppression._at_once(empty[..., None].expand(*empty.shape, 4), empty, empty.long(), 0.5, 2, 4)
    assert found.dtype == torch.bool
    return tuple(found.shape)


@pytest.mark.parametrize("seed", range(40))
def test_on_a_cpu_nothing_changes(seed: int) -> None:
    """The mask and the order are those of `batched_nms`, the way the library did it, for few boxes and for many."""
    boxes, scores, groups, overlap, number = draw(seed, (40, 900, 4500)[seed % 3])
    kept = suppress(boxes, scores, groups, overlap, number, scores.shape[1])
    positions, real = best_first(scores, kept, 300)
    for b in range(len(scores)):
        there = torch.where(scores[b] != -torch.inf)[0]
        left = there[batched_nms(boxes[b, there], scores[b, there], groups[b, there], overlap)]
        assert torch.equal(kept[b].nonzero()[:, 0], left.sort().values)
        assert torch.equal(positions[b, : int(real[b])], left[:300])
        assert positions[b].unique().numel() == min(300, scores.shape[1])


def test_the_order_elsewhere_is_the_stable_one() -> None:
    """On a device that is no CPU, here one without memory, shapes are known without waiting."""
    scores = torch.zeros(2, 50, device="meta")
    positions, real = best_first(scores, scores > 0, 30)
    assert positions.shape == (2, 30) and real.shape == (2,)


def launches(longest: int) -> dict[str, Launch]:
    """Of groups of so many boxes, by the name of the kernel."""
    with recorded() as found:
        suppress(torch.rand(2, 40, 4), torch.rand(2, 40), torch.zeros(2, 40, dtype=torch.int64), 0.5, 1, longest)
    return {launch.function.fn.__name__: launch for launch in found}


@pytest.mark.parametrize("capability", [AMPERE, HOPPER])
@pytest.mark.parametrize("longest", [20, 1000, 2000, 4000, 16_000])
def test_compiled(capability: int, longest: int, tmp_path: Path) -> None:
    """For two generations of GPUs, for the sizes of proposals and detections: all values are in registers."""
    found = launches(longest)
    assert found.keys() == {"_pairs", "_walk"}
    for name, launch in found.items():
        registers, spilled = resources(launch, capability, tmp_path)
        assert registers <= 255 and spilled == 0, (name, registers, spilled)


@pytest.mark.parametrize("capability", [AMPERE, HOPPER])
def test_overlaps_are_rounded_as_on_a_cpu(capability: int) -> None:
    """Each product and sum by itself, the quotient as IEEE wants it, and nothing small becomes zero."""
    launch = launches(1000)["_pairs"]
    fused = launch._replace(options=tuple(option for option in launch.options if option[0] != "enable_fp_fusion"))
    exact, other = compiled(launch, capability).asm["ptx"], compiled(fused, capability).asm["ptx"]
    assert "fma" not in exact and "fma" in other  # which would be two of the three in one, if it were not forbidden
    assert ".ftz" not in exact and re.search(r"div\.rn\.f32", exact) and not re.search(r"div\.(full|approx)", exact)
