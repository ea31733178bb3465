"""COCO's figures of boxes, masks and keypoints against pycocotools, with and without faster-coco-eval; bad input."""

import contextlib
import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rethink_imagenet import evaluation
from rethink_imagenet.data import InputError
from rethink_imagenet.evaluation import KINDS, evaluate_coco, evaluate_voc, keypoint_sigmas

Sample = Callable[[str], Path]
Records = list[dict[str, Any]]


def rectangle(box: list[float], height: int, width: int) -> dict[str, Any]:
    """A mask that is a rectangle, run-length encoded."""
    x, y, w, h = box
    corners = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    encoded = coco_mask.merge(coco_mask.frPyObjects(corners, height, width))
    return {"size": [height, width], "counts": encoded["counts"].decode()}


def guesses(content: dict[str, Any], seed: int, decimals: int = 9, most: int = 3) -> Records:
    """Detections near the objects, some of another class, some twice, with masks, and keypoints where there are any."""
    rng, found = np.random.default_rng(seed), []
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for record in content["annotations"]:
        for _ in range(rng.integers(0, most + 1)):
            noise = 0.15 * rng.random() * max(record["bbox"][2:])
            box = np.array(record["bbox"], float) + rng.normal(0, noise + 0.1, 4)
            box = [*box[:2].tolist(), *np.maximum(box[2:], 2).tolist()]
            category = record["category_id"] if rng.random() < 0.9 else rng.choice(content["categories"])["id"]
            guess = {"image_id": record["image_id"], "category_id": category, "bbox": box}
            guess["score"] = round(float(rng.random()), decimals)
            guess["segmentation"] = rectangle(box, *sizes[record["image_id"]])
            if "keypoints" in record:
                points = np.reshape(record["keypoints"], (-1, 3)) + rng.normal(0, noise + 0.1, (1, 3))
                guess["keypoints"] = points.ravel().tolist()
            found.append(guess)
    return found


def made_up(seed: int, images: int = 8, classes: int = 3, points: int = 17) -> dict[str, Any]:
    """Annotations of objects of all sizes with masks and keypoints, crowds and unlabelled keypoints among them."""
    rng, annotations = np.random.default_rng(seed), []
    for image in range(images):
        for _ in range(rng.integers(0, 9)):
            width, height = np.exp(rng.uniform(np.log(8), np.log(180), 2)).tolist()
            box = [float(rng.uniform(0, 200 - width)), float(rng.uniform(0, 200 - height)), width, height]
            places = rng.uniform(0, 1, (points, 2)) * [width, height] + box[:2]
            seen = rng.integers(0, 3, points) * (rng.random() < 0.8)
            triplets = np.column_stack([places * (seen[:, None] > 0), seen])
            annotations.append({
                "id": len(annotations) + 1, "image_id": image, "category_id": int(rng.integers(1, classes + 1)),
                "bbox": box, "area": 0.8 * width * height, "iscrowd": int(rng.random() < 0.1),
                "segmentation": rectangle(box, 200, 200),
                "keypoints": triplets.ravel().tolist(), "num_keypoints": int((seen > 0).sum()),
            })  # fmt: skip
    names = [f"point {i}" for i in range(points)]
    categories = [{"id": c, "name": f"class {c}", "keypoints": names} for c in range(1, classes + 1)]
    sized = [{"id": i, "height": 200, "width": 200} for i in range(images)]
    return {"images": sized, "annotations": annotations, "categories": categories}


def by_hand(content: dict[str, Any], found: Records, kind: str) -> list[float | None]:
    """What pycocotools' own sequence of calls gives, in percent."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(content)
        truth.createIndex()
        judged = COCOeval(truth, truth.loadRes(copy.deepcopy(found)), KINDS[kind])
        points = len(content["categories"][0].get("keypoints", ()))
        if kind == "keypoint" and points != 17:
            judged.params.kpt_oks_sigmas = np.full(points, COCOeval(iouType="keypoints").params.kpt_oks_sigmas.mean())
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return [None if value == -1 else 100 * float(value) for value in judged.stats]


def assert_same(figures: dict[str, float | None], expected: list[float | None]) -> None:
    """Equal to 1e-12 in parts of one; figures that do not exist are missing in both."""
    assert len(figures) == len(expected)
    for name, value in zip(figures, expected, strict=True):
        assert figures[name] == (value if value is None else pytest.approx(value, abs=1e-10, rel=0)), name


@pytest.fixture(params=["pycocotools", "faster-coco-eval"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Either of the two programs behind `evaluate_coco`."""
    assert evaluation._engine(fast=True)[0] is not COCO, "faster-coco-eval, a requirement of development, is missing"
    if request.param == "pycocotools":
        monkeypatch.setattr(evaluation, "find_spec", lambda name: None)
        assert evaluation._engine(fast=True) == (COCO, COCOeval)
    return request.param


@pytest.mark.parametrize("points", [17, 5])
@pytest.mark.parametrize("decimals", [9, 1])
@pytest.mark.parametrize("seed", range(4))
def test_figures_are_pycocotools(engine: str, seed: int, decimals: int, points: int) -> None:
    """Crowds, objects without labelled keypoints, sizes, equal scores: all figures to 1e-12 (in parts of one)."""
    content = made_up(seed, points=points)
    found = guesses(content, seed, decimals)
    for kind, figures in evaluate_coco(content, found, list(KINDS)).items():
        assert_same(figures, by_hand(content, found, kind))


