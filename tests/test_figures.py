"""Whole figures and tables of the paper: in miniature on photographs, resumed, shared, and refused in one line."""

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rethink_imagenet.data.scenes import write_crops
from rethink_imagenet.detection.detectors import build
from rethink_imagenet.networks.backbones import Body
from rethink_imagenet.networks.vgg import VGGBody
from rethink_imagenet.study.figures import compare_figure, parts_of
from rethink_imagenet.study.plans import Execution
from rethink_imagenet.study.recipes import RECIPES, group_named, miniature, read_data
from rethink_imagenet.study.report import table_of
from rethink_imagenet.tools import commands
from rethink_imagenet.tools.cli import rethink_compare

Sample = Callable[[str], Path]
Command = Callable[..., subprocess.CompletedProcess[str]]
GROUPS = list(dict.fromkeys(name.partition("/")[0] for name in RECIPES))


def files_of_runs(folder: Path) -> dict[Path, int]:
    """What the runs and their pre-training have written, but for the settings, which each start writes anew."""
    files = [path for path in folder.glob("*/**/*") if path.is_file() and path.name != "config.json"]
    return {path: path.stat().st_mtime_ns for path in files}


def fault_of(capsys: pytest.CaptureFixture[str], **given: Any) -> str:
    """The one line that a call ends with."""
    with pytest.raises(SystemExit) as stopped:
        rethink_compare(device="cpu", **given)
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and len(said.strip().splitlines()) == 1, said
    return said


