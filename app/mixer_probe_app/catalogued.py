"""Any analysis of the catalogue: what it needs, and its results for the networks and images that are chosen."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from mixer_probe import catalog
from mixer_probe.core.analysis import Analysis, Room
from mixer_probe.core.result import Result
from mixer_probe.core.section import Section
from mixer_probe.core.settings import StudySettings
from mixer_probe.core.words import FAMILIES
from mixer_probe.images import Images
from mixer_probe.models import Model
from mixer_probe.probing.methods import FITTERS
from mixer_probe.report import make_sections
from mixer_probe.study import run_analyses
from mixer_probe_app import data, seen
from mixer_probe_app.analyses import BATCH, key_of, key_of_images
from mixer_probe_app.messages import join
from mixer_probe_app.store import find, made, model

PAGE = "Analyses"
KIND = "analyses"
METHODS = tuple(FITTERS)
Sides = tuple[Images | None, Images | None]


def rooms() -> dict[str, Room]:
    """The rooms that have analyses, by name."""
    return {room.name: room for room in catalog.ROOMS if room.analyses}


def lacking(analysis: Analysis, networks: Sequence[Model], images: Images | None) -> str:
    """What the analysis needs and is not there, in one sentence; "" where nothing lacks."""
    if analysis.asks:
        return f"It needs {analysis.asks}."
    able = [network for network in networks if network.family in analysis.families]
    if not able:
        return f"It is defined for {join(FAMILIES[name] for name in analysis.families)} networks; choose one at the side."
    if analysis.needs == "all networks" and analysis.after is None and len(able) < 2:
        return "It compares networks; choose a second one at the side."
    if analysis.labelled and images is not None and not data.has_classes(images):
        return "It needs images of two or more classes; choose labelled images at the side."
    return ""


def settings(room: Room, analysis: Analysis, method: str, baselines: bool) -> StudySettings:
    """Those of a report, for this analysis."""
    chosen = {"probes": (analysis.name,)} if room.name == "probing" else {}
    return StudySettings(batch_size=BATCH, baselines=baselines, probe_method=method, **chosen)


def sides(analysis: Analysis) -> Sides:
    """The images to analyse, and those to fit on where the data set has its own."""
    if analysis.needs == "weights":
        return None, None
    return data.images(), data.sides()[0] if data.source() == "demo" else None


def key(room: Room, analysis: Analysis, networks: Sequence[Model], images: Sequence[Images | None], s: StudySettings) -> Hashable:
    """What decides the results."""
    return (
        room.name,
        analysis.name,
        tuple(map(key_of, networks)),
        tuple(None if i is None else key_of_images(i) for i in images),
        repr(s),
    )


def is_made(found: Hashable) -> bool:
    """Whether the results are kept from an earlier run."""
    return find(KIND, found) is not None


def results(room: Room, analysis: Analysis, names: Sequence[str], images: Sides, s: StudySettings) -> list[Result]:
    """The results of the analysis for the networks that are chosen, kept and remembered for the page Report."""
    networks = [model(name) for name in names]
    asked = {room.name: [analysis.name]}
    found_by = key(room, analysis, networks, images, s)
    label = f"{analysis.title} of {join(names)}"

    def make() -> list[Result]:
        return run_analyses(networks, asked, *images, s, strict=False)

    found = made(KIND, found_by, label[0].upper() + label[1:], make)
    seen.saw(PAGE, label, KIND, found_by, _code(names, asked, images, s), names, _setup(images))
    return list(found)


def _code(names: Sequence[str], asked: dict[str, list[str]], images: Sides, s: StudySettings) -> str:
    """The call in a script."""
    given = [name if value is not None else "None" for name, value in zip(("images", "train"), images, strict=True)]
    models = ", ".join(f"models[{name!r}]" for name in names)
    changed: dict[str, Any] = {n: v for n, v in vars(s).items() if v != getattr(StudySettings(), n)}
    options = ", ".join(f"{n}={v!r}" for n, v in changed.items())
    return f"mp.study.run_analyses([{models}], {asked!r}, {', '.join(given)}, mp.study.StudySettings({options}), strict=False)"


def _setup(images: Sides) -> str:
    if images[0] is None:
        return ""
    train = "" if images[1] is None else f"\ntrain = {data.code(split='train')}"
    return seen.images_setup() + train


def sections(found: Sequence[Result], key: Hashable) -> tuple[Section, ...]:
    """How the report shows them, drawn once."""
    return made("sections", key, "Drawing", lambda: tuple(make_sections(found)), lane="draw", keep=False)
