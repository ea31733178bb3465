"""What goes out: one file of ours, state dicts of two other systems, and programs; and what is refused."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.models.detection import maskrcnn_resnet50_fpn

from rethink_imagenet.data.images import read_image_files
from rethink_imagenet.data.loading import EvaluationSamples
from rethink_imagenet.data.scenes import write_scenes
from rethink_imagenet.detection.conventions import TORCHVISION
from rethink_imagenet.detection.detectors import DEMO, Detector, DetectorConfig, build
from rethink_imagenet.errors import InputError
from rethink_imagenet.study.studies import SETTINGS, load_detector
from rethink_imagenet.study.weights import metadata_of
from rethink_imagenet.tools import commands
from rethink_imagenet.tools.cli import rethink_export
from rethink_imagenet.tools.conversion import from_detectron2
from rethink_imagenet.tools.options import settings_of
from rethink_imagenet.tools.programs import MEANING
from rethink_imagenet.training.checkpoints import save_checkpoint

# The form that torchvision's ready builder has, in its full width.
PLAIN = DetectorConfig(num_classes=2, norm="bn", head_norm="none", box_layers=(0, 2),
                       conventions=replace(TORCHVISION, post_nms=(60, 60)))  # fmt: skip


def run_of(folder: Path, config: DetectorConfig = DEMO, opinion: float = 30) -> Detector:
    """A run that has a checkpoint and was never trained, opinionated enough to find something."""
    torch.manual_seed(0)
    detector = build(config).eval()
    for layer in (detector.rpn.head.conv, getattr(detector.box_head, "scores", None)):
        if layer is not None:
            layer.weight.data *= opinion
    names = ["disc", "ring", "bar", "cross", "star", "moon", "bolt", "hat"][: config.num_classes]
    about = {"detector": asdict(config), "short": [96, 96], "long": 128, "keypoint_names": [], "skeleton": [],
             "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)], "train": "a/path"}  # fmt: skip
    about = json.loads(json.dumps(about))
    state: dict[str, Any] = {"iteration": 3, "seconds": 1.0, "skipped": 0, "pending": [], "optimizer": {},
                             "circumstances": {}, "about": about, "model": detector.state_dict()}  # fmt: skip
    save_checkpoint(folder, state)
    (folder / "config.json").write_text(json.dumps(about))
    return detector


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run_of(tmp_path / "run")
    return tmp_path / "run"


def export(run: Path, form: str, out: Path, **options: Any) -> None:
    """The command, as Python calls it."""
    commands.rethink_export.__wrapped__(  # type: ignore[attr-defined]
        settings_of("rethink_export", {"model": str(run), "form": form, "out": str(out)} | options)
    )


def test_the_file_stands_for_the_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same detections from the file as from the run, by two commands; and no trace of where it was trained."""
    file = tmp_path / "new" / "mine.safetensors"
    export(run, "safetensors", file)
    assert capsys.readouterr().out.splitlines() == [str(file)]
    assert "a/path" not in metadata_of(file)[SETTINGS]
    scenes = write_scenes(tmp_path / "scenes", train=2, val=3)
    found = []
    for model in (run, file):
        out, images = tmp_path / f"found-{model.name}", sorted((scenes / "val").glob("*.png"))
        given = {"model": str(model), "images": tuple(map(str, images)), "out": str(out), "device": "cpu"}
        commands.rethink_detect(settings_of("rethink_detect", given))
        found.append(json.loads((out / "detections.json").read_text()))
    assert found[0] == found[1] and len(found[0]) > 20
    given = {"model": str(file), "data": str(scenes), "out": str(tmp_path / "eval"), "device": "cpu", "workers": 0}
    with pytest.raises(SystemExit):  # the scenes have other classes
        commands.rethink_eval(settings_of("rethink_eval", given))
    assert "its categories are not those" in capsys.readouterr().err
    export(file, "safetensors", tmp_path / "again.safetensors")
    again = tmp_path / "again.safetensors"
    assert metadata_of(again) == metadata_of(file)
    assert all(torch.equal(tensor, load_file(again)[name]) for name, tensor in load_file(file).items())


