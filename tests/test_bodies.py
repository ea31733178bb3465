"""Bodies of every family that timm has: a step of training, a detection, real weights, names that are refused."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from rethink_imagenet.data.scenes import write_scenes
from rethink_imagenet.detection.detectors import MINIATURE, build
from rethink_imagenet.errors import InputError
from rethink_imagenet.networks.backbones import Body, timm_names
from rethink_imagenet.study.pretraining import load_weights, pixel_statistics

from .launch import launch
from .soak import COMMAND

SAMPLES = Path(__file__).parent.parent.parent / "shared" / "data"
FAMILIES = {
    "resnet18": "gn", "resnext26ts": "syncbn", "regnety_004": "gn", "convnext_atto": "ln", "convnextv2_atto": "gn",
    "efficientnet_lite0": "gn", "efficientnet_b0": "bn", "mobilenetv2_035": "gn", "mobilenetv3_large_100": "gn",
    "resnetv2_50": "gn", "densenet121": "gn", "edgenext_xx_small": "gn", "ecaresnet26t": "gn", "hrnet_w18_small": "gn",
    "ecaresnet50d_pruned": "gn", "mobilenetv4_conv_small": "frozen_bn",
}  # fmt: skip
COMMANDED = ("mobilenetv3_large_100", "efficientnet_lite0", "regnety_004", "convnext_atto")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_and_a_detection(name: str) -> None:
    """Every parameter that may learn gets a gradient, and a detection in an image of another form works."""
    torch.manual_seed(0)
    model = build(replace(MINIATURE, backbone=name, norm=FAMILIES[name], head_norm="gn", num_classes=3, masks=False))
    images = [torch.rand(3, 96, 128), torch.rand(3, 128, 96)]
    targets = [{"boxes": torch.tensor([[10.0, 10.0, 70.0, 80.0]]), "labels": torch.tensor([1 + i])} for i in range(2)]
    losses = model.train()(images, targets)
    sum(losses.values()).backward()
    still = [
        n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())
    ]
    assert not still
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    optimizer.step()
    with torch.no_grad():
        found = model.eval()([torch.rand(3, 64, 160)])[0]
    assert found["boxes"].shape[1] == 4 and found["scores"].isfinite().all()


@pytest.mark.parametrize("norm", ["bn", "frozen_bn"])
def test_real_weights_give_timms_features(norm: str) -> None:
    """ImageNet weights of EfficientNet-Lite0 from a file, whose epsilon is 1e-3: timm's own features to 1e-5."""
    path = next((SAMPLES / "imagenet_weights").glob("tf_efficientnet_lite0*.safetensors"), None)
    if path is None:
        pytest.skip(f"{SAMPLES / 'imagenet_weights'} has no weights of tf_efficientnet_lite0")
    body = Body("tf_efficientnet_lite0", norm).eval()
    load_weights(body, path)
    whole = timm.create_model("tf_efficientnet_lite0").eval()
    whole.load_state_dict(load_file(path))
    image = torch.rand(2, 3, 96, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = body(image), whole.forward_intermediates(image, intermediates_only=True)
    for one in ours:
        others = [other for other in theirs if one.shape == other.shape]
        assert min(float((one - other).abs().max() / other.abs().max()) for other in others) < 1e-5
    assert pixel_statistics("tf_efficientnet_lite0.in1k")[0] == (0.5, 0.5, 0.5)


def test_weights_of_another_norm_are_refused(tmp_path: Path) -> None:
    """Weights of timm's network have statistics that GN has no place for."""
    torch.save(timm.create_model("regnety_004").state_dict(), tmp_path / "regnet.pth")
    load_weights(Body("regnety_004", "bn"), tmp_path / "regnet.pth")
    with pytest.raises(InputError, match=r"weights of another model"):
        load_weights(Body("regnety_004", "gn"), tmp_path / "regnet.pth")


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "dla34", "mixer_b16_224"])
def test_networks_without_such_maps_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f'backbone "{name}" does not give maps at strides 4, 8, 16, 32'):
        Body(name)


@pytest.mark.parametrize(
    "name", ["convnext_atto", "mobilenetv3_large_100", "densenet121", "regnety_004", "hrnet_w18_small"]
)
def test_names_lead_back(name: str) -> None:
    """Every tensor of a body with frozen BN but its statistics has a name in timm's network."""
    with torch.device("meta"):
        body = Body(name, "frozen_bn")
    own = {n for n in body.state_dict() if "running" not in n}
    assert own <= set(timm_names(body)[0].values())


@pytest.mark.parametrize("name", [COMMANDED[0], *(pytest.param(n, marks=pytest.mark.slow) for n in COMMANDED[1:])])
def test_command(tmp_path: Path, name: str) -> None:
    """Some iterations of the command with each."""
    write_scenes(tmp_path / "scenes", train=6, val=2)
    words = ["--data", str(tmp_path / "scenes"), "--out", str(tmp_path / "run"), "--model", "demo", "--backbone", name]
    size = ["--short", "64", "--long", "64", "--batch", "2", "--schedule", "2", "--unit", "3", "--workers", "0"]
    done = launch([COMMAND, *words, *size, "--device", "cpu"])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "2x" / "results.json").exists()


def test_a_body_is_one_thing() -> None:
    """A norm that is replaced in a body, its mode and a copy of it concern the network that computes."""
    body = Body("resnet18", "syncbn")
    assert body.eval().network.bn1 is body.bn1 and not body.network.bn1.training
    body.bn1 = nn.BatchNorm2d(64)
    assert body.network.bn1 is body.bn1
    twin = copy.deepcopy(body)
    assert twin.network.bn1 is twin.bn1 is not body.bn1


def test_a_network_without_a_norm_has_none() -> None:
    with pytest.raises(InputError, match="no normalization that gn could replace"):
        Body("dm_nfnet_f0", "gn")
