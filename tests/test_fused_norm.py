"""Group normalization by kernels: every width that a body has, odd sizes, empty batches, precision, bytes, compiled."""

from copy import deepcopy
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from rethink_imagenet.networks.backbones import OWN, Body
from rethink_imagenet.networks.fused_norm import apply_norm
from rethink_imagenet.networks.kernels import interpreted
from rethink_imagenet.networks.normalization import group_norm
from tests.kernels import AMPERE, HOPPER, Launch, counted, recorded, resources

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def layer_of(channels: int) -> nn.GroupNorm:
    """With a random scale and shift."""
    layer = group_norm(channels)
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    nn.init.uniform_(layer.bias, -0.5, 0.5)
    return layer


def map_of(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random, pixel after pixel."""
    return torch.randn(*shape).to(dtype=dtype, memory_format=torch.channels_last)


def forward_and_backward(layer: nn.GroupNorm, x: Tensor, residual: Tensor | None, relu: bool) -> list[Tensor]:
    """Output, and gradients of map, residual, scale and shift, for a random gradient of the output."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, residual) if t is not None]
    layer.zero_grad()
    y = apply_norm(layer, *leaves, relu=relu)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y))
    assert layer.weight.grad is not None and layer.bias.grad is not None
    return [y.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None), layer.weight.grad, layer.bias.grad]


def largest_error(layer: nn.GroupNorm, x: Tensor, residual: Tensor | None, relu: bool) -> float:
    """From PyTorch's operations in double precision, relative to the largest value, or to 1 where all are smaller."""
    with interpreted():
        ours = forward_and_backward(layer, x, residual, relu)
    exact = forward_and_backward(
        deepcopy(layer).double(), x.double(), None if residual is None else residual.double(), relu
    )
    pairs = zip(ours, exact, strict=True)
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1)).item() if a.numel() else 0.0 for a, b in pairs)


WIDTHS = [8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192]  # of `widths`


def widths() -> list[int]:
    """Channels of all norms of all bodies, and of the heads; some pruned ones cannot have GN."""
    with torch.device("meta"):
        bodies = [Body(name, "gn") for name in [*OWN, *timm.list_models(module="resnet")] if "pruned" not in name]
    return sorted({m.num_channels for body in bodies for m in body.modules() if isinstance(m, nn.GroupNorm)} | {256})


@pytest.mark.slow
def test_widths() -> None:
    """All of them are tested below."""
    assert widths() == WIDTHS


def test_every_width_of_every_body() -> None:
    """A small map of each, and one that is too large for one program, where the interpreter does not take long."""
    for channels in WIDTHS:
        torch.manual_seed(0)
        layer = layer_of(channels)
        for height, width in ((3, 3), (5, 53)) if channels <= 512 else ((3, 3),):
            x, residual = map_of(1, channels, height, width), map_of(1, channels, height, width)
            assert largest_error(layer, x, residual, relu=True) < 2e-6, (channels, height)


@pytest.mark.parametrize("shape", [(0, 64, 9, 9), (1, 64, 1, 1), (3, 40, 1, 23), (2, 96, 33, 17), (5, 24, 16, 16)])
@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_odd_sizes(shape: tuple[int, ...], summed: bool, relu: bool) -> None:
    """Nothing, a pixel, a row, more than a tile, and as many pixels as a program holds; groups of 2, 3 and 5 too."""
    torch.manual_seed(0)
    layer, x = layer_of(shape[1]), map_of(*shape)
    bound = 1e-4 if shape[2:] == (1, 1) else 2e-6  # two values of a group may be almost equal; PyTorch is 3e-3 off
    assert largest_error(layer, x, map_of(*shape) if summed else None, relu) < bound


