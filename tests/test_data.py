"""Data as tools export them: orientations, splits, layouts, names of files, slips; right, or one clear line."""

import json
import os
import re
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from rethink_imagenet.data.coco import read_coco
from rethink_imagenet.data.images import load_image, look_at_files, read_header, read_image_files, read_upright
from rethink_imagenet.data.loading import EvaluationSamples, TrainingSamples
from rethink_imagenet.data.splits import (
    find_split,
    hold_back,
    original_name,
    read_split,
    read_splits,
    select,
    shared_images,
    versions_of,
)
from rethink_imagenet.data.transforms import flip, read_sample, resize
from rethink_imagenet.detection.detectors import DEMO
from rethink_imagenet.errors import InputError
from rethink_imagenet.evaluation.average_precision import evaluate
from rethink_imagenet.study.plans import Execution, Experiment, Plan
from rethink_imagenet.study.pretraining import ClassificationSamples
from rethink_imagenet.study.studies import records_of, resampled_figures, run_schedule
from rethink_imagenet.tools import cli
from rethink_imagenet.tools.inspection import look_at
from rethink_imagenet.tools.pictures import write_pictures

Record = dict[str, Any]
RED, CATEGORIES = (250, 10, 10), [{"id": 1, "name": "valve"}, {"id": 2, "name": "pump"}]
BOX = [6, 4, 12, 8]  # x, y, width, height of the red object
SEEN = (40, 30)  # width and height of every picture as it is seen
BACK = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions that undo what an orientation asks for


def picture(number: int = 0) -> Image.Image:
    """A red object on a ground that differs from number to number."""
    pixels = np.random.default_rng(number).integers(60, 120, (SEEN[1], SEEN[0], 3), np.uint8)
    x, y, width, height = BOX
    pixels[y : y + height, x : x + width] = RED
    return Image.fromarray(pixels)


def save(path: Path, number: int = 0, orientation: int = 1) -> Path:
    """A picture in a file, stored as a camera stores it that was held so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif, stored = Image.Exif(), picture(number)
    if orientation > 1:
        exif[0x0112] = orientation
        stored = stored.transpose(Image.Transpose(BACK[orientation]))
    stored.save(path, exif=exif, **({"quality": 95} if path.suffix.lower() in (".jpg", ".jpeg", ".webp") else {}))
    return path


def tables(names: list[str], boxes: list[list[float]] | None = None, **more: Any) -> Record:
    """COCO's tables with one object of the first class in each image, or the boxes given for the first image."""
    boxes = boxes or [BOX] * len(names)
    images = [{"id": i, "file_name": name, "width": SEEN[0], "height": SEEN[1]} for i, name in enumerate(names, 1)]
    owners = range(1, len(names) + 1) if len(boxes) == len(names) else [1] * len(boxes)
    records = [{"id": i, "image_id": owner, "category_id": 1, "bbox": box, "iscrowd": 0}
               for i, (owner, box) in enumerate(zip(owners, boxes, strict=True), 1)]  # fmt: skip
    return {"images": images, "annotations": records, "categories": CATEGORIES} | more


def write(path: Path, content: Record) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def coco(root: Path, orientation: int = 1, ending: str = "jpg") -> Path:
    """A folder in COCO's layout, three images to train on and two to evaluate on."""
    for split, numbers in (("train", (0, 1, 2)), ("val", (3, 4))):
        names = [save(root / split / f"{n}.{ending}", n, orientation).name for n in numbers]
        write(root / "annotations" / f"instances_{split}.json", tables(names))
    return root


def told(capsys: pytest.CaptureFixture[str], command: Callable[..., None], **options: Any) -> tuple[int, str, str]:
    """The status of a command, what it says, and its errors."""
    status = 0
    try:
        command(**{key: str(value) if isinstance(value, Path) else value for key, value in options.items()})
    except SystemExit as stop:
        status = int(str(stop.code))
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return status, said.out, said.err


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_stay_on_objects_whatever_the_orientation(tmp_path: Path, orientation: int, ending: str) -> None:
    """Training, mirrored or not, evaluation, detection and pictures see the image that a viewer shows."""
    train, _ = read_splits(coco(tmp_path / "set", orientation, ending))
    samples, plain = TrainingSamples(train, short=(60, 60)), EvaluationSamples(train, 60)
    for image, target in [samples[p] for p in range(6)] + [plain[0], read_sample(train, 0)]:
        assert tuple(image.shape[1:]) in ((60, 80), (30, 40))
        x1, y1, x2, y2 = target["boxes"][0].round().int().tolist()
        inside = image[:, y1 + 3 : y2 - 3, x1 + 3 : x2 - 3].mean(dim=(1, 2))
        assert inside[0] > 0.85 and inside[1] < 0.2, (orientation, inside)
    (file,) = write_pictures(
        read_image_files([train.folder / f"0.{ending}"], CATEGORIES), [], CATEGORIES, tmp_path / "drawn"
    )
    assert np.abs(np.asarray(Image.open(file)).astype(int) - np.asarray(picture())).mean() < 12


def test_sizes_as_stored_are_counted_and_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = coco(tmp_path / "set", 6)
    path = root / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    for image in content["images"]:
        image.update(width=SEEN[1], height=SEEN[0])
    write(path, content)
    train, _ = read_splits(root)
    with pytest.raises(
        InputError, match=r"orientation 6 turns it to 40 x 30 pixels.* says 30 x 40.*exiftool.*exchange"
    ):
        load_image(train, 0)
    status, out, err = told(capsys, cli.rethink_data, data=root, html=tmp_path / "data.html")
    assert status == 2 and "refused: 3" in out and out.count("orientation 6 turns it") == 1
    assert "- 3 images do not have the size that is annotated because they are turned" in out
    assert "images are turned as their EXIF orientation says (3 with 6)" in out and "2 with 6" in out
    assert err.count("\n") == 1 and "would refuse these data: 3" in err
    page = (tmp_path / "data.html").read_text()
    assert "as it is seen" in page and "as it is stored" in page and "<script" not in page
    options = {"data": root, "model": "demo", "device": "cpu", "out": tmp_path / "run"}
    status, out, err = told(capsys, cli.rethink_train, **options)
    assert status == 2 and "3 of 3 images cannot be used, 3 because of their orientation" in err
    assert not (tmp_path / "run").exists()


