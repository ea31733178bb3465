"""Weights as others write them: prefixes, wrappings, settings beside them, strange tensors; right, or one line."""

import argparse
import json
import pickle
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from rethink_imagenet.data.scenes import write_scenes
from rethink_imagenet.data.splits import read_splits
from rethink_imagenet.detection.conventions import DETECTRON, TORCHVISION
from rethink_imagenet.detection.detectors import DEMO, build
from rethink_imagenet.errors import InputError
from rethink_imagenet.networks.backbones import Body
from rethink_imagenet.study.plans import Execution, Experiment, Plan
from rethink_imagenet.study.pretraining import _norm_of, load_weights, pixel_statistics
from rethink_imagenet.study.studies import run_schedule
from rethink_imagenet.study.weights import COST
from rethink_imagenet.training.checkpoints import checkpoints_of, read_checkpoint, save_checkpoint
from tests.test_systems import as_detectron2, random_body

State = dict[str, Any]
UNIT = (TORCHVISION.pixel_mean, TORCHVISION.pixel_std)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A network of timm with statistics of its own."""
    torch.manual_seed(0)
    net = timm.create_model("resnet18")
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -1, 1)
    return net


def prefixed(prefix: str, state: State) -> State:
    """A state dict with something before each name."""
    return {prefix + name: tensor for name, tensor in state.items()}


WRITTEN: dict[str, tuple[Callable[[nn.Module, State], Any], str]] = {
    "alone": (lambda net, state: state, ""),
    "DataParallel": (lambda net, state: nn.DataParallel(net).state_dict(), "the prefix module. is taken off"),
    "torch.compile": (lambda net, state: torch.compile(net).state_dict(), "the prefix _orig_mod. is taken off"),
    "an average": (
        lambda net, state: AveragedModel(net).state_dict(),
        "the prefix module. is taken off; 1 tensors outside of it are left out, such as n_averaged",
    ),
    "MoCo": (
        lambda net, state: {"epoch": 200, "state_dict": prefixed("module.encoder_q.", state)
                            | prefixed("module.encoder_k.", state) | {"module.queue": torch.zeros(2)}},
        "the tensors are those under state_dict; the prefix module.encoder_q. is taken off; 123 tensors outside",
    ),
    "DINO": (
        lambda net, state: {"student": prefixed("module.backbone.", state),
                            "teacher": prefixed("backbone.", state) | {"head.mlp.0.weight": torch.zeros(2)}},
        "those under teacher; the prefix backbone. is taken off; 1 tensors outside",
    ),
    "Lightning": (lambda net, state: {"state_dict": prefixed("model.", state)}, "the prefix model. is taken off"),
    "model_state_dict": (lambda net, state: {"model_state_dict": state, "optimizer": {"state": {}}}, ""),
    "net": (lambda net, state: {"net": state, "acc": 0.9, "epoch": 3}, ""),
    "ema": (lambda net, state: {"ema": prefixed("module.", state), "updates": 7}, "the prefix module. is taken off"),
    "a detector of torchvision": (
        lambda net, state: {"model": prefixed("backbone.body.", state) | {"rpn.head.conv.weight": torch.zeros(2)}},
        "the prefix backbone.body. is taken off; 1 tensors outside of it are left out, such as rpn.head.conv.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITTEN)
def test_prefixes_and_wrappings(
    kind: str, network: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same tensors bit for bit, what was taken off in one line, and timm's normalization of pixels."""
    write, line = WRITTEN[kind]
    path = tmp_path / "weights.pth"
    torch.save(write(network, network.state_dict()), path)
    body = Body("resnet18", "frozen_bn")
    load_weights(body, path)
    said = capsys.readouterr().out
    assert line in said and said.count("\n") == bool(line)
    for name, tensor in body.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name]), name
    assert pixel_statistics(path, "resnet18") == UNIT
    load_weights(body, path)
    assert not capsys.readouterr().out  # said once


