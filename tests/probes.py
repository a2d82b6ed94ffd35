"""Results of probes with numbers of one's own choice, for the tests of figures and reports: no
network is run."""

from __future__ import annotations

from typing import Any

import numpy as np

from mixer_probe.core.result import ImagesRecord, ModelRecord
from mixer_probe.models import Layer
from mixer_probe.probing import (
    AttentiveResult,
    Calibration,
    ConfusionMatrix,
    ControlCode,
    ControlTask,
    FewShotResult,
    OnlineCode,
    PatchPosition,
    PositionProbe,
    ProbeResult,
    RandomLabels,
    TargetProbe,
    wilson_interval,
)

CLASSES = ("cat", "dog", "ship", "truck")
N = 40
IMAGES = ImagesRecord("pets", "train", N, 4, "0"), ImagesRecord("pets", "test", N, 4, "1")


def record(name: str, trained: bool = True, family: str = "mixer") -> ModelRecord:
    return ModelRecord(name, family, trained and family != "pixels", "", "0", 1)


def layers_of(count: int, grid: tuple[int, int] | None = (4, 4)) -> tuple[Layer, ...]:
    size = grid[0] * grid[1] if grid else 0
    return tuple(Layer(f"l{i}", "block", (i + 1) / count, grid, 8, 0, size) for i in range(count))


def rising(count: int, low: float, high: float, undefined: bool = False) -> np.ndarray:
    values = np.linspace(low, high, count)
    if undefined:
        values[0] = np.nan
    return values


def twin_of(name: str, trained: bool, family: str, make: Any, **options: Any) -> Any:
    known = not trained or family == "pixels" or name.endswith("?untrained")
    return None if known else make(f"{name}?untrained", trained=False, **options)


def common(name: str, trained: bool, family: str, layers: tuple[Layer, ...]) -> dict[str, Any]:
    return {
        "model": record(name, trained, family),
        "images_train": IMAGES[0],
        "images_test": IMAGES[1],
        "layers": layers,
    }


def accuracy(
    name: str,
    *,
    trained: bool = True,
    family: str = "mixer",
    layers: int = 3,
    undefined: bool = False,
) -> ProbeResult:
    """The first 10, 20 and 30 of 40 test images are right; of the untrained baseline, the first 10,
    12 and 14."""
    right = (
        np.linspace(10, 30 if trained and family != "pixels" else 14, layers).round().astype(int)
    )
    labels = np.arange(N) % 4
    predicted = np.stack([np.where(np.arange(N) < r, labels, (labels + 1) % 4) for r in right])
    fraction = right / N
    low, high = wilson_interval(right, N)
    if undefined:
        fraction[0] = low[0] = high[0] = np.nan
        predicted[0] = -1
    path = fraction[:, None] * np.array([0.9, 1.0, 0.8])
    scores = {"accuracy": fraction, "low": low, "high": high}
    return ProbeResult(
        **common(name, trained, family, layers_of(layers)),
        method="ridge",
        estimator="ridge",
        path_name="l2",
        path_values=np.array([0.1, 1.0, 10.0]),
        path_left_out=0.95 * path,
        path_test=path,
        chosen=np.where(np.isnan(fraction), np.nan, 1.0),
        **scores,
        **{f"balanced_{key}": value for key, value in scores.items()},
        chance=0.25,
        n_train=N,
        n_test=N,
        classes=4,
        p=(8,) * layers,
        predicted=predicted,
        labels=labels,
        class_labels=np.arange(4),
        class_names=CLASSES,
        reduce="mean",
        untrained=twin_of(name, trained, family, accuracy, layers=layers, undefined=undefined),
    )


def few_shot(
    name: str,
    *,
    trained: bool = True,
    family: str = "mixer",
    layers: int = 3,
    undefined: bool = False,
    shots: tuple[int, ...] = (1, 5, 10, 25),
) -> FewShotResult:
    mean = rising(layers, 0.3, 0.6, undefined)[:, None] + 0.05 * np.arange(len(shots))
    draws = mean[:, :, None] + np.array([-0.01, 0.0, 0.01])
    bounds = dict.fromkeys(("low", "images_low", "seeds_low"), mean - 0.1) | dict.fromkeys(
        ("high", "images_high", "seeds_high"), mean + 0.1
    )
    return FewShotResult(
        **common(name, trained, family, layers_of(layers)),
        preset="big_vision",
        estimator="big_vision's fewshot_lsr",
        shots=shots,
        seeds=3,
        accuracy=draws,
        chosen=np.ones_like(draws),
        **bounds,
        chance=0.25,
        n_test=N,
        classes=4,
        reduce="mean",
        untrained=twin_of(
            name, trained, family, few_shot, layers=layers, undefined=undefined, shots=shots
        ),
    )


