"""The double of a GPU itself, and on it whole training steps, detection, augmented testing, evaluation and resumption:
nothing mixes host and device, all numbers are the CPU's, and the host hardly ever waits.
"""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

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
    """A kernel of no use elsewhere, with a helper, a reduction and views of a larger tensor."""
    with Device() as device:
        x = torch.arange(24.0, device="cuda").view(4, 6)
        out = torch.zeros(4, 2, device="cuda")
        device.reset()
        _sums[(4,)](x[:, 1:], out[:, 1], x.stride(0), out.stride(0), 5, triton.next_power_of_2(5), num_warps=4)
        assert device.waits == 0 and device.operations["_sums"] == 1
        assert out[:, 1].tolist() == [30.0, 90.0, 150.0, 210.0] and out[:, 0].tolist() == [0.0] * 4


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
