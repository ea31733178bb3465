"""Mutate files as strangers might have them, and see that each is used to its end or refused in one line.

python tests/fuzz.py                            10,000 mutations, about ten minutes on two cores
python tests/fuzz.py --cases 1500 --only coco   a part: all of one kind (1,500; of run and of study 500)
python tests/fuzz.py --case coco:17             one again, with its traceback
pytest -m slow tests/test_fuzz.py               the 10,000 as a test; without -m slow 160 of them

A mutation is a function of (seed, kind, number). So the parts together are the 10,000. Each one is carried out in a
process of its own kind with a bound on its memory, and a clock outside of it: C code that never returns is seen as
well. The clock counts the time that the process computes, so that a busy machine is no hang.
"""

import argparse
import contextlib
import copy
import hashlib
import io
import json
import math
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import rethink_imagenet as ri
from rethink_imagenet.data.loading import TrainingSamples
from rethink_imagenet.detection.detectors import DEMO
from rethink_imagenet.study.plans import Execution, Experiment, Plan
from rethink_imagenet.study.pretraining import pixel_statistics
from rethink_imagenet.study.recipes import aligned
from rethink_imagenet.study.report import table_rows, write_report
from rethink_imagenet.study.studies import SETTINGS, detector_file, run_schedule
from rethink_imagenet.study.weights import metadata_of
from rethink_imagenet.tools.pictures import write_pictures
from rethink_imagenet.training.checkpoints import save_checkpoint

SECONDS, ASLEEP = 20, 180  # of computation that one mutation may take, and of time on a busy machine
MEMORY = 3 << 30  # bytes that a process may ask for beyond what it has after its imports

# Values of which each has broken a reader somewhere.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 255, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30,
    0.0, -0.0, 0.5, -1.5, 1e-320, 1e30, 1e300, math.nan, math.inf, -math.inf, "", "0", "1", "-1", "a", "\x00",
    "ä\u0301", "\x1b[31m", "../x.jpg", "/etc/passwd", "x" * 5000, "NaN", [], {}, [[]], [None], [0], [0, 0, 0, 0],
    [[0.0] * 6], [1, 2, 3, 4, 5, 6, 7, 8], {"size": [64, 64], "counts": "PPYo0"},
    {"size": [64, 64], "counts": [4096]},
    {"size": [2**31, 2], "counts": [2**32]}, {"counts": []}, {"size": None, "counts": None}, "é" * 3, "P" * 4000,
)  # fmt: skip


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a json."""
    found = [path] if path else []
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        found += places(value, (*path, key))
    return found


def nudge(value: Any, others: list[Any], rng: random.Random) -> Any:
    """What may stand in the place of a value and is likely to pass the checks: near it, or of its type elsewhere."""
    alike = [other for other in others if type(other) is type(value)]
    if isinstance(value, bool | str | list | dict | None) or rng.random() < 0.3:
        return copy.deepcopy(rng.choice(alike))
    moves = (1, -1, 0, value, -value / 2, value * 0.01) if isinstance(value, int) else (0.5, -0.25, 1e-6, -value, value)
    moved = value + rng.choice(moves)
    if not math.isfinite(moved):
        return value
    return rng.choice((moved, round(moved), abs(moved), math.nextafter(moved, 0)))


def mutate_mildly(tree: Any, rng: random.Random) -> Any:
    """A json with one to six of its values moved a little or exchanged, or with fields more or fewer that may be."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        spots = places(tree)
        *way, key = rng.choice(spots)
        parent = tree
        for step in way:
            parent = parent[step]
        if isinstance(parent, dict) and rng.random() < 0.2:
            for name in ("area", "iscrowd", "info", "supercategory", "num_keypoints", "extra"):
                if rng.random() < 0.5:
                    parent.pop(name, None)
            parent.update(rng.choice(({"ignore": 1}, {"extra": rng.choice(VALUES)}, {"id": rng.randrange(-2, 9)}, {})))
        else:
            parent[key] = nudge(parent[key], [value_at(tree, spot) for spot in rng.sample(spots, min(300, len(spots)))]
                                + [parent[key]], rng)  # fmt: skip
    return tree


