"""Recipes: real VOC lists as one data set, the 35k by val2014's ids, and one line for data that are not there."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rethink_imagenet.cli import rethink_recipes
from rethink_imagenet.data import InputError, load_image, read_coco, read_voc
from rethink_imagenet.detectors import build
from rethink_imagenet.recipes import RECIPES, files_of, miniature, plan_for, training_subset, union_of

Sample = Callable[[str], Path]


def test_two_lists_of_voc_are_one_data_set(sample_data: Sample, tmp_path: Path) -> None:
    """The same images under two years: file names, ids and objects of both are there, and the images open."""
    devkit = tmp_path / "VOCdevkit"
    devkit.mkdir()
    for year in ("VOC2007", "VOC2012"):
        (devkit / year).symlink_to(sample_data("voc2012_100") / "VOCdevkit" / "VOC2012")
    recipe = RECIPES["section5.2/voc-r101-gn-scratch-16x"]
    with pytest.raises(InputError, match="VOC2007/ImageSets/Main/missing"):
        read_voc(devkit / "VOC2007" / "ImageSets" / "Main" / "missing.txt")
    first, second = (read_voc(path) for path in files_of(recipe, tmp_path)[:2])
    second = read_voc(files_of(recipe, tmp_path)[1], first.category_names)
    both = union_of(first, second)
    assert len(both) == len(first) + len(second) == len(set(both.image_ids.tolist()))
    assert len(both.boxes) == len(first.boxes) + len(second.boxes) == both.starts[-1]
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
