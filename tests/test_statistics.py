"""COCO's figures and their resamples against pycocotools, by it and by faster-coco-eval; verdicts; bad input."""

import contextlib
import copy
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval import COCOeval_faster
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rethink_imagenet.errors import InputError
from rethink_imagenet.evaluation import average_precision as evaluation
from rethink_imagenet.evaluation.average_precision import FIELDS, KINDS, evaluate_coco, evaluate_voc, keypoint_sigmas
from rethink_imagenet.evaluation.resampling import (
    FIGURES,
    Ranking,
    Records,
    coco_records,
    draw_images,
    interval_of,
    paired_bootstrap,
    resampled_ap,
    resampled_runs,
    verdict,
    voc_records,
)
from rethink_imagenet.evaluation.seeds import (
    Chance,
    Conditions,
    first_runs,
    half_width,
    rates_of,
    simulate,
    t_quantile,
)

Sample = Callable[[str], Path]
Detections = list[dict[str, Any]]


def rectangle(box: list[float], height: int, width: int) -> dict[str, Any]:
    """A mask that is a rectangle, run-length encoded."""
    x, y, w, h = box
    corners = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    encoded = coco_mask.merge(coco_mask.frPyObjects(corners, height, width))
    return {"size": [height, width], "counts": encoded["counts"].decode()}


def guesses(content: dict[str, Any], seed: int, decimals: int = 9, most: int = 3) -> Detections:
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


def by_hand(content: dict[str, Any], found: Detections, kind: str) -> list[float | None]:
    """What pycocotools' own sequence of calls gives for one kind alone, as Detectron writes results, in percent."""
    fields = ("image_id", "category_id", "score", FIELDS[kind])
    found = [{key: copy.deepcopy(detection[key]) for key in fields} for detection in found]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(content)
        truth.createIndex()
        judged = COCOeval(truth, truth.loadRes(found), KINDS[kind])
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
    assert issubclass(evaluation._ENGINE[1].func, COCOeval_faster)
    if request.param == "pycocotools":
        monkeypatch.setattr(evaluation, "_ENGINE", (COCO, COCOeval))
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


def test_some_images_are_as_an_evaluation_of_their_records_alone(engine: str) -> None:
    content, some = made_up(5, images=12), [1, 4, 5, 10]
    found, few = guesses(content, 5), {"images": "id", "annotations": "image_id"}
    alone = content | {table: [one for one in content[table] if one[key] in some] for table, key in few.items()}
    there = [one for one in found if one["image_id"] in some]
    for kind, figures in evaluate_coco(content, found, list(KINDS), some).items():
        assert_same(figures, by_hand(alone, there, kind))


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
    "its score 'high' is": {"score": "high"},
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


SIZES = ("all", "small", "medium", "large")


def copied(content: dict[str, Any], found: Detections, counts: np.ndarray) -> tuple[dict[str, Any], Detections]:
    """The data set that holds image m `counts[m]` times, each copy under a new id, in the same order."""
    new = {
        image["id"]: [1000 * m + c for c in range(counts[m])]
        for m, image in enumerate(sorted(content["images"], key=lambda i: i["id"]))
    }

    def copies(table: Detections) -> Detections:
        return [record | {"image_id": image} for record in table for image in new[record["image_id"]]]

    annotations = [record | {"id": i} for i, record in enumerate(copies(content["annotations"]), 1)]
    images = [image | {"id": i} for image in content["images"] for i in new[image["id"]]]
    return content | {"images": images, "annotations": annotations}, copies(found)


