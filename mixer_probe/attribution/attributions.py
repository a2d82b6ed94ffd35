"""`attribute`: which pixels contribute to a class, by any method of the registry, image by image in batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mixer_probe.attribution.baselines import make_baseline
from mixer_probe.attribution.maps import pool
from mixer_probe.attribution.methods import METHODS, Explained, Method, Run, find_method, make_run
from mixer_probe.attribution.network import Target, Targets, chosen, explaining, logits_of, patch_grid, target_logits
from mixer_probe.attribution.path import relative_gap
from mixer_probe.capture import ImageSource, as_source
from mixer_probe.capture.stream import transform_of
from mixer_probe.core.errors import (
    EmptyAttributionWarning,
    ImagesError,
    ImagesWarning,
    IncompleteAttributionWarning,
    MeasureError,
)
from mixer_probe.core.progress import task
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.switches import plain_modes, seeded
from mixer_probe.core.validate import checked
from mixer_probe.models.classes import labels_as_outputs, outputs_of
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model


@dataclass(frozen=True)
class Attribution(Result):
    """Attribution of one method for every image: `maps` [image, H, W] in float32 at the network's input resolution, one number
    a pixel for all its colours together (`text` says how they were joined).

    Where `signed`, negative values speak against the class. `native` [image, rows, columns] are the maps on the method's own
    grid before they were enlarged (Grad-CAM, attention), None where there are none. `logit` is the target's logit,
    `logit_difference` that less its logit for the `baseline`; `convergence_delta` is the sum of the map less that difference,
    NaN for methods that promise no such sum; `steps` counts integration steps, 0 without integration, and `change` is the
    share of its magnitudes by which more steps may move the map, NaN without. `grid` are the patches that the network sees, to
    pool maps by. `targets`, `predicted` and `labels` [image] are outputs of the network, -1 in `labels` where no output is the
    image's class; names are empty where the outputs have none that is known. `crop_pct` and `crop_mode` say which part of the
    image entered."""

    title: ClassVar[str] = "Attribution"

    model: ModelRecord
    images: ImagesRecord
    method: str
    text: str
    signed: bool
    layer: Layer | None
    baseline: str
    baseline_name: str
    settings: Mapping[str, Any]
    ids: tuple[str, ...]
    targets: np.ndarray
    target_names: tuple[str, ...]
    predicted: np.ndarray
    predicted_names: tuple[str, ...]
    labels: np.ndarray
    grid: tuple[int, int]
    crop_pct: float
    crop_mode: str
    maps: np.ndarray
    logit: np.ndarray
    logit_difference: np.ndarray
    convergence_delta: np.ndarray
    steps: np.ndarray
    change: np.ndarray
    native: np.ndarray | None = None
    baseline_image: np.ndarray | None = None
    seed: int = 0

    @property
    def relative_delta(self) -> np.ndarray:
        """|convergence delta| ÷ |logit difference| [image]."""
        with np.errstate(divide="ignore", invalid="ignore"):
            delta: np.ndarray = np.abs(self.convergence_delta) / np.abs(self.logit_difference)
        return delta

    def pooled(self, grid: tuple[int, int] | None = None) -> np.ndarray:
        """Sums of the maps over the patches of a grid (None for the network's own): [image, rows, columns]."""
        return pool(self.maps, tuple(grid or self.grid))  # type: ignore[arg-type]

    def of(self, source: ImageSource) -> Attribution:
        """The maps of some of these images, which `source` holds. Raises MeasureError for an image that is not among them."""
        places = {name: i for i, name in enumerate(self.ids)}
        if not set(source.ids) <= set(places):
            raise MeasureError(
                f"{len(set(source.ids) - set(places))} of the {len(source)} images are not among the images of the maps"
            )
        rows = [places[name] for name in source.ids]
        arrays = ("targets", "predicted", "labels", "maps", "logit", "logit_difference", "convergence_delta", "steps", "change")
        return replace(
            self,
            images=source.record,
            ids=tuple(source.ids),
            native=None if self.native is None else self.native[rows],
            target_names=tuple(self.target_names[i] for i in rows) if self.target_names else (),
            predicted_names=tuple(self.predicted_names[i] for i in rows) if self.predicted_names else (),
            **{name: getattr(self, name)[rows] for name in arrays},
        )

    def to_frame(self) -> pd.DataFrame:
        """One row an image."""
        names = self.target_names or ("",) * len(self.ids)
        return pd.DataFrame(
            {
                "model": self.model.name,
                "method": self.method,
                "layer": self.layer.name if self.layer else "",
                "baseline": self.baseline,
                "image": list(self.ids),
                "target": self.targets,
                "target_name": list(names),
                "predicted": self.predicted,
                "logit": self.logit,
                "logit_difference": self.logit_difference,
                "sum": self.maps.sum((1, 2), dtype=np.float64),
                "convergence_delta": self.convergence_delta,
                "relative_delta": self.relative_delta,
                "steps": self.steps,
                "change": self.change,
            }
        )


@checked(MeasureError)
def attribute(
    model: Model,
    images: ImageSource | Tensor,
    method: str = "integrated_gradients",
    *,
    target: Target = None,
    layer: str | None = None,
    baseline: str | Tensor = "grey",
    batch_size: int = 16,
    seed: int = 0,
    **options: Any,
) -> Attribution:
    """Which pixels move the logit of a class, for every image.

    `method` is one of `attribution.METHODS`; `options` are that method's own (n_steps, max_steps, tolerance and change of
    integrated gradients; samples and noise, as a share of the pixel range, of smoothgrad; window and stride in pixels of
    occlusion, by default a patch of the network; relu of Grad-CAM). `target` is a class index, one an image, "labels", or None
    for the predicted class. `layer` is for Grad-CAM: by default the last block whose positions the network reads. `baseline` is
    "grey" (pixel value 0.5, the same for every network), "black", "mean" (0 after normalisation), "blur" or a normalised image.
    At most `batch_size` images are in one pass.

    Integrated gradients double their steps until the map sums to the difference of the logits within `tolerance`, and until
    doubling moves it by no more than a share `change` of its magnitudes, image by image: the second does not follow from the
    first. Where `max_steps` is too few IncompleteAttributionWarning says so. EmptyAttributionWarning names maps that are zero
    everywhere. The network's training flags, requires_grad and fused attention are as before, whatever happens.

    Raises MeasureError for an unknown method or option, a network or layer that the method does not fit (with what works
    instead), a class that does not exist, no target on a network without head, and a network whose gradients are all zero (an
    untrained timm Mixer, whose head is zero); LayerError and ImagesError as `extract` does."""
    source = as_source(images)
    chosen_method = find_method(method)
    targets = Targets(model, source, target)
    run = make_run(chosen_method, model, layer, make_baseline(baseline, model.input), batch_size, options)
    pieces = list(_pieces(chosen_method, run, source, targets, seed))
    result = _joined(chosen_method, run, source, pieces, seed)
    _judge(chosen_method, run, result)
    return result


@dataclass(frozen=True)
class _Piece:
    maps: np.ndarray
    native: np.ndarray | None
    steps: np.ndarray
    change: np.ndarray
    targets: np.ndarray
    predicted: np.ndarray
    logit: np.ndarray
    baseline_logit: np.ndarray


def batches_of(model: Model, source: ImageSource, batch_size: int, title: str) -> Iterator[tuple[int, Tensor]]:
    """(index of the first image, images [B, 3, H, W] on the model's device) with progress under `title`."""
    start = 0
    with task(f"{model.name}: {title}", len(source)) as advance:
        for batch in source.batches(transform_of(model), batch_size):
            with plain_modes():
                # A tensor made in inference mode takes no gradients; a copy does.
                x = batch.clone() if batch.is_inference() else batch
                x = x.to(model.device, model.dtype)
            yield start, x
            start += len(batch)
            advance(len(batch))


def _pieces(method: Method, run: Run, source: ImageSource, targets: Targets, seed: int) -> Iterator[_Piece]:
    for start, x in batches_of(run.model, source, run.chunk, method.name):
        with explaining(run.model):
            piece = _piece(method, run, x, targets, start, seed)
        yield piece


def _piece(method: Method, run: Run, x: Tensor, targets: Targets, start: int, seed: int) -> _Piece:
    with torch.no_grad():
        logits = logits_of(run.model, x)
    wanted = targets.of(logits, start)
    if start == 0:
        check_gradient(run.model, x, wanted)
    with seeded(seed + start, x.device):
        found = method.explain(run, x, wanted)
    steps = torch.zeros(len(x), dtype=torch.int64) if found.steps is None else found.steps
    change = torch.full((len(x),), torch.nan, dtype=torch.float64) if found.change is None else found.change
    return _Piece(
        maps=_array(found.maps.float()),
        native=None if found.native is None else _array(found.native.float()),
        steps=_array(steps),
        change=_array(change),
        targets=_array(wanted),
        predicted=_array(logits.argmax(1)),
        logit=_array(chosen(logits, wanted).double()),
        baseline_logit=_array(target_logits(run.model, run.baseline.of(x), wanted, run.chunk)),
    )


def check_gradient(model: Model, x: Tensor, targets: Tensor) -> None:
    """Raise MeasureError if no pixel of any image moves the logit of its target."""
    x = x.detach().clone().requires_grad_()
    logits = chosen(logits_of(model, x), targets)
    gradient = torch.autograd.grad(logits.sum(), x)[0] if logits.requires_grad else torch.zeros_like(x)
    if not bool(gradient.any()):
        heads = [model.module.get_submodule(layer.module) for layer in model.layers if layer.kind == "head"]
        shut = heads and not any(bool(p.any()) for head in heads for p in head.parameters() if p.ndim > 1)
        why = ": its head is zero, as timm's untrained networks have it" if shut else ""
        what = (
            "load trained weights, or re-initialise the head's weights at random"
            if shut
            else "load other weights or other images"
        )
        raise MeasureError(f"every gradient of {model.name}'s logits is 0, so no pixel has an attribution{why}; {what}")


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().cpu().numpy()
    return array


def _joined(method: Method, run: Run, source: ImageSource, pieces: list[_Piece], seed: int) -> Attribution:
    def all_of(name: str) -> np.ndarray:
        return np.concatenate([getattr(piece, name) for piece in pieces])

    maps, logit, targets = all_of("maps"), all_of("logit"), all_of("targets")
    difference, total = logit - all_of("baseline_logit"), maps.sum((1, 2), dtype=np.float64)
    predicted, (labels, names) = all_of("predicted"), _classes(run.model, source)
    return Attribution(
        model=run.model.record,
        images=source.record,
        method=method.name,
        text=f"{method.text} ({method.source})",
        signed=method.signed or run.options.get("relu") is False,
        layer=run.layer,
        baseline=run.baseline.text if method.baseline else "none",
        baseline_name=run.baseline.name,
        settings=dict(run.options),
        ids=tuple(source.ids),
        targets=targets,
        target_names=tuple(names[k] for k in targets) if names else (),
        predicted=predicted,
        predicted_names=tuple(names[k] for k in predicted) if names else (),
        labels=labels,
        grid=patch_grid(run.model),
        crop_pct=run.model.input.crop_pct,
        crop_mode=run.model.input.crop_mode,
        maps=maps,
        logit=logit,
        logit_difference=difference,
        convergence_delta=total - difference if method.complete else np.full(len(maps), np.nan),
        steps=all_of("steps"),
        change=all_of("change"),
        native=None if pieces[0].native is None else all_of("native"),
        baseline_image=None if run.baseline.image is None else _array(run.baseline.image),
        seed=seed,
    )


def _classes(model: Model, source: ImageSource) -> tuple[np.ndarray, tuple[str, ...]]:
    """The output [image] that each label means, -1 where none does, and what the outputs are called, empty where nobody knows."""
    unknown = np.full(len(source), -1, dtype=np.int64)
    try:
        names = outputs_of(model).names
    except MeasureError:
        # A network without a classifier, an output of which is explained.
        return unknown, ()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImagesWarning)
            return labels_as_outputs(model, source), names
    except (ImagesError, MeasureError):
        return unknown, names


