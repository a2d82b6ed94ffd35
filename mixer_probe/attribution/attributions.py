"""`attribute`: attribution of a class to pixels, by any method of the registry, in batches of
images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mixer_probe.attribution.baselines import make_baseline
from mixer_probe.attribution.maps import pool
from mixer_probe.attribution.methods import Explained, Method, Run, find_method, make_run
from mixer_probe.attribution.network import (
    Target,
    Targets,
    attribution_mode,
    gather_target_logits,
    logits_of,
    patch_grid,
    target_logits,
)
from mixer_probe.attribution.path import relative_gap
from mixer_probe.capture import ImageSource, as_source
from mixer_probe.capture.stream import transform_of
from mixer_probe.core.dimensions import select
from mixer_probe.core.errors import (
    EmptyAttributionWarning,
    ImagesError,
    ImagesWarning,
    IncompleteAttributionWarning,
    MeasureError,
)
from mixer_probe.core.frame import Frame
from mixer_probe.core.progress import task
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.switches import plain_modes, seeded
from mixer_probe.core.validate import checked
from mixer_probe.models.classes import labels_as_outputs, outputs_of
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model


@dataclass(frozen=True)
class Attribution(Result):
    """Attribution of one method for every image: `maps` [image, H, W] in float32 at the network's
    input resolution, one value per pixel for all its colours together (`text` says how they were
    combined).

    Where `signed`, negative values are evidence against the class. `native` [image, rows, columns]
    are the maps on the method's own grid before upsampling (Grad-CAM, attention), None where there
    are none. `logit` is the target's logit, `logit_difference` that minus its logit for the
    `baseline`; `convergence_delta` is the sum of the map minus that difference, NaN for methods
    without completeness; `steps` counts integration steps, 0 without integration, and `change` is
    the fraction of its magnitudes by which more steps may change the map, NaN without. `grid` is
    the patch grid of the network. `targets`, `predicted` and `labels` [image] are outputs of the
    network, -1 in `labels` where no output is the image's class; names are empty where those of the
    outputs are unknown. `crop_pct` and `crop_mode` give the part of the image that entered the
    network."""

    title: ClassVar[str] = "Attribution"
    frame = Frame(
        "image",
        """model=model.name method layer=layer.name baseline image=ids target=targets
        target_name=target_names predicted logit logit_difference sum=maps.sum convergence_delta
        relative_delta steps change""",
    )

    model: ModelRecord
    images: ImagesRecord
    method: str
    text: str
    signed: bool
    layer: Layer | None
    baseline: str
    baseline_name: str
    settings: Mapping[str, Any]
    ids: Annotated[tuple[str, ...], "image"]
    targets: Annotated[np.ndarray, "image"]
    target_names: Annotated[tuple[str, ...], "image?"]
    predicted: Annotated[np.ndarray, "image"]
    predicted_names: Annotated[tuple[str, ...], "image?"]
    labels: Annotated[np.ndarray, "image"]
    grid: tuple[int, int]
    crop_pct: float
    crop_mode: str
    maps: Annotated[np.ndarray, "image", "height", "width"]
    logit: Annotated[np.ndarray, "image"]
    logit_difference: Annotated[np.ndarray, "image"]
    convergence_delta: Annotated[np.ndarray, "image"]
    steps: Annotated[np.ndarray, "image"]
    change: Annotated[np.ndarray, "image"]
    native: Annotated[np.ndarray | None, "image", "row", "column"] = None
    baseline_image: Annotated[np.ndarray | None, 3, "height", "width"] = None
    seed: int = 0

    @property
    def relative_delta(self) -> Annotated[np.ndarray, "image"]:
        """|convergence delta| ÷ |logit difference| [image]."""
        with np.errstate(divide="ignore", invalid="ignore"):
            delta: np.ndarray = np.abs(self.convergence_delta) / np.abs(self.logit_difference)
        return delta

    @property
    def empty(self) -> np.ndarray:
        """Which maps are zero everywhere, and so rank no pixel above another [image]."""
        empty: np.ndarray = (self.maps == 0).all((1, 2))
        return empty

    def pooled(self, grid: tuple[int, int] | None = None) -> np.ndarray:
        """Sums of the maps over the patches of a grid (None for the network's own): [image, rows,
        columns]."""
        return pool(self.maps, grid or self.grid)

    def of(self, source: ImageSource) -> Attribution:
        """The attribution of the images of `source` alone. Raises MeasureError for an image that is
        not among these."""
        places = {name: i for i, name in enumerate(self.ids)}
        if not set(source.ids) <= set(places):
            raise MeasureError(
                f"{len(set(source.ids) - set(places))} of the {len(source)} images are not among "
                "the images of the maps"
            )
        rows = [places[name] for name in source.ids]
        return replace(select(self, "image", rows), images=source.record)


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
    """Attribution of the target's logit to pixels, for every image.

    `method` is one of `attribution.METHODS`; `options` are that method's own (n_steps, max_steps,
    tolerance and change of integrated gradients; samples and noise, as a fraction of the pixel
    range, of smoothgrad; window and stride in pixels of occlusion, by default a patch of the
    network; relu of Grad-CAM). `target` is a class index, one per image, "labels", or None for the
    predicted class. `layer` is for Grad-CAM: by default the last block whose positions the network
    reads. `baseline` is "grey" (pixel value 0.5, the same for every network), "black", "mean" (0
    after normalisation), "blur" or a normalised image. At most `batch_size` images are in one pass.

    Integrated gradients double their steps until the map sums to the difference of the logits
    within `tolerance`, and until doubling changes it by no more than a fraction `change` of its
    magnitudes, image by image: the second does not follow from the first.
    IncompleteAttributionWarning reports where `max_steps` is too few, EmptyAttributionWarning maps
    that are zero everywhere. The network's training flags, requires_grad and fused attention are
    restored in any case.

    Raises MeasureError for an unknown method or option, a network or layer that the method does not
    fit (with what works instead), a class that does not exist, no target on a network without head,
    and a network whose gradients are all zero (an untrained timm Mixer, whose head is zero);
    LayerError and ImagesError as `extract` does."""
    source = as_source(images)
    found = find_method(method)
    targets = Targets(model, source, target)
    run = make_run(found, model, layer, make_baseline(baseline, model.input), batch_size, options)
    batches = []
    for start, x in batches_of(model, source, batch_size, found.name):
        with attribution_mode(model):
            logits, wanted = logits_and_targets(model, x, targets, start)
            with seeded(seed + start, x.device):
                maps = found.explain(run, x, wanted)
            steps = torch.zeros(len(x), dtype=torch.int64) if maps.steps is None else maps.steps
            change = (
                torch.full((len(x),), torch.nan, dtype=torch.float64)
                if maps.change is None
                else maps.change
            )
            batch = {
                "maps": maps.maps.float(),
                "native": None if maps.native is None else maps.native.float(),
                "steps": steps,
                "change": change,
                "targets": wanted,
                "predicted": logits.argmax(1),
                "logit": gather_target_logits(logits, wanted).double(),
                "baseline_logit": target_logits(model, run.baseline.of(x), wanted, batch_size),
            }
            batches.append(
                {name: one.detach().cpu().numpy() for name, one in batch.items() if one is not None}
            )
    result = _collected(found, run, source, batches, seed)
    n, empty = len(result.ids), int(result.empty.sum())
    off = 0
    if found.complete:
        gap, difference = (
            torch.from_numpy(a) for a in (result.convergence_delta, result.logit_difference)
        )
        off = int((relative_gap(gap, difference) > run.options["tolerance"]).sum())
    if off:
        advice = (
            "more max_steps, or another baseline where the logit jumps beside this one"
            if method == "integrated_gradients"
            else "'integrated_gradients'"
        )
        warnings.warn(
            f"{method} of {model.name}: {off} of {n} maps deviate from the logit difference by "
            f"more than {run.options['tolerance']:.0%}, at most by "
            f"{np.nanmax(result.relative_delta):.1%}; use {advice}",
            IncompleteAttributionWarning,
            stacklevel=3,
        )
    if empty:
        warnings.warn(
            f"{method} of {model.name}: {empty} of {n} maps are zero everywhere and rank no pixel "
            "above another",
            EmptyAttributionWarning,
            stacklevel=3,
        )
    return result


def _collected(
    method: Method,
    run: Run,
    source: ImageSource,
    batches: Sequence[Mapping[str, np.ndarray]],
    seed: int,
) -> Attribution:
    """The attribution of all images, from the arrays of batches, with the names of classes as far
    as they are known."""
    model = run.model
    found = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    baseline_logit = found.pop("baseline_logit")
    difference, total = found["logit"] - baseline_logit, found["maps"].sum((1, 2), dtype=np.float64)
    labels, names = np.full(len(source), -1, dtype=np.int64), tuple[str, ...]()
    # Neither a network without a classifier nor images of other classes prevent an attribution.
    with suppress(ImagesError, MeasureError), warnings.catch_warnings():
        warnings.simplefilter("ignore", ImagesWarning)
        names = outputs_of(model).names
        labels = labels_as_outputs(model, source)
    return Attribution(
        model=model.record,
        images=source.record,
        method=method.name,
        text=f"{method.text} ({method.source})",
        signed=method.signed or run.options.get("relu") is False,
        layer=run.layer,
        baseline=run.baseline.text if method.baseline else "none",
        baseline_name=run.baseline.name,
        settings=dict(run.options),
        ids=tuple(source.ids),
        target_names=tuple(names[k] for k in found["targets"]) if names else (),
        predicted_names=tuple(names[k] for k in found["predicted"]) if names else (),
        labels=labels,
        grid=patch_grid(model),
        crop_pct=model.input.crop_pct,
        crop_mode=model.input.crop_mode,
        logit_difference=difference,
        convergence_delta=total - difference if method.complete else np.full(len(total), np.nan),
        baseline_image=None
        if run.baseline.image is None
        else run.baseline.image.detach().cpu().numpy(),
        seed=seed,
        **found,
    )


def batches_of(
    model: Model, source: ImageSource, batch_size: int, title: str
) -> Iterator[tuple[int, Tensor]]:
    """(index of the first image, images [B, 3, H, W] on the model's device) with progress under
    `title`."""
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


def logits_and_targets(
    model: Model, x: Tensor, targets: Targets, start: int
) -> tuple[Tensor, Tensor]:
    """Logits [B, K] and target classes [B] of the images `x` from `start` on.

    Raises MeasureError if no pixel of any of the first images moves the logit of its target."""
    with torch.no_grad():
        logits = logits_of(model, x)
    wanted = targets.of(logits, start)
    if start > 0:
        return logits, wanted
    x = x.detach().clone().requires_grad_()
    moved = gather_target_logits(logits_of(model, x), wanted)
    if not (moved.requires_grad and bool(torch.autograd.grad(moved.sum(), x)[0].any())):
        heads = [
            model.module.get_submodule(layer.module)
            for layer in model.layers
            if layer.kind == "head"
        ]
        why, advice = "", "other weights or other images"
        if heads and not any(
            bool(p.any()) for head in heads for p in head.parameters() if p.ndim > 1
        ):
            why = ": its head is zero, as timm's untrained networks have it"
            advice = "trained weights, or re-initialise the head's weights at random"
        raise MeasureError(
            f"every gradient of {model.name}'s logits is 0, so no pixel has an attribution{why}; "
            f"load {advice}"
        )
    return logits, wanted


def explainer(
    model: Model, attribution: Attribution, batch_size: int
) -> Callable[[Tensor, Tensor], Explained]:
    """The method of an attribution, with its settings, as a function of (images [B, 3, H, W],
    targets [B]) on any copy of its network. Call it inside `attribution_mode(model)`."""
    a, method = attribution, find_method(attribution.method)
    given = a.baseline_name if a.baseline_image is None else torch.from_numpy(a.baseline_image)
    layer = a.layer.name if a.layer else None
    run = make_run(method, model, layer, make_baseline(given, model.input), batch_size, a.settings)

    def explain(x: Tensor, targets: Tensor) -> Explained:
        with seeded(a.seed, x.device):
            return method.explain(run, x, targets)

    return explain
