"""The commands as a user types them: what they write, what they refuse, and that nothing is lost."""

import errno
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch._utils import ExceptionWrapper
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rethink_imagenet.data.coco import read_coco
from rethink_imagenet.data.scenes import write_scenes
from rethink_imagenet.data.splits import read_splits
from rethink_imagenet.detection.detectors import DEMO, build
from rethink_imagenet.errors import InputError
from rethink_imagenet.evaluation.average_precision import evaluate, evaluate_coco, evaluate_voc
from rethink_imagenet.networks.backbones import Body
from rethink_imagenet.study.plans import Execution, Experiment, Plan
from rethink_imagenet.study.studies import run_schedule
from rethink_imagenet.study.timing import Size, Speed
from rethink_imagenet.tools import cli, commands
from rethink_imagenet.tools.options import COMMANDS, VERSION, RunOptions, Train, options_of, settings_of
from rethink_imagenet.tools.pictures import bitmap
from rethink_imagenet.training import logs
from rethink_imagenet.training import loop as training
from rethink_imagenet.training.checkpoints import checkpoints_of, iteration_of, locked
from rethink_imagenet.training.processes import NO_MEMORY, OutOfMemory, memory_told

Command = Callable[..., subprocess.CompletedProcess[str]]
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return write_scenes(tmp_path / "scenes", train=10, val=4)


def annotations(scenes: Path, split: str = "train") -> Path:
    return scenes / "annotations" / f"instances_{split}.json"