def _judge(method: Method, run: Run, result: Attribution) -> None:
    n = len(result.ids)
    gap, difference = (torch.from_numpy(a) for a in (result.convergence_delta, result.logit_difference))
    off = (relative_gap(gap, difference) > run.options["tolerance"]).sum().item() if method.complete else 0
    if off:
        advice = (
            "more max_steps, or another baseline where the logit jumps beside this one"
            if method.name == "integrated_gradients"
            else "'integrated_gradients'"
        )
        warnings.warn(
            f"{method.name} of {result.model.name}: {off} of {n} maps deviate from the logit difference by more than "
            f"{run.options['tolerance']:.0%}, at most by {np.nanmax(result.relative_delta):.1%}; use {advice}",
            IncompleteAttributionWarning,
            stacklevel=4,
        )
    empty = int((np.abs(result.maps).max((1, 2)) == 0).sum())
    if empty:
        warnings.warn(
            f"{method.name} of {result.model.name}: {empty} of {n} maps are zero everywhere and rank no pixel above another",
            EmptyAttributionWarning,
            stacklevel=4,
        )


@checked(MeasureError)
def explainer(
    model: Model,
    method: str,
    *,
    layer: str | None = None,
    baseline: str | Tensor = "grey",
    batch_size: int = 16,
    seed: int = 0,
    **options: Any,
) -> Callable[[Tensor, Tensor], Explained]:
    """The method as a function of (images [B, 3, H, W], targets [B]), for measures that call it again and again.

    Call it inside `explaining(model)`. Raises as `attribute` does."""
    found = find_method(method)
    run = make_run(found, model, layer, make_baseline(baseline, model.input), batch_size, options)

    def explain(x: Tensor, targets: Tensor) -> Explained:
        with seeded(seed, x.device):
            return found.explain(run, x, targets)

    return explain


__all__ = ["METHODS", "Attribution", "attribute", "explainer"]
