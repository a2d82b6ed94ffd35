"""The analyses of attributions, and how their results are shown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mixer_probe import attribution as at
from mixer_probe.attribution.settings import (
    CHEAP,
    AttributionSettings,
    find_target,
    report_settings,
)
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


def settings(i: Inputs) -> AttributionSettings:
    """Those that a command gives (`shared["attribution"]`), else those of a report, which its first
    network decides."""
    return i.share("attribution", lambda: report_settings(i.model, i.settings.seed))


def images(i: Inputs) -> Images:
    """The images of attributions."""
    return i.sample(settings(i).images)


def few(i: Inputs) -> Images:
    """The images of all that takes more than a few gradients per image."""
    own, s = images(i), settings(i)
    count = s.budget.few
    return own if count is None or count >= len(own) else own.sample(count, s.seed)


def maps_of_few(i: Inputs) -> list[at.Attribution]:
    """The attributions of a network, of the `few` images."""
    return [a.of(few(i)) for a in i.results(at.Attribution)]


def decided_by(i: Inputs) -> Mapping[str, Any]:
    """What decides attributions besides the networks."""
    return {"images": images(i), "settings": settings(i)}


def attributions(i: Inputs) -> list[Result]:
    """Attributions by all methods. Raises MeasureError for a named one that the network does not
    allow."""
    s, model = settings(i), i.model
    target = find_target(s.target, model, images(i))
    allowed = at.allowed_methods(model)
    methods = (
        [name for name in s.budget.methods if name in allowed] if s.methods is None else s.methods
    )
    for name in methods:
        # Refused before any other method has taken its time.
        at.METHODS[name].refuse(model)
    cells = s.budget.windows or (min(s.budget.grid) if s.budget.grid else None)
    found: list[Result] = []
    for name in methods:
        options = dict(s.budget.options.get(name, {}))
        if name == "occlusion" and cells is not None:
            options["window"] = math.ceil(min(model.input.size[1:]) / cells)
        if at.METHODS[name].layer:
            options["layer"] = s.layer
        own = images(i) if name in CHEAP else few(i)
        common: dict[str, Any] = {
            "target": target,
            "baseline": s.baseline,
            "batch_size": s.batch_size,
            "seed": s.seed,
        }
        found.append(at.attribute(model, own, name, **common, **options))
    return found


def overlays(networks: Sequence[Inputs]) -> list[Result]:
    """Maps of all networks over the first images."""
    chosen = few(networks[0])
    maps = [a for i in networks for a in maps_of_few(i)]
    return [
        at.attribution_panel(
            maps, chosen, indices=range(min(settings(networks[0]).shown, len(chosen)))
        )
    ]


def curves(i: Inputs) -> list[Result]:
    """Deletion and insertion of a network's attributions."""
    s = settings(i)
    options: dict[str, Any] = {
        "steps": s.budget.steps,
        "random_orders": s.budget.orders,
        "grid": s.budget.grid,
        "seed": s.seed,
    }
    return [at.perturbation_curves(i.model, few(i), maps_of_few(i), **options)]


def faithfulness(i: Inputs) -> list[Result]:
    """Infidelity and sensitivity of a network's attributions, unless the budget skips them."""
    s, b = settings(i), settings(i).budget
    if "faithfulness" in b.skipped:
        return []
    samples: dict[str, Any] = {
        "samples": b.removals,
        "sensitivity_samples": b.noises,
        "sensitivity_of": b.sensitivity_of,
    }
    return [
        at.faithfulness(
            i.model,
            few(i),
            maps_of_few(i),
            grid=b.grid,
            batch_size=s.batch_size,
            seed=s.seed,
            **samples,
        )
    ]