@pytest.mark.parametrize("decimals", [9, 1])
@pytest.mark.parametrize("kind", ["box", "mask", "keypoint"])
def test_resamples_are_what_pycocotools_gives_on_copied_images(kind: str, decimals: int) -> None:
    """Brute force: every figure of every resample to 1e-12, with equal scores within an image and between images."""
    content = made_up(5, images=10)
    found = guesses(content, 5, decimals)
    scored = {(d["image_id"], d["category_id"], d["score"]) for d in found}
    assert decimals > 1 or len(scored) < len(found)
    sizes = [size for size in SIZES if (kind, size) != ("keypoint", "small")]
    records = coco_records(content, found, kind, sizes=sizes)
    counts = np.stack([np.ones(10, np.int32), *(draw_images(10, 3, b) for b in range(11))])
    figures = ["ap", "ap50", "ap75", *(f"ap_{size}" for size in sizes[1:])]
    ours = np.stack([resampled_ap(records, counts, figure) for figure in figures])
    for b, drawn in enumerate(counts):
        expected = by_hand(*copied(content, found, drawn), kind)[: len(figures)]
        assert_same(dict(zip(figures, [None if np.isnan(x) else x for x in ours[:, b]], strict=True)), expected)


@pytest.mark.parametrize("eleven_points", [False, True])
def test_resamples_are_what_voc_gives_on_copied_images(eleven_points: bool) -> None:
    content = made_up(6, images=10)
    found = guesses(content, 6)
    for record in content["annotations"][::7]:
        record["difficult"] = 1
    records = voc_records(content, found, eleven_points)
    for b in range(8):
        drawn = draw_images(10, 1, b)
        expected = evaluate_voc(*copied(content, found, drawn), eleven_points)["map"]
        assert resampled_ap(records, drawn[None], "map")[0] == pytest.approx(expected, abs=1e-10, rel=0)


def test_records_on_photographs(sample_data: Sample) -> None:
    path = sample_data("coco_mini_by") / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    found = guesses(content, 1, decimals=2)
    records, once = coco_records(path, found, sizes=SIZES), np.ones((1, len(content["images"])), np.int32)
    figures = {figure: resampled_ap(records, once, figure)[0] for figure in list(FIGURES)[:6]}
    assert_same(figures, by_hand(content, found, "box")[:6])


def test_detections_where_nothing_is_annotated() -> None:
    """A box of exactly 32 x 32 pixels is small and medium, and one without area small; the best 100 count as wrong."""
    content = made_up(2, images=4, classes=2)
    empty = next(i["id"] for i in content["images"])
    content["annotations"] = [a for a in content["annotations"] if (a["image_id"], a["category_id"]) != (empty, 2)]
    found = guesses(content, 2)
    for size, score in (((32, 32), 0.99), ((96, 96), 0.98), ((0, 10), 0.97)):
        found.append({"image_id": empty, "category_id": 2, "bbox": [5, 5, *size], "score": score})
    many = {"image_id": empty, "category_id": 2, "bbox": [5, 5, 40, 40]}
    found += [many | {"score": 0.8 + 0.0001 * i} for i in range(150)]
    records, once = coco_records(content, found, sizes=SIZES), np.ones((1, 4), np.int32)
    figures = {figure: resampled_ap(records, once, figure)[0] for figure in list(FIGURES)[:6]}
    assert_same({k: None if np.isnan(v) else v for k, v in figures.items()}, by_hand(content, found, "box")[:6])


def test_interval_by_brute_force() -> None:
    """The interval of the difference from pycocotools' figures on 40 data sets with copied images."""
    content = made_up(7, images=12)
    arms = [guesses(content, seed) for seed in (7, 8)]
    records = [coco_records(content, arm) for arm in arms]
    found = paired_bootstrap([records[0]], [records[1]], resamples=40, seed=2)
    differences = []
    for b in range(40):
        drawn = draw_images(12, 2, b)
        first, second = (by_hand(*copied(content, arm, drawn), "box")[0] for arm in arms)
        differences.append(first - second)
    assert found.interval == pytest.approx(tuple(np.percentile(differences, [2.5, 97.5])), abs=1e-10)
    assert found.difference == pytest.approx(by_hand(content, arms[0], "box")[0] - by_hand(content, arms[1], "box")[0])
    assert (found.images, found.runs, found.kind) == (12, (1, 1), "box")


