"""Folders, links, signals and memory: what was there stays, and what goes wrong is one line or nothing."""

import ast
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset as TorchDataset

import rethink_imagenet
from rethink_imagenet.data.coco import read_coco
from rethink_imagenet.data.images import read_header
from rethink_imagenet.data.loading import training_batches
from rethink_imagenet.data.scenes import write_scenes
from rethink_imagenet.errors import InputError
from rethink_imagenet.study import timing
from rethink_imagenet.study.report import SIDE_BY_SIDE
from rethink_imagenet.tools.commands import check_folder, foreign_files, prepare_folder
from rethink_imagenet.tools.options import FolderOptions
from rethink_imagenet.training import checkpoints
from rethink_imagenet.training.checkpoints import save_checkpoint
from rethink_imagenet.training.processes import LostWorker, memory_told

PACKAGE = Path(rethink_imagenet.__file__).parent
CLASSES = [{"id": 1, "name": "valve"}]
ANEW = FolderOptions(overwrite=True)


def results(folder: Path) -> Path:
    """A folder as `rethink_compare` leaves it, as far as names go."""
    prepare_folder(folder, {"seed": 1})
    for name in (
        "results.json", "report.html", "curves.png", "scratch-2x/config.json", "scratch-2x/log.jsonl",
        "scratch-seed1-0.5x/checkpoints/00000020-0123456789abcdef.pt", "scratch-2x/checkpoints/lock",
        "scratch-2x/tensorboard/events.out.tfevents.1.host.2.0", "pretraining/weights.safetensors",
        "pretraining/resnet50/log.jsonl", "tuning/rate=0.02,short=512-800-2x/results.json", "crops/disc/000001.png",
        "scenes/annotations/instances_train.json", "scenes/train/000000.png", "scratch-2x/before-switch/log.jsonl",
        f"{SIDE_BY_SIDE}/1 - über-7 - from scratch 12 right 0 wrong, pre-trained 3 right 1 wrong, of 20 objects.jpg",
    ):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_overwrite_removes_results(tmp_path: Path) -> None:
    folder = results(tmp_path / "out")
    assert foreign_files(folder) == []
    prepare_folder(folder, {"seed": 2}, ANEW)
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["notes.txt", "scratch-2x/mine.csv", "photos/config.json", "scenes/train/cat.jpg",
                                  "checkpoints/best.pt", f"{SIDE_BY_SIDE}/mine.jpg"])  # fmt: skip
def test_overwrite_is_refused_where_a_file_is_not_ours(tmp_path: Path, name: str) -> None:
    folder = results(tmp_path / "out")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("mine")
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError, match=f"removes nothing, for {name} in it was not written by this library; move"):
        prepare_folder(folder, {"seed": 2}, ANEW)
    assert sorted(folder.rglob("*")) == before and (folder / name).read_text() == "mine"
    assert json.loads((folder / "config.json").read_text())["seed"] == 1


def test_overwrite_is_refused_where_there_is_a_link(tmp_path: Path) -> None:
    folder, store = results(tmp_path / "out"), tmp_path / "store"
    store.mkdir()
    (store / "kept.txt").touch()
    (folder / "scratch-9x").symlink_to(store)
    (folder / "detections.json").symlink_to(store / "kept.txt")
    with pytest.raises(InputError, match=r"for detections\.json and 1 more in it"):
        check_folder(folder, {"seed": 2}, ANEW)
    assert (store / "kept.txt").exists()


def test_drawing_leaves_other_folders_alone(tmp_path: Path) -> None:
    other = tmp_path / "scenes.partial" / "mine.txt"
    other.parent.mkdir()
    other.touch()
    write_scenes(tmp_path / "scenes", train=1, val=1)
    assert other.exists() and sorted(path.name for path in tmp_path.iterdir()) == ["scenes", "scenes.partial"]