@pytest.mark.parametrize("mean", [0.0, 100.0, -10_000.0])
def test_means_far_from_zero(mean: float) -> None:
    """No more is lost than the digits that a mean of 32 bits has; PyTorch is 1,800 off at -10,000."""
    torch.manual_seed(0)
    for side in (7, 40):
        layer, x = layer_of(64), mean + map_of(2, 64, side, side)
        exact = deepcopy(layer).double()(x.double())
        with interpreted():
            assert (apply_norm(layer, x) - exact).abs().max() < max(1e-5, abs(mean) * torch.finfo().eps)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_16_bits(name: str) -> None:
    """The statistics have 32 bits, so the error is the last digit of what is written, however large the map."""
    torch.manual_seed(0)
    for side in (7, 60):
        x, residual = (map_of(2, 64, side, side, dtype=TYPES[name]) for _ in range(2))
        bound = 2 * torch.finfo(TYPES[name]).eps  # the interpreter cuts off where a GPU rounds
        assert largest_error(layer_of(64), x, residual, relu=True) < bound


def test_not_a_number_stays() -> None:
    """A map with a NaN is not mended by the ReLU."""
    for side in (7, 20):
        x = map_of(2, 64, side, side)
        x[0, 5, 3, 3] = torch.nan
        with interpreted():
            y = apply_norm(layer_of(64), x, relu=True)
        assert y[0].isnan().any() and not y[1].isnan().any()


@pytest.mark.parametrize(
    ("side", "summed", "forward", "backward"),
    [(64, False, 3, 5), (64, True, 4, 8), (8, False, 2, 3), (8, True, 3, 5)],
)
def test_bytes(side: int, summed: bool, forward: int, backward: int) -> None:
    """As the table of the chapter says, and a tenth for statistics; on small maps parameters count more."""
    layer, x = layer_of(32), map_of(2, 32, side, side)
    residual = map_of(2, 32, side, side).requires_grad_() if summed else None
    size, more = x.numel() * 4, 1.1 if side == 64 else 1.25
    with counted() as moved:
        y = apply_norm(layer, x.requires_grad_(), residual, relu=True)
        assert forward <= (moved.read + moved.written) / size < forward * more
        moved.read = moved.written = 0
        y.backward(torch.ones_like(y))
        assert backward <= (moved.read + moved.written) / size < backward * more


def test_kept_for_backward() -> None:
    """The map itself and some numbers a channel; with a residual the output too, which the next layer keeps anyway."""
    kept: list[int] = []
    with (
        interpreted(),
        torch.autograd.graph.saved_tensors_hooks(
            lambda t: (kept.append(t.untyped_storage().nbytes()), t)[1], lambda t: t
        ),
    ):
        x = map_of(2, 64, 32, 32).requires_grad_()
        apply_norm(layer_of(64), x, relu=True)
    assert sum(kept) < 1.02 * x.numel() * 4


def launches(channels: int, side: int, dtype: torch.dtype) -> list[Launch]:
    """Of training, with and without sum and ReLU."""
    layer = layer_of(channels)
    with recorded() as found:
        for summed in (False, True):
            for relu in (False, True):
                x, residual = (map_of(2, channels, side, side, dtype=dtype).requires_grad_() for _ in range(2))
                y = apply_norm(layer, x, residual if summed else None, relu)
                y.backward(torch.ones_like(y))
    return list(found)


def check_compiled(found: list[Launch], capability: int, folder: Path) -> None:
    """A thread of these kernels has all values in registers."""
    for launch in found:
        registers, spilled = resources(launch, capability, folder)
        assert registers <= 255 and spilled == 0, (launch.function.fn.__name__, launch.constants, registers, spilled)


@pytest.mark.parametrize("side", [14, 100])
def test_compiled(side: int, tmp_path: Path) -> None:
    """For Hopper, in the type in which the paper's models train here."""
    found = launches(256, side, torch.bfloat16)
    assert {launch.function.fn.__name__ for launch in found} == (
        {"_whole", "_whole_gradient"}
        if side == 14
        else {"_moments", "_join_moments", "_apply", "_gradient_sums", "_join_sums", "_apply_gradient"}
    )
    check_compiled(found, HOPPER, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [AMPERE, HOPPER])
@pytest.mark.parametrize("name", TYPES)
def test_compiled_for_all(capability: int, name: str, tmp_path: Path) -> None:
    """For two generations of GPUs, in all types, at all widths."""
    for channels in WIDTHS:
        for side in (7, 100):
            check_compiled(launches(channels, side, TYPES[name]), capability, tmp_path)