def test_several_runs_make_the_interval_of_images_and_training() -> None:
    """By hand from pycocotools' figures of each run on 40 data sets with copied images."""
    content = made_up(8, images=12)
    found = [guesses(content, seed) for seed in range(4)]
    runs = [coco_records(content, one) for one in found]
    both = paired_bootstrap(runs[:2], runs[2:], resamples=40, seed=3)
    single = np.array([by_hand(content, one, "box")[0] for one in found], float)
    drawn = [draw_images(12, 3, b) for b in range(40)]
    resampled = np.array(
        [[by_hand(*copied(content, one, counts), "box")[0] for counts in drawn] for one in found], float
    )
    half = half_width(Chance(single[:2], single[2:], np.cov(np.array(resampled, float))))
    difference = single[:2].mean() - single[2:].mean()
    assert both.runs == (2, 2) and both.difference == pytest.approx(difference)
    assert both.interval == pytest.approx((difference - half, difference + half), abs=1e-9)


def test_one_run_of_an_arm_covers_images_alone() -> None:
    content = made_up(8, images=12)
    runs = [coco_records(content, guesses(content, seed)) for seed in range(3)]
    found = paired_bootstrap(runs[:2], runs[2:], resamples=50)
    ap = resampled_runs(runs, resamples=50)
    differences = ap[:2, 1:].mean(axis=0) - ap[2, 1:]
    assert found.runs == (2, 1)
    assert found.interval == pytest.approx(tuple(np.percentile(differences, [2.5, 97.5])), abs=1e-9)


@pytest.mark.parametrize("conditions", [Conditions(2, 300, 4.0, 0.9, 0.5), Conditions(4, 150, 0.5, 0.7, 0.7, 0.3)])
def test_the_interval_holds_in_conditions_that_the_table_lacks(conditions: Conditions) -> None:
    found = rates_of(simulate(conditions, 1500, seed=9))
    assert 0.93 <= found.coverage <= 0.985 and found.missed <= 0.035


def test_an_arm_that_varies_more_than_the_other() -> None:
    """Seeds move the first arm four times as much as the other. Unequal arms may be surer than they need be."""
    drawn = simulate(Conditions(5, 200, 3.0, uneven=4.0), 1500, seed=4)
    for runs in ((3, 3), (2, 2), (3, 2), (2, 3), (5, 2), (2, 5)):
        found = rates_of(first_runs(drawn, *runs))
        most = 0.985 if runs[0] == runs[1] else 0.995
        assert 0.935 <= found.coverage <= most and found.missed <= 0.033, (runs, found)


@pytest.mark.parametrize(("level", "freedom", "expected"), [
    (0.9, 1, 6.3138), (0.95, 1.5, 6.01666), (0.95, 3, 3.1824), (0.98, 2, 6.9646), (0.95, 30, 2.0423),
    (0.99875, 4, 8.1216), (0.996875, 1.2, 87.649),
])  # fmt: skip
def test_quantiles_of_t(level: float, freedom: float, expected: float) -> None:
    assert t_quantile(level, freedom) == pytest.approx(expected, rel=5e-4)


def test_coverage_of_the_interval() -> None:
    """Two arms of the same quality: the interval of 90 % holds 0 in about nine of ten data sets."""
    held = 0
    for seed in range(60):
        content = made_up(100 + seed, images=40, classes=1)
        first, second = (coco_records(content, guesses(content, 2 * seed + arm)) for arm in (0, 1))
        ap = resampled_runs([first, second], "ap50", resamples=100)
        low, high = interval_of(ap[:1], ap[1:], level=0.9)
        held += low <= 0 <= high
        assert (low, high) == pytest.approx(tuple(np.percentile(ap[0, 1:] - ap[1, 1:], [5, 95])))
    assert 46 <= held <= 60


