"""The paper's other systems on photographs: Keypoint R-CNN, Cascade Mask R-CNN and the switch to it, VGG-16, X152,
and the weights that the authors began from.

`pytest -m slow tests/test_systems.py` makes a step with the paper's largest model and prints its memory and time.
"""

import contextlib
import io
import json
import math
import os
import pickle
import re
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import roi_heads
from torchvision.ops import box_iou

from rethink_imagenet.data.coco import read_coco, trainable
from rethink_imagenet.data.datasets import Dataset
from rethink_imagenet.data.scenes import write_crops, write_scenes
from rethink_imagenet.data.splits import read_splits
from rethink_imagenet.data.transforms import read_sample, resize, resized_size
from rethink_imagenet.detection.box_head import Pool, Samples, as_rois, sample_proposals
from rethink_imagenet.detection.boxes import split_crowds
from rethink_imagenet.detection.cascade import CascadeHead, refine, switch_to_cascade
from rethink_imagenet.detection.conventions import DETECTRON
from rethink_imagenet.detection.detectors import (
    MINIATURE,
    VGG16,
    Detector,
    build,
    cascade_mask_rcnn,
    check_from_scratch,
    vgg16_faster_rcnn,
)
from rethink_imagenet.errors import InputError
from rethink_imagenet.networks.backbones import Body
from rethink_imagenet.randomness import Draws, generator_of
from rethink_imagenet.study import pretraining
from rethink_imagenet.study.plans import Execution, Experiment, Plan
from rethink_imagenet.study.pretraining import load_weights, pixel_statistics
from rethink_imagenet.study.verdicts import compare
from rethink_imagenet.study.weights import read_weights

from .launch import launch

Sample = Callable[[str], Path]
Target = dict[str, Any]


def batch_of(dataset: Dataset, positions: list[int], short: int = 160) -> tuple[list[Tensor], list[Target]]:
    """Some of a data set's images and targets, resized."""
    pairs = [resize(*read_sample(dataset, m), short, 2 * short) for m in positions]
    return [image for image, _ in pairs], [target for _, target in pairs]


@pytest.fixture
def persons(sample_data: Sample) -> Dataset:
    """Photographs of persons with 17 keypoints."""
    return read_coco(sample_data("coco_mini_by") / "annotations" / "person_keypoints_train2017.json")


@pytest.fixture
def photographs(sample_data: Sample) -> tuple[list[Tensor], list[Target]]:
    """Three photographs with masks."""
    train, _ = read_splits(sample_data("coco_mini_by"))
    return batch_of(train, trainable(train)[:3].tolist())


def learn(model: Detector, images: list[Tensor], targets: list[Target], steps: int, rate: float) -> list[float]:
    """The summed losses of some iterations on the same batch."""
    optimizer, totals = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9), []
    for step in range(steps):
        draws = Draws(tuple(100 * step + i for i in range(len(images))))
        total = sum(model(images, targets, draws).values())
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        totals.append(total.item())
    return totals


def test_images_without_a_visible_keypoint_are_left_out(persons: Dataset) -> None:
    """Against the records of the json, one by one."""
    content: Any = persons.ground_truth
    records = json.loads(Path(content).read_text())["annotations"]
    seen = {a["image_id"] for a in records if not a["iscrowd"] and a["num_keypoints"] > 0}
    assert set(persons.image_ids[trainable(persons, keypoints=True)].tolist()) == seen
    assert len(seen) == 15 and len(trainable(persons)) == 18


def regions_of(model: Detector, images: list[Tensor], targets: list[Target]) -> tuple[Pool, Samples]:
    """Pooling from a pyramid, and samples from the objects moved about by a few pixels."""
    pyramid, sizes = model.features(images)
    torch.manual_seed(1)
    targets = [split_crowds(target) for target in targets]
    boxes = [target["boxes"].repeat(20, 1) for target in targets]
    moved_about = [box + 3 * torch.randn_like(box) for box in boxes]
    samples = sample_proposals(moved_about, targets, sizes, 10**6, [generator_of(0) for _ in targets])
    return partial(model.regions, pyramid), samples


