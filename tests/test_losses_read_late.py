"""Losses that are read late: on a device the host goes on and learns of a bad one later; all ends as on the CPU."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset

from rethink_imagenet.training.checkpoints import checkpoints_of, read_checkpoint
from rethink_imagenet.training.loop import Diverged, RunSettings, optimizer_of, train
from rethink_imagenet.training.schedules import Schedule
from tests.device_double import Device


class Numbers(TorchDataset):
    """Sample p is an image of one colour, with its number."""

    def __getitem__(self, p: int) -> tuple[Tensor, dict[str, Any]]:
        return torch.full((3, 4, 4), (1 + p % 5) / 10), {"image_id": p}


class Bad(nn.Module):
    """A small network with BN; its loss is not a number, but its gradient is finite, on the samples that are named."""

    def __init__(self, *bad: int):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.bad = bad

    def forward(self, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        square = self.layers(torch.stack(images)).sub(1).square().mean()
        bad = any(target["image_id"] in self.bad for target in targets)
        return {"loss": square, "other": (math.nan if bad else 1.0) + square.detach()}


def trained(
    model: Bad, device: str, folder: Path, on_nan: str, steps: int = 9
) -> tuple[list[Any], dict[str, Any], Counter[str]]:
    """The lines of the log, the last checkpoint, and how often each function has waited."""
    schedule = Schedule(steps, (7,), rate=0.1, warmup=2)
    settings = RunSettings(schedule, 2, log_every=3, evaluate_every=steps, save_every=steps, on_nan=on_nan)
    waits: Counter[str] = Counter()
    with Device() as counted:
        lines = train(model.to(device), Numbers(), settings, folder, workers=0)
        for (place, _), number in counted.places.items():
            waits[place.split()[1]] += number
    return [line["losses"] | {"skipped": line.get("skipped")} for line in lines], state_of(folder), waits


def state_of(folder: Path) -> dict[str, Any]:
    """The newest checkpoint."""
    return read_checkpoint(checkpoints_of(folder)[-1])


def tensors_of(state: dict[str, Any]) -> list[Tensor]:
    """Weights, statistics and momentum."""
    return [*state["model"].values(), *(each["momentum_buffer"] for each in state["optimizer"]["state"].values())]


@pytest.mark.parametrize("bad", [(), (0, 1), (8,), (9, 10), (17,)])
def test_skipped_iterations_leave_nothing(bad: tuple[int, ...], tmp_path: Path) -> None:
    """Also in the first iteration, the last one, and two in a row."""
    here = trained(Bad(*bad), "cpu", tmp_path / "cpu", "skip")
    there = trained(Bad(*bad), "cuda", tmp_path / "cuda", "skip")
    assert here[0] == there[0] and len(here[0]) == 3
    assert here[1]["skipped"] == len({p // 2 for p in bad})
    assert all(torch.equal(*pair) for pair in zip(tensors_of(here[1]), tensors_of(there[1]), strict=True))
    assert all(tensor.isfinite().all() for tensor in tensors_of(here[1]))


def test_a_flag_stops_the_optimizer() -> None:
    """The fused optimizer leaves weights and momentum alone where its flag is 1, in the first step as well."""
    model, x = nn.Linear(3, 2), torch.ones(1, 3)
    optimizer: Any = optimizer_of(model)
    for flag in (1.0, 0.0, 1.0):
        before = [parameter.clone() for parameter in model.parameters()]
        held = [optimizer.state[parameter]["momentum_buffer"].clone() for parameter in model.parameters()]
        optimizer.zero_grad()
        model(x).square().sum().backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        optimizer.found_inf = torch.tensor(flag)
        optimizer.step()
        for parameter, old, momentum in zip(model.parameters(), before, held, strict=True):
            assert torch.equal(parameter, old) == (flag == 1.0)
            assert torch.equal(optimizer.state[parameter]["momentum_buffer"], momentum) == (flag == 1.0)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_run_that_stops_names_the_iteration(device: str, tmp_path: Path) -> None:
    """Though on a device the host has gone on; nothing was written since."""
    with pytest.raises(Diverged, match=r"iteration 4: losses loss [\d.]+, other nan on images \[6, 7\]"):
        trained(Bad(7), device, tmp_path, "stop")
    assert checkpoints_of(tmp_path) == []


def test_the_host_waits_for_the_log_only(tmp_path: Path) -> None:
    """Once for each of three lines; beside that, for what a checkpoint holds and whether it is finite."""
    waits = trained(Bad(8), "cuda", tmp_path, "skip")[2]
    assert waits["read"] == 3 and not {"step", "backward", "forward", "train"} & waits.keys(), waits