def test_damaged_exif_says_nothing(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg")
    whole = path.read_bytes()
    for rubbish in (
        b"Exif\0\0" + b"\xff" * 40,
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0" * 4,
        b"Exif\0\0",
    ):
        path.write_bytes(whole[:2] + b"\xff\xe1" + struct.pack(">H", len(rubbish) + 2) + rubbish + whole[2:])
        assert read_header(path).orientation == 1 and read_upright(path).size == SEEN


def test_a_mirrored_keypoint_stays_on_its_pixel() -> None:
    """At the size of the file and enlarged; a box of that pixel goes with it."""
    for x in (0, 7, 29):
        image = torch.zeros(3, 20, 30)
        image[:, 5, x] = 1
        target = {"boxes": torch.tensor([[x, 5.0, x + 1, 6]]), "size": (20, 30),
                  "keypoints": torch.tensor([[[float(x), 5, 2]]])}  # fmt: skip
        for short in (20, 60, 45):
            seen, mirrored = flip(*resize(image, target, short), ("nose",))
            pixel, (column, row, _) = seen.shape[2] / 30, mirrored["keypoints"][0, 0].tolist()
            assert mirrored["boxes"][0].tolist() == pytest.approx([column, row, column + pixel, row + pixel], abs=0.05)
            assert seen[0, int(row + pixel / 2), int(column + pixel / 2)] > 0.8 * seen.max()


def test_words_of_a_split(tmp_path: Path) -> None:
    root = coco(tmp_path / "set")
    both = root / "annotations/instances_train.json"
    write(root / "annotations/instances_trainval.json", json.loads(both.read_text()))
    write(root / "annotations/instances_minival.json", json.loads(both.read_text()))
    train, val = read_splits(root)
    assert (train.source.name, val.source.name) == ("instances_train.json", "instances_val.json")
    with pytest.raises(InputError, match="is named to train on and to evaluate on"):
        read_splits(train=both, val=root / "annotations" / ".." / "annotations" / both.name)
    alone = tmp_path / "alone"
    save(alone / "images/0.jpg")
    write(alone / "annotations/trainval.json", tables(["0.jpg"]))
    with pytest.raises(InputError, match=r"trainval\.json, which names no split; hold images back with --split 0\.2"):
        read_splits(alone)


@pytest.mark.parametrize("how", ["the same file", "versions by name", "the same content"])
def test_images_that_are_in_both_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str) -> None:
    root = coco(tmp_path / "set")
    names = {"the same file": ["../train/1.jpg", "3.jpg"], "versions by name": [f"1_jpg.rf.{1:032x}.jpg", "3.jpg"]}
    if how == "the same content":
        (root / "val/3.jpg").write_bytes((root / "train/1.jpg").read_bytes())
    elif how == "the same file":
        (root / "val/3.jpg").unlink()
        (root / "val/3.jpg").symlink_to(root / "train/1.jpg")
    else:
        save(root / "val" / names[how][0], 3)
        write(root / "annotations/instances_val.json", tables(names[how]))
    found = shared_images(*read_splits(root))
    assert {kind: len(pairs) for kind, pairs in found.pairs.items() if pairs} == {how: 1}
    _, out, _ = told(capsys, cli.rethink_data, data=root)
    assert f"1 of 2 images to evaluate on are trained on as well (1 {how}; such as 1.jpg" in out
    options = {"data": root, "model": "demo", "short": 32, "unit": 1, "schedule": "1", "batch": 1, "workers": 0}
    _, out, _ = told(capsys, cli.rethink_train, **options, device="cpu", dry_run=True)
    assert "caution: 1 of 2 images to evaluate on are trained on as well" in out


def test_versions_of_an_image_are_told_by_their_name() -> None:
    same = "IMG_1.jpg", f"IMG_1_jpg.rf.{7:032x}.jpg", "a/IMG_1_jpg.rf.Bg4xbXVEQ1Ksm6hnTmnI.jpg", "IMG_1_aug_2.jpg"
    assert len({original_name(name) for name in same}) == 1 and set(versions_of(same).tolist()) == {0}
    others = ("IMG (1).jpg", "IMG (2).jpg", "IMG_2.jpg", "IMG.jpg", "surf.rfid.jpg", "site_rf_channel1.jpg",
              "site_rf_channel2.jpg", "2023_aug_15.jpg", "2023_aug_16.jpg", "cam_2023_aug_15.jpg",
              "cam_2023_aug_16.jpg", "site2023-aug-1.jpg", "site2023-aug-2.jpg", "1_aug_2023.jpg")  # fmt: skip
    assert len({original_name(name) for name in others}) == len(others)


@pytest.mark.parametrize("of_cvat", [False, True])
def test_frames_of_a_video(tmp_path: Path, capsys: pytest.CaptureFixture[str], of_cvat: bool) -> None:
    """Those of Roboflow go to one side, and are drawn together; for CVAT's there is a caution."""
    names = [f"frame_{n:06d}.png" if of_cvat else f"Walk{n // 4}_MP4-{n:04d}_jpg.rf.{n:032x}.png" for n in range(12)]
    for n, name in enumerate(names):
        save(tmp_path / "images" / name, n)
    path = write(tmp_path / "all.json", tables(names))
    train, val = read_splits(train=path, split=0.3)
    assert (len(train), len(val)) == (8, 4) and of_cvat == bool(val.caution) and not train.caution
    assert of_cvat or len({original_name(name) for name in val.file_names}) == 1
    status, out, _ = told(capsys, cli.rethink_data, train=path, split=0.3)
    caution = "caution: these look like frames of a video; name a val set of other videos"
    assert status == 0 and out.count(caution) == of_cvat and "trained on as well" not in out
    one = [name.replace("Walk1", "Walk0").replace("Walk2", "Walk0") for name in names]
    if not of_cvat:
        with pytest.raises(InputError, match=r"its 12 images back, which are versions or frames of 1 by their names"):
            hold_back(replace(read_coco(path), file_names=np.array(one)), 0.3)
        parts = replace(train, file_names=np.array(one[:8])), replace(val, file_names=np.array(one[8:]))
        assert len(shared_images(*parts).pairs["frames of one video"]) == 4