def controlled(
    name: str,
    *,
    trained: bool = True,
    family: str = "mixer",
    layers: int = 3,
    undefined: bool = False,
) -> ControlTask:
    fraction = rising(layers, 0.7, 0.95 if trained else 0.75, undefined)
    controls = fraction[:, None] - np.array([0.1, 0.2])
    selectivity = fraction - controls.mean(axis=1)
    relative = selectivity / (1 - controls.mean(axis=1))
    return ControlTask(
        **common(name, trained, family, layers_of(layers)),
        class_names=CLASSES,
        groups=("animal", "vehicle"),
        semantic=np.array([0, 0, 1, 1]),
        controls=np.array([[0, 1, 0, 1], [0, 1, 1, 0]]),
        accuracy=fraction,
        low=fraction - 0.05,
        high=fraction + 0.04,
        balanced_accuracy=fraction,
        control_accuracy=controls,
        control_balanced_accuracy=controls,
        selectivity=selectivity,
        selectivity_low=selectivity - 0.06,
        selectivity_high=selectivity + 0.06,
        relative_selectivity=relative,
        relative_low=relative - 0.1,
        relative_high=relative + 0.1,
        chance=np.full(3, 0.5),
        l2=np.ones((layers, 3)),
        n_train=N,
        n_test=N,
        seed=0,
        exhaustive=False,
        reduce="mean",
        untrained=twin_of(name, trained, family, controlled, layers=layers, undefined=undefined),
    )


def coded(
    name: str,
    *,
    trained: bool = True,
    family: str = "mixer",
    layers: int = 3,
    undefined: bool = False,
) -> OnlineCode:
    bits = 80 / rising(layers, 1.0, 4.0 if trained else 1.1, undefined)
    blocks = np.repeat(bits[:, None, None] / 2, 3, axis=1).repeat(2, axis=2)
    return OnlineCode(
        model=record(name, trained, family),
        images=IMAGES[0],
        layers=layers_of(layers),
        bits=np.repeat(bits[:, None], 3, axis=1),
        compression=80 / bits,
        low=80 / bits - 0.2,
        high=80 / bits + 0.3,
        uniform=80.0,
        block_bits=blocks,
        ends=(20, 40),
        l2=np.ones((layers, 3, 1)),
        n=N,
        classes=4,
        groups=(),
        seed=0,
        reduce="mean",
    )


def control_coded(name: str, *, layers: int = 3) -> ControlCode:
    bits = 40 / rising(layers, 1.0, 4.0)
    return ControlCode(
        model=record(name),
        images=IMAGES[0],
        layers=layers_of(layers),
        groups=("animal", "vehicle"),
        semantic=np.array([0, 0, 1, 1]),
        controls=np.array([[0, 1, 0, 1], [0, 1, 1, 0]]),
        bits=bits[:, None],
        control_bits=bits[:, None, None] + np.array([4.0, 8.0])[:, None],
        uniform=40.0,
        n=N,
        seed=0,
        reduce="mean",
    )


def randomised(name: str, *, layers: int = 3) -> RandomLabels:
    found = np.full((layers, 5), 0.25) + 0.01 * np.arange(layers)[:, None]
    return RandomLabels(
        **common(name, True, "mixer", layers_of(layers)),
        accuracy=found,
        low=found[:, 0] - 0.06,
        high=found[:, 0] + 0.06,
        expected=np.full(layers, 0.25),
        memorised=np.full((layers, 5), 0.8),
        n_train=N,
        n_test=N,
        classes=4,
        seed=0,
        reduce="mean",
    )


def placed(
    name: str, *, trained: bool = True, layers: int = 3, undefined: bool = False
) -> PositionProbe:
    maps = [np.linspace(0.2, 0.5 + 0.1 * i, 16).reshape(4, 4) for i in range(layers)]
    pooled = rising(layers, 0.5, 0.8, undefined)
    if undefined:
        maps[0][:] = np.nan
    return PositionProbe(
        **common(name, trained, "mixer", layers_of(layers)),
        l2=np.ones(layers),
        accuracy=tuple(maps),
        low=tuple(m - 0.1 for m in maps),
        high=tuple(m + 0.1 for m in maps),
        left_out=tuple(maps),
        prefix=(np.empty(0),) * layers,
        prefix_low=(np.empty(0),) * layers,
        prefix_high=(np.empty(0),) * layers,
        pooled=pooled,
        pooled_low=pooled - 0.1,
        pooled_high=pooled + 0.1,
        chance=0.25,
        n_train=N,
        n_test=N,
        classes=4,
        p=(8,) * layers,
    )