def test_keypoint_loss_and_read_out_are_torchvisions(persons: Dataset) -> None:
    """On photographs, in double precision: the loss to 1e-6, keypoints to 1e-4 pixels."""
    images, targets = batch_of(persons, trainable(persons, keypoints=True)[:2].tolist())
    images = [image.double() for image in images]
    targets = [t | {key: t[key].double() for key in ("boxes", "keypoints")} for t in targets]
    torch.manual_seed(0)
    model = build(replace(MINIATURE, num_classes=1, masks=False, keypoints=17)).double().eval()
    head = model.keypoint_head
    assert head is not None
    with torch.no_grad():
        pool, samples = regions_of(model, images, targets)
        positive = samples.positive
        theirs = roi_heads.keypointrcnn_loss(
            head.predict(pool, positive.rois).contiguous(), positive.rois[:, 1:].split(positive.numbers),
            [t["keypoints"] for t in targets], positive.objects.split(positive.numbers),
        )  # fmt: skip
        ours = head.losses(pool, samples)["loss_keypoint"]
        found = model.detect(images)
        boxes = [detections["boxes"] for detections in found]
        keypoints, scores = roi_heads.heatmaps_to_keypoints(head.predict(pool, as_rois(boxes)), torch.cat(boxes))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6) and ours > 7
    assert len(keypoints) > 50
    torch.testing.assert_close(torch.cat([d["keypoints"] for d in found]).float(), keypoints, atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cat([d["keypoint_scores"] for d in found]).float(), scores, atol=1e-4, rtol=0)


def keypoint_ap50(persons: Dataset, positions: list[int], model: Detector, short: int) -> float:
    """COCO's AP at an OKS of 0.5 on some images, by pycocotools, in percent."""
    results = []
    for m in positions:
        (image,), (target,) = batch_of(persons, [m], short)
        (found,) = model.detect([image])
        scale = torch.tensor([target["size"][1] / image.shape[2], target["size"][0] / image.shape[1], 1])
        for points, score in zip(found["keypoints"] * scale, found["scores"], strict=True):
            results.append({"image_id": target["image_id"], "category_id": 1, "score": score.item(),
                            "keypoints": points.flatten().tolist()})  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(persons.ground_truth))
        evaluation = COCOeval(truth, truth.loadRes(results), "keypoints")
        evaluation.params.imgIds = persons.image_ids[positions].tolist()
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * float(evaluation.stats[1])


def test_keypoints_of_photographs_are_learned_by_heart(persons: Dataset) -> None:
    """From images to OKS: two photographs of persons, more than 60 AP50 on them."""
    positions = trainable(persons, keypoints=True)[:2].tolist()
    images, targets = batch_of(persons, positions, short=160)
    torch.manual_seed(0)
    model = build(replace(MINIATURE, num_classes=1, masks=False, keypoints=17))
    check_from_scratch(model)
    totals = learn(model, images, targets, steps=80, rate=0.02)
    ap50 = keypoint_ap50(persons, positions, model.eval(), short=160)
    print(f"loss {totals[0]:.2f} to {totals[-1]:.2f}, keypoint AP50 {ap50:.1f}")
    assert ap50 > 60


def stage_overlaps(model: Detector, images: list[Tensor], targets: list[Target]) -> list[float]:
    """The mean overlap with objects of proposals that overlap one by 0.5, and of what each stage makes of them."""
    head = model.box_head
    assert isinstance(head, CascadeHead)
    pyramid, sizes = model.features(images)
    proposals, _ = model.rpn(pyramid, sizes)
    objects = [target["boxes"][~target["crowd"]] for target in targets]
    good = [box_iou(boxes, each).amax(dim=1) >= 0.5 for boxes, each in zip(proposals, objects, strict=True)]
    rois, means = as_rois([boxes[keep] for boxes, keep in zip(proposals, good, strict=True)]), []
    for layer in [None, *head.heads]:
        if layer is not None:
            _, deltas, _ = layer.predict(partial(model.regions, pyramid), rois, sizes)
            rois = refine(rois, deltas, layer.delta_weights, sizes)
        each = [box_iou(rois[rois[:, 0] == b, 1:], objects[b]).amax(dim=1) for b in range(len(objects))]
        means.append(torch.cat(each).mean().item())
    return means


def test_each_stage_of_the_cascade_makes_boxes_better(sample_data: Sample) -> None:
    """Two pictures of blood cells learned by heart: proposals come nearer to their objects by all stages together."""
    train, _ = read_splits(sample_data("bccd"))
    images, targets = batch_of(train, trainable(train)[:2].tolist(), short=128)
    torch.manual_seed(0)
    model = build(replace(MINIATURE, num_classes=3, masks=False, cascade=True))
    check_from_scratch(model)
    totals = learn(model, images, targets, steps=80, rate=0.02)
    with torch.no_grad():
        means = stage_overlaps(model.eval(), images, targets)
    print("mean overlap of proposals and of each stage:", [round(mean, 3) for mean in means])
    assert totals[-1] < 0.6 * totals[0]
    assert means[1] > means[0] + 0.05 and means[3] >= means[1]


