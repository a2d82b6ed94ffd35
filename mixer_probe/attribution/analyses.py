"""The analyses of attributions, and how their results are shown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mixer_probe.attribution import (
    METHODS,
    Agreement,
    Attribution,
    AttributionPanel,
    Conductance,
    Faithfulness,
    PerturbationCurves,
    RandomisationCheck,
    agreement,
    allowed_methods,
    attribute,
    attribution_panel,
    faithfulness,
    layer_conductance,
    perturbation_curves,
    randomisation_check,
)
from mixer_probe.attribution.settings import CHEAP, AttributionSettings, find_target, report_settings
from mixer_probe.attribution.views import (
    agreement_section,
    attribution_section,
    conductance_section,
    curves_section,
    faithfulness_section,
    panel_section,
    randomisation_section,
)
from mixer_probe.capture import Inputs
from mixer_probe.core.analysis import Analysis, Room, View
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import Result
from mixer_probe.images import Images
from mixer_probe.models import Model


def settings(i: Inputs) -> AttributionSettings:
    """Those that a command gives (`shared["attribution"]`), else those of a report, which its first network decides."""
    return i.share("attribution", lambda: report_settings(i.model, i.settings.seed))


def images(i: Inputs) -> Images:
    """The images that are explained."""
    return i.sample(settings(i).images)


def few(i: Inputs) -> Images:
    """The images of all that takes more than a few gradients an image."""
    own, s = images(i), settings(i)
    count = s.effort.few
    return own if count is None or count >= len(own) else own.sample(count, s.seed)


def _attributions(i: Inputs) -> list[Result]:
    """Attributions by all methods. Raises MeasureError for a named one that the network does not allow."""
    s, model = settings(i), i.model
    target = find_target(s.target, model, images(i))
    allowed = allowed_methods(model)
    methods = [name for name in s.effort.methods if name in allowed] if s.methods is None else s.methods
    for name in methods:
        # Said before any other method has taken its time.
        METHODS[name].refuse(model)
    options: dict[str, Any] = {"target": target, "baseline": s.baseline, "batch_size": s.batch_size, "seed": s.seed}
    return [attribute(model, images(i) if name in CHEAP else few(i), name, **options, **_own(s, model, name)) for name in methods]


def _own(s: AttributionSettings, model: Model, name: str) -> dict[str, Any]:
    """Options of one method. Occlusion covers a cell of its own grid, or else of that which deletion removes, where that is not
    the network's."""
    own = dict(s.effort.options.get(name, {}))
    cells = s.effort.windows or (min(s.effort.grid) if s.effort.grid else None)
    if name == "occlusion" and cells is not None:
        own["window"] = math.ceil(min(model.input.size[1:]) / cells)
    return own | {"layer": s.layer} if METHODS[name].layer else own


def _maps(i: Inputs) -> list[Attribution]:
    """The attributions of a network, of the `few` images."""
    chosen = few(i)
    return [a.of(chosen) for a in i.results(Attribution)]


def _overlays(networks: Sequence[Inputs]) -> list[Result]:
    chosen, s = few(networks[0]), settings(networks[0])
    maps = [a for i in networks for a in _maps(i)]
    return [attribution_panel(maps, chosen, indices=range(min(s.shown, len(chosen))))]


def _curves(i: Inputs) -> list[Result]:
    s, e = settings(i), settings(i).effort
    options: dict[str, Any] = {"steps": e.steps, "random_orders": e.orders, "grid": e.grid, "seed": s.seed}
    return [perturbation_curves(i.model, few(i), _maps(i), **options)]


def _faithfulness(i: Inputs) -> list[Result]:
    s, e = settings(i), settings(i).effort
    if "faithfulness" in e.left_out:
        return []
    draws: dict[str, Any] = {"samples": e.removals, "sensitivity_samples": e.noises, "sensitivity_of": e.disturbed}
    return [faithfulness(i.model, few(i), _maps(i), grid=e.grid, batch_size=s.batch_size, seed=s.seed, **draws)]


