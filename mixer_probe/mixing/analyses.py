"""The analyses of spatial mixing, and how their results are shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixer_probe.capture import Inputs
from mixer_probe.core.analysis import Room
from mixer_probe.core.errors import MeasureError
from mixer_probe.images import Images
from mixer_probe.mixing import MixingSettings


def settings(i: Inputs) -> MixingSettings:
    """Those that a command gives (`shared["mixing"]`), else those of a report."""
    return i.share("mixing", lambda: MixingSettings(seed=i.settings.seed))


def images(i: Inputs) -> Images:
    """The images of which derivatives are taken."""
    return i.sample(settings(i).images)


def reading_images(i: Inputs) -> Images:
    """The images of which forward passes suffice."""
    return i.sample(settings(i).reading_images)


def decided_by(i: Inputs) -> Mapping[str, Any]:
    """What decides measurements of mixing besides the networks."""
    return {"images": i.images, "settings": settings(i)}


ROOM = Room("mixing", "analysis of mixing", MeasureError, analyses=(), views=())
