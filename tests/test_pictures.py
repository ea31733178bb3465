"""Images that nobody has annotated: read, predicted on, drawn, sent to a server; bad input."""

import json
import re
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rethink_imagenet.data.coco import read_coco, read_image_info
from rethink_imagenet.data.datasets import Dataset
from rethink_imagenet.data.images import load_image, read_image_files
from rethink_imagenet.data.loading import EvaluationSamples
from rethink_imagenet.data.scenes import KEYPOINTS, SKELETON, coco_categories, write_scenes
from rethink_imagenet.detection.detectors import DEMO, build
from rethink_imagenet.errors import InputError
from rethink_imagenet.evaluation.augmented_testing import AugmentedDetector, Pass, WholeSamples
from rethink_imagenet.evaluation.average_precision import evaluate_coco, predict, write_submission
from rethink_imagenet.study.plans import Execution, Experiment, Plan
from rethink_imagenet.study.studies import run_schedule
from rethink_imagenet.tools.pictures import arm_found, bitmap, draw_detections, write_pictures


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes in COCO's layout, with a list of the validation images under the name that COCO would give it."""
    folder = write_scenes(tmp_path_factory.mktemp("scenes") / "scenes", train=1, val=3)
    content = json.loads((folder / "annotations/instances_val.json").read_text())
    tables = {key: content[key] for key in ("images", "categories")}
    (folder / "val").rename(folder / "test2017")
    (folder / "annotations/image_info_test-dev2017.json").write_text(json.dumps(tables))
    return folder


def categories_of(root: Path) -> list[dict[str, Any]]:
    return json.loads((root / "annotations/instances_val.json").read_text())["categories"]


def test_a_list_of_images_is_predicted_on_as_if_annotated(root: Path) -> None:
    listed = read_image_info(root / "annotations/image_info_test-dev2017.json")
    annotated = read_coco(root / "annotations/instances_val.json", root / "test2017")
    files = read_image_files(sorted((root / "test2017").iterdir()), categories_of(root))
    torch.manual_seed(0)
    detector = build(replace(DEMO, keypoints=len(KEYPOINTS))).eval()
    expected = predict(detector, EvaluationSamples(annotated, 96), workers=0)
    assert len(expected) > 10
    assert predict(detector, EvaluationSamples(listed, 96), workers=0) == expected
    found = predict(detector, EvaluationSamples(files, 96), workers=0)
    assert [d | {"image_id": 0} for d in found] == [d | {"image_id": 0} for d in expected]
    augmented = AugmentedDetector(detector, [Pass(96, 1333)])
    assert predict(augmented, WholeSamples(listed), workers=0) == expected
    with pytest.raises(InputError, match="no annotation has bbox"):
        evaluate_coco(listed.ground_truth, expected, ["box"])


def test_files_from_several_folders(root: Path, tmp_path: Path) -> None:
    source = next((root / "test2017").iterdir())
    (tmp_path / "deep" / "er").mkdir(parents=True)
    other = tmp_path / "deep" / "er" / "other.jpg"
    Image.new("RGB", (30, 20)).save(other)
    files = read_image_files([source, str(other)], categories_of(root))
    assert files.sizes[1].tolist() == [20, 30] and load_image(files, 1).shape == (20, 30, 3)
    assert np.array_equal(load_image(files, 0), np.asarray(Image.open(source)))
    written = write_pictures(files, [], categories_of(root), tmp_path / "out")
    assert [path.name for path in written] == [source.name, "other.png"]
    assert all(path.is_relative_to(tmp_path / "out") for path in written)


def test_bad_lists_of_images(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no image was named"):
        read_image_files([], categories_of(root))
    (tmp_path / "words.png").write_text("words")
    with pytest.raises(InputError, match=r"words\.png: cannot be read"):
        read_image_files([tmp_path / "words.png"], categories_of(root))
    path = tmp_path / "image_info_test.json"
    path.write_text(json.dumps({"images": []}))
    with pytest.raises(InputError, match=r"image_info_test\.json: not COCO's format.* images, categories"):
        read_image_info(path)
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": "a.png", "height": 2, "width": 2}],
                                "categories": categories_of(root)}))  # fmt: skip
    with pytest.raises(InputError, match=r"a\.png is missing"):
        read_image_info(path)
    with pytest.raises(InputError, match="annotations"):
        read_coco(root / "annotations/image_info_test-dev2017.json")


def test_submission(root: Path, tmp_path: Path) -> None:
    listed = read_image_info(root / "annotations/image_info_test-dev2017.json")
    truth = json.loads((root / "annotations/instances_val.json").read_text())
    found = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.5} for a in truth["annotations"]]
    path = write_submission(listed, found, "box", "scratch-6x", tmp_path / "new" / "folder")
    assert path.name == "detections_test-dev2017_scratch-6x_results.zip"
    with zipfile.ZipFile(path) as archive:
        (name,) = archive.namelist()
        assert name == "detections_test-dev2017_scratch-6x_results.json" and json.loads(archive.read(name)) == found
    for change, message in (
        ({"image_id": 999}, "detection 1: image 999"),
        ({"score": float("nan")}, "detection 1: its score nan"),
        ({"category_id": 99}, "detection 1: category 99"),
    ):
        with pytest.raises(InputError, match=message):
            write_submission(listed, [found[0], found[1] | change], "box", "other", tmp_path)
    with pytest.raises(InputError, match="detection 0: needs the fields"):
        write_submission(listed, found, "mask", "other", tmp_path)
    with pytest.raises(InputError, match="takes letters, digits"):
        write_submission(listed, found, "box", "a/b", tmp_path)
    with pytest.raises(InputError, match="exists already"):
        write_submission(listed, found, "box", "scratch-6x", path.parent)
    assert list(tmp_path.glob("*.zip")) == []


