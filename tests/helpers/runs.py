"""Stored runs of a network that does not exist, with features of classes under noise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mixer_probe.capture import RunRecord
from mixer_probe.capture.representations import Representations
from mixer_probe.capture.run_files import open_run
from mixer_probe.capture.store import RunWriter
from mixer_probe.core.memory import ROWS, slices
from mixer_probe.core.result import ImagesRecord, ModelRecord
from mixer_probe.images.bundled import CIFAR10_CLASSES
from mixer_probe.models import Layer


def write_run(
    place: Path, n: int, layers: int, width: int, split: str = "test", side: int = 0
) -> Representations:
    """`n` images of ten classes at some layers of `width` channels. Two sides see the same images,
    two splits have no image in common."""
    rng = np.random.default_rng(split == "test")
    labels, factors = rng.integers(0, 10, n), rng.integers(0, 2**32, -(-n // ROWS))
    images = ImagesRecord("made", split, n, 10, split)
    model = ModelRecord(f"made-{side}", "vit", True, "", str(side), 0)
    names = [f"blocks.{i}" for i in range(layers)]
    record = RunRecord(
        model,
        images,
        tuple(
            Layer(name, "block", (i + 1) / layers, None, width, 0, 0, order=i)
            for i, name in enumerate(names)
        ),
        "mean",
        "",
        "",
        "float32",
    )
    means = np.random.default_rng(2).standard_normal((10, width), dtype=np.float32)

    def block(rows: slice, seed: int) -> Iterator[tuple[str, np.ndarray]]:
        common = np.random.default_rng(seed).standard_normal((rows.stop - rows.start, width))
        for i, name in enumerate(names):
            own = np.random.default_rng([seed, side, i]).standard_normal(common.shape)
            yield name, (means[labels[rows]] / 2 + common + own).astype(np.float32)

    ids = tuple(f"{split}-{i}" for i in range(n))
    with RunWriter(place, record, ids, labels, tuple(CIFAR10_CLASSES)) as writer:
        writer.prepare()
        for rows, seed in zip(slices(n, ROWS), factors, strict=True):
            writer.write(rows.start, dict(block(rows, int(seed))))
    writer.finish()
    return open_run(place)
