"""`MixingSettings`: images, probes and positions of the measurements of spatial mixing."""

from __future__ import annotations

from dataclasses import dataclass

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import checked


@checked(MeasureError)
@dataclass(frozen=True)
class MixingSettings:
    """What decides measurements of mixing besides networks and images; each trades time for
    precision.

    At most `images` images are used where derivatives are taken, and `reading_images` where forward
    passes suffice, None for all. Jacobians are estimated with `probes` random vectors per position
    and image, for one position in each of the cells of the common grid, or for about `positions`
    positions of every layer. Layers are ablated on at most `lesion_images` images, and at most
    `units` units of one layer on `unit_images`."""

    images: int | None = 16
    reading_images: int | None = 200
    probes: int = 1
    positions: int | None = None
    lesion_images: int | None = 50
    units: int = 32
    unit_images: int = 24
    batch_size: int = 32
    seed: int = 0