def test_pictures_of_photographs(sample_data: Callable[[str], Path], tmp_path: Path) -> None:
    """Each kind of mask, crowds, and people with and without labelled keypoints are drawn."""
    path = sample_data("coco_mini_by") / "annotations" / "person_keypoints_val2017.json"
    content, dataset = json.loads(path.read_text()), read_coco(path)
    written = write_pictures(dataset, content["annotations"], content["categories"], tmp_path)
    for m, file in enumerate(written):
        picture = np.asarray(Image.open(file))
        assert picture.shape == (*dataset.sizes[m], 3)
        assert (picture != load_image(dataset, m)).any() == any(
            a["image_id"] == dataset.image_ids[m] for a in content["annotations"]
        )
    with pytest.raises(InputError, match=re.escape(str(written[0]))):
        write_pictures(dataset, [], content["categories"], tmp_path)


def right_and_wrong(dataset: Dataset, m: int, found: list[dict[str, Any]]) -> list[int]:
    """Detections of an image with a score of 0.5 or more, counted one by one as COCO's rules say."""
    own, image = dataset.objects(m), int(dataset.image_ids[m])
    boxes, counted = dataset.boxes[own].astype(float), dataset.usable[own]
    classes = np.array(dataset.category_ids)[dataset.labels[own] - 1]
    areas, free, counts = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1), counted.copy(), [0, 0]
    sure = (d for d in found if d["image_id"] == image and d["score"] >= 0.5)
    for detection in sorted(sure, key=lambda d: -d["score"]):
        x, y, width, height = detection["bbox"]
        sides = np.minimum(boxes[:, 2:], (x + width, y + height)) - np.maximum(boxes[:, :2], (x, y))
        shared, of_class = sides.clip(0).prod(axis=1), classes == detection["category_id"]
        overlaps = np.where(free & of_class, shared / (areas + width * height - shared), 0)
        if overlaps.max(initial=0) >= 0.5:
            counts[0] += 1
            free[overlaps.argmax()] = False
        elif not (shared[of_class & ~counted] >= 0.5 * width * height).any():
            counts[1] += 1
    return counts


@pytest.mark.parametrize("seed", range(3))
def test_right_and_wrong_are_those_of_cocos_matching(
    sample_data: Callable[[str], Path], tmp_path: Path, seed: int
) -> None:
    """Some objects are found, shifted a little or much, some twice, some as another class, crowds among them."""
    path, chance = sample_data("coco_mini_by") / "annotations" / "instances_val2017.json", np.random.default_rng(seed)
    dataset, found = read_coco(path), []
    for annotation in json.loads(path.read_text())["annotations"]:
        for _ in range(chance.integers(3)):
            x, y, w, h = annotation["bbox"]
            dx, dy = chance.normal(0, 0.25, 2).tolist()
            own = chance.random() < 0.8
            found.append({"image_id": annotation["image_id"], "bbox": [x + dx * w, y + dy * h, w, h],
                          "category_id": annotation["category_id"] if own else int(chance.choice(dataset.category_ids)),
                          "score": float(chance.uniform(0.2, 1))})  # fmt: skip
    (tmp_path / "detections.json").write_text(json.dumps(found))
    counted = arm_found(tmp_path / "detections.json", dataset)
    expected = [right_and_wrong(dataset, m, found) for m in range(len(dataset))]
    assert [[right, wrong] for right, wrong in zip(counted.right, counted.wrong, strict=True)] == expected
    assert counted.right.sum() > 50 and counted.wrong.sum() > 50 and counted.objects.sum() == dataset.usable.sum()


def test_the_skeleton_travels_from_the_annotations_to_the_picture(
    tmp_path: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    scenes = read_coco(write_scenes(tmp_path / "scenes", train=12, val=1) / "annotations/instances_train.json")
    config = replace(DEMO, masks=False, keypoints=len(KEYPOINTS))
    plan = Plan(config, (1,), unit=1, batch=2, short=(96, 96), long=96, evaluations=1)
    run_schedule(Experiment(plan, scenes, scenes, tmp_path, execution=Execution(workers=0)), 1)
    photo = scenes.folder / str(scenes.file_names[0])
    done = command("rethink_detect", "1x", photo, "--score", 0, "--out", "seen")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "seen" / "detections.json").read_text())
    dots = [{key: category[key] for key in ("id", "name")} for category in coco_categories()]
    limbs = [category | {"skeleton": SKELETON} for category in dots]
    picture = np.asarray(Image.open(tmp_path / "seen" / "pictures" / f"{photo.stem}.png"))
    assert np.array_equal(picture, draw_detections(load_image(scenes, 0), found, limbs, 0))
    assert not np.array_equal(picture, draw_detections(load_image(scenes, 0), found, dots, 0))


def test_masks_of_every_form_are_the_same_bitmap() -> None:
    square = np.zeros((6, 8), bool)
    square[1:4, 2:5] = True
    runs = [13, 3, 3, 3, 3, 3, 20]
    for form in ([[2, 1, 5, 1, 5, 4, 2, 4]], {"size": [6, 8], "counts": runs}):
        assert np.array_equal(bitmap(form, 6, 8).numpy(), square)


def test_detections_below_the_score_are_not_drawn() -> None:
    image = np.full((50, 90, 3), 200, np.uint8)
    detection = {"image_id": 1, "category_id": 2, "bbox": [5.0, 5, 30, 30], "score": 0.49}
    categories = [{"id": 2, "name": "cat"}]
    assert np.array_equal(draw_detections(image, [detection], categories), image)
    assert not np.array_equal(draw_detections(image, [detection], categories, score=0.4), image)