def test_lists_without_boxes_are_sized_by_what_they_hold(engine: str) -> None:
    content = made_up(9, images=12)
    for kind, field in (("mask", "segmentation"), ("keypoint", "keypoints")):
        bare = [{k: d[k] for k in ("image_id", "category_id", "score", field)} for d in guesses(content, 9)]
        figures = evaluate_coco(content, bare, [kind])[kind]
        assert_same(figures, by_hand(content, bare, kind))


def test_more_detections_than_count(engine: str) -> None:
    """Of a class in an image only the best 100 count (20 with keypoints), or 10, or one."""
    content = made_up(3, images=3, classes=1)
    found = guesses(content, 3, most=40)
    assert max(np.bincount([d["image_id"] for d in found])) > 100
    for kind, figures in evaluate_coco(content, found, list(KINDS)).items():
        assert_same(figures, by_hand(content, found, kind))


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_figures_on_photographs(engine: str, split: str, sample_data: Sample) -> None:
    """COCO's own annotations, polygons and crowds among them."""
    folder = sample_data("coco_mini_by") / "annotations"
    for name, kinds in (("instances", ["box", "mask"]), ("person_keypoints", list(KINDS))):
        content = json.loads((folder / f"{name}_{split}.json").read_text())
        found = guesses(content, 0)
        for kind, figures in evaluate_coco(folder / f"{name}_{split}.json", found, kinds).items():
            assert_same(figures, by_hand(content, found, kind))


def test_sigmas_are_coco_s_for_a_person() -> None:
    sigmas = [26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]
    assert keypoint_sigmas(17) == pytest.approx(np.array(sigmas) / 1000)
    assert keypoint_sigmas(4) == pytest.approx(np.full(4, np.mean(sigmas) / 1000))


def test_neither_annotations_nor_detections_are_changed() -> None:
    content = made_up(0)
    found = guesses(content, 0)
    before = copy.deepcopy((content, found))
    evaluate_coco(content, found, list(KINDS))
    evaluate_voc(content, found)
    assert (content, found) == before


BAD_DETECTIONS = {
    "image 999 is not in the annotations": {"image_id": 999},
    "image 0.5 is not in": {"image_id": 0.5},
    "category 999 is not in the annotations": {"category_id": 999},
    "its score nan is not a finite number": {"score": float("nan")},
    "its score inf is": {"score": float("inf")},
    "its score high is": {"score": "high"},
    "its bbox is not four finite numbers": {"bbox": [1, 2, 3]},
    "its keypoints are not 17 times three": {"keypoints": [1.0, 2.0, 1]},
    "its segmentation is neither": {"segmentation": {"size": [3, 3], "counts": "9"}},
}


@pytest.mark.parametrize("message", BAD_DETECTIONS)
def test_bad_detections_are_named_with_file_and_record(message: str, tmp_path: Path) -> None:
    content, path = made_up(0), tmp_path / "detections.json"
    found = guesses(content, 0)
    found[3] |= BAD_DETECTIONS[message]
    path.write_text(json.dumps(found))
    with pytest.raises(InputError, match="detections.json: detection 3: " + message):
        evaluate_coco(content, path, list(KINDS))


@pytest.mark.parametrize("text", ["{}", "3", '"a"', "[3]", "[{}]", "[", "", '[{"image_id": [1]}]'])
def test_what_is_no_list_of_detections(text: str, tmp_path: Path) -> None:
    path = tmp_path / "detections.json"
    path.write_text(text)
    for run in (evaluate_coco, evaluate_voc):
        with pytest.raises(InputError, match=r"detections\.json"):
            run(made_up(0), path)


@pytest.mark.parametrize("kind", ["mask", "keypoint"])
def test_what_a_set_does_not_have_is_not_evaluated(kind: str, tmp_path: Path) -> None:
    content = made_up(0)
    found, field = guesses(content, 0), evaluation.FIELDS[kind]
    path = tmp_path / "boxes.json"
    without = [{k: v for k, v in record.items() if k != field} for record in content["annotations"]]
    path.write_text(json.dumps(content | {"annotations": without}))
    with pytest.raises(InputError, match=f"boxes.json: no annotation has {field}"):
        evaluate_coco(path, found, [kind])
    bare = [{k: v for k, v in guess.items() if k != field} for guess in found]
    with pytest.raises(InputError, match=f"detection 0: needs the fields .*{field}"):
        evaluate_coco(content, bare, [kind])
    with pytest.raises(InputError, match="detection 2: needs the fields"):
        evaluate_coco(content, [*found[:2], *bare[2:]], [kind])


def test_annotations_that_are_not_whole(tmp_path: Path) -> None:
    content, path = made_up(0), tmp_path / "truth.json"
    for change, message in (
        ({"bbox": [0, 1]}, "annotation number 2 .id 3.: its bbox"),
        ({"segmentation": []}, "annotation number 2 .id 3.: has no segmentation"),
        ({"keypoints": [1, 2, 3]}, "annotation number 2 .id 3.: its keypoints are not 17"),
    ):
        records = copy.deepcopy(content["annotations"])
        records[2] |= change
        path.write_text(json.dumps(content | {"annotations": records}))
        with pytest.raises(InputError, match="truth.json: " + message):
            evaluate_coco(path, [], list(KINDS))
    with pytest.raises(InputError, match="no kind of detection"):
        evaluate_coco(content, [], ["boxes"])
    with pytest.raises(InputError, match=r"truth2\.json: no such file"):
        evaluate_coco(tmp_path / "truth2.json", [])
