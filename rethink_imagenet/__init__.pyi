"""What scripts want, loaded when it is used."""

from .data.coco import read_coco as read_coco
from .data.datasets import Dataset as Dataset
from .data.scenes import write_crops as write_crops
from .data.scenes import write_scenes as write_scenes
from .data.splits import read_splits as read_splits
from .data.voc import read_voc as read_voc
from .detection.conventions import DETECTRON as DETECTRON
from .detection.conventions import DETECTRON2 as DETECTRON2
from .detection.conventions import TORCHVISION as TORCHVISION
from .detection.conventions import Conventions as Conventions
from .detection.detectors import DetectorConfig as DetectorConfig
from .detection.detectors import build as build
from .detection.detectors import cascade_mask_rcnn as cascade_mask_rcnn
from .detection.detectors import faster_rcnn as faster_rcnn
from .detection.detectors import keypoint_rcnn as keypoint_rcnn
from .detection.detectors import mask_rcnn as mask_rcnn
from .detection.detectors import vgg16_faster_rcnn as vgg16_faster_rcnn
from .detection.pooling import roi_align_pyramid as roi_align_pyramid
from .errors import InputError as InputError
from .evaluation.augmented_testing import AugmentedDetector as AugmentedDetector
from .evaluation.average_precision import evaluate_coco as evaluate_coco
from .evaluation.average_precision import evaluate_voc as evaluate_voc
from .evaluation.resampling import paired_bootstrap as paired_bootstrap
from .evaluation.resampling import verdict as verdict
from .study.plans import Execution as Execution
from .study.plans import Experiment as Experiment
from .study.plans import Plan as Plan
from .study.pretraining import load_weights as load_weights
from .study.pretraining import pretrain as pretrain
from .study.recipes import RECIPES as RECIPES
from .study.studies import load_detector as load_detector
from .study.verdicts import compare as compare
from .tools.conversion import load_published as load_published
from .training.loop import train as train
from .training.schedules import Family as Family
from .training.schedules import Schedule as Schedule

__version__: str
