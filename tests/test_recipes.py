"""Recipes: real VOC lists as one data set, the 35k by val2014's ids, and one line for data that are not there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rethink_imagenet.data.coco import read_coco
from rethink_imagenet.data.images import load_image
from rethink_imagenet.data.voc import read_voc
from rethink_imagenet.detection.detectors import build
from rethink_imagenet.errors import InputError
from rethink_imagenet.study.recipes import RECIPES, files_of, miniature, plan_for, read_data, training_subset, union_of
from rethink_imagenet.study.report import table_rows
from rethink_imagenet.tools.cli import rethink_recipes

from .launch import launch

Sample = Callable[[str], Path]


@pytest.fixture
def devkit(sample_data: Sample, tmp_path: Path) -> Path:
    """The same images of VOC under two years."""
    folder = tmp_path / "VOCdevkit"
    folder.mkdir()
    for year in ("VOC2007", "VOC2012"):
        (folder / year).symlink_to(sample_data("voc2012_100") / "VOCdevkit" / "VOC2012")
    return folder


def test_two_lists_of_voc_are_one_data_set(devkit: Path, tmp_path: Path) -> None:
    """File names, ids and objects of both years are there, and the images open."""
    recipe = RECIPES["section5.2/voc-r101-gn-scratch-16x"]
    with pytest.raises(InputError, match="VOC2007/ImageSets/Main/missing"):
        read_voc(devkit / "VOC2007" / "ImageSets" / "Main" / "missing.txt")
    first, second = (read_voc(path) for path in files_of(recipe, tmp_path)[:2])
    second = read_voc(files_of(recipe, tmp_path)[1], first.category_names)
    both = union_of(first, second)
    assert len(both) == len(first) + len(second) == len(set(both.image_ids.tolist()))
    assert len(both.boxes) == len(first.boxes) + len(second.boxes) == both.starts[-1]
    assert isinstance(both.ground_truth, dict)
    annotations = both.ground_truth["annotations"]
    assert len({one["id"] for one in annotations}) == len(annotations) == len(both.boxes)
    assert {one["image_id"] for one in annotations} == set(both.image_ids.tolist())
    for m in (0, len(first), len(both) - 1):
        part, k = (first, m) if m < len(first) else (second, m - len(first))
        assert np.array_equal(both.boxes[both.objects(m)], part.boxes[part.objects(k)])
        assert np.array_equal(load_image(both, m), load_image(part, k))


def test_the_35k_are_those_of_val2014(sample_data: Sample, tmp_path: Path) -> None:
    train = read_coco(sample_data("coco_mini_by") / "annotations" / "instances_train2017.json")
    older = tmp_path / "instances_val2014.json"
    images = [{"id": int(i)} for i in train.image_ids[::3]]
    older.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    taken = training_subset(RECIPES["figure7/r50-gn-35k-scratch-6x"], train, older)
    assert taken.image_ids.tolist() == train.image_ids[::3].tolist()


@pytest.mark.parametrize("name", RECIPES)
def test_missing_data_are_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        files_of(RECIPES[name], tmp_path)
    assert "http://" in str(caught.value) and name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["table1/r50-gn-scratch-6x", "figure6/r50-gn-keypoints-scratch-2x"])
def test_a_miniature_fits_photographs(name: str, sample_data: Sample) -> None:
    recipe = miniature(RECIPES[name], 0.01)
    kind = "person_keypoints" if recipe.base.detector.keypoints else "instances"
    train = read_coco(sample_data("coco_mini_by") / "annotations" / f"{kind}_train2017.json")
    plan = plan_for(recipe, training_subset(recipe, train))
    assert plan.detector.num_classes == len(train.category_ids)
    assert build(plan.detector).config == plan.detector


def test_the_command_lists_and_shows(capsys: pytest.CaptureFixture[str]) -> None:
    rethink_recipes(words="figure5,scratch")
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 9 and listed[1].startswith("figure5/r50-gn-scratch-6x") and listed[1].endswith("mask 36.6")
    rethink_recipes(show="table1/r50-gn-scratch-6x")
    shown = capsys.readouterr().out
    assert "540,000 iterations of 16 images, rate 0.02 times 0.1 at 480,000 and 520,000" in shown
    assert "8,640,000 images, 62,8" in shown and "paper: box 41.3" in shown and "our choice: One seed" in shown
    with pytest.raises(SystemExit) as stopped:
        rethink_recipes(show="table1/r50-scratch-6x")
    assert stopped.value.code == 2 and "nearest: table1/r50-gn-scratch-6x" in capsys.readouterr().err


def test_the_command_tells_the_time_on_other_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    """One column for each kind, images and rate by the linear rule, and under it what was assumed."""
    name = "table3/x152-gn-cascade-aug-tta-scratch-9x"
    rethink_recipes(show=name, on="8xA100,512xH100")
    shown = capsys.readouterr().out
    assert name in shown and "our choice: One seed" in shown
    rows = {line[:31].strip(): line[31:].split() for line in shown.splitlines() if " hours" in line or ", ms" in line}
    assert all(float(part) >= 0 for row in rows.values() for part in row if part != "to")
    few, many = (float(hours) for hours in rows["all, hours"])
    assert few > many > 0
    assert next(line.split()[3:] for line in shown.splitlines() if line.startswith("images an"))[::-1] == ["512", "16"]
    for part in ("linear rule", "MLPerf", "NCCL, tuning.cc", "nbs/69_timing.ipynb"):
        assert part in shown
    rethink_recipes(show=name, on="8xA100", batch=32)
    assert "0.04" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"on": "0xA100"}, "--on 0xA100: takes 1 to 512 GPUs"),
        ({"on": "1000xA100"}, "--on 1000xA100: takes 1 to 512 GPUs"),
        ({"on": "8xB17"}, '--on 8xB17: no kind of GPU "B17"; there are: V100, A100, H100'),
        ({"on": "8xA1000"}, 'no kind of GPU "A1000"; nearest: A100'),
        ({"on": "A100"}, '"A100" is not a number of GPUs and their kind, such as 8xA100'),
        ({"on": "8xA100,"}, '"" is not a number of GPUs'),
        ({"on": "-8xA100"}, "is not a number of GPUs"),
        (
            {"on": "64xA100", "batch": 16},
            "more GPUs than images an iteration; take 16 GPUs or fewer, or a",
        ),
        ({"on": "8xA100", "batch": -2}, "--batch -2: takes 1 to 1,000,000 images"),
        ({"on": "8xA100", "show": ""}, "--on and --batch: say for which recipe and GPUs"),
        ({"batch": 32}, "--on and --batch: say for which recipe and GPUs"),
    ],
)
def test_gpus_that_nothing_can_be_told_for(
    capsys: pytest.CaptureFixture[str], given: dict[str, Any], message: str
) -> None:
    """One line, status 2, and nothing before it."""
    with pytest.raises(SystemExit) as stopped:
        rethink_recipes(**{"show": "table1/r50-gn-scratch-6x"} | given)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and message in err and err.count("\n") == 1 and not out


WHOLE = (
    "table1/r50-gn-scratch-2x", "figure4/r50-syncbn-scratch-2x", "figure5/r50-gn-cascade-aug-tta-scratch-9x",
    "table3/x152-gn-cascade-aug-tta-scratch-9x", "figure6/r50-gn-keypoints-scratch-2x",
    "figure7/r50-gn-35k-scratch-6x", "figure8/r50-gn-1k-scratch-11x", "section5.1/vgg16-scratch-11x",
)  # fmt: skip


def carried_out(name: str, scale: float, folder: Path, out: Path) -> dict[str, Any]:
    """A miniature of a recipe on photographs, as a user types it, from start to its row in a table."""
    words = ["rethink_train", name, "--data", str(folder), "--scale", str(scale), "--out", str(out)]
    words += ["--device", "cpu", "--workers", "0"]
    done = launch(words)
    assert done.returncode == 0, done.stderr
    assert "random initialization" in done.stdout and "the paper: " in done.stdout
    (path,) = out.glob("*x/results.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", [WHOLE[2], WHOLE[4]])
def test_a_miniature_from_start_to_table_row(sample_data: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """One that switches to cascade and is tested in 18 passes, and keypoints; plain nets are those of the figures."""
    results = carried_out(name, 0.01, sample_data("coco_mini_by"), tmp_path / "out")
    assert results["box"]["ap"] is not None and results["iterations"] == results["curve"][-1]["iteration"]
    assert ("augmented" in results) == ("tta" in name) and ("keypoint" in results) == ("keypoints" in name)


def test_a_miniature_of_voc(devkit: Path, tmp_path: Path) -> None:
    """Both years to train on, and VOC's own measure in the table."""
    results = carried_out("section5.2/voc-r101-gn-scratch-16x", 0.01, devkit, tmp_path / "out")
    assert results["iterations"] == 48 and 0 <= results["voc"]["map"] <= 100
    assert table_rows([results])[0]["VOC mAP"] == f"{results['voc']['map']:.1f}"
    assert "VOC mAP" not in table_rows([results | {"voc": {"map": None}}])[0]  # nothing to find
    train_set, val_set = read_data(miniature(RECIPES["section5.2/voc-r101-gn-scratch-16x"], 0.01), devkit)
    assert {str(name).partition("/")[0] for name in train_set.file_names} == {"VOC2007", "VOC2012"}
    assert results["instances"] > 0 and len(val_set) == 8


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_every_system_in_miniature(sample_data: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """A longer miniature of each system that the paper trains on COCO."""
    results = carried_out(name, 0.02, sample_data("coco_mini_by"), tmp_path / "out")
    assert results["box"]["ap"] is not None


def test_a_recipe_settles_what_is_trained(tmp_path: Path) -> None:
    def fails(*words: str) -> str:
        done = launch(["rethink_train", *words], cwd=tmp_path)
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
        return done.stderr

    assert "a recipe settles what is trained" in fails(WHOLE[0], "--data", "coco", "--norm", "bn")
    assert "nearest: table1/r50-gn-scratch" in fails("table1/r50-gn-scrach-6x", "--data", "coco")
    assert "instances_train2017.json" in fails(WHOLE[0], "--data", "coco")
    assert "needs --weights" in fails("table1/r50-gn-pretrained-2x", "--data", "coco", "--scale", "0.02")