def test_a_checkpoint_that_its_run_removes_meanwhile_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for whoever reads the folder of a run that goes on."""
    empty: dict[str, object] = {key: {} for key in ("model", "optimizer", "about", "circumstances")}
    state = {"seconds": 1.0, "skipped": 0, "processor_joules": None, "gpu_joules": None, "pending": []} | empty
    whole = save_checkpoint(tmp_path, state | {"iteration": 10})
    gone = whole.with_name("00000020-0123456789abcdef.pt")
    monkeypatch.setattr(checkpoints, "checkpoints_of", lambda _: [whole, gone])
    found = checkpoints.newest_checkpoint(tmp_path)
    assert found is not None and found[0] == whole


def test_links_that_leave_the_data_set(tmp_path: Path) -> None:
    data, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    for folder in (data / "train/deep", data / "val", elsewhere):
        folder.mkdir(parents=True)
    picture = Image.new("RGB", (8, 6))
    for path in (data / "train/a.png", data / "val/b.png", elsewhere / "secret.png"):
        picture.save(path)

    def read(name: str, images: str | Path = data / "train") -> str:
        record = {"id": 1, "file_name": name, "width": 8, "height": 6}
        box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "iscrowd": 0}
        content = {"images": [record], "annotations": [box], "categories": CLASSES}
        (data / "all.json").write_text(json.dumps(content))
        try:
            return str(read_coco(data / "all.json", images).file_names[0])
        except InputError as error:
            assert len(str(error).splitlines()) == 1
            return str(error)

    for name, target in {"within.png": "a.png", "other.png": "../val/b.png", "deep/up.png": "../a.png",
                         "out.png": elsewhere / "secret.png", "deep/far.png": "../../../elsewhere/secret.png",
                         "all": elsewhere}.items():  # fmt: skip
        (data / "train" / name).symlink_to(target)
    for name in ("a.png", "within.png", "other.png", "deep/up.png"):
        assert read(name) == name
    for name in ("out.png", "deep/far.png", "all/secret.png"):
        told = f"{data / 'train' / name} is a link that leaves the data set, to {elsewhere / 'secret.png'}; copy the"
        assert told in read(name)
    os.mkfifo(data / "train/pipe.png")  # to read it would take for ever
    (data / "train/piped.png").symlink_to("pipe.png")
    for name in ("pipe.png", "piped.png", "PIPE.png"):
        assert f"{data / 'train' / name} is missing" in read(name)
    (data / "linked").symlink_to(elsewhere)
    assert read("secret.png", data / "linked") == "secret.png"  # the folder itself was named by the user


def test_a_large_photograph_is_no_warning(tmp_path: Path) -> None:
    """Pillow warns above 89 million pixels, and raises above twice as many."""
    for side, fault in ((9800, ""), (10_100, "more than 100,000,000"), (14_000, "exceeds limit of")):
        Image.new("1", (side, side)).save(tmp_path / "large.png")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if not fault:
                assert read_header(tmp_path / "large.png").size == (side, side)
                continue
            with pytest.raises(InputError, match=fault) as caught:
                read_header(tmp_path / "large.png")
            assert len(str(caught.value).splitlines()) == 1


class Killed(TorchDataset):
    """Samples whose fifth costs its worker the life, as the system does when memory runs out."""

    def __getitem__(self, p: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if p == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(3, 2, 2), {"boxes": torch.zeros(0, 4)}


def test_a_killed_worker_is_one_line_about_memory() -> None:
    with (
        pytest.raises(LostWorker, match=r"most likely the memory ran out$") as told,
        memory_told(),
    ):
        for _ in training_batches(Killed(), 2, 0, 6, workers=1):
            time.sleep(0.01)
    assert len(str(told.value).splitlines()) == 1 and told.value.status == 1
    assert told.value.ways == {"workers": "take fewer --workers", "resume": "go on with --resume"}


STOPPED = """
import os, signal, sys
sys.argv = [{name!r}]
class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.{signal})
sys.meta_path.insert(0, Stop())
from rethink_imagenet.tools.cli import rethink_recipes
rethink_recipes({words})
"""


@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM"])
def test_a_signal_while_a_command_is_loading_is_quiet(sent: str) -> None:
    code = STOPPED.format(name="/usr/bin/rethink_recipes", signal=sent, words="")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-getattr(signal, sent), "", "")


def test_a_function_called_from_python_leaves_interruptions_as_they_are() -> None:
    code = STOPPED.format(name="mine.py", signal="SIGINT", words='words="figure1"')
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGINT and "KeyboardInterrupt" in done.stderr


def test_modules_of_unix_are_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No module imports at its top what Windows has not, and without it the memory is not known."""
    unix = {"resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not unix & {name.partition(".")[0] for name in names}, path
    assert (timing.peak_memory("cpu") or 0) > 10**7
    monkeypatch.setitem(sys.modules, "resource", None)
    assert timing.peak_memory("cpu") is None