def randomisation(i: Inputs) -> list[Result]:
    """The sanity check of the methods that the budget has it for, or of those that are named."""
    s, b = settings(i), settings(i).budget
    chosen = [
        a
        for a in maps_of_few(i)
        if b.randomised is None or s.methods is not None or a.method in b.randomised
    ]
    options: dict[str, Any] = {
        "draws": b.draws,
        "steps": b.cascade,
        "grid": b.grid,
        "batch_size": s.batch_size,
        "seed": s.seed,
    }
    return [at.randomisation_check(i.model, few(i), a, **options) for a in chosen]


def agreement(networks: Sequence[Inputs]) -> Iterator[Result]:
    """Agreement of the methods of each network, and of the networks by each method that two or more
    have."""
    s = settings(networks[0])
    groups: dict[str, list[at.Attribution]] = {}
    for i in networks:
        maps = maps_of_few(i)
        if len(maps) > 1:
            yield at.agreement(maps, grid=s.budget.grid, magnitudes=True, seed=s.seed)
        for a in i.results(at.Attribution):
            groups.setdefault(a.method, []).append(a)
    for maps in groups.values():
        if len({a.model.fingerprint for a in maps}) > 1:
            yield at.agreement(maps, grid=s.budget.grid, seed=s.seed)


def conductance(i: Inputs) -> list[Result]:
    """Conductance of token-mixing units, of networks that have them and unless the budget skips
    it."""
    s, model = settings(i), i.model
    if "conductance" in s.budget.skipped or not any(
        name.endswith("mlp_tokens.act") for name in model.structure.names()
    ):
        return []
    options: dict[str, Any] = {
        "baseline": s.baseline,
        "batch_size": s.batch_size,
        **s.budget.conductance,
    }
    return [
        at.layer_conductance(model, few(i), target=find_target(s.target, model, few(i)), **options)
    ]


ATTRIBUTIONS = Analysis(
    "attributions",
    "attributions",
    "Which pixels contribute to the class?",
    (at.Attribution,),
    attributions,
    needs="images",
    decided_by=decided_by,
)
# What the analyses of the attributions of one network, and of all networks, have in common.
_OF_ONE: dict[str, Any] = {"needs": "images", "after": ATTRIBUTIONS, "decided_by": decided_by}
_OF_ALL: dict[str, Any] = {**_OF_ONE, "needs": "all networks"}
ROOM = Room(
    "attribution",
    "analysis of attributions",
    MeasureError,
    (
        Analysis(
            "overlays",
            "overlays",
            "Which pixels contribute to the class?",
            (at.AttributionPanel,),
            overlays,
            **_OF_ALL,
        ),
        Analysis(
            "curves",
            "deletion and insertion",
            "Does the class probability fall when the attributed pixels are removed?",
            (at.PerturbationCurves,),
            curves,
            **_OF_ONE,
        ),
        Analysis(
            "faithfulness",
            "faithfulness",
            "Does an attribution predict the effect of removing patches, and is it stable under "
            "noise?",
            (at.Faithfulness,),
            faithfulness,
            **_OF_ONE,
        ),
        Analysis(
            "randomisation",
            "randomisation check",
            "Does an attribution change when the weights are randomised?",
            (at.RandomisationCheck,),
            randomisation,
            **_OF_ONE,
        ),
        Analysis(
            "agreement",
            "agreement",
            "Do attribution methods, and networks, highlight the same patches?",
            (at.Agreement,),
            agreement,
            **_OF_ALL,
        ),
        Analysis(
            "conductance",
            "conductance",
            "Which hidden units contribute to the class?",
            (at.Conductance,),
            conductance,
            needs="images",
            families=("mixer",),
            decided_by=decided_by,
        ),
    ),
    (
        View(at.AttributionPanel, panel_section),
        View(at.Attribution, attribution_section),
        View(at.PerturbationCurves, curves_section),
        View(at.Faithfulness, faithfulness_section),
        View(at.RandomisationCheck, randomisation_section),
        View(at.Agreement, agreement_section),
        View(at.Conductance, conductance_section),
    ),
)
