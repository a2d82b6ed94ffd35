"""`Analysis`, `View` and `Room`: what can be computed of networks, and how results are shown, each
declared once.

A room is a family of analyses, such as those of weights. It lists its analyses, which studies and
the command line run by name, and one view per type of result, from which reports, the command line
and the app are made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mixer_probe.core.errors import MixerProbeError, closest
from mixer_probe.core.result import Result
from mixer_probe.core.section import Section

Needs = Literal["weights", "images", "activations", "pairs", "all networks"]
FAMILIES = ("mixer", "vit", "cnn")


@dataclass(frozen=True)
class Analysis:
    """One analysis of networks, called `name` in options and settings; `title` is what a report
    calls it.

    `run` takes the `Inputs` of one network (`mixer_probe.capture`) and returns results; it may
    yield them one by one. `needs` says what must be there: the weights alone, images, or
    activations of images. One that needs "pairs" takes the inputs of two networks, or of one
    network twice, and one that needs "all networks" those of all.

    `families` may have what it looks at; with `pixels` raw pixels do too. With `baseline` it runs
    on the untrained baselines as well. `labelled` ones need classes. One of several networks that
    runs them asks for them to stay `in_memory`. Those not in `default` are
    made only when asked for.

    `asks` says what it needs besides, in words, such as annotated images, for which a command has
    options.

    `after` is another analysis, whose results `run` takes from the inputs; they are kept, and
    reported nowhere. `complete` takes the inputs of all networks once all are analysed, and gives
    the results again, completed. With `each`, a setting that lists values, `run` is called once per
    value, each time with that value alone in the setting. `reads` gives the readings of what it can
    take from the pass that extracts the representations for other analyses, of a network or its
    baseline. `decided_by` gives what decides the numbers besides networks and their baselines: by
    default nothing where the weights alone are needed, else all images and settings of a study;
    where it gives None the results are not kept."""

    name: str
    title: str
    question: str
    results: tuple[type[Result], ...]
    run: Callable[[Any], Iterable[Result]]
    needs: Needs = "activations"
    families: tuple[str, ...] = FAMILIES
    baseline: bool = False
    in_memory: bool = False
    pixels: bool = False
    labelled: bool = False
    default: bool = True
    asks: str = ""
    after: Analysis | None = None
    complete: Callable[[Any], Iterable[Result]] | None = None
    each: str = ""
    reads: Callable[[Any], Sequence[Any]] | None = None
    decided_by: Callable[[Any], Mapping[str, Any] | None] | None = None

    @property
    def of_one(self) -> bool:
        """Whether it looks at one network at a time."""
        return self.needs not in ("pairs", "all networks")


@dataclass(frozen=True)
class View:
    """How all results of one type are shown: as sections of a report."""

    result: type[Any]
    sections: Callable[[Sequence[Any]], list[Section]]


@dataclass(frozen=True)
class Room:
    """A family of analyses: its `name` in the package, a `noun` for one of them, and the `error`
    for unknown names."""

    name: str
    noun: str
    error: type[MixerProbeError]
    analyses: tuple[Analysis, ...] = ()
    views: tuple[View, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all analyses, in the order of a report."""
        return tuple(analysis.name for analysis in self.analyses)

    @property
    def defaults(self) -> tuple[str, ...]:
        """The names of the analyses that are made unless others are asked for."""
        return tuple(analysis.name for analysis in self.analyses if analysis.default)

    def __getitem__(self, name: str) -> Analysis:
        """The analysis of that name. Raises the room's error, which lists close names, if there is
        none."""
        for analysis in self.analyses:
            if analysis.name == name:
                return analysis
        raise self.error(f"there is no {self.noun} '{name}'; {closest(name, self.names)}")

    def check(self, names: Iterable[str]) -> tuple[str, ...]:
        """The names as they are, each once. Raises the room's error for an unknown one."""
        return tuple(dict.fromkeys(self[name].name for name in names))