def test_figure1_from_start_to_table_and_resumed(
    sample_data: Sample, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a user types it: bodies pre-trained, trunks and branches, table, picture, page; and then nothing anew."""
    crops = write_crops(tmp_path / "crops", 240)
    words = ["figure1", "--data", sample_data("coco_mini_by"), "--scale", 0.005, "--crops", crops, "--out", "out"]
    done = command("rethink_compare", *words, "--workers", 0, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    results = json.loads((out / "results.json").read_text())
    assert [row["recipe"] for row in results["rows"]] == [recipe.name for recipe in group_named("figure1")]
    assert [row["iterations"] for row in results["rows"]] == 2 * [6, 9, 12, 15, 18]
    assert all(row["ours"]["box"]["ap"] is not None and row["paper"]["box"]["ap"] > 36 for row in results["rows"])
    assert [one["classes"] for one in results["pretraining"].values()] == [12] and len(results["differences"]) == 1
    assert "Figure 1, in miniature (0.005)" in done.stdout and "must not be compared with" in done.stdout
    assert (out / "table.txt").read_text() in done.stdout and "r50-gn-pretrained-6x" in (
        out / "report.html"
    ).read_text()
    assert (out / "figure.png").stat().st_size > 5_000
    assert done.stdout.count("a trunk of 18 iterations") == 2
    assert "scratch-2x: 5/6" in done.stderr and "scratch-2x: 4/6" not in done.stderr  # a branch off the trunk

    before = files_of_runs(out)
    given: dict[str, Any] = {"figure": "figure1", "data": str(words[2]), "crops": str(crops), "out": str(out)}
    assert "is not empty; --resume" in fault_of(capsys, scale=0.005, **given)
    assert "other settings (scale 0.005, now 0.01)" in fault_of(capsys, scale=0.01, resume=True, **given)
    again = command("rethink_compare", *words, "--workers", 0, "--device", "cpu", "--resume")
    assert again.returncode == 0 and "images/s" not in again.stderr, again.stderr
    assert files_of_runs(out) == before
    assert json.loads((out / "results.json").read_text())["rows"] == results["rows"]


def test_a_cascade_goes_on_from_the_run_without(sample_data: Sample, tmp_path: Path) -> None:
    """Of three bars of Figure 5 there are two trainings, of which the second is only as long as its cascade."""
    wanted = [f"figure5/r50-gn-{step}-scratch-9x" for step in ("aug", "cascade-aug", "cascade-aug-tta")]
    recipes = [replace(miniature(RECIPES[name], 0.005), evaluated=3) for name in wanted]
    parts = parts_of(recipes, lambda recipe: read_data(recipe, sample_data("coco_mini_by")))
    assert [part.name for part in parts] == ["r50-gn-aug-scratch", "r50-gn-cascade-aug-scratch"]
    assert parts[0].train_set is parts[1].train_set and parts[1].goes_on_from(parts) is parts[0]
    results = compare_figure(parts, tmp_path, 0.005, execution=Execution(workers=0))
    assert [row["recipe"] for row in results["rows"]] == wanted
    plain, late = ([json.loads(line) for line in (tmp_path / f"{part.name}-9x/log.jsonl").open()] for part in parts)
    assert [line for line in late if line["iteration"] <= 18] == [line for line in plain if line["iteration"] <= 18]
    assert late[-1]["iteration"] == plain[-1]["iteration"] == 27 and late[-1] != plain[-1]
    assert not (tmp_path / f"{parts[1].name}-9x" / "before-switch").exists()
    run = json.loads((tmp_path / f"{parts[1].name}-9x" / "results.json").read_text())
    assert results["rows"][1]["ours"]["box"] == run["box"]
    assert results["rows"][2]["ours"]["mask"] == run["augmented"]["mask"]
    assert [row["mask AP, paper"] for row in table_of(results)] == ["-", "-", "41.6"]


def test_faults_are_one_line_and_write_nothing(
    sample_data: Sample, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    coco = str(sample_data("coco_mini_by"))
    assert 'no table or figure "figure2"; nearest: figure' in fault_of(capsys, figure="figure2", data=coco)
    assert "nearest: figure" in fault_of(capsys, figure="figure2")
    assert "a recipe settles what is trained: it takes --data" in fault_of(capsys, figure="figure1")
    said = fault_of(capsys, figure="figure1", data=coco, norm="bn", at_once=1, schedules="2,3")
    assert "not --norm, --schedules" in said
    assert "not --hours" in fault_of(capsys, figure="figure1", data=coco, hours=3.0)
    for seed in (-1, 10**10):
        assert f"--seed {seed}: takes a number" in fault_of(capsys, figure="figure1", data=coco, seed=seed)
    said = fault_of(capsys, figure="figure1", data="nowhere")
    assert "nowhere/annotations/instances_train2017.json" in said and "http://images.cocodataset.org" in said
    assert "--scale 2: is not above 0" in fault_of(capsys, figure="figure1", data=coco, scale=2.0)
    assert "--epochs 0: takes a positive" in fault_of(capsys, figure="figure1", data=coco, epochs=0.0)
    assert "--margin -1: takes a number" in fault_of(capsys, figure="figure1", data=coco, margin=-1.0)
    assert "takes 3,500 images of the 35k" in fault_of(capsys, figure="section5.2", data="nowhere")
    said = fault_of(capsys, figure="figure3", data=coco)
    assert "figure3/r101-gn-pretrained-2x begins from a pre-trained resnet101 with norm gn" in said
    torch.save(Body("resnet18").state_dict(), "other.pth")
    said = fault_of(capsys, figure="figure5", data=coco, scale=0.01, weights="other.pth")
    assert "of which body? Name them as resnet10_025=FILE,resnet18=FILE" in said
    assert "weights of another model" in fault_of(capsys, figure="figure1", data=coco, scale=0.01, weights="other.pth")
    both = {"weights": "other.pth", "crops": "nowhere"}
    assert "name one of them" in fault_of(capsys, figure="figure1", data=coco, scale=0.01, **both)
    assert [path.name for path in tmp_path.iterdir()] == ["other.pth"]


def test_a_figure_is_foretold_and_nothing_is_trained(
    sample_data: Sample, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    rethink_compare(figure="figure1", data=str(sample_data("coco_mini_by")), scale=0.005, out=str(out), dry_run=True)
    said = capsys.readouterr().out
    for name in ("r50-gn-scratch", "r50-gn-pretrained"):
        assert re.search(rf"^{name}: a trunk of .* iterations", said, re.M)
    assert said.count("time: ") == said.count("memory: ") == 2 and not out.exists()


def test_a_cascade_is_foretold_to_begin_where_it_is_switched_on(
    sample_data: Sample, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(commands, "describe_run", lambda *_: "")
    words = {"data": str(sample_data("coco_mini_by")), "out": str(tmp_path / "out")}
    rethink_compare(figure="figure5", scale=0.01, device="cpu", dry_run=True, **words)
    said = capsys.readouterr().out
    assert "27 iterations with a cascade, after 54 of r50-gn-aug-scratch" in said


def test_data_without_what_a_figure_is_about(
    sample_data: Sample, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Figure 6 without keypoints, the others without masks."""
    source = sample_data("coco_mini_by")
    for folder in ("train2017", "val2017"):
        (tmp_path / folder).symlink_to(source / folder)
    (tmp_path / "annotations").mkdir()
    for part in ("train2017", "val2017"):
        content = json.loads((source / "annotations" / f"instances_{part}.json").read_text())
        for annotation in content["annotations"]:
            annotation.pop("segmentation", None)
        (tmp_path / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    given: dict[str, Any] = {"data": str(tmp_path), "scale": 0.01, "out": str(tmp_path / "out")}
    assert "has no masks, which r50-gn-scratch learns" in fault_of(capsys, figure="figure1", **given)
    assert "not there: " in fault_of(capsys, figure="figure6", **given)
    for part in ("train2017", "val2017"):
        boxes = tmp_path / "annotations" / f"instances_{part}.json"
        (tmp_path / "annotations" / f"person_keypoints_{part}.json").symlink_to(boxes)
    assert "keypoint" in fault_of(capsys, figure="figure6", **given)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def all_data(sample_data: Sample, tmp_path: Path) -> Path:
    """COCO's files and a VOC devkit in one folder, VOC's images under both years."""
    folder = tmp_path / "data"
    (folder / "VOCdevkit").mkdir(parents=True)
    for part in ("annotations", "train2017", "val2017"):
        (folder / part).symlink_to(sample_data("coco_mini_by") / part)
    for year in ("VOC2007", "VOC2012"):
        (folder / "VOCdevkit" / year).symlink_to(sample_data("voc2012_100") / "VOCdevkit" / "VOC2012")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", GROUPS)
def test_every_figure_and_table_in_miniature(name: str, all_data: Path, command: Command, tmp_path: Path) -> None:
    """All 92 recipes from start to their rows, a figure or table at a time: half an hour, a third of it Figure 5."""
    words = [name, "--data", all_data, "--scale", 0.01, "--epochs", 0.1, "--out", "out", "--device", "cpu"]
    if name == "section5.1":  # there is no smaller VGG-16, and timm's weights would have to be downloaded
        config = miniature(group_named(name)[0], 0.01).base.detector
        body = build(config).backbone.body
        assert isinstance(body, VGGBody)
        torch.save(body.state_dict(), tmp_path / "vgg.pth")
        words = [*words[:5], "--out", "out", "--device", "cpu", "--weights", "vgg.pth"]
    done = command("rethink_compare", *words)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["recipe"] for row in results["rows"]] == [recipe.name for recipe in group_named(name)]
    for row in results["rows"]:
        assert set(RECIPES[row["recipe"]].paper) <= set(row["ours"])
    assert (tmp_path / "out" / "report.html").is_file()