def test_a_strangers_file_is_refused_before_memory_is_asked_for(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    export(run, "safetensors", file)
    tensors, metadata = load_file(file), metadata_of(file)
    settings = json.loads(metadata[SETTINGS])

    def changed(**fields: Any) -> str:
        return json.dumps(settings | {"detector": settings["detector"] | fields})

    for told, fault in (
        (changed(channels=10**6, hidden=10**6), "weights of another model"),
        (changed(num_classes=10**6), "its categories do not fit"),
        (changed(backbone="resnet152"), "weights of another model"),
        (changed(backbone="os.system"), "backbone"),
        (changed(norm="gnn"), 'no normalization "gnn"; nearest: gn'),
        (changed(box_layers=[100, 100]), "weights of another model"),
        (changed(learns="all"), "no setting of"),
        (json.dumps(settings | {"short": [1, 10**9]}), "its short do not fit"),
        (json.dumps([settings]), "not the settings of a run"),
        ('{"detector": NaN}', "not the settings of a run"),
        ("\x00", "its settings are no json"),
    ):
        save_file(tensors, file, metadata | {SETTINGS: told})
        with pytest.raises(InputError, match=r"mine\.safetensors|backbone|norm") as fault_found:
            load_detector(file)
        assert fault in str(fault_found.value)
    save_file(tensors | {"box_head.scores.bias": torch.full((9,), torch.nan)}, file, metadata)
    with pytest.raises(InputError, match=r"box_head\.scores\.bias is not finite"):
        load_detector(file)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(InputError, match="not a safetensors file"):
        load_detector(file)


def test_torchvisions_builder_takes_the_state_dict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Strictly, and with the same detections, to the digits of 32 bits."""
    detector = run_of(tmp_path / "run", PLAIN, 1)
    export(tmp_path / "run", "torchvision", tmp_path / "mine.pth")
    *_, rule, file = capsys.readouterr().out.splitlines()
    assert "post_nms" in rule and file == str(tmp_path / "mine.pth")
    ready = {"weights": None, "weights_backbone": None, "num_classes": 3, "rpn_post_nms_top_n_test": 60}
    theirs = maskrcnn_resnet50_fpn(**ready, min_size=128, max_size=256)
    theirs.load_state_dict(torch.load(tmp_path / "mine.pth", weights_only=True), strict=True)
    image = torch.rand(3, 128, 192, dtype=torch.float64)
    with torch.no_grad():
        (mine,), (reference,) = detector.double()([image]), theirs.double().eval()([image])
    assert len(mine["boxes"]) > 20 and torch.equal(mine["labels"], reference["labels"])
    for key, tolerance in (("boxes", 1e-3), ("scores", 1e-6), ("masks", 1e-3)):
        torch.testing.assert_close(mine[key], reference[key], atol=tolerance, rtol=0)


def test_what_the_other_system_must_be_told_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By Detectron's rules the anchors lie elsewhere; with the rules that are said a detector of theirs is built."""
    config = replace(DEMO, num_classes=2, backbone="resnet18", norm="bn")
    detector = run_of(tmp_path / "run", config)
    export(tmp_path / "run", "detectron2", tmp_path / "mine2.pth")
    said = capsys.readouterr().out
    assert "rules that detectron2 has to be told" in said and "anchor_offset" in said and "pixel_mean" not in said
    content = torch.load(tmp_path / "mine2.pth", weights_only=True)
    again = build(config)
    from_detectron2(again, content["model"])
    used = {name for name in detector.state_dict() if not name.startswith(("box_head.deltas", "mask_head.masks"))}
    assert all(torch.equal(tensor, again.state_dict()[name])
               for name, tensor in detector.state_dict().items() if name in used)  # fmt: skip
    export(tmp_path / "run", "torchvision", tmp_path / "mine.pth")
    assert "pixel_mean" in capsys.readouterr().out


def same_detections(out: dict[str, torch.Tensor], expected: Any) -> None:
    """As many, with the same scores; in 32 bits two of nearly equal scores may change places, so 19 of 20 are held."""
    number = len(expected["boxes"])
    assert int((out["scores"] > 0).sum()) == number
    torch.testing.assert_close(out["scores"][:number], expected["scores"], atol=1e-3, rtol=0)
    for key, tolerance in (("boxes", 0.01), ("masks", 0.01)):
        apart = (out[key][:number] - expected[key]).abs().flatten(1).amax(dim=1)
        assert (apart < tolerance).double().mean() > 0.95, key


def test_a_program_runs_where_this_library_is_not(run: Path, tmp_path: Path) -> None:
    """In another process, which imports PyTorch and torchvision alone."""
    file, scenes = tmp_path / "mine.pt2", write_scenes(tmp_path / "scenes", train=1, val=2)
    detector, config = load_detector(run)
    images = sorted((scenes / "val").glob("*.png"))
    dataset = read_image_files([str(path) for path in images], config["categories"])
    image, _ = EvaluationSamples(dataset, 96, 128)[0]
    (expected,), (_, height, width) = detector.detect([image]), image.shape
    export(run, "program", file, size=f"{height}x{width}")
    torch.save(image, tmp_path / "image.pt")
    code = (
        "import sys, json, warnings, torch, torchvision\n"
        "warnings.simplefilter('ignore')\n"
        f"files = {{{MEANING!r}: ''}}\n"
        "program = torch.export.load('mine.pt2', extra_files=files).module()\n"
        "out = program(torch.load('image.pt'))\n"
        "assert not any(name.startswith('rethink_imagenet') for name in sys.modules)\n"
        "torch.save(out, 'out.pt'); print(json.loads(files[" + repr(MEANING) + "])['categories'][1]['name'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "ring"), done.stderr
    out = torch.load(tmp_path / "out.pt")
    assert len(expected["boxes"]) > 20
    same_detections(out, expected)


@pytest.mark.slow
def test_onnxs_runtime_detects_the_same(run: Path, tmp_path: Path) -> None:
    """Where onnxscript and onnxruntime are installed."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    file = tmp_path / "mine.onnx"
    export(run, "onnx", file, size="90x120")
    detector, _ = load_detector(run)
    session = onnxruntime.InferenceSession(str(file))
    assert json.loads(session.get_modelmeta().custom_metadata_map["rethink_imagenet"])["image"]["height"] == 90
    for image in (torch.rand(3, 90, 120), torch.zeros(3, 90, 120)):
        (expected,) = detector.detect([image])
        values = session.run(None, {"image": image.numpy()})
        out = dict(zip([one.name for one in session.get_outputs()], map(torch.from_numpy, values), strict=True))
        same_detections(out, expected)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a folder that is no run": ({"model": "nowhere"}, "not the settings of a run"),
    "a form that there is not": ({"form": "tensorflow"}, 'no form "tensorflow"'),
    "a file that exists": ({"out": "there.safetensors"}, "exists already; name a new file"),
    "another ending": ({"out": "mine.pt"}, "a file of the form safetensors ends in .safetensors"),
    "a file in a file": ({"out": "there.safetensors/mine.safetensors"}, "cannot be written to; name another file"),
    "no such body in torchvision": ({"form": "torchvision", "out": "new/m.pth"}, "torchvision has no such body"),
    "no such body in detectron2": ({"form": "detectron2", "out": "new/m.pth"}, "detectron2 has no such body"),
    "a size that is none": ({"form": "program", "out": "m.pt2", "size": "big"}, 'takes height x width in pixels'),
    "a size of nothing": ({"form": "program", "out": "m.pt2", "size": "0x9"}, "0x9: is no size of an image"),
    "a size for weights": ({"size": "90x120"}, "is for the forms program and onnx"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.safetensors").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    given, told = REFUSED[kind]
    with pytest.raises(SystemExit) as stop:
        rethink_export(**({"model": "run", "out": "mine.safetensors"} | given))
    said = capsys.readouterr()
    assert (stop.value.code, said.out, said.err.count("\n")) == (2, "", 1) and told in said.err
    assert sorted(tmp_path.rglob("*")) == before and Path("there.safetensors").read_text() == "mine"


def test_a_run_without_a_checkpoint(run: Path, tmp_path: Path) -> None:
    next((run / "checkpoints").glob("*.pt")).unlink()
    with pytest.raises(InputError, match="has no checkpoint; train it first"):
        export(run, "safetensors", tmp_path / "mine.safetensors")