@pytest.mark.parametrize("content", [{"stem.fc.weight": torch.zeros(2).numpy()}, {}])
def test_a_pickle_that_was_converted_reads_red_first(
    content: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In detectron2's names, with torchvision's author or its last layer: channels and pixels are torchvision's."""
    theirs = random_body("frozen_bn", "resnet18")
    state = as_detectron2(theirs)
    state["stem.conv1.weight"] = theirs.state_dict()["conv1.weight"].numpy()
    about = {} if content else {"__author__": "torchvision", "matching_heuristics": True}
    path = tmp_path / "R-18.pkl"
    path.write_bytes(pickle.dumps({"model": state | content} | about))
    body = Body("resnet18", "frozen_bn")
    load_weights(body, path)
    assert torch.equal(body.state_dict()["conv1.weight"], theirs.state_dict()["conv1.weight"])
    assert pixel_statistics(path, "resnet18") == UNIT
    assert "channels are read red first" in capsys.readouterr().out


def test_detectron2s_own_names_behind_a_prefix(tmp_path: Path) -> None:
    """Blue first, Detectron's pixels."""
    theirs = random_body("gn", "resnet18")
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": prefixed("module.backbone.bottom_up.", as_detectron2(theirs))}))
    body = Body("resnet18", "gn")
    load_weights(body, path)
    assert torch.equal(body.state_dict()["conv1.weight"], theirs.state_dict()["conv1.weight"])
    assert pixel_statistics(path, "resnet18") == (DETECTRON.pixel_mean, DETECTRON.pixel_std)


def test_a_checkpoint_of_a_run_says_its_pixels(tmp_path: Path) -> None:
    """The body of a detector that we trained, with the normalization that it was trained with."""
    sets = read_splits(write_scenes(tmp_path / "scenes", train=4, val=2))
    rules = replace(DETECTRON, pixel_mean=(0.1, 0.2, 0.3), pixel_std=(0.5, 0.6, 0.7))
    plan = Plan(replace(DEMO, conventions=rules), (2,), unit=2, batch=2, short=(64, 64), long=64, evaluations=1)
    run_schedule(Experiment(plan, *sets, tmp_path, execution=Execution(workers=0)), 2, "run")
    (path, *_) = checkpoints_of(tmp_path / "run")
    assert pixel_statistics(path, "resnet50") == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    model = build(plan.detector)
    load_weights(model, path)
    trained = read_checkpoint(path)["model"]["backbone.body.conv1.0.weight"]
    assert torch.equal(model.state_dict()["backbone.body.conv1.0.weight"], trained)
    with pytest.raises(InputError, match="trained with pixels of mean and deviation"):
        load_weights(build(DEMO), path)


def line_of(read: Callable[[], object], path: Path) -> str:
    """The one line by which a file is refused: printable, not long, and with the file's name."""
    with pytest.raises(InputError) as caught:
        read()
    line = str(caught.value)
    assert str(path) in line and line.isprintable() and len(line) < 500
    return line


def test_scales_of_another_norm_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GN and LN have tensors of the same names and shapes; the file says whose they are, or timm's network does."""
    save_file(Body("resnet10_025", "gn").state_dict(), tmp_path / "gn.safetensors", {"norm": "gn"})
    load_weights(Body("resnet10_025", "gn"), tmp_path / "gn.safetensors")
    with pytest.raises(InputError, match="weights of another norm: they are of gn, and the body has ln"):
        load_weights(Body("resnet10_025", "ln"), tmp_path / "gn.safetensors")
    body = Body("resnet10_025", "gn").state_dict()
    torch.save({"model": body, "about": {"detector": {"norm": "gn"}}}, tmp_path / "run.pth")
    save_file(body, tmp_path / "exported.safetensors", {"rethink_imagenet": json.dumps({"detector": {"norm": "gn"}})})
    for name in ("run.pth", "exported.safetensors"):
        with pytest.raises(InputError, match="they are of gn, and the body has ln"):
            load_weights(Body("resnet10_025", "ln"), tmp_path / name)
    networks = "resnet50_gn", "convnext_atto", "poolformer_s12", "resnet18", "vgg11"
    with torch.device("meta"):
        norms = [_norm_of(timm.create_model(name)) for name in networks]
    assert norms == ["gn", "ln", "ln", "", ""]
    torch.save({"model": body, "about": {"norm": "gn"}}, tmp_path / "classifier.pth")
    with pytest.raises(InputError, match="they are of gn, and the body has ln"):
        load_weights(Body("resnet10_025", "ln"), tmp_path / "classifier.pth")
    gn = Body("resnet10_025", "gn")
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: gn)
    with pytest.raises(InputError, match="they are of gn, and the body has ln"):
        load_weights(Body("resnet10_025", "ln"), "resnet50_gn.a1h_in1k")


def test_names_that_are_not_known_are_shown_beside_ours(network: nn.Module, tmp_path: Path) -> None:
    """A few of each, and what to do."""
    path = tmp_path / "weights.pth"
    torch.save(prefixed("towers.image.", network.state_dict()), path)
    line = line_of(lambda: load_weights(Body("resnet18"), path), path)
    assert "towers.image.conv1.weight, towers.image.bn1.weight" in line
    assert "where this has conv1.weight, bn1.weight, bn1.bias; remove the prefix of its names" in line
    torch.save({"epoch": 3, "generator": network.state_dict()}, path)
    assert "(it has epoch, generator); save the state dict alone" in line_of(
        lambda: load_weights(Body("resnet18"), path), path
    )


