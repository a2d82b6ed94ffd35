"""What the page Stem and kernels shows: the calls to mixer_probe about weights, and the charts of their results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import streamlit as st

import mixer_probe as mp
from mixer_probe.core.errors import ModelError
from mixer_probe.core.result import Result
from mixer_probe.core.words import base_name
from mixer_probe.images import Images
from mixer_probe.models import Model
from mixer_probe.weights import StemComponents, StemFilters, stem_components
from mixer_probe.weights.channel_kernels import needs_images
from mixer_probe_app import seen
from mixer_probe_app.analyses import key_of, key_of_images
from mixer_probe_app.messages import guarded, plain
from mixer_probe_app.store import made, model

PAGE = "Stem and kernels"


@dataclass(frozen=True)
class Analysis:
    """A function of mixer_probe on weights: under which `kind` its results are kept, what they are, and its name in a script.

    With `twins` the untrained twin of a trained network is measured as well."""

    kind: str
    title: str
    measure: Callable[[Model], Result]
    code: str
    twins: bool = False


STEM = Analysis("stem", "stem filters", mp.stem_filters, "mp.stem_filters")
KERNELS = Analysis("spatial kernels", "spatial kernels", mp.spatial_kernels, "mp.spatial_kernels", twins=True)
ANATOMY = Analysis("anatomy", "anatomy", mp.anatomy, "mp.anatomy")
POSITIONS = Analysis("position embeddings", "position embeddings", mp.position_embeddings, "mp.position_embeddings")


def measured(names: Sequence[str], analysis: Analysis) -> list[Result]:
    """The results of the networks that have what is asked for, each followed by its random twin; the others are told in a
    sentence."""
    found: list[Result] = []
    for name in names:
        with guarded():
            found += _or_reason(name, lambda name=name: _with_twin(name, analysis))  # type: ignore[misc]
    return found


def _or_reason(name: str, measure: Callable[[], list[Result]]) -> list[Result]:
    # What cannot be loaded is an error of the choice, which `guarded` says; what a network does not have is none.
    model(name)
    try:
        return measure()
    except ModelError as error:
        st.info(plain(error), icon=":material/info:")
        return []


def _with_twin(name: str, analysis: Analysis) -> list[Result]:
    network = model(name)
    title = f"{analysis.title} of {name}"
    found = [_kept(name, analysis.kind, key_of(network), title, lambda: analysis.measure(network), f"{analysis.code}({{}})")]
    if analysis.twins and network.weights.trained:
        key, title = ("twin", *key_of(network)), f"{title}, untrained baseline"
        code = f"{analysis.code}({{}}.untrained())"
        found.append(_kept(name, analysis.kind, key, title, lambda: analysis.measure(network.untrained()), code))
    return found


def _kept(
    name: str, kind: str, key: tuple[str, ...], title: str, make: Callable[[], Result], code: str, setup: str = ""
) -> Result:
    """The result, kept and remembered as seen; `code` has a gap for the network."""
    found = made(kind, key, title[0].upper() + title[1:], make)
    seen.saw(PAGE, title, kind, key, code.format(f"models[{name!r}]"), [name], setup)
    return found


def tying(names: Sequence[str], images: Images) -> list[Result]:
    """How many kernels the channels of each network share, beside its random twin. Only Mixers and ViTs look at the images."""
    found: list[Result] = []
    for name in names:
        with guarded():
            found += _or_reason(name, lambda name=name: _tying(name, images))  # type: ignore[misc]
    return found


def _tying(name: str, images: Images) -> list[Result]:
    network = model(name)
    looks = needs_images(network)
    code, setup = ("mp.kernel_tying({}, images)", seen.images_setup()) if looks else ("mp.kernel_tying({})", "")
    key = (*key_of(network), key_of_images(images) if looks else "")
    title = f"kernel tying of {name}"
    given = images if looks else None
    found = [_kept(name, "tying", key, title, lambda: mp.kernel_tying(network, given), code, setup)]
    if network.weights.trained:
        make, code = (lambda: mp.kernel_tying(network.untrained(), given)), code.replace("{}", "{}.untrained()")
        found.append(_kept(name, "tying", ("twin", *key), f"{title}, untrained baseline", make, code, setup))
    return found


def components(stem: StemFilters) -> StemComponents:
    """The principal components of stem filters. Raises MeasureError for filters of zeros."""
    key = (stem.model.name, stem.model.fingerprint)
    return made("stem components", key, f"Components of the stem of {stem.model.name}", lambda: stem_components(stem))


def result_key(results: Sequence[Result]) -> tuple[tuple[str, ...], ...]:
    """What tells these results from others: networks, their weights, and the images where there are any."""
    return tuple((r.model.name, r.model.fingerprint, _images_of(r)) for r in results)  # type: ignore[attr-defined]


def _images_of(result: Result) -> str:
    record = getattr(result, "images", None)
    return record.fingerprint if record else ""


def own(results: Sequence[Result]) -> dict[str, Result]:
    """The networks that were chosen, without random twins that stand beside trained ones, by name."""
    names = {r.model.name for r in results}  # type: ignore[attr-defined]
    chosen = (r for r in results if base_name(r.model.name) == r.model.name or base_name(r.model.name) not in names)  # type: ignore[attr-defined]
    return {r.model.name: r for r in chosen}  # type: ignore[attr-defined]
