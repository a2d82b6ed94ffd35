"""Runs the analyses of the room `attribution` over networks on the same images: for the report and the command line."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from mixer_probe.attribution import (
    METHODS,
    Attribution,
    agreement,
    allowed_methods,
    attribute,
    attribution_panel,
    faithfulness,
    layer_conductance,
    perturbation_curves,
    randomisation_check,
)
from mixer_probe.attribution.analyses import ROOM
from mixer_probe.attribution.methods import find_method
from mixer_probe.attribution.network import Target
from mixer_probe.core.errors import (
    EmptyAttributionWarning,
    ImagesError,
    IncompleteAttributionWarning,
    MeasureError,
    MixerProbeError,
    closest,
)
from mixer_probe.core.result import Result
from mixer_probe.core.settings import StudySettings
from mixer_probe.core.skipped import Skipped
from mixer_probe.core.validate import checked
from mixer_probe.images import Images
from mixer_probe.images.classes import spelled
from mixer_probe.models import Model
from mixer_probe.models.classes import labels_as_outputs, outputs_of
from mixer_probe.stats import FEWEST

# Made of attributions of one network; the rest is made of those of all, or of none.
_OF_ONE = ("curves", "faithfulness", "randomisation", "agreement")
# Of every kind: a gradient, a sum that is complete, gradients of noisy copies, what covering does, and maps of a late layer.
DEFAULT_METHODS = ("saliency", "integrated_gradients", "smoothgrad", "occlusion", "gradcam", "gradient_attention")
_GRADIENTS = ("saliency", "input_x_gradient", "gradcam", "gradient_attention")
_CHEAP = (*_GRADIENTS, "attention_rollout")


@dataclass(frozen=True)
class Effort:
    """How much work goes into attributions: `methods` where none are named, the `options` of each, the `grid` of patches that are
    removed and compared (None for the network's own), `steps` and `orders` of deletion and insertion, `removals` of infidelity,
    `noises` of sensitivity and the methods that are `disturbed` by them (None for all), the methods that are `randomised`, in how
    many `draws` and steps of a `cascade` (None for one a block), `windows` of occlusion along a side (None for the grid's), and
    the options of `conductance`.

    `few` of the images, None for all, are enough for what takes more than one gradient an image. `left_out` analyses are not
    made."""

    methods: tuple[str, ...] = DEFAULT_METHODS
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    grid: tuple[int, int] | None = None
    steps: int = 32
    orders: int = 8
    removals: int = 64
    noises: int = 8
    disturbed: tuple[str, ...] | None = None
    randomised: tuple[str, ...] | None = None
    draws: int = 5
    cascade: int | None = None
    windows: int | None = None
    few: int | None = None
    conductance: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


THOROUGH = Effort()
# For reports of small networks: one grid for all, so that their numbers can be compared.
QUICK = Effort(
    methods=("saliency", "integrated_gradients", "occlusion", "gradcam", "gradient_attention"),
    options={"integrated_gradients": {"n_steps": 6, "max_steps": 96, "tolerance": 0.05, "change": 0.1}},
    grid=(8, 8),
    steps=4,
    orders=2,
    removals=16,
    noises=2,
    disturbed=("saliency", "gradcam"),
    randomised=("saliency", "gradcam"),
    cascade=3,
    windows=4,
    few=FEWEST,
    conductance={"n_steps": 24, "max_steps": 24, "tolerance": 0.05},
)
# For reports of networks of more than `_HEAVY` multiply-accumulates on a CPU, where a forward pass is a good part of a second.
FRUGAL = replace(QUICK, methods=_GRADIENTS, randomised=("saliency",), cascade=2, left_out=("faithfulness", "conductance"))
_HEAVY = 1e9
# Images of a report's attributions by methods that take one gradient an image.
_IMAGES = {"quick": 50, "frugal": FEWEST}


@checked(MeasureError)
@dataclass(frozen=True)
class AttributionSettings:
    """What decides attributions besides networks and images.

    `methods` are names, or None for those of the effort that a network allows. `target` is "true", "predicted", "auto" (true
    where the images' classes are those of the network, else predicted), an index, or a class's name. `layer` is Grad-CAM's.
    `shown` images are drawn."""

    what: tuple[str, ...] = ROOM.names
    methods: tuple[str, ...] | None = None
    target: str = "auto"
    layer: str | None = None
    baseline: str = "grey"
    batch_size: int = 16
    seed: int = 0
    shown: int = 4
    effort: Effort = THOROUGH


def check_methods(names: Iterable[str]) -> tuple[str, ...]:
    """The names as they are, each once. Raises MeasureError for one that is no method."""
    return tuple(dict.fromkeys(find_method(name).name for name in names))


def find_target(text: str, model: Model, images: Images) -> Target:
    """What `attribute` takes for "true", "predicted", "auto", an index or a class's name.

    Raises MeasureError for an unknown name, and for "true" where the images' classes are not those of the network."""
    if text == "predicted":
        return None
    if text in ("true", "auto"):
        return _true_target(model, images, text == "auto")
    if text.removeprefix("-").isdecimal():
        return int(text)
    return _named_target(text, model)


def _true_target(model: Model, images: Images, otherwise: bool) -> Target:
    if otherwise and images.class_names is None:
        return None
    try:
        labels_as_outputs(model, images)
    except (ImagesError, MeasureError) as error:
        if otherwise:
            return None
        raise type(error)(f"no true class can be explained, for {error}; take the predicted one, an index or a name") from error
    return "labels"


def _named_target(text: str, model: Model) -> int:
    outputs = outputs_of(model)
    if not outputs.names:
        raise MeasureError(
            f"the outputs of {model.name} have no names here, so '{text}' is none of them; give true, predicted or an index "
            f"(0 to {outputs.count - 1}), or its class_names to load_model"
        )
    found = outputs.find(text)
    if found is None:
        raise MeasureError(
            f"{model.name} has no class '{text}'; {closest(spelled(text), outputs.known)} (or true, predicted, an index)"
        )
    return found


def _has_hidden_units(model: Model) -> bool:
    return any(name.endswith("mlp_tokens.act") for name in model.structure.names())


@dataclass
class AttributionStudy:
    """Runs network by network into `results`. Without `strict` a step that fails becomes a `Skipped` result with its reason."""

    images: Images
    settings: AttributionSettings
    results: list[Result]
    strict: bool = True
    made: list[Attribution] = field(default_factory=list)

    @property
    def few(self) -> Images:
        """The images of all that takes more than a few gradients an image."""
        count = self.settings.effort.few
        return self.images if count is None or count >= len(self.images) else self.images.sample(count, self.settings.seed)

    def wants(self, *names: str) -> bool:
        """Whether any of the analyses is wanted."""
        return any(name in self.settings.what and name not in self.settings.effort.left_out for name in names)

    def look_at(self, model: Model) -> None:
        """All that needs the network itself."""
        maps: list[Attribution] = []
        if self.wants("overlays", *_OF_ONE):
            self._try(f"attributions of {model.name}", lambda: maps.extend(self.attributions_of(model)))
        self.made += maps
        few = self.few
        maps = [a.of(few) for a in maps]
        for name in _OF_ONE if maps else ():
            if self.wants(name):
                self._add(f"{name} of attributions of {model.name}", lambda name=name: _MAKERS[name](self, model, maps))  # type: ignore[misc]
        if self.wants("conductance") and _has_hidden_units(model) and (maps or not self.wants("overlays", *_OF_ONE)):
            self._add(f"conductance of {model.name}", lambda: [self._conductance(model)])

    def attributions_of(self, model: Model) -> list[Attribution]:
        """Attributions by all methods. Raises MeasureError for a named one that the network does not allow."""
        s = self.settings
        target = find_target(s.target, model, self.images)
        for name in self._methods(model):
            # Said before any other method has taken its time.
            METHODS[name].refuse(model)
        return [self._attribution(model, name, target) for name in self._methods(model)]

    def _methods(self, model: Model) -> tuple[str, ...]:
        named = self.settings.methods
        if named is not None:
            return named
        allowed = allowed_methods(model)
        return tuple(name for name in self.settings.effort.methods if name in allowed)

    def _attribution(self, model: Model, name: str, target: Target) -> Attribution:
        s = self.settings
        options = {**s.effort.options.get(name, {}), **self._window(model, name)}
        if METHODS[name].layer:
            options["layer"] = s.layer
        images = self.images if name in _CHEAP else self.few
        return attribute(model, images, name, target=target, baseline=s.baseline, batch_size=s.batch_size, seed=s.seed, **options)

    def _window(self, model: Model, name: str) -> dict[str, Any]:
        """Occlusion covers a cell of its own grid, or else of that which deletion removes, where that is not the network's."""
        e = self.settings.effort
        cells = e.windows or (min(e.grid) if e.grid else None)
        return {} if name != "occlusion" or cells is None else {"window": math.ceil(min(model.input.size[1:]) / cells)}

    def _curves(self, model: Model, maps: Sequence[Attribution]) -> list[Result]:
        e = self.settings.effort
        return [
            perturbation_curves(
                model, self.few, maps, steps=e.steps, random_orders=e.orders, grid=e.grid, seed=self.settings.seed
            )
        ]

    def _faithfulness(self, model: Model, maps: Sequence[Attribution]) -> list[Result]:
        s, e = self.settings, self.settings.effort
        draws = {"grid": e.grid, "samples": e.removals, "sensitivity_samples": e.noises, "sensitivity_of": e.disturbed}
        return [faithfulness(model, self.few, maps, batch_size=s.batch_size, seed=s.seed, **draws)]  # type: ignore[arg-type]

    def _randomisation(self, model: Model, maps: Sequence[Attribution]) -> list[Result]:
        s, e = self.settings, self.settings.effort
        chosen = [a for a in maps if e.randomised is None or s.methods is not None or a.method in e.randomised]
        draws = {"draws": e.draws, "steps": e.cascade, "grid": e.grid, "batch_size": s.batch_size, "seed": s.seed}
        return [randomisation_check(model, self.few, a, **draws) for a in chosen]  # type: ignore[arg-type]

    def _methods_agree(self, _model: Model, maps: Sequence[Attribution]) -> list[Result]:
        if len(maps) < 2:
            return []
        return [agreement(maps, grid=self.settings.effort.grid, magnitudes=True, seed=self.settings.seed)]

    def _conductance(self, model: Model) -> Result:
        s = self.settings
        options = {"baseline": s.baseline, "batch_size": s.batch_size, **s.effort.conductance}
        return layer_conductance(model, self.few, target=find_target(s.target, model, self.few), **options)

    def finish(self) -> None:
        """What is made of the attributions of all networks: the panel of their maps, and how far they agree.

        Raises MeasureError for conductance alone without a Mixer."""
        if self.made and self.wants("overlays"):
            few = self.few
            shown = range(min(self.settings.shown, len(few)))
            panel = attribution_panel([a.of(few) for a in self.made], few, indices=shown)
            self.results.append(panel)
        if self.wants("agreement"):
            for maps in self._by_method():
                self.results.append(agreement(maps, grid=self.settings.effort.grid, seed=self.settings.seed))
        if self.strict and not self.results and not self.made:
            raise MeasureError("no network has a token-mixing MLP, whose hidden units conductance is of; take overlays or curves")

    def _by_method(self) -> list[list[Attribution]]:
        """The attributions of every method that two or more networks have."""
        groups: dict[str, list[Attribution]] = {}
        for a in self.made:
            groups.setdefault(a.method, []).append(a)
        return [maps for maps in groups.values() if len({a.model.fingerprint for a in maps}) > 1]

    def _add(self, step: str, work: Callable[[], Iterable[Result]]) -> None:
        self._try(step, lambda: self.results.extend(work()))

    def _try(self, step: str, work: Callable[[], object]) -> None:
        if self.strict:
            work()
            return
        with warnings.catch_warnings():
            # The report says both in its sentences.
            for told in (EmptyAttributionWarning, IncompleteAttributionWarning):
                warnings.simplefilter("ignore", told)
            try:
                work()
            except MixerProbeError as error:
                self.results.append(Skipped.because(step, error))


_MAKERS: dict[str, Callable[[AttributionStudy, Model, Sequence[Attribution]], list[Result]]] = {
    "curves": AttributionStudy._curves,
    "faithfulness": AttributionStudy._faithfulness,
    "randomisation": AttributionStudy._randomisation,
    "agreement": AttributionStudy._methods_agree,
}


def report_study(model: Model, images: Images, settings: StudySettings, results: list[Result]) -> AttributionStudy:
    """The attributions of a report: some images, chosen evenly from the classes by the seed, and as much work as `model`, its
    first network, allows."""
    frugal = model.macs > _HEAVY and not torch.cuda.is_available()
    chosen = images.sample(min(_IMAGES["frugal" if frugal else "quick"], len(images)), settings.seed)
    own = AttributionSettings(what=settings.attributions, seed=settings.seed, effort=FRUGAL if frugal else QUICK)
    return AttributionStudy(chosen, own, results, strict=False)