def value_at(tree: Any, path: tuple[Any, ...]) -> Any:
    """What a path leads to."""
    for step in path:
        tree = tree[step]
    return tree


def mutate_tree(tree: Any, rng: random.Random) -> Any:
    """A json with one to three of its values replaced, removed, doubled or exchanged; a third of them mildly."""
    if rng.random() < 0.35 and places(tree):
        return mutate_mildly(tree, rng)
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        spots = places(tree)
        if not spots:
            return rng.choice(VALUES)
        *way, key = rng.choice(spots)
        parent = tree
        for step in way:
            parent = parent[step]
        value = parent[key]
        match rng.randrange(7):
            case 0 | 1 | 2:
                parent[key] = copy.deepcopy(rng.choice(VALUES))
            case 3:
                del parent[key]
            case 4 if isinstance(parent, list):
                parent.insert(key, copy.deepcopy(value))
            case 5 if isinstance(value, str) and value:
                at = rng.randrange(len(value))
                parent[key] = value[:at] + rng.choice(("", "0", "~", "é", "\\", "P")) + value[at + rng.randrange(3) :]
            case _:
                if isinstance(value, int | float) and not isinstance(value, bool):
                    parent[key] = rng.choice((-value, value * 1000, value + 0.5, str(value), [value]))
                else:
                    parent[key] = copy.deepcopy(rng.choice(VALUES))
    return tree


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Bytes with some changed, cut off, removed or doubled."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(max(1, len(data)))
        match rng.randrange(5):
            case 0:
                del data[at:]
            case 1:
                del data[at : at + rng.randrange(1, 64)]
            case 2:
                data[at:at] = data[at : at + rng.randrange(1, 64)]
            case _:
                data[at : at + 1] = bytes([rng.randrange(256)])
    return bytes(data)


def write_json(path: Path, tree: Any, rng: random.Random) -> None:
    """A mutated json: mostly the tree, sometimes its bytes."""
    if rng.random() < 0.85:
        path.write_text(json.dumps(mutate_tree(tree, rng)))
    else:
        path.write_bytes(mutate_bytes(json.dumps(tree).encode(), rng))


