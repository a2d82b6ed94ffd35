"""Small results of model stitching with planted accuracies."""

from __future__ import annotations

from functools import cache

import numpy as np

from mixer_probe.concepts import Stitching
from mixer_probe.concepts.stitching import CONDITIONS
from mixer_probe.core.result import ImagesRecord, ModelRecord
from mixer_probe.models.layer import Layer

N = 160
MIXER = ModelRecord("zoo:a", "mixer", True, "file a.safetensors", "a" * 64, 10)
OTHER_SEED = ModelRecord("zoo:c", "mixer", True, "file c.safetensors", "c" * 64, 10)
VIT = ModelRecord("zoo:b", "vit", True, "file b.safetensors", "b" * 64, 12)
TRAIN = ImagesRecord("demo", "train", 400, 4, "d" * 64)
TEST = ImagesRecord("demo", "test", N, 4, "e" * 64)


def layers(prefix: str, count: int) -> tuple[Layer, ...]:
    return tuple(
        Layer(f"{prefix}.{k}", "block", (k + 1) / count, (4, 4), 8, 0, 16, "BNC", k)
        for k in range(count)
    )


def answers(accuracy: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Predicted classes [..., image] of given accuracies [...]."""
    wrong = (labels + rng.integers(1, 4, (*accuracy.shape, len(labels)))) % 4
    right = rng.random((*accuracy.shape, len(labels))) < accuracy[..., None]
    return np.where(right, labels, wrong).astype(np.int16)


def stitching(
    donor: ModelRecord,
    receiver: ModelRecord,
    sizes: tuple[int, int],
    best: float,
    fits: tuple[str, ...] = ("ridge",),
    own: float = 0.9,
) -> Stitching:
    """Accuracies of `best` at equal depths, less at others, and those of controls."""
    rng = np.random.default_rng(sizes)
    labels = (np.arange(N) % 4).astype(np.int16)
    of_donor, of_receiver = layers("blocks", sizes[0]), layers("blocks", sizes[1])
    away = np.subtract.outer(
        [layer.depth for layer in of_donor], [layer.depth for layer in of_receiver]
    )
    near = 0.25 + (best - 0.25) * np.exp(-3 * np.abs(away))
    factors = np.array([1, 0.1, 0.3, 1.05, 0.2])
    accuracy = 0.25 + (near - 0.25) * factors[:, None, None]
    accuracy = np.stack([np.minimum(accuracy + 0.05 * k, 0.95) for k in range(len(fits))])
    return Stitching(
        donor=donor,
        receiver=receiver,
        seed_model=OTHER_SEED,
        images_train=TRAIN,
        images_test=TEST,
        fits=fits,
        conditions=CONDITIONS,
        donor_layers=of_donor,
        receiver_layers=of_receiver,
        source_layers=np.array([[layer.name for layer in of_donor]] * len(CONDITIONS)),
        classes=("cat", "dog", "frog", "ship"),
        predicted=answers(accuracy, labels, rng),
        labels=labels,
        own=answers(np.array(own), labels, rng),
        r2=accuracy[0] / 2,
        l2=np.full(accuracy.shape[1:], 0.5),
        epochs=0 if fits == ("ridge",) else 3,
        seed=0,
    )


@cache
def _both() -> tuple[Stitching, Stitching]:
    both = ("ridge", "task")
    return stitching(VIT, MIXER, (2, 3), 0.75, both), stitching(MIXER, VIT, (3, 2), 0.5, both)


def stitchings() -> list[Stitching]:
    """Both directions of a pair of networks."""
    return list(_both())
