"""`StudySettings`: what decides a study's numbers besides models and images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import checked


@checked(MeasureError)
@dataclass(frozen=True)
class StudySettings:
    """What determines the numbers of a study, besides models and images.

    `baselines` adds the untrained baseline of every trained model, and probes of raw pixels.
    Networks are compared by all `measures`, each network with itself by CKA only; there are three
    because measures disagree about which networks are alike (Klabunde et al. 2024, ReSi).
    `permutations` are those of CKA, of which the jackknife leaves out every image in turn; other
    measures cost more and take at most 20 permutations and `resamples` groups. 0 `resamples` means
    no intervals.

    `analyses` are names of analyses by room, such as {"probing": ["accuracy"], "channels": []}; a
    room that is not named makes its defaults.

    `probe_method` is that of accuracy, confusion and calibration, `few_shot` the protocol of
    `shots` images per class, by default as many of 1, 5, 10 and 25 as every class has. `targets`
    are properties of images ("brightness") or "FILE.csv:COLUMN", by default all properties;
    `groups` is a table with the columns class and group, for the control tasks. With
    `sampled_probes` description lengths and positions use a sample of the images, and description
    lengths four layers.

    Statistics of channels use `statistics_images` of the images, None for all. `channel_pages`
    channels of every layer get a page, with `page_images` images at either end. Attributions use a
    few images only."""

    layers: str | tuple[str, ...] = "blocks"
    batch_size: int = 64
    permutations: int = 999
    seed: int = 0
    baselines: bool = True
    autocast: str | None = None
    measures: tuple[str, ...] = ("cka", "procrustes", "mutual_knn")
    resamples: int = 100
    analyses: Mapping[str, Sequence[str]] = field(default_factory=dict)
    probe_method: str = "ridge"
    few_shot: str = "big_vision"
    shots: tuple[int, ...] | None = None
    targets: tuple[str, ...] = ()
    groups: str | None = None
    sampled_probes: bool = True
    statistics_images: int | None = 200
    channel_pages: int = 1
    page_images: int = 6
