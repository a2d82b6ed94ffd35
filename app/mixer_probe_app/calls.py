"""The calls to mixer_probe that several pages make: keys of networks and images, representations,
findings, and any analysis of the catalogue."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import pandas as pd
import streamlit as st

import mixer_probe as mp
from mixer_probe import catalog
from mixer_probe.capture import Representations
from mixer_probe.core.analysis import Analysis, Room
from mixer_probe.core.errors import ImagesError, ModelError
from mixer_probe.core.fingerprint import digest
from mixer_probe.core.result import Result
from mixer_probe.core.section import Picture, Section
from mixer_probe.core.settings import StudySettings
from mixer_probe.core.words import FAMILIES, join
from mixer_probe.images import DistortedImages, Images
from mixer_probe.models import Model, ModelCard
from mixer_probe.report import make_sections
from mixer_probe.study import run_analyses
from mixer_probe_app import data, disk
from mixer_probe_app.choice import RUN
from mixer_probe_app.history import Given, computed, result_of
from mixer_probe_app.local_files import resolve
from mixer_probe_app.messages import guarded, plain
from mixer_probe_app.store import cached, lookup, model

LAYERS = "blocks"
Layers = str | Sequence[str]
# Small batches: progress moves, and a stop does not wait long for the one under way.
BATCH = 32

_KEYS: WeakKeyDictionary[Model, tuple[str, str]] = WeakKeyDictionary()


def key_of(network: Model) -> tuple[str, str]:
    """Name and fingerprint of a network; computed once for each, for the app changes none."""
    if network not in _KEYS:
        _KEYS[network] = network.name, network.fingerprint
    return _KEYS[network]


def key_of_images(images: Images | DistortedImages) -> tuple[str, str, str]:
    """Name and content of images, and the names by which results call them."""
    record = images.record
    return record.name, record.fingerprint, digest(*images.ids)


def key_of_results(results: Sequence[Any]) -> tuple[Hashable, ...]:
    """What tells results from all others: their types, networks, images and numbers."""
    numbers = [int(pd.util.hash_pandas_object(r.to_frame()).sum()) for r in results]
    of = [
        (type(r).__name__, repr(getattr(r, "model", "")), repr(getattr(r, "images", "")))
        for r in results
    ]
    return tuple(zip(of, numbers, strict=True))


def loaded(names: Sequence[str]) -> dict[str, Model]:
    """The networks that can be loaded, by choice; a message for each of the others."""
    found = {}
    for name in names:
        with guarded():
            found[name] = model(name)
    return found


def network(choice: str, untrained: bool = False) -> Given:
    """A network, or its untrained baseline, as an argument."""
    key, code = key_of(model(choice)), f"models[{choice!r}]"
    if untrained:
        return Given(
            lambda: model(choice),
            (key, "untrained"),
            f"{code}.untrained()",
            (choice,),
            then=Model.untrained,
        )
    return Given(lambda: model(choice), key, code, (choice,))


def shown_images(images: Images, most: int | None = None) -> Given:
    """The images chosen, or a sample of at most so many of them, as an argument."""
    if most is None:
        return Given(lambda: images, key_of_images(images), "images", setup=data.setup())
    few = images.sample(most)
    return Given(lambda: few, key_of_images(few), f"images.sample({most})", setup=data.setup())


def run_of(
    choice: str,
    images: Images,
    layers: Layers = LAYERS,
    untrained: bool = False,
    *,
    name: str = "images",
    reduce: str = "mean",
) -> Given:
    """Representations of images, called `name` in a script, as an argument; those of a stored run
    are in the run."""
    value = lambda: representations(choice, images, layers, reduce, untrained)  # noqa: E731
    if choice.startswith(RUN):
        run, code = stored_run(choice, images), f"models[{choice!r}]"
        key: Hashable = ("run", repr(sorted(run.record.identity().items())), key_of_images(images))
        return Given(
            value,
            key,
            f"{code}.take([{code}.keys.index(key) for key in {name}.keys])",
            (choice,),
            data.setup(),
        )
    one, wanted = network(choice, untrained), layers if isinstance(layers, str) else list(layers)
    more = "" if reduce == "mean" else f", reduce={reduce!r}"
    key = (one.key, key_of_images(images), repr(wanted), reduce)
    return Given(
        value, key, f"mp.extract({one.code}, {name}, {wanted!r}{more})", (choice,), data.setup()
    )


def card(choice: str) -> ModelCard:
    """What is known of a network before looking inside."""
    found: ModelCard = result_of(
        "Home", f"card of {choice}", "cards", "models.describe", network(choice)
    )
    return found


def representations(
    choice: str,
    images: Images,
    layers: Layers = LAYERS,
    reduce: str = "mean",
    untrained: bool = False,
) -> Representations:
    """The representations of images in a network, or in its untrained baseline, from the disk where
    they were computed before, resumed where that was stopped. A stored run is taken as it is, and
    has to be of these very images.

    Raises ImagesError for a run of other images."""
    if choice.startswith(RUN):
        return stored_run(choice, images)
    network = model(choice)
    chosen = layers if isinstance(layers, str) else list(layers)
    key = (key_of(network), untrained, key_of_images(images), str(chosen), reduce)
    name = f"{choice}, untrained" if untrained else choice

    def extract() -> Representations:
        module = network.untrained() if untrained else network
        options: dict[str, Any] = {"reduce": reduce, "batch_size": BATCH}
        return disk.store(
            key, lambda place: mp.extract(module, images, chosen, out=place, **options)
        )

    return cached(
        "representations",
        key,
        f"{name}: representations of {len(images)} images",
        extract,
        on_disk=False,
    )


def stored_run(choice: str, images: Images | None = None) -> Representations:
    """The run behind a choice "run:LABEL"; with `images` it has to hold these. Raises StoreError,
    ImagesError."""
    run = mp.open_run(resolve(choice.removeprefix(RUN), "run"))
    if images is None or run.keys == images.keys:
        return run
    places = {key: i for i, key in enumerate(run.keys)}
    if not all(key in places for key in images.keys):
        raise ImagesError(
            f"the stored run '{choice.removeprefix(RUN)}' is of {run.images.n} images of "
            f"{run.images.name}, and not of those that are chosen at the side"
        )
    return run.take([places[key] for key in images.keys])


def findings(results: Sequence[Any]) -> tuple[str, ...]:
    """What the report says about these results, in sentences."""
    texts = lambda: tuple(text for section in make_sections(results) for text in section.paragraphs)  # noqa: E731
    return cached("findings", key_of_results(results), "Reading the numbers", texts)


def sections(results: Sequence[Any], key: Hashable) -> tuple[Section, ...]:
    """The sections of a report of these results; their pictures are drawn when they are shown."""
    return cached(
        "sections", key, "Reading the numbers", lambda: tuple(make_sections(results)), on_disk=False
    )


def pictures(results: Sequence[Any]) -> dict[str, Picture]:
    """The figures of a report of these results, by name."""
    found = sections(results, key_of_results(results))
    return {
        item.name: item
        for section in found
        for item in section.content
        if isinstance(item, Picture)
    }


def measured(
    page: str,
    names: Sequence[str],
    what: str,
    function: str,
    *,
    baselines: bool = False,
    images: Callable[[Model], Images | None] = lambda network: None,
    most: int | None = None,
    **options: Any,
) -> list[Any]:
    """The results of a `function` of mixer_probe for the networks that have what it measures, each
    followed by its untrained baseline with `baselines`; a sentence for each of the others. `images`
    gives what the function needs besides a network, at most `most` of them; `options` are its other
    arguments."""
    found: list[Any] = []
    for name in names:
        with guarded():
            one = model(name)
            try:
                given = [shown_images(i, most) for i in [images(one)] if i is not None]
                for untrained in (False, True)[: 2 if baselines and one.weights.trained else 1]:
                    label = f"{what} of {name}" + (", untrained baseline" if untrained else "")
                    arguments = network(name, untrained), *given
                    found.append(result_of(page, label, what, function, *arguments, **options))
            except ModelError as error:
                # What cannot be loaded is an error of the choice; what a network does not have is
                # none.
                st.info(plain(error), icon=":material/info:")
    return found


# -- the catalogue ---------------------------------------------------------------------------------

ANALYSES = "Analyses"
Sides = tuple[Images | None, Images | None]


def rooms() -> dict[str, Room]:
    """The rooms that have analyses, by name."""
    return {room.name: room for room in catalog.ROOMS if room.analyses}


def missing(analysis: Analysis, networks: Sequence[Model], images: Images | None) -> str:
    """What the analysis needs and is not there, in one sentence; "" where nothing is missing."""
    if analysis.asks:
        return f"It needs {analysis.asks}."
    able = [network for network in networks if network.family in analysis.families]
    if not able:
        return (
            f"It is defined for {join(FAMILIES[name] for name in analysis.families)} networks; "
            "choose one at the side."
        )
    if analysis.needs == "all networks" and analysis.after is None and len(able) < 2:
        return "It compares networks; choose a second one at the side."
    if analysis.labelled and images is not None and not data.has_classes(images):
        return "It needs images of two or more classes; choose labelled images at the side."
    return ""


class CatalogueRun:
    """One analysis of the catalogue for some networks, with the settings of a report.

    Of the images (to analyse, to fit on) the second are those of a data set that has its own."""

    kind = "analyses"

    def __init__(
        self, room: Room, analysis: Analysis, names: Sequence[str], method: str, baselines: bool
    ) -> None:
        self._room, self._analysis, self._names = room, analysis, names
        self._settings = StudySettings(batch_size=BATCH, baselines=baselines, probe_method=method)
        self.images: Sides = (None, None)
        if analysis.needs != "weights":
            self.images = data.images(), data.sides()[0] if data.source() == "demo" else None
        keys = tuple(None if i is None else key_of_images(i) for i in self.images)
        networks = tuple(key_of(model(name)) for name in names)
        self.key: Hashable = (room.name, analysis.name, networks, keys, repr(self._settings))

    @property
    def is_cached(self) -> bool:
        """Whether the results are there from an earlier run."""
        return lookup(self.kind, self.key) is not None

    def results(self) -> list[Result]:
        """The results, cached and recorded for the page Report."""
        networks = [model(name) for name in self._names]
        asked = {self._room.name: [self._analysis.name]}
        given = [
            name if value is not None else "None"
            for name, value in zip(("images", "train"), self.images, strict=True)
        ]
        models = ", ".join(f"models[{name!r}]" for name in self._names)
        changed = {
            n: v for n, v in vars(self._settings).items() if v != getattr(StudySettings(), n)
        }
        options = ", ".join(f"{n}={v!r}" for n, v in changed.items())
        call = f"[{models}], {asked!r}, {', '.join(given)}, mp.study.StudySettings({options})"
        setup = [] if self.images[0] is None else [data.setup()]
        setup += [] if self.images[1] is None else [f"train = {data.code(split='train')}"]
        found = computed(
            ANALYSES,
            f"{self._analysis.title} of {join(self._names)}",
            self.kind,
            self.key,
            lambda: run_analyses(networks, asked, *self.images, self._settings, strict=False),
            f"mp.study.run_analyses({call}, strict=False)",
            self._names,
            "\n".join(setup),
        )
        return list(found)