def test_settings_beside_the_weights(network: nn.Module, tmp_path: Path) -> None:
    """torchvision's references and timm save a Namespace, some save the model itself; the line says the way out."""
    path = tmp_path / "checkpoint.pth"
    for content, holds in (
        ({"model": network.state_dict(), "args": argparse.Namespace(lr=0.1)}, "argparse.Namespace"),
        (network, "timm.models.resnet.ResNet"),
    ):
        torch.save(content, path)
        line = line_of(lambda: load_weights(Body("resnet18", "bn"), path), path)
        assert f"it holds {holds}, and nothing but tensors is read; save the state dict alone" in line


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    """Empty, a page, a pointer of Git LFS, an archive that would unpack to a thousand times its size."""
    for ending in (".pth", ".pkl", ".safetensors"):
        path = tmp_path / f"weights{ending}"
        for content in (b"", b"<!doctype html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"):
            path.write_bytes(content)
            line = line_of(lambda path=path: load_weights(Body("resnet18"), path), path)
            assert ("is empty" if not content else "a pointer of Git LFS" if b"lfs" in content else ": not a ") in line
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(10**7))
    assert "is compressed" in line_of(lambda: load_weights(Body("resnet18"), path), path)


STRANGE: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "sparse": (lambda tensor: tensor.to_sparse(), "conv1.weight is sparse"),
    "quantized": (lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8), "conv1.weight is quantized"),
    "nested": (lambda tensor: torch.nested.nested_tensor([tensor]), "conv1.weight is nested"),
    "meta": (lambda tensor: tensor.to("meta"), "conv1.weight is without content"),
    "complex": (lambda tensor: tensor.to(torch.complex64), "conv1.weight is of type torch.complex64"),
    "integers": (lambda tensor: tensor.to(torch.int32), "conv1.weight is of type torch.int32"),
    "NaN": (lambda tensor: tensor * torch.nan, "conv1.weight is not finite"),
    "beyond 32 bits": (lambda tensor: tensor.double() * 1e300, "conv1.weight is not finite"),
    "rank 0": (lambda tensor: tensor.sum(), "conv1.weight has shape []"),
    "no tensor": (lambda tensor: 3, "conv1.weight is missing"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", STRANGE)
def test_strange_tensors(kind: str, network: nn.Module, tmp_path: Path) -> None:
    """What nothing can be computed with is named, and no weight of the body is changed."""
    change, words = STRANGE[kind]
    path, state = tmp_path / "weights.pth", network.state_dict()
    torch.save(state | {"conv1.weight": change(state["conv1.weight"])}, path)
    body = Body("resnet18", "bn")
    before = {name: tensor.clone() for name, tensor in body.state_dict().items()}
    assert words in line_of(lambda: load_weights(body, path), path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in body.state_dict().items())


def test_tensors_of_other_types(network: nn.Module, tmp_path: Path) -> None:
    """Half and double precision, and parameters, are taken."""
    path, state = tmp_path / "weights.pth", network.state_dict()
    for change in (Tensor.half, Tensor.double, Tensor.bfloat16, nn.Parameter):
        torch.save({name: change(t) if t.is_floating_point() else t for name, t in state.items()}, path)
        body = Body("resnet18", "bn")
        load_weights(body, path)
        torch.testing.assert_close(body.state_dict()["conv1.weight"], state["conv1.weight"], rtol=1e-2, atol=1e-3)
    torch.save(state | {"bn1.running_var": -state["bn1.running_var"]}, path)
    assert "bn1.running_var is below zero" in line_of(lambda: load_weights(Body("resnet18", "bn"), path), path)


def test_metadata_of_any_content(tmp_path: Path) -> None:
    """A stranger's text is not taken for ours; pixels that are none are refused."""
    path, body = tmp_path / "weights.safetensors", Body("resnet10_025")
    for metadata, cost in (
        ({"cost": "12 USD", "format": "pt"}, {}),
        ({"cost": "[" * 5000}, {}),
        ({"cost": '{"seconds": 5}'}, {}),
        ({"cost": json.dumps(dict.fromkeys(COST, 5))}, dict.fromkeys(COST, 5)),
    ):
        save_file(body.state_dict(), path, metadata)
        assert load_weights(Body("resnet10_025"), path) == cost
    for pixels in ("224", "[[1, 2, 3], [0, 0, 0]]", '[["1", 2, 3], [1, 1, 1]]', "\x1b[31m" + "x" * 10**5):
        save_file(body.state_dict(), path, {"pixels": pixels})
        line = line_of(lambda: pixel_statistics(path, "resnet10_025"), path)
        assert re.search(r"which is not mean and deviation of three channels", line)


def test_a_checkpoint_with_a_right_digest_and_a_wrong_content(tmp_path: Path) -> None:
    """Its digest is that of what is in it, and what is in it is no checkpoint."""
    state = {"iteration": 3, "seconds": 1.0, "skipped": 0, "pending": [], "model": {"w": torch.ones(1)}}
    state |= {"optimizer": {}, "about": {}, "circumstances": {}}
    assert read_checkpoint(save_checkpoint(tmp_path / "good", state))["iteration"] == 3
    for key, value in (("pending", [3]), ("model", {"w": 1}), ("seconds", "1"), ("about", None), ("skipped", None)):
        path = save_checkpoint(tmp_path / key, state | {key: value})
        assert f"not a checkpoint of a training run (its {key})" in line_of(
            lambda path=path: read_checkpoint(path), path
        )