def box_cost(model: Detector, images: list[Tensor], targets: list[Target]) -> float:
    """The sum of the classification and box losses of all stages."""
    with torch.no_grad():
        losses = model.train()(images, targets, Draws(tuple(range(len(images)))))
    return sum(loss.item() for name, loss in losses.items() if name.startswith(("loss_classifier", "loss_box_reg")))


def test_switching_to_cascade_from_a_trained_detector(photographs: tuple[list[Tensor], list[Target]]) -> None:
    """Stages copied from the first cost less than half of random ones at the switch, and go on learning."""
    images, targets = photographs
    torch.manual_seed(0)
    plain = build(MINIATURE)
    learn(plain, images, targets, steps=50, rate=0.02)
    weights, momentum = switch_to_cascade(plain.state_dict(), {})
    assert momentum == {}
    copied, random = (build(replace(MINIATURE, cascade=True)) for _ in range(2))
    new = ("box_head.stages.0.deltas", "box_head.stages.1", "box_head.stages.2")
    fresh = {name: tensor for name, tensor in random.state_dict().items() if name.startswith(new)}
    copied.load_state_dict(weights)
    random.load_state_dict(weights | fresh)
    models = {"plain": plain, "copied": copied, "random": random}
    costs = {name: box_cost(model, images, targets) for name, model in models.items()}
    print("box losses at the switch:", {name: round(cost, 3) for name, cost in costs.items()})
    assert costs["copied"] < 0.5 * costs["random"]
    totals = learn(copied, images, targets, steps=20, rate=0.02)
    assert min(totals[10:]) < totals[0]
    (found,) = copied.eval()(images[:1])
    assert found["masks"].shape == (len(found["boxes"]), 1, *images[0].shape[1:])


