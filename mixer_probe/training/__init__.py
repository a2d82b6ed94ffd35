"""Training of small networks: recipes, a trainer that resumes to the last bit, finished runs."""

from mixer_probe.training.arms import Arm, train_arms
from mixer_probe.training.augmentation import Augmentation
from mixer_probe.training.examples import TrainingImages, training_images
from mixer_probe.training.quantities import (
    RunQuantity,
    RunSimilarity,
    StudyAnswer,
    UnitHistory,
)
from mixer_probe.training.recipe import Recipe
from mixer_probe.training.runs import CurvePoint, Run
from mixer_probe.training.trainer import Trainer, TrainingError, train

__all__ = [
    "Arm",
    "Augmentation",
    "CurvePoint",
    "Recipe",
    "Run",
    "RunQuantity",
    "RunSimilarity",
    "StudyAnswer",
    "Trainer",
    "TrainingError",
    "TrainingImages",
    "UnitHistory",
    "train",
    "train_arms",
    "training_images",
]