def test_one_name_in_several_folders_is_not_one_image(tmp_path: Path) -> None:
    names = [f"case{n // 2}/axial{'_aug1' * (n % 2)}.png" for n in range(10)]
    for n, name in enumerate(names):
        save(tmp_path / "images" / name, n)
    dataset = read_coco(write(tmp_path / "all.json", tables(names)))
    assert versions_of(names).tolist() == [n // 2 for n in range(10)]
    parts = hold_back(dataset, 0.2)
    assert [len(part) for part in parts] == [8, 2] and not str(shared_images(*parts))
    leak = [
        replace(select(dataset, np.arange(1)), file_names=np.array([name]))
        for name in ("train/a.png", "val/a_aug_1.png")
    ]
    assert len(shared_images(*leak).pairs["versions by name"]) == 1
    one = replace(dataset, file_names=np.array([f"a_aug_{n}.png" for n in range(10)]))
    with pytest.raises(InputError, match=r"of its 10 images back, which are versions or frames of 1 by their names"):
        hold_back(one, 0.2)


def voc_xml(name: str) -> str:
    x, y, width, height = BOX
    return (
        f"<annotation><filename>{name}</filename><size><width>{SEEN[0]}</width><height>{SEEN[1]}</height></size>"
        f"<object><name>valve</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + width}</xmax>"
        f"<ymax>{y + height}</ymax></bndbox></object></annotation>"
    )


def roboflow(root: Path, split: str, numbers: tuple[int, ...]) -> None:
    folder, group = root / {"val": "valid"}.get(split, split), {"id": 0, "name": "machines", "supercategory": "none"}
    names = [save(folder / f"{n}_jpg.rf.{n:032x}.jpg", n).name for n in numbers]
    categories = [group, *({**c, "supercategory": "machines"} for c in CATEGORIES)]
    write(folder / "_annotations.coco.json", tables(names, categories=categories))


def roboflow_of_one_class(root: Path, split: str, numbers: tuple[int, ...]) -> None:
    """The group has the name of the project, which is that of the class."""
    roboflow(root, split, numbers)
    path = root / {"val": "valid"}.get(split, split) / "_annotations.coco.json"
    categories = [{"id": i, "name": "valve", "supercategory": above} for i, above in enumerate(("none", "valve"))]
    write(path, json.loads(path.read_text()) | {"categories": categories})


def cvat(root: Path, split: str, numbers: tuple[int, ...]) -> None:
    name = {"train": "Train", "val": "Validation"}[split]
    names = [save(root / "images" / name / f"{n}.jpg", n).name for n in numbers]
    write(root / "annotations" / f"instances_{name}.json", tables(names))


def label_studio(root: Path, split: str, numbers: tuple[int, ...]) -> None:
    names = [f"images\\{save(root / split / 'images' / f'0a1b2c3d-{n}.jpg', n).name}" for n in numbers]
    write(root / split / "result.json", tables(names))


def label_studio_elsewhere(root: Path, split: str, numbers: tuple[int, ...]) -> None:
    """Newer versions name the files of the server, in Windows' way."""
    label_studio(root, split, numbers)
    path = root / split / "result.json"
    content = json.loads(path.read_text())
    for record in content["images"]:
        record["file_name"] = record["file_name"].replace("images\\", "..\\..\\label-studio\\media\\upload\\4\\")
    write(path, content)


def fiftyone(root: Path, split: str, numbers: tuple[int, ...]) -> None:
    folder = root / {"val": "validation"}.get(split, split)
    write(folder / "labels.json", tables([save(folder / "data" / f"{n}.jpg", n).name for n in numbers]))
    write(root / "info.json", {"classes": ["valve"]})


def by_hand(root: Path, split: str, numbers: tuple[int, ...]) -> None:
    write(root / f"{split}.json", tables([save(root / split / f"{n}.jpg", n).name for n in numbers]))


def voc_beside(root: Path, split: str, numbers: tuple[int, ...]) -> None:
    for n in numbers:
        (save(root / split / f"{n}.JPG", n).with_suffix(".xml")).write_text(voc_xml(f"{n}.JPG"))


def voc_devkit(root: Path, split: str, numbers: tuple[int, ...]) -> None:
    for part in ("Annotations", "ImageSets/Main"):
        (root / "VOCdevkit/VOC2007" / part).mkdir(parents=True, exist_ok=True)
    for n in numbers:
        save(root / f"VOCdevkit/VOC2007/JPEGImages/{n}.jpg", n)
        (root / f"VOCdevkit/VOC2007/Annotations/{n}.xml").write_text(voc_xml(f"{n}.jpg"))
    (root / f"VOCdevkit/VOC2007/ImageSets/Main/{split}.txt").write_text("\n".join(map(str, numbers)))


LAYOUTS = (
    roboflow,
    roboflow_of_one_class,
    cvat,
    label_studio,
    label_studio_elsewhere,
    fiftyone,
    by_hand,
    voc_beside,
    voc_devkit,
)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_layouts_of_tools(tmp_path: Path, layout: Callable[[Path, str, tuple[int, ...]], None]) -> None:
    for split, numbers in (("train", (0, 1, 2)), ("val", (3, 4)), ("test", (5,))):
        if layout is not cvat or split != "test":
            layout(tmp_path, split, numbers)
    train, val = read_splits(tmp_path)
    assert (len(train), len(val)) == (3, 2) and "machines" not in train.category_names
    assert not str(shared_images(train, val))
    for dataset, number in ((train, 0), (val, 3)):
        assert np.abs(load_image(dataset, 0).astype(int) - np.asarray(picture(number))).mean() < 12
        assert dataset.boxes[0].tolist() == [6, 4, 18, 12]
        assert dataset.category_names[dataset.labels[0] - 1] == "valve"


@pytest.mark.parametrize("voc", [False, True])
def test_one_file_for_all_images(tmp_path: Path, voc: bool) -> None:
    """A share is held back, the same each time; versions of an image are on one side."""
    names = [f"{n // 2}_jpg.rf.{n:032x}.jpg" for n in range(20)]
    for n, name in enumerate(names):
        save(tmp_path / ("JPEGImages" if voc else "images/default") / name, n)
        if voc:
            (tmp_path / "Annotations").mkdir(exist_ok=True)
            (tmp_path / "Annotations" / name).with_suffix(".xml").write_text(voc_xml(name))
    if not voc:
        write(tmp_path / "annotations/instances_default.json", tables(names))
    train, val = read_splits(tmp_path, split=0.2)
    assert (len(train), len(val)) == (16, 4)
    assert read_splits(tmp_path, split=0.2)[1].file_names.tolist() == val.file_names.tolist()
    assert not {original_name(name) for name in train.file_names} & {original_name(name) for name in val.file_names}
    assert hold_back(train, 0.5, seed=1)[0].file_names.tolist() != hold_back(train, 0.5, seed=2)[0].file_names.tolist()
    with pytest.raises(InputError, match="share between 0 and 1"):
        read_splits(tmp_path, split=1.5)


def test_layouts_that_are_not_read_say_the_way_out(tmp_path: Path) -> None:
    for file in ("yolo/data.yaml", "yolo/train/labels/a.txt", "createml/train/_annotations.createml.json"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("names: [valve]")
    with pytest.raises(
        InputError, match=r"looks like YOLO's layout \(data\.yaml\).*export it as COCO.*fiftyone convert"
    ):
        read_splits(tmp_path / "yolo")
    with pytest.raises(InputError, match="looks like Create ML's layout"):
        read_splits(tmp_path / "createml")


@pytest.mark.parametrize("split", [0.0, 0.2])
@pytest.mark.parametrize("folder", ["", "train", "annotations"])
@pytest.mark.parametrize("files", [1, 3])
def test_annotations_of_labelme_say_the_way_out(tmp_path: Path, folder: str, files: int, split: float) -> None:
    for n in range(files):
        write(tmp_path / folder / f"{n}.json", {"version": "5.4.1", "flags": {}, "shapes": [], "imagePath": f"{n}.jpg"})
    with pytest.raises(InputError, match=r"labelme's.* not read; export all images as COCO in one file"):
        read_splits(tmp_path, split=split)


@pytest.mark.parametrize("split", [0.0, 0.2])
@pytest.mark.parametrize("folder", ["", "train"])
def test_annotations_in_cvats_own_format_say_the_way_out(tmp_path: Path, folder: str, split: float) -> None:
    save(tmp_path / folder / "images/0.jpg")
    (tmp_path / folder / "annotations.xml").write_text("<annotations><version>1.1</version></annotations>")
    with pytest.raises(InputError, match=r"CVAT's own format.* not read; export.*COCO"):
        read_splits(tmp_path, split=split)


def test_names_in_a_list_of_voc(tmp_path: Path) -> None:
    """As tools write them: a mark of bytes, spaces, quotes, folders, marks behind; macOS left files beside them."""
    names = ["IMG (1)", "deep er/b", "ü"]
    for n, name in enumerate(names):
        save(tmp_path / f"JPEGImages/{name}.jpg", n)
        save(tmp_path / f"JPEGImages/{name}.png", n)
        (tmp_path / f"Annotations/{name}.xml").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"Annotations/{name}.xml").write_text(voc_xml(f"{PurePosixPath(name).name}.png"))
    lists = tmp_path / "ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text(f'{names[0]}  1\n"{names[1]}"\n{names[2]} -1\n', encoding="utf-8-sig")
    for left in (lists / "._train.txt", tmp_path / "Annotations/._a.xml", tmp_path / "._train.json"):
        left.write_bytes(b"\0\5\x16\7")
    assert read_split(find_split(tmp_path, "train")).file_names.tolist() == [f"{name}.png" for name in names]
    with pytest.raises(InputError, match=r"Annotations: has 1 of its XML files in subfolders, such as deep er/b\.xml;"):
        read_split(tmp_path)
    for name in ("../a", "/etc/passwd", "a/../../b", "C:/a"):
        (lists / "train.txt").write_text(name)
        with pytest.raises(InputError, match="is not the name of an image; write names as in Annotations"):
            read_split(lists / "train.txt")
    (lists / "train.txt").write_text('IMG (1)\n"IMG (1)"')
    with pytest.raises(InputError, match=r'"IMG \(1\)" stands 2 times; write it once'):
        read_split(lists / "train.txt")


def test_a_class_of_voc_may_occur_in_one_split_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing lists the classes of a devkit, so both splits have those of both; the other way too."""
    for split, names in (("train", ("valve", "pump")), ("val", ("valve", "bolt"))):
        for n, name in enumerate(names):
            save(tmp_path / split / f"{split}{n}.jpg", n)
            xml = voc_xml(f"{split}{n}.jpg").replace("valve", name)
            (tmp_path / split / f"{split}{n}.xml").write_text(xml)
    parts = read_splits(tmp_path)
    assert {part.category_names for part in parts} == {("pump", "valve", "bolt")}
    assert [part.labels.tolist() for part in parts] == [[2, 1], [2, 3]]
    status, out, err = told(capsys, cli.rethink_data, data=tmp_path)
    assert status == 0 and re.search(r"bolt +0 +0 +1 +1 +none to train on", out), out + err


def test_names_that_are_no_text_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files and folders that were named in another encoding than this machine's."""
    root = tmp_path / os.fsdecode(b"pr\xfcfung")
    for split, number in (("train", 0), ("val", 1)):
        stem = os.fsdecode(b"caf\xe9 %d" % number)
        save(root / split / f"{stem}.jpg", number).with_suffix(".xml").write_text(voc_xml("0.jpg"))
    status, out, err = told(capsys, cli.rethink_data, data=root, html=tmp_path / "data.html")
    assert (status, err) == (0, "") and "pr\\udcfcfung" in out
    assert r"caf\udce9 0.jpg" in (tmp_path / "data.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir() if path != root) == ["data.html"]


def test_images_of_each_split_in_folders_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {}
    for split, numbers in (("train", (0, 1)), ("val", (2, 3))):
        names = [save(tmp_path / f"photos of {split}" / f"{n}.jpg", n).name for n in numbers]
        files[split] = write(tmp_path / "labels" / f"{split}.json", tables(names))
    named = {"train": files["train"], "val": files["val"]}
    status, _, err = told(capsys, cli.rethink_data, **named)
    assert status == 2 and "0.jpg is missing" in err and "--images" in err
    folders = {"train_images": tmp_path / "photos of train", "val_images": tmp_path / "photos of val"}
    assert told(capsys, cli.rethink_data, **named, **folders)[0] == 0
    both = {"images": tmp_path / "photos of val", "train_images": tmp_path / "photos of train"}
    assert told(capsys, cli.rethink_data, **named, **both)[0] == 0
    status, _, err = told(capsys, cli.rethink_data, images=tmp_path)
    assert status == 2 and "--images: goes with data" in err


def test_names_of_files_in_other_spellings(tmp_path: Path) -> None:
    there = ["A.JPG", unicodedata.normalize("NFD", "café.jpg"), "deep/b.jpg"]
    for name in there:
        save(tmp_path / "images" / name)
    path = write(tmp_path / "all.json", tables(["a.jpg", unicodedata.normalize("NFC", "café.jpg"), "deep\\b.jpg"]))
    dataset = read_coco(path)
    assert dataset.file_names.tolist() == there and load_image(dataset, 1).shape == (30, 40, 3)
    for wrong, near in (("a.png", "A.JPG"), ("b.jpg", "deep/b.jpg"), ("cafee.jpg", there[1]), ("zzz.gif", "")):
        write(path, tables([wrong]))
        with pytest.raises(InputError) as caught:
            read_coco(path, tmp_path / "images")
        assert (f"nearest: {near};" in str(caught.value)) == bool(near)
    for far in ("..\\a.jpg", "/data/upload/1/a.jpg", "..\\..\\label-studio\\media\\upload\\4\\a.jpg", "C:\\a.jpg"):
        assert read_coco(write(path, tables([far]))).file_names.tolist() == ["A.JPG"]
    save(tmp_path / "images/deep/a.jpg")
    for far in ("..\\a.jpg", "../none.jpg", "\\\\host\\share\\a.jpg", str(tmp_path / "images/A.JPG")):
        write(path, tables([far]))
        with pytest.raises(InputError, match=r"leaves the folder of images, and its last part.*; write names relative"):
            read_coco(path, tmp_path / "images")


def sixteen_bit_png(path: Path) -> None:
    """A colour image with 16 bits a channel, which Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(6 * SEEN[0]) for _ in range(SEEN[1]))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *SEEN, 16, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def replaced(path: Path, how: str) -> None:
    """Put something else in the place of an image."""
    if how == "16 bits in colour":
        sixteen_bit_png(path)
    elif how == "16 bits in gray":
        Image.fromarray(np.full((SEEN[1], SEEN[0]), 999, np.uint16)).save(path, format="PNG")
    elif how == "PostScript":
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\nshowpage\n")
    elif how == "an icon":
        picture().resize((16, 16)).save(path, format="ICO")
    elif how == "cut off":
        path.write_bytes(path.read_bytes()[:-400])
    elif how == "another size":
        Image.new("RGB", (44, 30)).save(path)
    else:
        path.write_bytes(b"")


BROKEN = {
    "16 bits in colour": "more than 8 bits a channel",
    "16 bits in gray": "more than 8 bits a channel",
    "PostScript": r"cannot be read as an image \(PostScript\)",
    "an icon": "none of JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM",
    "cut off": "truncated",
    "another size": "is 44 x 30 pixels, not 40 x 30",
    "empty": "the file is empty",
}


@pytest.mark.parametrize("how", BROKEN)
def test_files_that_are_no_images(tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str) -> None:
    root = coco(tmp_path / "set")
    replaced(root / "val/4.jpg", how)
    _, val = read_splits(root)
    with pytest.raises(InputError, match=BROKEN[how]):
        load_image(val, 1)
    assert list(look_at_files(val, decode=True).faults) == [1]
    status, out, _ = told(capsys, cli.rethink_data, data=root, decode=True, html=tmp_path / "data.html")
    assert status == 2 and "refused: 1" in out and "4.jpg" in out
    assert "4.jpg" in (tmp_path / "data.html").read_text()
    crops = tmp_path / "crops"
    for n in range(20):
        replaced(save(crops / "ab"[n % 2] / f"{n}.jpg", n), how)
    sample = ClassificationSamples(crops, 16).raw(0)
    assert isinstance(sample, InputError) or how == "another size"


def test_an_animation_is_its_first_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = coco(tmp_path / "set")
    frames = [picture(n).quantize() for n in (3, 4, 5)]
    frames[0].save(root / "val/3.gif", save_all=True, append_images=frames[1:])
    write(root / "annotations/instances_val.json", tables(["3.gif", "4.jpg"]))
    _, out, _ = told(capsys, cli.rethink_data, data=root)
    assert "1 images have several frames, of which the first is taken" in out
    first = np.asarray(frames[0].convert("RGB")).astype(int)
    assert np.abs(load_image(read_splits(root)[1], 0) - first).max() == 0


def test_boxes_alone_where_only_some_have_polygons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = coco(tmp_path / "set")
    path = root / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = [[6, 4, 18, 4, 18, 12]]
    write(path, content)
    status, _, err = told(capsys, cli.rethink_data, data=root)
    assert status == 2 and "has no segmentation, though others have" in err and "--boxes-only" in err
    status, out, _ = told(capsys, cli.rethink_data, data=root, boxes_only=True)
    assert status == 0 and "masks are there and not trained" in out


def test_keypoints_that_nobody_trains_are_dropped_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Even where they are broken."""
    root = coco(tmp_path / "set")
    for split in ("train", "val"):
        path = root / f"annotations/instances_{split}.json"
        content = json.loads(path.read_text())
        content["categories"] = [{**c, "keypoints": ["nose", "tail"][: c["id"]]} for c in content["categories"]]
        content["annotations"][0]["keypoints"] = [1, 2]
        write(path, content)
    with pytest.raises(InputError, match="its keypoints are not"):
        read_coco(root / "annotations/instances_train.json")
    status, out, _ = told(capsys, cli.rethink_data, data=root)
    assert status == 0 and out.count("keypoints are there and not trained") == 2


def test_fractions_and_twins_are_refused(tmp_path: Path) -> None:
    root = coco(tmp_path / "set")
    path = root / "annotations/instances_train.json"
    write(path, tables(["0.jpg", "1.jpg"], [[0.1, 0.2, 0.5, 0.6], [0.3, 0.1, 0.4, 0.9]]))
    with pytest.raises(InputError, match="look like fractions of the sides"):
        read_splits(root)
    write(path, tables(["0.jpg"], categories=[{"id": 1, "name": "valve"}, {"id": 2, "name": "valve"}]))
    with pytest.raises(InputError, match='two categories are called "valve"'):
        read_splits(root)
    group = [{"id": i, "name": "valve", "supercategory": above} for i, above in enumerate(("none", "valve"))]
    used = tables(["0.jpg"], categories=group)
    used["annotations"][0]["category_id"] = 0  # so it is no group
    write(path, used)
    with pytest.raises(InputError, match='two categories are called "valve"'):
        read_splits(root)


def test_a_class_with_the_id_0_is_no_group(tmp_path: Path) -> None:
    """A converter that counts from 0 and writes no super-category: all of its classes stay."""
    save(tmp_path / "images/0.jpg")
    categories = [{"id": n, "name": name, "supercategory": "none"} for n, name in enumerate(("pump", "valve"))]
    dataset = read_coco(write(tmp_path / "all.json", tables(["0.jpg"], categories=categories)))
    assert dataset.category_names == ("pump", "valve")
    used = tables(["0.jpg"], categories=[categories[0], {"id": 1, "name": "valve", "supercategory": "pump"}])
    used["annotations"][0]["category_id"] = 0
    assert len(read_coco(write(tmp_path / "all.json", used)).category_names) == 2


RING = [6, 4, 18, 4, 18, 12, 6, 12]
ODD: dict[str, tuple[list[list[float]], str]] = {
    "clipped": (
        [BOX, [30, 20, 15, 5]],
        "boxes that reach out of their images by more than a pixel; training clips them, and evaluation does not: 1",
    ),
    "doubled": ([BOX, BOX, [6, 4, 30, 8]], "boxes annotated twice, of the same class in the same place: 1"),
    "empty": ([BOX, [6, 4, 0, 8]], "boxes without area within their image, which are left out: 1"),
    "tiny": ([BOX, [6, 4, 0.5, 8], [9, 4, 5, 0.2]], r"boxes narrower or lower than a pixel \(are they fractions.*: 2"),
    "corners": ([[n, n, n + 12, n + 12] for n in (1, 3, 14, 16, 17)], "all boxes look like corners"),
    "crowded": ([[n % 20, n // 10, 9, 9] for n in range(120)], "images with more than 100 objects.*: 1"),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_odd_is_found_and_shown(tmp_path: Path, kind: str) -> None:
    save(tmp_path / "images/0.jpg")
    boxes, line = ODD[kind]
    dataset = read_coco(write(tmp_path / "all.json", tables(["0.jpg"], boxes)))
    (finding,) = look_at(dataset).findings
    assert finding.images.tolist() == [0]
    assert re.match(line, finding.told), finding.told


def test_boxes_that_disagree_with_polygons_and_crowds(tmp_path: Path) -> None:
    content = tables([save(tmp_path / "images/0.jpg").name], [BOX, [20, 10, 12, 8], BOX])
    for record in content["annotations"]:
        record["segmentation"] = [RING]
    content["annotations"][2]["iscrowd"] = 1
    view = look_at(read_coco(write(tmp_path / "all.json", content)))
    lines = [finding.told for finding in view.findings]
    assert lines[0] == "boxes that disagree with their polygons: 1" and lines[-1].startswith("crowds, difficult")
    assert view.findings[0].boxes.tolist() == [[20, 10, 12, 8]]


@pytest.mark.parametrize("voc", [False, True])
def test_rotated_boxes_are_told(tmp_path: Path, voc: bool) -> None:
    """CVAT exports the box before it was turned, and the angle beside it."""
    name = save(tmp_path / "0.jpg").name
    if voc:
        angle = "<attributes><attribute><name>rotation</name><value>{}</value></attribute></attributes></object>"
        first, last = voc_xml(name).replace("</object>", angle.format("45.0")).split("</annotation>")
        other = first[first.index("<object>") :].replace("45.0", "0.0").replace("<xmin>7<", "<xmin>8<")
        (tmp_path / "0.xml").write_text(f"{first}{other}</annotation>{last}")
        dataset = read_split(tmp_path)
    else:
        content = tables([name], [BOX, [20, 4, 12, 8]])
        for record, rotation in zip(content["annotations"], (45.0, 0.0), strict=True):
            record["attributes"] = {"occluded": False, "rotation": rotation}
        dataset = read_coco(write(tmp_path / "all.json", content))
    (finding,) = look_at(dataset).findings
    assert finding.told == "boxes that are rotated in the tool, read as if they were not: 1"
    assert finding.boxes.tolist() == [BOX]


def test_painted_masks_of_cvat_are_crowds_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CVAT writes a mask that was painted as an uncompressed run-length encoding with iscrowd 1."""
    root = coco(tmp_path / "set")
    path = root / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    mask = np.zeros((SEEN[1], SEEN[0]), bool)
    mask[4:12, 6:18] = True
    ends = np.flatnonzero(np.diff(mask.T.ravel())) + 1
    painted = {"counts": np.diff([0, *ends, mask.size]).tolist(), "size": [SEEN[1], SEEN[0]]}
    for record in content["annotations"]:
        record["segmentation"] = painted
    for number in (1, 3):
        for record in content["annotations"][:number]:
            record["iscrowd"] = 1
        write(path, content)
        status, out, err = told(capsys, cli.rethink_data, data=root, boxes_only=True)
        if number == 1:
            assert status == 0 and "; crowds or difficult objects, which are not trained on: 1\n" in out
            assert len(read_coco(path).polygons or ()) == 3
        else:
            assert (
                status == 2 and "all 3 objects have iscrowd 1, as CVAT writes for masks that were painted; set" in err
            )


def test_what_an_evaluation_would_refuse_is_refused_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A crowd whose box has no area is left out in training; masks are evaluated against it, and it has none."""
    root = coco(tmp_path / "set")
    for split in ("train", "val"):
        path = root / f"annotations/instances_{split}.json"
        content = json.loads(path.read_text())
        for record in content["annotations"]:
            record["segmentation"] = [RING]
        crowd = {"id": 99, "image_id": 1, "category_id": 1, "bbox": [6, 4, 0, 8], "iscrowd": 1}
        content["annotations"] += [crowd] * (split == "val")
        write(path, content)
    status, out, _ = told(capsys, cli.rethink_data, data=root)
    assert status == 2 and "(id 99): has no segmentation" in out
    options = {"data": root, "model": "demo", "device": "cpu", "out": tmp_path / "run"}
    for command in (cli.rethink_train, cli.rethink_compare):
        status, _, err = told(capsys, command, **options)
        assert status == 2 and "instances_val.json" in err and "(id 99): has no segmentation" in err
    assert not (tmp_path / "run").exists()


def test_a_folder_of_masks_is_not_taken_for_images(tmp_path: Path) -> None:
    for folder in ("images", "train_masks", "labelsTrain"):
        save(tmp_path / folder / "0.png")
    assert read_coco(write(tmp_path / "train.json", tables(["0.png"]))).folder == tmp_path / "images"


def test_images_without_objects_are_held_back_too(tmp_path: Path) -> None:
    names = [save(tmp_path / "images" / f"{n}.png", n).name for n in range(20)]
    content = tables(names)
    content["annotations"] = content["annotations"][::2]
    parts = hold_back(read_coco(write(tmp_path / "all.json", content)), 0.4)
    empty = [part.left_out["images without objects"] for part in parts]
    content["annotations"].append(content["annotations"][0] | {"id": 99, "bbox": [6, 4, 0, 8]})
    part, _ = hold_back(read_coco(write(tmp_path / "more.json", content)), 0.4)
    assert select(part, np.arange(3)).left_out["boxes without area in the whole file"] == 1
    assert [len(part) for part in parts] == [12, 8] and sum(empty) == 10
    content["annotations"] = content["annotations"][:1]
    with pytest.raises(InputError, match="too few images with objects to hold"):
        hold_back(read_coco(write(tmp_path / "all.json", content)), 0.4)


def test_figures_stand_at_the_names_of_their_classes(tmp_path: Path) -> None:
    """Roboflow's group is no class; versions of an image are drawn together."""
    for split, numbers in (("train", (0, 1)), ("val", (2, 3, 4))):
        roboflow(tmp_path, split, numbers)
    _, val = read_splits(tmp_path)
    found = [{"image_id": i, "category_id": 1, "bbox": BOX, "score": 0.9} for i in val.image_ids.tolist()]
    path = tmp_path / "detections.json"
    path.write_text(json.dumps(found))
    told = resampled_figures(path, evaluate(val, found, masks=False), val)["box"]
    by_name = dict(zip(val.category_names, [row[0] for row in told["parts"]], strict=True))
    assert by_name == {"valve": pytest.approx(100), "pump": None}
    two = replace(val, file_names=np.array([f"{n}_jpg.rf.{m:032x}.jpg" for m, n in enumerate((7, 8, 7))]))
    groups = records_of(found, "box", two).groups
    assert groups is not None and groups.tolist() == [0, 1, 0] and records_of(found, "box", two).drawn == 2
    turned = replace(val, image_ids=val.image_ids[::-1].copy())  # the order of a file says nothing about versions
    groups = records_of(found, "box", turned).groups
    assert groups is not None and groups.tolist() == [0, 1, 2]


@pytest.mark.parametrize("key", ["iscrowd", "ignore", "difficult"])
def test_the_same_objects_count_in_training_and_evaluation(tmp_path: Path, key: str) -> None:
    """What training leaves aside costs nothing where it is not found; ids count from 0, one box has no area."""
    save(tmp_path / "images/0.jpg")
    content = tables(["0.jpg"], [BOX, [25, 10, 9, 9], [3, 3, 0, 5]])
    for table in ("images", "annotations"):
        for number, record in enumerate(content[table]):
            record["id"] = number
    for record in content["annotations"]:
        record["image_id"] = 0
    content["annotations"][1][key] = 1
    dataset = read_coco(write(tmp_path / "all.json", content))
    (kept,) = dataset.boxes[dataset.usable].tolist()
    found = [{"image_id": 0, "category_id": 1, "bbox": [kept[0], kept[1], kept[2] - kept[0], kept[3] - kept[1]],
              "score": 1.0}]  # fmt: skip
    assert evaluate(dataset, found, masks=False)["box"]["ap"] == pytest.approx(100)


def test_the_table_marks_empty_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = coco(tmp_path / "set")
    path = root / "annotations/instances_val.json"
    content = json.loads(path.read_text())
    for record in content["annotations"]:
        record["category_id"] = 2
    write(path, content)
    _, out, _ = told(capsys, cli.rethink_data, data=root, model="small")
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith(("valve", "pump"))}
    assert rows["valve"] == ["3", "3", "0", "0", "none", "to", "evaluate", "on"]
    assert rows["pump"] == ["0", "0", "2", "2", "none", "to", "train", "on"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two iterations on images in COCO's layout."""
    root = tmp_path_factory.mktemp("trained")
    sets = read_splits(coco(root / "set"))
    plan = Plan(replace(DEMO, num_classes=2, masks=False), (1,), unit=2, batch=1, short=(32, 32), long=64)
    run_schedule(Experiment(plan, *sets, root / "runs", execution=Execution(workers=0)), 1)
    return root


def test_a_fault_leaves_no_folder(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Evaluation and detection check all names first, and a file that is cut off is found before a folder is made."""
    run, out = next((trained / "runs").glob("*x")), tmp_path / "out"
    root = coco(tmp_path / "set")
    same = {"model": run, "device": "cpu", "workers": 0, "out": out}
    cases: list[tuple[Callable[..., None], Record, str]] = [
        (cli.rethink_eval, {}, "no data: name a folder with --data, or a file with --val"),
        (cli.rethink_eval, {"data": root, "submission": "a/b"}, "takes letters, digits"),
        (cli.rethink_eval, {"data": root, "split": 0.2}, "has images to evaluate on"),
        (cli.rethink_detect, {"images": ("nowhere.jpg",)}, "nowhere.jpg: cannot be read as an image"),
        (cli.rethink_detect, {"images": tuple(map(str, (root / "val/3.jpg", root / "3.png")))}, "cannot be read"),
    ]
    save(tmp_path / "twins/3.png")
    save(tmp_path / "twins/3.jpg")
    twins = tuple(str(path) for path in sorted((tmp_path / "twins").iterdir()))
    cases.append((cli.rethink_detect, {"images": twins}, "3.jpg and 3.png differ only in the ending"))
    cases.append((cli.rethink_detect, {"images": twins[:1] * 2}, "3.jpg: is named more than once"))
    replaced(root / "val/4.jpg", "cut off")
    cases.append((cli.rethink_eval, {"data": root}, "4.jpg: cannot be read as an image"))
    cases.append((cli.rethink_detect, {"images": (str(root / "val/4.jpg"),)}, "4.jpg: cannot be read as an image"))
    for command, more, line in cases:
        status, _, err = told(capsys, command, **same, **more)
        assert status == 2 and line in err and not out.exists(), (more, err)
    write(root / "annotations/instances_val.json", tables(["3.jpg"]))
    status, _, err = told(capsys, cli.rethink_eval, **same, data=root)
    assert status == 0 and (out / "detections.json").is_file(), err
    status, _, err = told(capsys, cli.rethink_eval, **same, data=root)
    assert status == 2 and "is not empty; name another with --out" in err


def test_names_of_categories_are_printable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What colours a terminal, breaks lines or goes on for ever is kept out of tables, pictures and messages."""
    root = coco(tmp_path / "set")
    for split in ("train", "val"):
        path = root / f"annotations/instances_{split}.json"
        content = json.loads(path.read_text())
        content["categories"][0]["name"] = f"\x1b[31m\n{'v' * 10**6}"
        path.write_text(json.dumps(content))
    train, val = read_splits(root)
    assert train.category_names[0] == f"\\x1b[31m {'v' * 200}...{'v' * 40}"
    assert evaluate(val, [], False, False)["box"]["ap"] == 0
    status, out, _ = told(capsys, cli.rethink_data, data=root)
    assert status == 0 and "\x1b" not in out and max(map(len, out.splitlines())) < 1000


def test_a_typed_name_may_be_too_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("data", "weights"):
        status, _, err = told(capsys, cli.rethink_train, **{option: "x" * 5000}, device="cpu", out=tmp_path / "out")
        assert status == 2 and "xxx: File name too long; name another" in err and len(err) < 1000
        assert len(err.splitlines()) == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [cli.rethink_train, cli.rethink_compare, cli.rethink_pretrain])
def test_what_would_stay_random_is_refused_before_a_folder_is_made(
    command: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"norm": "frozen_bn", "device": "cpu", "out": tmp_path / "out"}
    status, _, err = told(capsys, command, **settings)
    assert status == 2 and "from scratch nothing may be frozen (frozen_bn" in err and not (tmp_path / "out").exists()


def test_a_detector_that_finds_nothing_is_submitted(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"model": next((trained / "runs").glob("*x")), "data": coco(tmp_path / "set"), "device": "cpu"}
    options |= {"submission": "mine", "workers": 0, "out": tmp_path / "out"}
    with patch("rethink_imagenet.tools.commands.predict", return_value=[]):
        status, out, err = told(capsys, cli.rethink_eval, **options)
    assert status == 0 and "box  ap 0.00" in out, err
    (sent,) = (tmp_path / "out").rglob("*_mine_results.zip")
    with zipfile.ZipFile(sent) as archive:
        assert [json.loads(archive.read(name)) for name in archive.namelist()] == [[]]


def test_a_share_that_was_held_back_is_evaluated_again(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [save(tmp_path / "images" / f"{n}.jpg", n).name for n in range(10)]
    path = write(tmp_path / "all.json", tables(names))
    run, (_, val) = next((trained / "runs").glob("*x")), read_splits(train=path, split=0.3)
    options = {"model": run, "val": path, "split": 0.3, "device": "cpu", "workers": 0, "out": tmp_path / "out"}
    status, _, err = told(capsys, cli.rethink_eval, **options)
    assert status == 0, err
    found = json.loads((tmp_path / "out/detections.json").read_text())
    assert {detection["image_id"] for detection in found} <= set(val.image_ids.tolist())


def test_the_samples_are_looked_at(
    sample_data: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Blood cells in VOC's layout; VOC 2007 with jsons in one folder and images in a devkit."""
    status, out, _ = told(capsys, cli.rethink_data, data=sample_data("bccd"), html=tmp_path / "data.html")
    assert status == 0 and "boxes without area, which are left out: 1" in out
    assert "Platelets 209 117 83 45" in " ".join(out.split())
    assert (tmp_path / "data.html").read_text().count("<img ") == 16
    status, out, _ = told(capsys, cli.rethink_data, data=sample_data("voc2007_trainval_160"), model="small")
    assert status == 0 and "person 2,358 1,025 2,329 981" in " ".join(out.split())
    assert "which are not trained on: 1,543" in out and "trained on as well" not in out