def perfect_detections(scenes: Path) -> list[dict[str, Any]]:
    """What is annotated in the scenes to evaluate on, as a detector would find it."""
    content, found = json.loads(annotations(scenes, "val").read_text()), []
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for annotation in content["annotations"]:
        mask = bitmap(annotation["segmentation"], *sizes[annotation["image_id"]]).numpy().astype(np.uint8)
        encoded = coco_mask.encode(np.asfortranarray(mask))
        found.append({key: annotation[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9}
                     | {"segmentation": encoded | {"counts": encoded["counts"].decode()}})  # fmt: skip
    return found


def test_compare_writes_all_that_it_promises_and_resumes(command: Command, scenes: Path, tmp_path: Path) -> None:
    weights = tmp_path / "body.pth"
    torch.save(Body("resnet10_025").state_dict(), weights)
    words = ["--data", scenes, "--model", "demo", "--short", 96, "--schedules", "2,3", "--unit", 3, "--batch", 2]
    done = command("rethink_compare", *words, "--weights", weights, "--out", "out")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    assert "one detector from scratch against one from pre-training (body.pth): nothing learned" in done.stdout
    results = json.loads((out / "results.json").read_text())
    assert [(r["arm"], r["schedule"]) for r in results["runs"]] == [
        ("scratch", 2.0), ("scratch", 3.0), ("pretrained", 2.0), ("pretrained", 3.0)
    ]  # fmt: skip
    assert {"runs", "verdict", "pretraining", "versions", "command"} <= results.keys()
    assert results["verdict"]["statement"] in (out / "report.html").read_text()
    with Image.open(out / "curves.png") as picture:
        assert picture.width >= 600

    again = command("rethink_compare", *words, "--weights", weights, "--out", "out")
    assert again.returncode == 2 and "is not empty; --resume" in again.stderr
    settings = (out / "config.json").read_text()
    with locked(out, ""):
        for word in (["--resume", "--margin", 3], ["--overwrite"]):
            busy = command("rethink_compare", *words, "--weights", weights, "--out", "out", *word)
            assert busy.returncode == 2 and "out: in use by another live process" in busy.stderr
    assert (out / "config.json").read_text() == settings
    (out / "pretrained-2x" / "results.json").unlink()
    resumed = command("rethink_compare", *words, "--weights", weights, "--out", "out", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads((out / "results.json").read_text())["runs"] == results["runs"]
    other = command("rethink_compare", *words, "--weights", weights, "--out", "out", "--resume", "--seed", 3)
    assert other.returncode == 2 and "of a run with other settings (seed 0, now 3)" in other.stderr

    assert not (out / "side-by-side").exists()  # neither arm is sure of anything
    (out / "scratch-3x" / "detections.json").write_text(json.dumps(perfect_detections(scenes)))
    more = command("rethink_compare", *words, "--weights", weights, "--out", "out", "--resume", "--subsets", "4,all")
    assert more.returncode == 0, more.stderr
    pictures = sorted(path.stem for path in (out / "side-by-side").iterdir())
    (out / "report.html").unlink()
    anew = command("rethink_report", out)
    assert anew.returncode == 0 and anew.stdout.strip() == str(out / "report.html") and (out / "report.html").is_file()
    assert [name[0] for name in pictures] == list("1234") and commands.foreign_files(out) == []
    for name in pictures:
        found = re.search(r"from scratch (\d+) right 0 wrong, pre-trained 0 right 0 wrong, of (\d+) objects", name)
        assert (
            found and found[1] == found[2] and f'alt="{name}" src="data:image/jpeg' in (out / "report.html").read_text()
        )
    (told,) = json.loads((out / "results.json").read_text())["amounts"]
    assert [gap["images"] for gap in told["amounts"]["gaps"]] == [4, 10]
    assert told["statement"] in more.stdout and told["statement"] in (out / "report.html").read_text()


def test_hours_become_a_plan_that_is_carried_out_and_kept(command: Command, scenes: Path, tmp_path: Path) -> None:
    weights, out = tmp_path / "body.pth", tmp_path / "out"
    torch.save(Body("resnet10_025").state_dict(), weights)
    size = ["--model", "demo", "--short", 64, "--long", 64, "--unit", 3, "--batch", 2, "--workers", 0]
    words = ["--data", scenes, *size, "--weights", weights, "--out", "out"]
    few = command("rethink_compare", *words, "--hours", 1e-9)
    assert few.returncode == 2 and "--hours 1e-09: too few; one run of each arm" in few.stderr
    assert not out.exists()
    for hours in (0.005, 0.02, 0.08):  # how many are too few depends on how busy the machine is
        done = command("rethink_compare", *words, "--hours", hours)
        if "too few" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    known = json.loads((out / "hours.json").read_text())
    assert known["told"] in done.stdout and known["told"].count("->") == 1
    results = json.loads((out / "results.json").read_text())
    assert len(results["runs"]) == 2 * known["seeds"] * len(known["schedules"]) * (1 + len(known["subsets"]))
    assert {run["schedule"] for run in results["runs"]} == set(known["schedules"])
    again = command("rethink_compare", *words, "--hours", hours, "--resume")  # this machine may be busier now
    assert again.returncode == 0 and json.loads((out / "hours.json").read_text()) == known
    assert json.loads((out / "results.json").read_text())["verdict"] == results["verdict"]


def test_what_this_machine_cannot_do_is_refused_first(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a folder is made: TensorBoard, graphs, several runs on Windows, shares of a batch."""
    given = {"data": str(scenes), "model": "demo", "out": str(tmp_path / "out"), "device": "cpu"}

    def refused(told: str, name: str = "compare", **more: Any) -> None:
        settings = settings_of(f"rethink_{name}", given | more)
        with pytest.raises(InputError, match=told):
            commands._trained(settings) if name == "train" else commands._compare(settings, ExitStack())

    with monkeypatch.context() as patched:
        patched.setattr(logs, "find_spec", lambda _: None)
        refused("--tensorboard: not installed", tensorboard=True)
        refused("--tensorboard: not installed", "train", tensorboard=True)
    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "make_graphed_callables", lambda *_: None)
        with pytest.raises(InputError, match="cannot record graphs"):
            commands.execution_of(RunOptions(graphs=True), "cuda")
        assert commands.execution_of(RunOptions(graphs=True), "cpu").graphs
    with monkeypatch.context() as patched:
        patched.setattr(training, "world_size", lambda: 3)
        refused("a batch of 2 images over 3 processes", batch=2)
        refused("a batch of 2 images over 3 processes", "train", batch=2)
        refused("a batch of 2 images over 3 processes", "tune", batch=9, grid="batch=2,6")
    settings = settings_of("rethink_compare", given | {"jobs": 2})
    with monkeypatch.context() as patched:
        patched.setattr("os.name", "nt")
        with pytest.raises(InputError, match="take --jobs 1"):
            commands.spread_out(Execution(), settings)
    assert not (tmp_path / "out").exists()


def test_a_plan_by_hours_gets_more_seeds(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --hours typed again or without; schedules and amounts of data stay as planned."""
    weights, out = tmp_path / "body.pth", tmp_path / "out"
    torch.save(Body("resnet10_025").state_dict(), weights)
    given = {"data": scenes, "model": "demo", "short": 64, "long": 64, "unit": 3, "batch": 2, "workers": 0}
    given |= {"weights": weights, "out": out, "device": "cpu"}
    monkeypatch.setattr(commands, "measure_speed", lambda *_: Speed(0.1, 0.01))
    monkeypatch.setattr(commands, "plan_hours", lambda *_: (Size(1, (2,)), "-> planned"))

    def compare(**more: Any) -> int:
        try:
            commands.rethink_compare(settings_of("rethink_compare", given | more))
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    assert compare(hours=1, seeds=2, resume=True) == 2  # nothing is planned yet
    assert "--seeds may come later, with --resume" in capsys.readouterr().err and not out.exists()
    assert compare(hours=1) == 0
    planned = (out / "hours.json").read_text()
    assert compare(hours=1, seeds=2, resume=True, dry_run=True) == 0
    assert "the arrow, with 2 seeds" in capsys.readouterr().out
    assert compare(seeds=2, resume=True) == 0
    runs = json.loads((out / "results.json").read_text())["runs"]
    assert [(run["schedule"], run["seed"]) for run in runs] == [(2, 0), (2, 1)] * 2
    assert json.loads((out / "hours.json").read_text()) == json.loads(planned) | {"typed": 2}
    assert compare(resume=True) == 0 and "the arrow, with 2 seeds" in capsys.readouterr().out
    assert json.loads((out / "results.json").read_text())["runs"] == runs
    assert compare(schedules="2,6", resume=True) == 2
    assert "--hours plans schedules, seeds and subsets" in capsys.readouterr().err


def test_a_comparison_that_goes_on_keeps_what_it_was_given(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its seeds and its margin; the chapter has what is typed anew."""
    weights, out = tmp_path / "body.pth", tmp_path / "out"
    torch.save(Body("resnet10_025").state_dict(), weights)
    given = {"data": scenes, "model": "demo", "short": 64, "long": 64, "unit": 2, "batch": 2, "workers": 0}
    given |= {"weights": weights, "out": out, "device": "cpu", "schedules": "2"}

    def compare(**more: Any) -> tuple[set[int], float]:
        commands.rethink_compare(settings_of("rethink_compare", given | more))
        results = json.loads((out / "results.json").read_text())
        return {run["seed"] for run in results["runs"]}, results["margin"]

    first = compare(seeds=2, margin=2.0)
    assert first == ({0, 1}, 2.0) and "as before" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        compare(resume=True, seeds=1, margin=3.0)  # which is refused, and so is not remembered
    assert "was judged with 2 seeds" in capsys.readouterr().err
    assert compare(resume=True) == first and "as before: --seeds 2, --margin 2.0" in capsys.readouterr().out
    assert compare(resume=True, margin=0.5) == ({0, 1}, 0.5)


@pytest.mark.parametrize(
    ("subsets", "told"),
    [("few", "takes"), ("-2", "takes numbers"), ("3,3", "names a number twice"), ("3,99", "images to train on")],
)  # fmt: skip
def test_subsets_that_there_are_not(scenes: Path, tmp_path: Path, subsets: str, told: str) -> None:
    typed = {"data": str(scenes), "model": "demo", "weights": "body.pth", "out": f"{tmp_path}/out", "subsets": subsets}
    with pytest.raises(InputError, match=told):
        commands._compare(settings_of("rethink_compare", typed), ExitStack())
    assert not (tmp_path / "out").exists()


def test_train_then_eval(command: Command, scenes: Path, tmp_path: Path) -> None:
    words = ["--data", scenes, "--model", "demo", "--short", 96, "--schedule", 2, "--unit", 3, "--batch", 2]
    done = command("rethink_train", *words, "--out", "out")
    assert done.returncode == 0, done.stderr
    log = [json.loads(line) for line in (tmp_path / "out" / "2x" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["iteration"] == 6 and "box" in log[-1]["evaluation"]
    found = perfect_detections(scenes)[1:]
    found[0]["segmentation"] = found[-1]["segmentation"] | {"size": found[0]["segmentation"]["size"]}
    path = tmp_path / "found.json"
    path.write_text(json.dumps(found))
    words = ["--annotations", annotations(scenes, "val"), "--detections", path, "--kinds", "box,mask", "--voc"]
    measured = command("rethink_eval", *words)
    assert measured.returncode == 0, measured.stderr
    figures = evaluate_coco(annotations(scenes, "val"), path, ["box", "mask"])
    assert 10 < figures["mask"]["ap"] < figures["box"]["ap"] < 100
    for kind, own in figures.items():
        assert f"{kind}  ap {own['ap']:.2f}  " in measured.stdout
    assert measured.stdout.count("VOC  mAP") == 2 and "without area" not in measured.stdout
    content = json.loads(annotations(scenes, "val").read_text())
    first = next(record for record in content["annotations"] if not record.get("iscrowd"))
    first["bbox"] = [*first["bbox"][:2], 0, 5]  # COCO's own code counts it as an object that is missed
    (tmp_path / "odd.json").write_text(json.dumps(content))
    told = command("rethink_eval", "--annotations", "odd.json", *words[2:4])
    assert "odd.json: boxes without area within their image, which are left out: 1\n" in told.stdout, told.stderr


def test_pretrain_on_a_folder_of_class_folders(command: Command, tmp_path: Path) -> None:
    for name, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        (tmp_path / "classes" / name).mkdir(parents=True)
        for i in range(20):
            Image.new("RGB", (40, 30), colour).save(tmp_path / "classes" / name / f"{i}.png")
    words = ["--data", "classes", "--epochs", 4, "--batch", 6, "--side", 32, "--out", "out"]
    done = command("rethink_pretrain", *words)
    assert done.returncode == 0, done.stderr
    assert "accuracy 100.0 %" in done.stdout and (tmp_path / "out" / "run" / "weights.safetensors").is_file()
    results = tmp_path / "out" / "run" / "results.json"
    older = results.read_text().replace('"code": "', '"code": "of old, ')
    results.write_text(older)
    again = command("rethink_pretrain", *words, "--resume")
    assert again.returncode == 0 and results.read_text() == older  # by which code its weights were made


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("compare --scale 0.02", "--scale: goes with a figure"),
        ("train --scale 7", "--scale: goes with a recipe"),
        ("eval run --detections x.json --kinds box,mask", "--detections, --kinds: goes with detections in a file"),
        (
            "eval --annotations a.json --detections x.json --data d --augmented",
            "--data, --augmented: goes with a model",
        ),
        ("data --scenes drawn --html page.html", "--html: is for data"),
        ("data --crops drawn --split 0.2", "--split: goes with data"),
        ("recipes figure1 --show figure1/r50-gn-scratch-6x", "words: is for the list"),
        ("evidence less-data --all", "name: is one experiment"),
        ("pretrain --rate -1", "--rate -1: one is out of range"),
    ],
)
def test_no_option_is_ignored_in_silence(command: Command, tmp_path: Path, words: str, told: str) -> None:
    name, *more = words.split()
    done = command(f"rethink_{name}", *more)
    assert done.returncode == 2 and told in done.stderr and done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        "rethink_compare",
        "rethink_train",
        "rethink_pretrain",
        "rethink_eval",
        "rethink_data",
        "rethink_detect",
        "rethink_report",
        "rethink_tune",
    ],
)
def test_help_has_examples(command: Command, name: str) -> None:
    done = command(name, "--help")
    assert done.returncode == 0 and done.stdout.count(name) >= 2


def first(content: dict[str, Any], table: str, **fields: object) -> None:
    content[table][0].update(fields)


FAULTS: dict[str, tuple[Change, str]] = {
    "no images": (lambda c: c.update(images=[]), "lists no images"),
    "no annotations": (lambda c: c.update(annotations=[]), "has no object to train on"),
    "no categories": (lambda c: c.update(categories=[]), "lists no categories"),
    "not COCO": (lambda c: c.pop("annotations"), "not COCO's format"),
    "unknown image": (lambda c: first(c, "annotations", image_id=777), "refers to image 777"),
    "unknown category": (lambda c: first(c, "annotations", category_id=777), "refers to category 777"),
    "image twice": (lambda c: c["images"].append(c["images"][0]), "image number 10 (id 1) stands twice"),
    "annotation twice": (lambda c: c["annotations"].append(c["annotations"][0]), "(id 1) stands twice"),
    "category twice": (lambda c: c["categories"].append(c["categories"][0]), "category number 8 stands twice"),
    "no bbox": (lambda c: c["annotations"][0].pop("bbox"), 'annotation number 0 (id 1) has no "bbox"; write a list'),
    "bbox of words": (lambda c: first(c, "annotations", bbox=["a", 1, 2, 3]), "not four numbers"),
    "two points": (lambda c: first(c, "annotations", segmentation=[[1, 2, 3, 4]]), "three points or more"),
    "odd polygon": (lambda c: first(c, "annotations", segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "three points or more"),
    "no polygon": (lambda c: first(c, "annotations", segmentation=[], iscrowd=0), "has no segmentation"),
    "RLE of another size": (
        lambda c: first(c, "annotations", iscrowd=0, segmentation={"size": [9, 9], "counts": [81]}), "its mask has size"
    ),
    "RLE too long": (
        lambda c: first(c, "annotations", iscrowd=0, segmentation={"size": [96, 96], "counts": [9999, 9999]}),
        "cannot be decoded",
    ),
    "RLE too short": (
        lambda c: first(c, "annotations", iscrowd=0, segmentation={"size": [96, 96], "counts": [9, 9]}),
        "do not add up",
    ),
    "RLE of rubbish": (
        lambda c: first(c, "annotations", iscrowd=0, segmentation={"size": [96, 96], "counts": "~~~~"}),
        "do not add up",
    ),
    "RLE without a pixel": (
        lambda c: first(c, "annotations", iscrowd=0, segmentation={"size": [96, 96], "counts": [9216]}), "no pixel"
    ),
    "segmentation is a number": (lambda c: first(c, "annotations", segmentation=7), "neither a list of polygons"),
    "polygon far outside": (
        lambda c: first(c, "annotations", segmentation=[[0, 0, 1e7, 0, 5, 5]]), "further outside"
    ),
    "iscrowd is a word": (lambda c: first(c, "annotations", iscrowd="0"), '"iscrowd" is neither 0 nor 1'),
    "iscrowd is a fraction": (lambda c: first(c, "annotations", iscrowd=0.0), '"iscrowd" is neither 0 nor 1'),
    "difficult is a word": (lambda c: first(c, "annotations", difficult="0"), '"difficult" is neither 0 nor 1'),
    "a crowd without mask": (lambda c: first(c, "annotations", iscrowd=1, segmentation=[]), "has no segmentation"),
    "a file of two images": (
        lambda c: c["images"][1].update(file_name=c["images"][0]["file_name"]), "image number 0 (id 1) as well"
    ),
    "area is a word": (lambda c: first(c, "annotations", area="large"), '"area" is no number'),
    "id is true": (lambda c: first(c, "annotations", id=True), 'has true as "id"; write a whole number'),
    "id is endless": (lambda c: first(c, "annotations", id=2**70), 'has 1180591620717411303424 as "id"'),
    "bbox is endless": (lambda c: first(c, "annotations", bbox=[10**400, 1, 2, 3]), "not four numbers"),
    "image is endless": (lambda c: first(c, "images", width=10**6, height=10**6), "is not from 1 to"),
    "skeleton counts from 0": (
        lambda c: next(k for k in c["categories"] if k.get("keypoints")).update(skeleton=[[0, 1]]), "from 1 to 4"
    ),
    "keypoints are a number": (lambda c: first(c, "annotations", keypoints=5), "its keypoints are not"),
    "file name is endless": (lambda c: first(c, "images", file_name="x" * 5000), "is missing"),
    "missing file": (lambda c: first(c, "images", file_name="nowhere.png"), "nowhere.png is missing"),
    "file elsewhere": (lambda c: first(c, "images", file_name="../../other.png"), "leaves the folder"),
    "no size": (lambda c: c["images"][0].pop("width"), 'image number 0 (id 1) has no "width"; write a whole number'),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(scenes: Path, fault: str) -> None:
    change, message = FAULTS[fault]
    path = annotations(scenes)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        read_coco(path)
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_degenerate_boxes_are_counted_and_strict_refuses_them(scenes: Path) -> None:
    path = annotations(scenes)
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][2] = 0
    content["images"].append(content["images"][0] | {"id": 99, "file_name": "more.png"})
    shutil.copy(scenes / "train" / "000000.png", scenes / "train" / "more.png")
    path.write_text(json.dumps(content))
    assert read_coco(path).left_out == {"boxes without area": 1, "images without objects": 1}
    with pytest.raises(InputError, match="1 boxes without area, 1 images without objects"):
        read_coco(path, strict=True)


def test_what_only_the_evaluation_needs_is_filled_in(scenes: Path) -> None:
    """Exporters that leave out `area` and `iscrowd` do not stop the first evaluation with a traceback."""
    path = annotations(scenes, "val")
    content = json.loads(path.read_text())
    content["annotations"] = [a for a in content["annotations"] if not a["iscrowd"]]
    results = [{key: a[key] for key in ("image_id", "category_id", "bbox", "segmentation")} | {"score": 1.0}
               for a in content["annotations"]]  # fmt: skip
    for record in content["annotations"]:
        del record["area"], record["iscrowd"]
    path.write_text(json.dumps(content))
    figures = evaluate(read_coco(path), results, masks=True)
    assert figures["box"]["ap"] == pytest.approx(100) and figures["mask"]["ap"] == pytest.approx(100)


def test_one_split_with_masks_and_one_without(scenes: Path) -> None:
    path = annotations(scenes, "val")
    content = json.loads(path.read_text())
    for record in content["annotations"]:
        del record["segmentation"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="one has masks and the other has none"):
        read_splits(scenes)


def test_overwrite_keeps_what_it_needs(command: Command, scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(scenes, out / "scenes")
    (out / "config.json").write_text('{"made_by": "rethink_imagenet"}')
    words = ["--data", out / "scenes", "--model", "demo", "--out", out, "--overwrite"]
    done = command("rethink_train", *words)
    assert done.returncode == 2 and "which --overwrite would remove" in done.stderr
    assert (out / "scenes" / "annotations").is_dir()
    both = command("rethink_train", *words, "--resume")
    assert both.returncode == 2 and "give one of them" in both.stderr


def test_gaps_between_category_ids_are_normal(scenes: Path) -> None:
    path = annotations(scenes)
    content = json.loads(path.read_text())
    for record in content["categories"]:
        record["id"] *= 11
    for record in content["annotations"]:
        record["category_id"] *= 11
    path.write_text(json.dumps(content))
    assert read_coco(path).category_ids == tuple(range(11, 89, 11))


def test_faults_end_with_one_line_and_status_2(command: Command, scenes: Path, tmp_path: Path) -> None:
    def fails(*words: object) -> str:
        done = command(*map(str, words))
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr
        return done.stderr

    assert "nowhere: no such folder" in fails("rethink_compare", "--data", "nowhere")
    (tmp_path / "text.json").write_text("no json")
    broken = ["--train", "text.json", "--val", annotations(scenes, "val")]
    assert "text.json: not a json file" in fails("rethink_train", *broken)
    assert "nowhere.pt: no such file" in fails(
        "rethink_train", "--data", scenes, "--model", "demo", "--weights", "nowhere.pt"
    )
    assert 'no backbone "resnet1O"' in fails("rethink_train", "--backbone", "resnet1O")
    assert "`rethink_compare section5.1` has it" in fails("rethink_train", "--backbone", "vgg16")
    torch.save(Body("resnet18").state_dict(), tmp_path / "other.pt")
    other = ["--data", scenes, "--model", "demo", "--weights", "other.pt"]
    assert "weights of another model" in fails("rethink_train", *other)
    (tmp_path / "evil.pt").write_bytes(b"cos\nsystem\n(S'touch evil'\ntR.")
    assert "evil.pt: not a file of tensors" in fails("rethink_train", *other[:-1], "evil.pt")
    assert not (tmp_path / "evil").exists()
    (tmp_path / "text").write_text("[]")
    assert "text: not COCO's format" in fails("rethink_eval", "--annotations", "text", "--detections", "text")
    assert not (tmp_path / "runs").exists()
    picture = scenes / "train" / "000003.png"
    whole = picture.read_bytes()
    picture.write_bytes(b"no image")
    train = ["--data", scenes, "--model", "demo", "--short", 96, "--unit", 9, "--batch", 4, "--out", "out"]
    assert "000003.png: cannot be read as an image" in fails("rethink_train", *train)
    assert not (tmp_path / "out").exists()
    picture.write_bytes(whole[:-2000])  # its header is sound, so that only training finds it out
    assert "000003.png: cannot be read as an image" in fails("rethink_train", *train)
    shutil.copy(scenes / "train" / "000004.png", tmp_path / "out" / "precious")
    assert "is not empty" in fails("rethink_train", *train)
    assert (tmp_path / "out" / "precious").is_file()


def test_a_trained_detector_is_evaluated_and_looks_at_files(command: Command, scenes: Path, tmp_path: Path) -> None:
    """The figures of the run again; the same with 18 passes; pictures; the zip for images without annotations."""
    words = ["--data", scenes, "--model", "demo", "--short", 96, "--schedule", 2, "--unit", 20, "--batch", 4]
    done = command("rethink_train", *words, "--rate", 0.3, "--out", "out")
    assert done.returncode == 0, done.stderr
    box = json.loads((tmp_path / "out" / "2x" / "results.json").read_text())["box"]
    again = command("rethink_eval", "out/2x", "--data", scenes, "--out", "again", "--voc")
    assert again.stdout.count("VOC  mAP (") == 2
    assert again.returncode == 0 and f"box  ap {box['ap']:.2f}" in again.stdout, again.stderr
    alone = ["rethink_eval", "out/2x", "--val", annotations(scenes, "val"), "--images", scenes / "val", "--split", 0.5]
    half = command(*alone, "--out", "half", "--voc")
    chosen = {d["image_id"] for d in json.loads((tmp_path / "half" / "detections.json").read_text())}
    truth = json.loads(annotations(scenes, "val").read_text())
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in chosen]
    part = evaluate_voc(truth, tmp_path / "half" / "detections.json")
    assert len(chosen) == 2 and f"VOC  mAP (area) {part['map']:.2f}" in half.stdout, half.stdout + half.stderr
    found = json.loads((tmp_path / "again" / "detections.json").read_text())
    assert {d["image_id"] for d in found} <= {1, 2, 3, 4} and len(found) > 4
    over = command("rethink_eval", "out/2x", "--data", scenes, "--out", "again")
    assert over.returncode == 2 and "again: is not empty" in over.stderr

    drawn = command(
        "rethink_detect", "out/2x", *sorted((scenes / "val").iterdir())[:2], "--score", 0.05, "--out", "seen"
    )
    assert drawn.returncode == 0 and "in 2 images" in drawn.stdout, drawn.stderr
    with Image.open(tmp_path / "seen" / "pictures" / "000000.png") as picture:
        assert picture.size == (96, 96)
    repeated = command("rethink_detect", "--config", "seen/config.json", "--out", "anew")
    assert repeated.returncode == 0 and repeated.stdout == drawn.stdout.replace("seen", "anew"), repeated.stderr
    missing = command("rethink_detect", "--config", "seen/pictures/none.json")
    assert missing.returncode == 2 and "none.json: not a json file" in missing.stderr

    content = json.loads(annotations(scenes, "val").read_text())
    listed = scenes / "annotations" / "image_info_val.json"
    listed.write_text(json.dumps({key: content[key] for key in ("images", "categories")}))
    sent = command("rethink_eval", "out/2x", "--val", listed, "--submission", "mine", "--out", "sent")
    assert sent.returncode == 0 and sent.stdout.count("detections_val_mine_results.zip") == 2, sent.stderr
    content["categories"][0]["name"] = "potato"
    annotations(scenes, "val").write_text(json.dumps(content))
    other = command("rethink_eval", "out/2x", "--val", annotations(scenes, "val"), "--out", "other")
    assert other.returncode == 2 and "not those that out/2x was trained on: category 1 is" in other.stderr
    assert f'"potato" in {annotations(scenes, "val")}; give both' in other.stderr
    nothing = command("rethink_detect", "nowhere", "photo.jpg")
    assert nothing.returncode == 2 and "nowhere/config.json: not the settings of a run" in nothing.stderr


def test_a_report_is_written_anew(command: Command, tmp_path: Path) -> None:
    done = command("rethink_report", tmp_path)
    assert done.returncode == 2 and "results.json: not the results of a study" in done.stderr


def test_tuning_then_comparing(command: Command, scenes: Path, tmp_path: Path) -> None:
    """Each combination on the pre-trained arm, then both arms with what won, and the record in the report."""
    weights = tmp_path / "body.pth"
    torch.save(Body("resnet10_025").state_dict(), weights)
    words = ["rate=0.02,0.04", "--data", scenes, "--model", "demo", "--schedules", 2, "--unit", 3, "--batch", 2]
    foretold = command("rethink_tune", *words, "--weights", weights, "--out", "out", "--dry-run")
    assert "the search comes before it: 2 runs, 12 iterations in all, about" in foretold.stdout, foretold.stderr
    hours = command("rethink_tune", *words[:5], "--weights", weights, "--out", "out", "--hours", 1)
    assert hours.returncode == 2 and "--hours: does not plan the search of a grid" in hours.stderr
    done = command("rethink_tune", *words, "--weights", weights, "--out", "out")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [entry["values"] for entry in results["tuning"]["tried"]] == [{"rate": "0.02"}, {"rate": "0.04"}]
    assert f"{results['plans']['pretrained']['rate']:g}" == results["tuning"]["chosen"]["rate"]
    assert "Both arms were trained with rate" in (tmp_path / "out" / "report.html").read_text()
    wrong = command("rethink_tune", "rat=1", *words[1:], "--weights", weights, "--out", "other")
    assert wrong.returncode == 2 and 'no setting to tune "rat"; nearest: rate' in wrong.stderr


def test_a_reader_that_has_seen_enough() -> None:
    """A pipe that is closed early ends a command without a traceback."""
    recipes = Path(sys.executable).parent / "rethink_recipes"
    script = f'set -o pipefail; PYTHONUNBUFFERED=1 "{recipes}" | true'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (141, "")


def test_streams_that_are_closed() -> None:
    """A command that was started without them does its work all the same."""
    recipes = Path(sys.executable).parent / "rethink_recipes"
    done = subprocess.run(["bash", "-c", f'"{recipes}" figure1 >&- 2>&-'], timeout=100, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("minutes", ["0", "nan", "1e12"])
def test_a_timeout_that_is_none(command: Command, minutes: str) -> None:
    done = command("rethink_train", "--timeout", minutes)
    assert done.returncode == 2 and "takes minutes, above 0" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", 'no device "gpu"; nearest'),
        ("cuda:x", 'no device "cuda:x"; nearest: cuda:0'),
        ("cuda:0", "PyTorch finds"),
        ("mps", "no GPU of Apple's here"),
    ],
)
def test_a_device_that_is_not_there(command: Command, device: str, message: str) -> None:
    if device != "gpu" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = command("rethink_train", "--device", device)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


class InSinglePrecision(TorchDispatchMode):
    """While entered, nothing is computed in double precision."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        double = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor) and x.dtype == torch.float64]
        assert not double, f"{func} in double precision"
        return out


@pytest.mark.parametrize("more", [{}, {"cascade": True}, {"keypoints": 17}, {"masks": False}])
def test_a_detector_detects_without_double_precision(more: dict[str, Any]) -> None:
    """Apple's GPUs have none."""
    detector = build(replace(DEMO, **more)).eval()
    with InSinglePrecision(), torch.no_grad():
        found = detector([torch.rand(3, 96, 128)])[0]
    assert len(found["boxes"]) > 5


def test_a_machine_whose_memory_is_full_says_so() -> None:
    """PyTorch's own words for the CPU, Python's, NumPy's, the system's, and those of a worker that decodes."""
    allocator = r"^DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    with pytest.raises(OutOfMemory, match=allocator), memory_told():
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(OutOfMemory, match=rf"^{NO_MEMORY}$"), memory_told():
        bytearray(2**60)
    with pytest.raises(OutOfMemory, match=rf"^{NO_MEMORY}: Unable to allocate 1.00 EiB"), memory_told():
        np.zeros(2**57)
    with pytest.raises(OutOfMemory, match=rf"^{NO_MEMORY}$"), memory_told():
        raise OSError(errno.ENOMEM, "Cannot allocate memory")
    for size in (bytearray, np.zeros):
        with pytest.raises(OutOfMemory, match=rf"^{NO_MEMORY}$"), memory_told():
            try:
                size(2**57)
            except MemoryError:
                ExceptionWrapper(where="in DataLoader worker process 0").reraise()


@pytest.mark.parametrize(
    ("told", "gpu", "hint"),
    [(NO_MEMORY, False, "--at-once 1"), ("DefaultCPUAllocator: can't", False, "--at-once 1"),
     (NO_MEMORY, True, "fewer --workers"), ("CUDA out of memory", True, "--at-once 1")],
)  # fmt: skip
def test_what_takes_less_memory(monkeypatch: pytest.MonkeyPatch, told: str, gpu: bool, hint: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert hint in commands._asking_for_less(told, Train())
    assert "--device cpu" not in commands._asking_for_less(NO_MEMORY, Train(how=RunOptions(device="cpu", at_once=1)))


def out_of_memory(*_: object, **__: object) -> None:
    """What PyTorch does on a GPU that is full."""
    told = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.20 GiB"
    raise torch.OutOfMemoryError(f"{told} is free. Process 1 has 77.91 GiB memory in use. Of the allocated memory")


@pytest.mark.parametrize(
    ("name", "hint", "words"),
    [
        ("run_family", "--at-once 1", {"dry_run": False}),
        ("pretrain", "take a smaller --batch or --side", {"epochs": 1.0}),
        ("predict", "take a device with more memory, or --device cpu", {}),
    ],
)
def test_a_gpu_that_is_full(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    name: str, hint: str, words: dict[str, Any],
) -> None:  # fmt: skip
    """One line with what would fit, and status 2; in training, in pre-training, and in the evaluation of a model."""
    callers = {"run_family": cli.rethink_train, "pretrain": cli.rethink_pretrain, "predict": cli.rethink_eval}
    data = {"data": str(scenes)}
    if name == "predict":
        train, val = read_splits(scenes)
        plan = Plan(replace(DEMO, num_classes=len(train.category_ids)), (2,), 1, batch=2, short=(64, 64), long=64)
        run_schedule(Experiment(plan, train, val, tmp_path, execution=Execution(workers=0)), 2, "run")
        data |= {"model": str(tmp_path / "run")}
    elif name == "run_family":
        data |= {"model": "demo"}
    else:
        data = {}
    capsys.readouterr()
    monkeypatch.setattr(commands, name, out_of_memory)
    with pytest.raises(SystemExit) as stop:
        callers[name](**data, **words, device="cpu", out=str(tmp_path / "out"))
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(lines) == 1, lines
    assert "Tried to allocate 2.00 GiB. GPU 0 has a total capacity" in lines[0] and hint in lines[0]
    assert "Process 1" not in lines[0]


def test_a_run_goes_on_with_less_memory(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A GPU that is full costs what came after the last checkpoint, and the hint leads to the end."""
    together, seen = training.backward, []

    def backward(
        model: Any, images: list[Any], targets: list[Any], batch: int, at_once: int, draws: Any
    ) -> dict[str, float]:
        seen.append(at_once)
        if at_once != 1 and len(seen) > 7:
            out_of_memory()
        return together(model, images, targets, batch, at_once, draws)

    monkeypatch.setattr(training, "backward", backward)
    words: dict[str, Any] = {"data": str(scenes), "model": "demo", "short": 64, "long": 64, "schedule": "2", "unit": 10}
    words |= {"batch": 2, "save_every": 20, "device": "cpu", "workers": 0, "out": str(tmp_path / "out")}
    with pytest.raises(SystemExit) as stop:
        cli.rethink_train(**words)
    assert stop.value.code == 2 and "--resume then takes --accept at_once" in capsys.readouterr().err
    run = tmp_path / "out" / "2x"
    kept = iteration_of(checkpoints_of(run)[-1])
    assert 0 < kept < 7 and not list(tmp_path.rglob("*.partial"))
    cli.rethink_train(**words, at_once=1, resume=True, accept="at_once")
    assert seen == [0] * 8 + [1] * (20 - kept)
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert log[-1]["iteration"] == 20 and (run / "results.json").is_file()
    words |= {"at_once": 1, "overwrite": True}
    monkeypatch.setattr(training, "backward", out_of_memory)
    with pytest.raises(SystemExit):
        cli.rethink_train(**words)
    assert "--at-once" not in (told := capsys.readouterr().err) and "a device with more memory" in told


def test_every_option_is_told() -> None:
    for kind in COMMANDS.values():
        assert all(option.told for option in options_of(kind)), kind


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_a_wrong_option_load_nothing_heavy(name: str) -> None:
    """What is answered without computing needs no PyTorch, nor anything else that takes long to load."""
    given = {"rethink_tune": ["rate=1"], "rethink_detect": ["run", "a.jpg"], "rethink_report": ["run"],
             "rethink_export": ["run"]}.get(name, [])  # fmt: skip
    code = (
        "import sys; from rethink_imagenet.tools import cli\n"
        f"for words in (['--help'], ['--version'], [*{given}, '--nonsense']):\n"
        f"    sys.argv = [{name!r}, *words]\n"
        f"    try: cli.{name}()\n"
        "    except SystemExit as stop: print(stop.code or 0)\n"
        "heavy = {'torch', 'torchvision', 'timm', 'matplotlib', 'pycocotools', 'faster_coco_eval', 'numpy', 'PIL'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"usage: {name}" in done.stdout and done.stdout.endswith(f"\n0\n{VERSION}\n0\n2\n[]\n"), done.stdout
    assert 'no option "--nonsense"' in done.stderr and done.stderr.count("\n") == 1


def test_a_dry_run_begins_to_tell_before_it_draws(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """How long the training is needs no scenes."""

    def stopped(*given: Any, **more: Any) -> None:
        raise InputError("it draws")

    monkeypatch.setattr(commands, "write_scenes", stopped)
    with pytest.raises(SystemExit):
        cli.rethink_train(dry_run=True, schedule="2", unit=10, batch=2, device="cpu")
    said = capsys.readouterr()
    assert said.out == "20 iterations, 2 images each\n" and "it draws" in said.err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"modle": "small"}, 'no option "modle"; nearest: model'),
        ({"unit": "10"}, 'unit is "10", and takes a whole number'),
        ({"unit": True}, "unit is true, and takes a whole number"),
        ({"on-nan": "skp"}, 'on_nan is "skp", and takes "stop" or "skip"'),
        ([1], "holds no options"),
        ({"made_by": "rethink_imagenet"}, "holds no options"),
    ],
)
def test_a_config_that_is_not_right(command: Command, tmp_path: Path, content: Any, told: str) -> None:
    """The line names the file, the key, and what is allowed."""
    (tmp_path / "wrong.json").write_text(json.dumps(content))
    done = command("rethink_train", "--config", tmp_path / "wrong.json")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"{tmp_path / 'wrong.json'}: {told}" in done.stderr


def test_a_run_is_repeated_by_its_config(command: Command, scenes: Path, tmp_path: Path) -> None:
    """A config file stands for options, what is typed goes before, and a run's config.json is such a file."""
    options = {"data": str(scenes), "model": "demo", "short": 64, "long": 64, "unit": 3, "batch": 2, "workers": 0}
    (tmp_path / "mine.json").write_text(json.dumps(options | {"schedule": "2", "device": "cpu", "seed": 1}))
    done = command("rethink_train", "--config", tmp_path / "mine.json", "--seed", 2, "--out", tmp_path / "first")
    assert done.returncode == 0, done.stderr
    config = tmp_path / "first" / "config.json"
    assert json.loads(config.read_text())["options"]["seed"] == 2
    again = command("rethink_train", "--config", config, "--out", tmp_path / "second")
    assert again.returncode == 0, again.stderr
    first, second = (json.loads((tmp_path / name / "2x/results.json").read_text()) for name in ("first", "second"))
    assert first["losses"] == second["losses"] and first["seed"] == 2
    resumed = command("rethink_train", "--config", config, "--out", tmp_path / "first", "--resume")
    assert resumed.returncode == 0, resumed.stderr