def _randomisation(i: Inputs) -> list[Result]:
    s, e = settings(i), settings(i).effort
    chosen = [a for a in _maps(i) if e.randomised is None or s.methods is not None or a.method in e.randomised]
    options: dict[str, Any] = {"draws": e.draws, "steps": e.cascade, "grid": e.grid, "batch_size": s.batch_size, "seed": s.seed}
    return [randomisation_check(i.model, few(i), a, **options) for a in chosen]


def _agreement(networks: Sequence[Inputs]) -> Iterator[Result]:
    """How far the methods of each network agree, and how far the networks do by each method that two or more have."""
    s = settings(networks[0])
    groups: dict[str, list[Attribution]] = {}
    for i in networks:
        maps = _maps(i)
        if len(maps) > 1:
            yield agreement(maps, grid=s.effort.grid, magnitudes=True, seed=s.seed)
        for a in i.results(Attribution):
            groups.setdefault(a.method, []).append(a)
    for maps in groups.values():
        if len({a.model.fingerprint for a in maps}) > 1:
            yield agreement(maps, grid=s.effort.grid, seed=s.seed)


def _conductance(i: Inputs) -> list[Result]:
    s, model = settings(i), i.model
    if "conductance" in s.effort.left_out or not any(name.endswith("mlp_tokens.act") for name in model.structure.names()):
        return []
    options: dict[str, Any] = {"baseline": s.baseline, "batch_size": s.batch_size, **s.effort.conductance}
    return [layer_conductance(model, few(i), target=find_target(s.target, model, few(i)), **options)]


def _decided_by(i: Inputs) -> Mapping[str, Any]:
    return {"images": images(i), "settings": settings(i)}


ATTRIBUTIONS = Analysis(
    "attributions",
    "attributions",
    "Which pixels contribute to the class?",
    (Attribution,),
    _attributions,
    needs="images",
    decided_by=_decided_by,
)
ROOM = Room(
    "attribution",
    "analysis of attributions",
    MeasureError,
    (
        Analysis(
            "overlays",
            "overlays",
            "Which pixels contribute to the class?",
            (AttributionPanel,),
            _overlays,
            needs="all networks",
            after=ATTRIBUTIONS,
            decided_by=_decided_by,
        ),
        Analysis(
            "curves",
            "deletion and insertion",
            "Does the class probability fall when the attributed pixels are removed?",
            (PerturbationCurves,),
            _curves,
            needs="images",
            after=ATTRIBUTIONS,
            decided_by=_decided_by,
        ),
        Analysis(
            "faithfulness",
            "faithfulness",
            "Does an attribution predict the effect of removing patches, and is it stable under noise?",
            (Faithfulness,),
            _faithfulness,
            needs="images",
            after=ATTRIBUTIONS,
            decided_by=_decided_by,
        ),
        Analysis(
            "randomisation",
            "randomisation check",
            "Does an attribution change when the weights are randomised?",
            (RandomisationCheck,),
            _randomisation,
            needs="images",
            after=ATTRIBUTIONS,
            decided_by=_decided_by,
        ),
        Analysis(
            "agreement",
            "agreement",
            "Do attribution methods, and networks, highlight the same patches?",
            (Agreement,),
            _agreement,
            needs="all networks",
            after=ATTRIBUTIONS,
            decided_by=_decided_by,
        ),
        Analysis(
            "conductance",
            "conductance",
            "Which hidden units contribute to the class?",
            (Conductance,),
            _conductance,
            needs="images",
            families=("mixer",),
            decided_by=_decided_by,
        ),
    ),
    (
        View(AttributionPanel, panel_section),
        View(Attribution, attribution_section),
        View(PerturbationCurves, curves_section),
        View(Faithfulness, faithfulness_section),
        View(RandomisationCheck, randomisation_section),
        View(Agreement, agreement_section),
        View(Conductance, conductance_section),
    ),
)