class Recorder:
    """The deviation of each layer's output, and the norm of the gradient that reaches it, in one step."""

    def __init__(self, model: Detector):
        self.outputs: dict[str, float] = {}
        self.gradients: dict[str, float] = {}
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.register_forward_hook(partial(self.record, name))

    def record(self, name: str, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        """Called after a layer, before the ReLU that works in place."""
        self.outputs[name] = output.detach().std(dim=0).square().mean().sqrt().item()
        output.register_hook(lambda gradient: self.gradients.update({name: gradient.norm().item()}))


def test_vgg_keeps_its_scale_through_all_layers(photographs: tuple[list[Tensor], list[Target]]) -> None:
    """The paper's VGG-16 in full, fc6 and fc7 included: by its own initialization, and by PyTorch's default."""
    images, targets = photographs
    torch.manual_seed(0)
    model = vgg16_faster_rcnn(box_number=32, pre_nms=(1000, 1000))
    check_from_scratch(model)
    assert not any(isinstance(layer, nn.GroupNorm | nn.modules.batchnorm._BatchNorm) for layer in model.modules())
    recorder = Recorder(model)
    deep = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    deep = [name for name in deep if name.startswith(("backbone", "box_head.fcs"))]
    assert len(deep) == 15
    spread = {}
    for kind in ("msra", "default"):
        if kind == "default":
            for name in deep:
                model.get_submodule(name).reset_parameters()
        losses = model(images[:2], targets[:2], Draws((0, 1)))
        sum(losses.values()).backward()
        for what, values in (("outputs", recorder.outputs), ("gradients", recorder.gradients)):
            scales = [values[name] for name in deep]
            spread[kind, what] = max(scales) / min(scales)
        if kind == "msra":
            assert losses["loss_classifier"].item() == pytest.approx(math.log(81), abs=0.3)
    print({" ".join(key): f"{value:.3g}" for key, value in spread.items()})
    assert spread["msra", "outputs"] < 30 and spread["msra", "gradients"] < 30
    assert spread["default", "outputs"] > 1e4 and spread["default", "gradients"] > 1e4


def test_vgg_takes_all_of_timms_weights_but_the_last_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A region that is the whole picture comes out of fc7 as in timm's VGG-16 with these weights, to 1e-4."""
    torch.manual_seed(0)
    theirs = timm.create_model("vgg16").eval()
    model = vgg16_faster_rcnn()
    asked: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(timm, "create_model", lambda tag, **how: asked.append((tag, how)) or theirs)
    load_weights(model, "vgg16.tv_in1k")
    assert asked == [("vgg16.tv_in1k", {"pretrained": True})]
    assert pixel_statistics("vgg16.tv_in1k") == (VGG16.conventions.pixel_mean, VGG16.conventions.pixel_std)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        hidden = model.box_head.fcs(F.max_pool2d(model.backbone(images)[0], 2).flatten(1))
        expected = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert hidden.std() > 0


def test_a_classifier_of_vgg_is_that_of_timm() -> None:
    """Our own pre-training of VGG-16: the same scores as timm's network with the same weights, to 1e-4."""
    torch.manual_seed(0)
    ours, theirs = pretraining.Classifier(7, "vgg16", "none").eval(), timm.create_model("vgg16", num_classes=7).eval()
    body, hidden = pretraining._parts(theirs.state_dict())
    ours.body.load_state_dict(body)
    ours.fcs.load_state_dict({name.removeprefix("fcs."): tensor for name, tensor in hidden.items()})
    ours.fc.load_state_dict(theirs.head.fc.state_dict())
    picture = torch.rand(3, 224, 224)
    mean, std = (torch.tensor(values)[:, None, None] for values in (ours.pixel_mean, ours.pixel_std))
    with torch.no_grad():
        expected = theirs(((picture - mean) / std)[None])
        torch.testing.assert_close(ours.logits([picture]), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


ZERO = np.zeros(1, np.float32)
LEFT_OUT = "conv1_b", "fc1000_w", "fc1000_b"
CAFFE2 = {"weight": "s", "bias": "b"}  # of a scale and a shift


def as_detectron(body: Body, kind: str) -> dict[str, Any]:
    """A body's tensors as Detectron's files have them, blue first; kind is gn or bn, whose statistics are folded."""
    blobs = {"conv1_w": body.conv1.weight.detach().numpy()[:, ::-1].copy()}
    stem = "conv1_gn" if kind == "gn" else "res_conv1_bn"
    places = [(stem, body.bn1, None)]
    for stage, blocks in enumerate((body.layer1, body.layer2, body.layer3, body.layer4), 2):
        for number, block in enumerate(blocks):
            where = f"res{stage}_{number}_branch"
            parts = [(block.conv1, block.bn1, "2a"), (block.conv2, block.bn2, "2b")]
            parts += [(block.conv3, block.bn3, "2c")] if hasattr(block, "conv3") else []
            parts += [(*block.downsample, "1")] if block.downsample is not None else []
            places += [(f"{where}{name}_{kind}", norm, (f"{where}{name}_w", conv)) for conv, norm, name in parts]
    for name, norm, convolution in places:
        blobs |= {f"{name}_{CAFFE2[key]}": getattr(norm, key).detach().numpy() for key in CAFFE2}
        if convolution:
            blobs[convolution[0]] = convolution[1].weight.detach().numpy()
    return blobs


def as_detectron2(body: Body) -> dict[str, Any]:
    """A body's tensors as detectron2's files have them, blue first."""
    tensors = {}
    for name, tensor in body.state_dict().items():
        words = name.split(".")
        *layer, kind = words
        if layer[0].startswith("layer"):
            layer[0] = f"res{int(layer[0][5:]) + 1}"
        else:
            layer.insert(0, "stem")
        if layer[-1].startswith("bn"):
            layer[-1:] = [f"conv{layer[-1][2:]}", "norm"]
        if layer[-2] == "downsample":
            layer[-2:] = ["shortcut"] if layer[-1] == "0" else ["shortcut", "norm"]
        if kind != "num_batches_tracked":  # never in these files
            tensors[".".join([*layer, kind])] = tensor.numpy()
    return tensors | {"stem.conv1.weight": tensors["stem.conv1.weight"][:, ::-1].copy()}


def random_body(norm: str, backbone: str = "resnet26") -> Body:
    """All tensors at random; statistics as Detectron's affine maps have them where BN is frozen."""
    body = Body(backbone, norm).eval()
    for name, tensor in body.state_dict().items():
        if name.endswith("running_var"):
            tensor.fill_(1 - 1e-5) if norm == "frozen_bn" else tensor.uniform_(0.5, 2)
        elif name.endswith("running_mean"):
            tensor.zero_() if norm == "frozen_bn" else tensor.normal_()
        elif ".bn" in name or name.startswith("bn1") or ".downsample.1" in name:
            tensor.uniform_(0.5, 1.5) if tensor.is_floating_point() else tensor.fill_(3)
    return body


FILES = {
    "Detectron's GN": ("gn", lambda body: {**as_detectron(body, "gn"), "pred_w": ZERO, "pred_b": ZERO}),
    "Detectron's blobs": ("gn", lambda body: {"blobs": as_detectron(body, "gn") | {"conv1_w_momentum": ZERO}}),
    "Detectron's BN": ("frozen_bn", lambda body: as_detectron(body, "bn") | dict.fromkeys(LEFT_OUT, ZERO)),
    "detectron2's GN": ("gn", lambda body: {"model": as_detectron2(body), "matching_heuristics": True}),
    "detectron2's BN": ("bn", lambda body: {"model": as_detectron2(body), "__author__": "somebody"}),
    "detectron2's frozen BN": ("frozen_bn", lambda body: {"model": as_detectron2(body)}),
    "with the prefix": ("gn", lambda body: {"model": {f"backbone.bottom_up.{name}": array
                                                      for name, array in as_detectron2(body).items()}}),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("backbone", ["resnet18", "resnet26"])
def test_files_of_detectron_and_detectron2(kind: str, backbone: str, tmp_path: Path) -> None:
    """Bit for bit the features of the body whose weights were written, and in a detector bit for bit its tensors."""
    torch.manual_seed(0)
    norm, write = FILES[kind]
    theirs, path, images = random_body(norm, backbone), tmp_path / "R-26.pkl", torch.randn(2, 3, 64, 96)
    path.write_bytes(pickle.dumps(write(theirs), protocol=2))
    ours, detector = Body(backbone, norm).eval(), build(replace(MINIATURE, backbone=backbone, norm=norm)).eval()
    for model in (ours, detector):
        assert load_weights(model, path) == {}
    taken = detector.backbone.body.state_dict()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(taken[name], tensor) or name.endswith("num_batches_tracked"), name
    with torch.no_grad():
        for mine, expected in zip(ours(images), theirs(images), strict=True):
            assert torch.equal(mine, expected) and mine.std() > 0
    assert pixel_statistics(path) == (DETECTRON.pixel_mean, DETECTRON.pixel_std)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """What is missing, left over, of another network, or not a tensor at all is named."""
    body, path = random_body("gn"), tmp_path / "R-26.pkl"
    whole = as_detectron(body, "gn")

    def refused(content: Any, words: str, norm: str = "gn", backbone: str = "resnet26") -> None:
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(InputError, match=re.escape(words)) as caught:
            load_weights(Body(backbone, norm), path)
        assert str(path) in str(caught.value)

    refused({n: a for n, a in whole.items() if n != "res3_1_branch2b_gn_s"}, "layer2.1.bn2.weight is missing")
    refused(whole | {"fpn_inner_res5_2_sum_w": ZERO}, "fpn_inner_res5_2_sum_w is left over")
    refused(whole, "layer1.2.conv1.weight is missing", backbone="resnet50")
    for norm in ("syncbn", "gn"):
        refused(as_detectron(random_body("frozen_bn"), "bn"), "only the norm frozen_bn can take it", norm=norm)
    refused(whole, "bn1.running_mean is missing", norm="frozen_bn")
    refused({"model": as_detectron2(body)}, "bn1.running_mean is missing", norm="frozen_bn")
    refused({"model": {"stem.conv1.weight": Command()}}, f"it asks for {os.system.__module__}.system")


def test_a_pickle_of_python_2(tmp_path: Path) -> None:
    """Detectron's files are of Python 2, whose strings and bytes are one kind: opcode U, a length and the bytes."""

    def string(content: bytes) -> bytes:
        return b"U" + bytes([len(content)]) + content

    array = np.arange(6, dtype="<f4").reshape(2, 3)
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b") + b"\x87R"
    kind = b"cnumpy\ndtype\n" + string(b"f4") + b"K\x00K\x01\x87R(K\x03" + string(b"<")
    kind += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    content = empty + b"(K\x01K\x02K\x03\x86" + kind + b"\x89" + string(array.tobytes()) + b"tb"
    (tmp_path / "R.pkl").write_bytes(b"\x80\x02}" + string(b"conv1_w") + content + b"s.")
    (read,) = read_weights(tmp_path / "R.pkl").items()
    assert read[0] == "conv1_w" and torch.equal(read[1], torch.arange(6.0).view(2, 3))


class Command:
    """A program in place of a tensor."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("exit 1",)


def typed(*words: object) -> str:
    """What a command prints that a user types."""
    done = launch(words)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def vgg_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of VGG-16, after two iterations, with fc6 and fc7 of 64 units to be fast."""
    folder = tmp_path_factory.mktemp("vgg")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pretraining, "VGG16", replace(VGG16, hidden=64))
        crops = write_crops(folder / "crops", number=96)
        return pretraining.pretrain(crops, folder, pretraining.Pretraining("vgg16", "none", 0.1, 4, side=32), workers=0)


def test_a_miniature_of_vgg_begins_from_our_weights(vgg_weights: Path, sample_data: Sample, tmp_path: Path) -> None:
    """The pre-trained arm's recipe as a user types it, with a file that our pre-training wrote."""
    words = ["section5.1/vgg16-pretrained-9x", "--scale", "0.005", "--workers", "0", "--device", "cpu"]
    shown = typed("rethink_train", *words, "--data", sample_data("coco_mini_by"), "--weights", vgg_weights,
                  "--out", tmp_path / "out")  # fmt: skip
    assert "with pre-training" in shown and "the paper: box 35.6" in shown
    config = json.loads((tmp_path / "out" / "9x" / "config.json").read_text())
    rules = config["detector"]["conventions"]
    assert (tuple(rules["pixel_mean"]), tuple(rules["pixel_std"])) == pixel_statistics(vgg_weights)


def test_both_arms_of_vgg_are_compared(vgg_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan of VGG-16 goes through the comparison as any other, fc6 and fc7 with it."""
    monkeypatch.setattr(pretraining, "VGG16", replace(VGG16, hidden=64))
    sets = read_splits(write_scenes(tmp_path / "scenes", train=8, val=2))
    small = {"hidden": 64, "anchor_scales": (2, 4), "pre_nms": (100, 100), "box_number": 16}
    plan = Plan(replace(VGG16, num_classes=8, **small), (2,), unit=1, batch=2, short=(96, 96), long=96, evaluations=1)
    results = compare(Experiment(plan, *sets, tmp_path / "out", str(vgg_weights), Execution(workers=0)))
    assert {run["arm"] for run in results["runs"]} == {"scratch", "pretrained"}
    assert next(iter(results["pretraining"].values()))["images"] == 8 and results["verdict"]["difference"] is not None
    model = build(plan.detector)
    load_weights(model, vgg_weights)
    with safe_open(vgg_weights, "pt") as file:
        for mine, name in (("backbone.body.features.0", "features.0"), ("box_head.fcs.2", "fcs.2")):
            assert torch.equal(model.get_parameter(f"{mine}.weight"), file.get_tensor(f"{name}.weight"))


@pytest.mark.slow
def test_vgg_is_pretrained_by_the_command(tmp_path: Path) -> None:
    """All of VGG-16, a few iterations of it, into the paper's detector: half a gigabyte."""
    words = ["--backbone", "vgg16", "--norm", "none", "--batch", "4", "--side", "32", "--epochs", "0.1"]
    crops = write_crops(tmp_path / "crops", number=96)
    shown = typed("rethink_pretrain", "--data", crops, "--out", tmp_path / "out", "--device", "cpu", *words)
    weights = tmp_path / "out" / "run" / "weights.safetensors"
    assert str(weights) in shown
    model = vgg16_faster_rcnn()
    assert load_weights(model, weights)["classes"] == 12
    with safe_open(weights, "pt") as file:
        assert torch.equal(model.box_head.get_parameter("fcs.0.weight"), file.get_tensor("fcs.0.weight"))


@pytest.mark.slow
def test_the_largest_model_makes_a_step_within_16_gb(sample_data: Sample) -> None:
    """X152 8x32d with cascade, two photographs of 320 x 480, weights, momentum and all: memory and time are printed."""
    train, _ = read_splits(sample_data("coco_mini_by"))
    fitting = [m for m in trainable(train) if resized_size(*train.sizes[m].tolist(), 320, 640) == (320, 480)]
    images, targets = batch_of(train, fitting[:2], short=320)
    assert [tuple(image.shape) for image in images] == [(3, 320, 480)] * 2
    torch.manual_seed(0)
    model = cascade_mask_rcnn()
    check_from_scratch(model)
    optimizer, seconds = torch.optim.SGD(model.parameters(), lr=0.0025, momentum=0.9), []
    for _ in range(2):  # the second with momentum in memory
        start = time.perf_counter()
        total = sum(model(images, targets, Draws((0, 1))).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        assert total.isfinite()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{millions:.1f} M parameters, peak {peak:.2f} GB, {seconds[-1]:.1f} s an iteration")
    assert peak < 16