def test_records_that_do_not_go_together() -> None:
    content = made_up(0)
    found = guesses(content, 0)
    box, mask = coco_records(content, found), coco_records(content, found, "mask")
    fewer = coco_records(content | {"annotations": content["annotations"][1:]}, found)
    some = coco_records(content, found, category_ids=[1, 2])
    area, eleven = (voc_records(content, found, points) for points in (False, True))
    for one, other in ((box, mask), (box, fewer), (box, some), (some, box), (area, eleven)):
        with pytest.raises(InputError, match="not evaluated on the same images and objects"):
            resampled_runs([one, other], resamples=2)
    with pytest.raises(InputError, match="of all objects, not of large ones"):
        paired_bootstrap([box], [box], "ap_large", resamples=2)
    tiny = coco_records(
        content | {"annotations": [a | {"area": 9} for a in content["annotations"]]}, found, sizes=SIZES
    )
    with pytest.raises(InputError, match="there is no object"):
        paired_bootstrap([tiny], [tiny], "ap_large", resamples=2)
    alone = coco_records(content | {"annotations": content["annotations"][:1]}, found)
    place = alone.image_ids.index(content["annotations"][0]["image_id"])
    missed = next(seed for seed in range(100) if not draw_images(8, seed, 0)[place])
    with pytest.raises(InputError, match="there is no object"):  # in the only resample
        resampled_runs([alone], resamples=1, seed=missed)


@pytest.mark.parametrize(
    ("interval", "word"),
    [((0.01, 0.4), "better"), ((0.0, 0.4), "no worse"), ((-0.49, -0.01), "no worse"), ((-0.5, 2.0), "undecided"),
     ((-3.0, 3.0), "undecided"), ((-3.0, -0.5), "undecided"), ((-3.0, -0.51), "worse")],
)  # fmt: skip
def test_verdict_at_the_borders(interval: tuple[float, float], word: str) -> None:
    said = verdict(sum(interval) / 2, interval, margin=0.5, images=5000)
    assert said.word == word and word in said.statement and "5,000 images" in said.statement


def test_no_verdict_without_margin() -> None:
    for margin, interval in ((0.0, (0.0, 1.0)), (0.5, (1.0, 0.0)), (0.5, (float("nan"), 1.0))):
        with pytest.raises(ValueError, match="no verdict"):
            verdict(0.5, interval, margin)


def made_up_records(seed: int, images: int, classes: int, objects: int, listed: int) -> Records:
    """Records as of a run on a set of the size of val2017: some detections right up to a random IoU, some on crowds."""
    rng, rankings = np.random.default_rng(seed), []
    owners = np.random.default_rng(0).integers(0, images, (classes, objects))
    for owner in owners:
        scores = np.sort(rng.random(listed))[::-1]
        marks = np.zeros((10, listed), np.int8)
        where = rng.choice(listed, objects, replace=False, p=scores / scores.sum())
        reach = rng.integers(0, 11, objects)
        marks[:, where] = np.arange(10)[:, None] < reach
        marks[:, rng.random(listed) < 0.01] = -1
        where_found = rng.integers(0, images, listed)
        where_found[where] = owner
        rankings.append(Ranking(where_found, scores, marks, owner))
    return Records("box", tuple(range(images)), np.linspace(0, 1, 101), {"all": tuple(rankings)})


@pytest.mark.slow
def test_a_thousand_resamples_of_val2017_take_less_than_a_minute() -> None:
    """5,000 images, 80 classes, 100 detections an image, two arms: processor time of the interval from records."""
    arms = [made_up_records(seed, 5000, 80, 450, 6250) for seed in (1, 2)]
    start = time.process_time()
    found = paired_bootstrap([arms[0]], [arms[1]], resamples=1000)
    assert time.process_time() - start < 60
    assert found.images == 5000 and found.interval[0] < found.interval[1]
