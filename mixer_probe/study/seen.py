"""`Seen`: what a study keeps of a network after it has left memory."""

from __future__ import annotations

from dataclasses import dataclass

from mixer_probe.capture import Representations


@dataclass
class Seen:
    """The representations of one network, and of its untrained twin, of the test images and the images to fit on; `whole` has the
    head beside the layers of `test`."""

    test: Representations
    train: Representations | None = None
    twin_test: Representations | None = None
    twin_train: Representations | None = None
    whole: Representations | None = None