class Bench:
    """What the mutations are made of: a small data set, detections in it, weights, and a run."""

    def __init__(self, root: Path):
        self.root = root
        ri.write_scenes(root / "scenes", train=4, val=3)
        self.train = json.loads((root / "scenes/annotations/instances_train.json").read_text())
        self.val = json.loads((root / "scenes/annotations/instances_val.json").read_text())
        self.good = root / "scenes/annotations/instances_val.json"
        self.detections = detections_of(self.val)
        self.config = replace(DEMO, precision="fp32")
        torch.manual_seed(0)
        self.model = ri.build(self.config)
        self.images = sorted((root / "scenes/val").iterdir())
        self.sets = ri.read_splits(root / "scenes")

    def coco(self, here: Path, rng: random.Random) -> None:
        """A json to train on, through samples, evaluation and pictures."""
        write_json(here / "train.json", self.train, rng)
        train, val = ri.read_splits(None, here / "train.json", self.good, self.root / "scenes/train")
        use(train, here, json.loads((here / "train.json").read_bytes()))
        assert len(val)

    def truth(self, here: Path, rng: random.Random) -> None:
        """Annotations that are evaluated with."""
        write_json(here / "truth.json", self.val, rng)
        ri.evaluate_coco(here / "truth.json", self.detections, rng.choice((["box"], ["mask"], ["box", "mask"])))
        ri.evaluate_voc(here / "truth.json", self.detections)

    def found(self, here: Path, rng: random.Random) -> None:
        """Detections that are evaluated."""
        write_json(here / "detections.json", self.detections, rng)
        ri.evaluate_coco(self.good, here / "detections.json", rng.choice((["box"], ["mask"], ["box", "mask"])))

    def voc(self, here: Path, rng: random.Random) -> None:
        """A VOC devkit of which an XML file or the list is mutated."""
        write_devkit(here, self.train, self.root / "scenes/train")
        path = rng.choice([*sorted((here / "Annotations").iterdir()), here / "ImageSets/Main/train.txt"])
        path.write_bytes(mutate_text(path.read_bytes(), rng))
        use(ri.read_voc(here / "ImageSets/Main/train.txt"), here, None)

    def image(self, here: Path, rng: random.Random) -> None:
        """Images of several formats under a name that may not say which."""
        one = rng.choice(self.images)
        stream = io.BytesIO()
        with Image.open(one) as image:
            kind = rng.choice(("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "EPS", "PCX", "TGA"))
            image.convert("RGB").save(stream, kind)
        content = stream.getvalue() if rng.random() < 0.2 else mutate_bytes(stream.getvalue(), rng)
        shutil.copytree(self.root / "scenes/val", here / "val")
        (here / "val" / one.name).write_bytes(content)
        use(ri.read_coco(self.good, here / "val"), here, None)

    def weights(self, here: Path, rng: random.Random) -> None:
        """Weights in three formats, with names, types and bytes changed."""
        path = here / f"weights{rng.choice(('.pth', '.pkl', '.safetensors'))}"
        write_weights(path, self.model.backbone.body.state_dict(), rng)
        mean, std = pixel_statistics(path, self.config.backbone)
        rules = replace(self.config.conventions, pixel_mean=mean, pixel_std=std)
        model = ri.build(replace(self.config, conventions=rules))
        ri.load_weights(model, path)
        step(model)

    def exported(self, here: Path, rng: random.Random) -> None:
        """A detector in one file, its settings or its bytes changed."""
        path, names = here / "detector.safetensors", [{"id": i, "name": f"{i}"} for i in range(self.config.num_classes)]
        about = {"short": [64, 64], "long": 64, "keypoint_names": [], "skeleton": [], "categories": names}
        path.write_bytes(detector_file(self.model, about))
        if rng.random() < 0.65:
            settings = json.dumps(mutate_tree(json.loads(metadata_of(path)[SETTINGS]), rng))
            save_file(load_file(path), path, {SETTINGS: settings})
        else:
            path.write_bytes(mutate_bytes(path.read_bytes(), rng))
        step(ri.load_detector(path)[0])

    def run(self, here: Path, rng: random.Random) -> None:
        """The files of a run: its settings, its log, its checkpoints. It goes on, and its detector detects."""
        shutil.copytree(self.finished(), here / "run")
        if rng.random() < 0.5:
            (here / "run" / "results.json").unlink()
        files = [path for path in (here / "run").rglob("*") if path.is_file() and path.name != "lock"]
        path = rng.choice(files)
        if path.suffix == ".json":
            write_json(path, json.loads(path.read_text()), rng)
        elif path.suffix == ".pt" and rng.random() < 0.7:
            write_checkpoint(path, rng)
        elif path.suffix == ".jsonl" and rng.random() < 0.7:
            lines = mutate_tree([json.loads(line) for line in path.read_text().splitlines()], rng)
            path.write_text("".join(json.dumps(line) + "\n" for line in lines if line is not ...))
        else:
            path.write_bytes(mutate_bytes(path.read_bytes(), rng))
        self.go_on(here)
        model, config = ri.load_detector(here / "run")
        step(model)
        assert config["short"]

    def go_on(self, here: Path) -> None:
        """Continue a run to its results, if it has none, and print them."""
        plan = Plan(self.config, (2,), unit=2, rate=0.01, batch=2, short=(64, 64), long=64, evaluations=1)
        experiment = Experiment(plan, *self.sets, here, execution=Execution(workers=0))
        print(aligned(table_rows([run_schedule(experiment, 2, "run")])))

    def study(self, here: Path, rng: random.Random) -> None:
        """The results of a comparison, through its report."""
        (here / "study").mkdir()
        write_json(here / "study" / "results.json", json.loads((self.compared() / "results.json").read_text()), rng)
        write_report(here / "study")

    def finished(self) -> Path:
        """A run of a few iterations, made once."""
        if not (self.root / "run" / "results.json").exists():
            self.go_on(self.root)
        return self.root / "run"

    def compared(self) -> Path:
        """A comparison of a few iterations, made once."""
        folder = self.root / "compared"
        if not (folder / "results.json").exists():
            plan = Plan(self.config, (2,), unit=2, rate=0.01, batch=2, short=(64, 64), long=64, evaluations=1)
            torch.save(self.model.backbone.body.state_dict(), self.root / "body.pth")
            weights = str(self.root / "body.pth")
            ri.compare(Experiment(plan, *self.sets, folder, weights, Execution(workers=0)))
        return folder


FAST, SLOW = (
    ("coco", "truth", "found", "voc", "image", "weights", "exported"),
    ("run", "study"),
)  # the latter take longer
KINDS, ROUND = FAST + SLOW, 3 * FAST + SLOW


def detections_of(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects of a json as detections."""
    keys = ("image_id", "category_id", "bbox", "segmentation")
    single = [a for a in content["annotations"] if not a["iscrowd"]]
    return [{key: a[key] for key in keys} | {"score": 1 - i / 100} for i, a in enumerate(single)]


def step(model: Any) -> None:
    """A detection in an image, whose scores must be numbers."""
    model.eval()
    with torch.no_grad():
        (found,) = model([torch.rand(3, 64, 64)])
    if not torch.isfinite(found["scores"]).all():
        raise AssertionError("scores that are no numbers")


def use(dataset: ri.Dataset, here: Path, content: dict[str, Any] | None) -> None:
    """What an accepted data set is for: samples to train on, an evaluation, pictures."""
    samples = TrainingSamples(dataset, 0, (64, 64), 64)
    for p in range(2 * len(samples.images)):
        sample = samples[p]
        if isinstance(sample, ri.InputError):
            raise sample
        image, target = sample
        assert torch.isfinite(image).all()
        assert torch.isfinite(target["boxes"]).all()
    categories = [{"id": i, "name": n} for i, n in zip(dataset.category_ids, dataset.category_names, strict=True)]
    truth = dataset.ground_truth if isinstance(dataset.ground_truth, dict) else content
    assert truth is None or isinstance(truth, dict)
    found = perfect(dataset)
    ap = ri.evaluate_coco(dataset.ground_truth, found, ["box"], dataset.image_ids.tolist())["box"]["ap"]
    if ap is not None and ap < 99.9 and not clipped(dataset, content):
        raise AssertionError(f"what training sees has {ap:.1f} AP in evaluation")
    write_pictures(dataset, found, categories, here / "pictures", 0.0)


def perfect(dataset: ri.Dataset) -> list[dict[str, Any]]:
    """The objects that count, as training sees them, as detections."""
    found = []
    for m, image_id in enumerate(dataset.image_ids.tolist()):
        here = dataset.objects(m)
        for n in range(here.start, here.stop):
            if not (dataset.crowd[n] or dataset.difficult[n]):
                x1, y1, x2, y2 = dataset.boxes[n].tolist()
                label = dataset.category_ids[int(dataset.labels[n]) - 1]
                box = {"image_id": image_id, "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1]}
                found.append(box | {"score": 1 - n / 10000})
    return found


def clipped(dataset: ri.Dataset, content: dict[str, Any] | None) -> bool:
    """Whether a box reaches out of its image, or is as thin as rounding, so that what training sees is another box."""
    if len(dataset.boxes) > 100 or (np.diff(dataset.boxes.reshape(-1, 2, 2), axis=1) < 2).any():
        return True
    truth = dataset.ground_truth if isinstance(dataset.ground_truth, dict) else content
    sizes = {image["id"]: (image["width"], image["height"]) for image in (truth or {"images": []})["images"]}
    boxes = [(a["bbox"], sizes[a["image_id"]]) for a in (truth or {"annotations": []})["annotations"]]
    return any(min(x, y) < 0 or x + w > right or y + h > bottom for (x, y, w, h), (right, bottom) in boxes)


def write_devkit(root: Path, content: dict[str, Any], images: Path) -> None:
    """A small VOC devkit of the scenes."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    names = {category["id"]: category["name"] for category in content["categories"]}
    for image in content["images"]:
        stem = Path(image["file_name"]).stem
        shutil.copy(images / image["file_name"], root / "JPEGImages")
        size = f"<size><width>{image['width']}</width><height>{image['height']}</height><depth>3</depth></size>"
        objects = ""
        for a in content["annotations"]:
            if a["image_id"] == image["id"]:
                x, y, w, h = a["bbox"]
                corners = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
                objects += f"<object><name>{names[a['category_id']]}</name><difficult>{a['iscrowd']}</difficult>"
                objects += f"<bndbox>{corners}</bndbox></object>"
        name = f"<filename>{image['file_name']}</filename>"
        (root / f"Annotations/{stem}.xml").write_text(f"<annotation>{name}{size}{objects}</annotation>")
    stems = [Path(image["file_name"]).stem for image in content["images"]]
    (root / "ImageSets/Main/train.txt").write_text("\n".join(stems))


def mutate_text(content: bytes, rng: random.Random) -> bytes:
    """An XML file or a list with words exchanged, or bytes changed."""
    if rng.random() < 0.4:
        return mutate_bytes(content, rng)
    words = content.decode().replace(">", ">\0").replace("<", "\0<").split("\0")
    at = rng.randrange(len(words))
    words[at] = rng.choice(
        (*map(str, VALUES), "", words[at] * 2, "<!DOCTYPE x [<!ENTITY a 'b'>]>", "<object>", "&a;", rng.choice(words))
    )
    return "".join(words).encode()


def strange_tensors(tensor: torch.Tensor, all_kinds: bool = True) -> list[Any]:
    """What may stand in the place of a tensor."""
    strange: list[Any] = [
        tensor.double(), tensor.half(), tensor.to(torch.complex64), tensor * math.nan, tensor[None], tensor.sum(),
        tensor.flatten(), tensor.new_zeros(0), tensor.to(torch.int64), tensor.bool(), None, 3, "x", [tensor], {},
        tensor.double() * 1e200, -tensor,
    ]  # fmt: skip
    if all_kinds:
        strange += [tensor.to_sparse(), torch.empty_like(tensor, device="meta"), torch.nn.Parameter(tensor.float())]
        strange += [
            torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
            tensor[:1].expand(10**5, *tensor.shape),
        ]
        strange += [torch.nested.nested_tensor([tensor])]
    return strange


def write_weights(path: Path, state: dict[str, torch.Tensor], rng: random.Random) -> None:
    """Weights of a body with faults of all kinds."""
    names = list(state)
    name = rng.choice(names)
    tensor = state[name]
    strange = strange_tensors(tensor, path.suffix == ".pth")
    if path.suffix == ".pth":
        strange.append(argparse.Namespace(lr=1))
    state = dict(state)
    match rng.randrange(6):
        case 0:
            state[name] = rng.choice(strange)
        case 1:
            before = rng.choice(("module.", "module.encoder_q.", "_orig_mod.", "backbone.bottom_up.", "x."))
            state = {before + key: value for key, value in state.items() if rng.random() < 0.999}
        case 2:
            del state[name]
        case 3:
            state[rng.choice(("extra", "", "conv1_w", "blobs", "fc.weight"))] = rng.choice(strange)
        case 4:
            inner: list[Any] = [{}, {"model": state}, {"state_dict": {"a": 1}}, {"model": {"model": state}}]
            inner += [{"teacher": state, "epoch": 3}, {"model": state, "about": rng.choice(VALUES)}, {7: tensor}]
            inner += [{"model": state, "about": {"pixels": rng.choice(VALUES)}}, {"generator": state}]
            about = {"__author__": rng.choice(("torchvision", None, [])), "matching_heuristics": rng.choice((True, 1))}
            state = rng.choice([*inner, {"model": state} | about])
    save_weights(path, state, rng)
    if rng.random() < 0.35:
        path.write_bytes(b"" if rng.random() < 0.1 else mutate_bytes(path.read_bytes(), rng))


def write_checkpoint(path: Path, rng: random.Random) -> None:
    """A checkpoint with a fault in it, under the name that its content gives it."""
    state = mutate_state(torch.load(path, weights_only=True), rng)
    path.unlink()
    if isinstance(state, dict) and isinstance(state.get("iteration"), int) and not isinstance(state["iteration"], bool):
        save_checkpoint(path.parent.parent, state, last=9)
    else:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        path = path.with_name(f"00000004-{hashlib.sha256(buffer.getvalue()).hexdigest()[:16]}.pt")
        path.write_bytes(buffer.getvalue())


def mutate_state(tree: Any, rng: random.Random) -> Any:
    """The content of a checkpoint with one of its values replaced or removed; tensors by strange ones."""
    spots = [spot for spot in places(tree) if len(spot) < 3] if rng.random() < 0.5 else places(tree)
    *way, key = rng.choice(spots)
    parent = tree
    for stop in way:
        parent = parent[stop]
    if rng.random() < 0.2:
        del parent[key]
    elif isinstance(parent[key], torch.Tensor):
        parent[key] = rng.choice(strange_tensors(parent[key]))
    else:
        parent[key] = copy.deepcopy(rng.choice(VALUES))
    return tree


def save_weights(path: Path, state: dict[str, Any], rng: random.Random) -> None:
    """In the format of the file's ending."""
    if path.suffix == ".pth":
        torch.save(state, path)
    elif path.suffix == ".pkl":
        arrays = {k: v.numpy() if isinstance(v, torch.Tensor) and not v.is_sparse else v for k, v in state.items()}
        path.write_bytes(pickle.dumps(arrays, protocol=rng.choice((2, 4))))
    else:
        told = json.dumps(rng.choice(VALUES))
        metadata = rng.choice((None, {"cost": told}, {"cost": "{"}, {"pixels": told}, {"pixels": "[[1,2],[3]]"}))
        tensors = {
            k: v.clone().contiguous() for k, v in state.items() if isinstance(v, torch.Tensor) and isinstance(k, str)
        }
        save_file(tensors, path, metadata)
        assert load_file(path) is not None


def outcome(bench: Bench, kind: str, number: int, seed: int, show: bool = False) -> str:
    """What became of one mutation: "used", "refused", or the fault."""
    rng = random.Random(f"{seed} {kind} {number}")
    with tempfile.TemporaryDirectory(dir=bench.root) as here, warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        quiet = contextlib.nullcontext() if show else contextlib.redirect_stdout(io.StringIO())
        try:
            with quiet:
                getattr(bench, kind)(Path(here), rng)
        except ri.InputError as error:
            text = str(error)
            bad = "\n" in text or len(text) > 1000 or any(ord(c) < 32 or ord(c) == 127 for c in text)
            return f"message {text[:100]!r}" if bad else "refused"
        except Exception as error:
            if show:
                traceback.print_exc()
            frames = traceback.extract_tb(error.__traceback__)
            ours = next((f for f in reversed(frames) if "rethink_imagenet" in f.filename), frames[-1])
            return f"{type(error).__name__} at {Path(ours.filename).name}:{ours.name}: {str(error)[:60]!r}"
    return "used"


def work(connection: Connection, root: Path, seed: int) -> None:
    """Carry out mutations as they come in, within a bound of memory."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)  # what C libraries print about damaged images
    with contextlib.redirect_stdout(io.StringIO()):
        bench = Bench(root)
        bench.finished()
        bench.compared()
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    connection.send("ready")
    while (case := connection.recv()) is not None:
        connection.send(outcome(bench, *case, seed))


class Worker:
    """A process that is begun anew when it hangs or dies."""

    def __init__(self, root: Path, seed: int):
        self.root, self.seed, self.case = root, seed, ("", -1)
        self.begin()

    def begin(self) -> None:
        """Start the process; it says when it is ready."""
        folder = Path(tempfile.mkdtemp(dir=self.root))
        self.end, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("spawn").Process(
            target=work, args=(theirs, folder, self.seed), daemon=True
        )
        self.process.start()
        theirs.close()
        assert self.end.recv() == "ready"

    def computed(self) -> float:
        """Seconds that the process has computed for."""
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
        return 0.0

    def give(self, case: tuple[str, int]) -> None:
        """Hand it a mutation."""
        self.case, self.begun, self.spent = case, time.monotonic(), self.computed()
        self.end.send(case)

    def result(self) -> str | None:
        """What became of it; None while it is at work."""
        try:
            if self.end.poll(0.01):
                return str(self.end.recv())
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode
            self.begin()
            return f"died with status {code}"
        if self.computed() - self.spent > SECONDS or time.monotonic() - self.begun > ASLEEP:
            self.process.kill()
            self.process.join()
            self.begin()
            return f"hang of {SECONDS} s"
        return None


def cases_of(number: int, only: str | None = None) -> list[tuple[str, int]]:
    """So many mutations, of one kind or of all."""
    kinds = (only,) if only else ROUND
    made: Counter[str] = Counter()
    cases = []
    for i in range(number):
        kind = kinds[i % len(kinds)]
        cases.append((kind, made[kind]))
        made[kind] += 1
    return cases


def fuzz(
    cases: list[tuple[str, int]], seed: int, workers: int, say: Callable[[str], None]
) -> dict[tuple[str, int], str]:
    """The outcome of each mutation."""
    left, outcomes = list(reversed(cases)), {}
    with tempfile.TemporaryDirectory() as folder:
        crew = [Worker(Path(folder), seed) for _ in range(workers)]
        busy: list[Worker] = []
        while left or busy:
            for worker in crew:
                if worker not in busy and left:
                    worker.give(left.pop())
                    busy.append(worker)
            for worker in list(busy):
                if (result := worker.result()) is not None:
                    outcomes[worker.case] = result
                    busy.remove(worker)
                    if result not in ("used", "refused"):
                        say(f"{worker.case[0]}:{worker.case[1]} {result}")
        for worker in crew:
            worker.end.send(None)
            worker.process.join()
    return outcomes


def table(outcomes: dict[tuple[str, int], str]) -> str:
    """How many of each kind were tried, used, refused, and something else."""
    lines = [f"{'kind':10}{'tried':>8}{'used':>8}{'refused':>8}{'other':>8}"]
    for kind in (*KINDS, "all"):
        own = [r for (k, _), r in outcomes.items() if kind in (k, "all")]
        if own:
            told = Counter(r if r in ("used", "refused") else "other" for r in own)
            lines.append(f"{kind:10}{len(own):8}{told['used']:8}{told['refused']:8}{told['other']:8}")
    return "\n".join(lines)


def main() -> int:
    """Say what was found; status 1 if anything was neither used nor refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--case", help="one mutation again, such as coco:17")
    given = parser.parse_args()
    if given.case:
        kind, _, number = given.case.partition(":")
        with tempfile.TemporaryDirectory() as folder:
            print(outcome(Bench(Path(folder)), kind, int(number), given.seed, show=True))
        return 0
    outcomes = fuzz(cases_of(given.cases, given.only), given.seed, given.workers, lambda line: print(line, flush=True))
    print(table(outcomes))
    return any(result not in ("used", "refused") for result in outcomes.values())


if __name__ == "__main__":
    sys.exit(main())
