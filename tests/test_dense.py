"""An image with as many objects as an aerial photograph: a training step in bounded memory, and its numbers."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rethink_imagenet.detection import boxes as matching
from rethink_imagenet.detection.proposals import label_anchors, level_anchors

# A step of the paper's Mask R-CNN, R50-FPN with GN, on the CPU; prints the losses and the most memory in GB.
STEP = """
import json, resource, sys
from rethink_imagenet.data.coco import read_coco
from rethink_imagenet.data.loading import TrainingSamples
from rethink_imagenet.detection.detectors import DetectorConfig, build
from rethink_imagenet.randomness import seed_everything
samples = TrainingSamples(read_coco(sys.argv[1]), 0, (800, 800), 1333)
seed_everything(0)
model = build(DetectorConfig()).train()
image, target = samples[0]
losses = model([image], [target])
sum(losses.values()).backward()
most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps([len(target["boxes"]), {key: loss.item() for key, loss in losses.items()}, most]))
"""


def write_crowded(root: Path, objects: int) -> Path:
    """One image of 800 x 1333 pixels with so many polygons of 20 points."""
    rng, records = np.random.default_rng(0), []
    (root / "annotations").mkdir()
    (root / "train").mkdir()
    Image.fromarray(rng.integers(0, 255, (800, 1333, 3), dtype=np.uint8)).save(root / "train" / "crowded.png")
    for n in range(1, objects + 1):
        size = rng.uniform(10, 60, 2)
        corner = rng.uniform(0, 1, 2) * ([1333, 800] - size)
        angles = np.sort(rng.uniform(0, 2 * np.pi, 20))
        ring = corner + size / 2 * (1 + np.column_stack([np.cos(angles), np.sin(angles)]))
        records.append({"id": n, "image_id": 1, "category_id": 1 + n % 3, "iscrowd": 0, "area": float(size.prod()),
                        "bbox": [*corner, *size], "segmentation": [ring.ravel().tolist()]})  # fmt: skip
    image = {"id": 1, "file_name": "crowded.png", "height": 800, "width": 1333}
    categories = [{"id": c, "name": f"class {c}"} for c in (1, 2, 3)]
    path = root / "annotations" / "instances_train.json"
    path.write_text(json.dumps({"images": [image], "annotations": records, "categories": categories}))
    return path


@pytest.mark.slow
def test_an_image_with_3000_objects_trains_within_6_gb(tmp_path: Path) -> None:
    path = write_crowded(tmp_path, 3000)
    done = subprocess.run([sys.executable, "-c", STEP, path], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    objects, losses, most = json.loads(done.stdout)
    assert objects == 3000 and all(np.isfinite(loss) for loss in losses.values())
    assert most < 6, f"{most:.1f} GB"


@pytest.mark.parametrize("objects", [0, 1, 90])
def test_labels_do_not_depend_on_how_many_overlaps_are_computed_at_once(
    objects: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    anchors = torch.cat([level_anchors(100 * 8 // s, 140 * 8 // s, s, (8,)) for s in (8, 16, 32, 64)])
    corners = torch.rand(objects, 2) * torch.tensor([1000.0, 700.0])
    boxes = torch.cat([corners, corners + 8 + 80 * torch.rand(objects, 2)], dim=1)
    images, sizes = [boxes, boxes[: objects // 2]], [(800, 1120), (800, 1000)]
    whole = label_anchors(anchors, images, sizes)
    monkeypatch.setattr(matching, "LARGEST_TABLE", 10_000)
    for parted, expected in zip(label_anchors(anchors, images, sizes), whole, strict=True):
        assert torch.equal(parted, expected)