def attentive(name: str, *, layers: int = 3, undefined: bool = False) -> AttentiveResult:
    weights = np.arange(1.0, 17.0).reshape(4, 4) / np.arange(1.0, 17.0).sum()
    maps = [weights.copy() for _ in range(layers)]
    fraction = rising(layers, 0.5, 0.8, undefined)
    if undefined:
        maps[0][:] = np.nan
    return AttentiveResult(
        **common(name, True, "mixer", layers_of(layers)),
        accuracy=fraction,
        low=fraction - 0.1,
        high=fraction + 0.1,
        attention=tuple(maps),
        chance=0.25,
        n_train=N,
        n_test=N,
        classes=4,
        p=(8,) * layers,
        position_bias=True,
        epochs=40,
        seed=0,
    )


def patch_placed(
    name: str, *, trained: bool = True, layers: int = 3, undefined: bool = False
) -> PatchPosition:
    error, r2 = (
        rising(layers, 12.0, 2.0 if trained else 8.0, undefined),
        rising(layers, 0.1, 0.9, undefined),
    )
    fraction = rising(layers, 0.1, 0.8, undefined)
    return PatchPosition(
        **common(name, trained, "mixer", layers_of(layers)),
        grids=((4, 4),) * layers,
        r2=r2,
        low_r2=r2 - 0.05,
        high_r2=r2 + 0.05,
        row_r2=r2,
        column_r2=r2,
        accuracy=fraction,
        low_accuracy=fraction - 0.05,
        high_accuracy=fraction + 0.05,
        chance=np.full(layers, 1 / 16),
        distance_px=error,
        low_distance_px=error - 0.5,
        high_distance_px=error + 0.5,
        chance_distance_px=np.full(layers, 16.1),
        cells=(np.full((4, 4), 0.5),) * layers,
        ridge_regression=np.ones(layers),
        ridge_cells=np.ones(layers),
        n_train=N,
        n_validation=8,
        n_test=N,
        untrained=twin_of(name, trained, "mixer", patch_placed, layers=layers, undefined=undefined),
    )


def targeted(
    name: str,
    *,
    trained: bool = True,
    family: str = "mixer",
    layers: int = 3,
    undefined: bool = False,
) -> TargetProbe:
    score = np.stack([rising(layers, 0.9, end, undefined) for end in (0.4, 0.2, 0.95)], axis=1)
    return TargetProbe(
        **common(name, trained, family, layers_of(layers)),
        targets=("brightness", "hue", "place"),
        kinds=("regression", "angle", "classification"),
        metrics=("R2", "R2", "accuracy"),
        units=("", "degrees", ""),
        meanings=("mean luma", "direction of the mean chroma", "column of places.csv"),
        score=score,
        low=score - 0.05,
        high=score + 0.04,
        chance=np.array([0.0, 0.0, 0.5]),
        left_out=score,
        error=np.full((layers, 3), 0.1),
        l2=np.ones((layers, 3)),
        n_train=np.full(3, N),
        n_test=np.full(3, N),
        reduce="mean",
        untrained=twin_of(name, trained, family, targeted, layers=layers, undefined=undefined),
    )


def confused(name: str) -> ConfusionMatrix:
    """Cats are taken for dogs in 6 of 10 images, trucks never for anything."""
    counts = np.stack([np.array([[4, 6, 0, 0], [3, 7, 0, 0], [0, 1, 9, 0], [0, 0, 0, 10]])] * 2)
    return ConfusionMatrix(
        **common(name, True, "mixer", layers_of(2)),
        class_names=CLASSES,
        counts=counts,
        method="ridge",
    )


def calibrated(name: str) -> Calibration:
    """Three bins; right half as often as it says."""
    counts, confidence = np.array([[0, 10, 30]] * 2), np.array([[np.nan, 0.5, 0.9]] * 2)
    right = confidence / 2
    return Calibration(
        **common(name, True, "mixer", layers_of(2)),
        ece=np.full(2, 0.4),
        ece_null=np.full(2, 0.05),
        ece_null_high=np.full(2, 0.1),
        brier=np.full(2, 0.6),
        nll=np.full(2, 1.1),
        mean_confidence=np.full(2, 0.8),
        mean_accuracy=np.full(2, 0.4),
        edges=np.array([0, 1 / 3, 2 / 3, 1]),
        counts=counts,
        confidence=confidence,
        accuracy=right,
        low=right - 0.1,
        high=right + 0.1,
        temperature=np.ones(2),
        n_test=N,
        resamples=200,
        seed=0,
        source="softmax of ridge scores",
    )
