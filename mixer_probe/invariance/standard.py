"""The distortions that networks are compared under when none are given."""

from __future__ import annotations

from collections.abc import Sequence

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.validate import checked
from mixer_probe.images.distortions import (
    Distortion,
    Grid,
    HighPass,
    LowPass,
    PatchDrop,
    PatchShuffle,
    PixelShuffle,
    Shift,
    paper_shuffle,
)
from mixer_probe.models.model import Model

DROPPED = (0.1, 0.25, 0.5, 0.75, 0.9)


def own_grid(model: Model) -> tuple[int, int]:
    """(rows, columns) of the patches that a Mixer or ViT sees; a CNN has none, so the positions
    after its last block.

    Raises MeasureError for a network whose positions form no grid that divides its input."""
    grid = (
        model.structure.token_grid
        if model.family != "cnn"
        else model.layer(model.structure.runs[-1].name).grid
    )
    height, width = model.input.size[1:]
    if grid is None or height % grid[0] or width % grid[1]:
        raise MeasureError(
            f"{model.name} has no grid of patches that divides its input of {height}×{width} px; "
            "give grid="
        )
    return grid


@checked(MeasureError)
def standard_distortions(
    model: Model, *, grid: Grid | None = None, seed: int = 0, shared: bool = False
) -> tuple[Distortion, ...]:
    """Eight kinds of distortion, each from mild to severe, for images of the network's input size.

    Patches shuffled on grids of 2, 4, 8, ... up to `grid`, by default the network's own patches;
    pixels shuffled in cells from half a patch to the whole image; both in one order for all images
    (Tolstikhin et al. 2021, Fig. 4); patches dropped; shifts of 1, 2, 4, ... pixels, both ways;
    low- and high-pass at 1, 2, 4, ... cycles per image. What is dropped, and the level of the
    high-pass, is the mean colour that the network subtracts. `shared` draws one choice for all
    images instead of one per image.

    Raises MeasureError as `own_grid` does."""
    own = own_grid(model) if grid is None else ((grid, grid) if isinstance(grid, int) else grid)
    height, width = model.input.size[1:]
    # Square grids of powers of two below the network's own, and its own.
    grids: list[Grid] = [
        g for g in _powers(min(own) - 1) if g > 1 and height % g == 0 and width % g == 0
    ]
    grids += [own] if max(own) > 1 else []
    # Grids of cells from half a patch to the whole image; cells of one pixel have nothing to
    # shuffle.
    candidates: list[Grid] = [(2 * own[0], 2 * own[1]), *reversed(grids), 1]
    sizes = [(g, g) if isinstance(g, int) else g for g in candidates]
    cells = [
        g
        for g, (r, c) in zip(candidates, sizes, strict=True)
        if height % r == 0 and width % c == 0 and (height // r) * (width // c) > 1
    ]
    powers = _powers(min(height, width) // 4)
    return (
        *(PatchShuffle(g, seed, shared) for g in grids),
        *(PixelShuffle(g, seed, shared) for g in cells),
        *(paper_shuffle(g, seed) for g in (own, 1)),
        *(PatchDrop(fraction, own, seed, shared, model.input.mean_colour) for fraction in DROPPED),
        *(Shift(k, k) for k in powers),
        *(Shift(k, k, "repeat") for k in powers),
        *(LowPass(float(f)) for f in reversed(powers)),
        *(HighPass(float(f), level=model.input.mean_colour) for f in powers),
    )


def filter_type(distortions: Sequence[Distortion], kind: str) -> list[int]:
    """Indices of the distortions of a kind, from the mildest to the most severe."""
    found = [i for i, d in enumerate(distortions) if d.kind == kind]
    return sorted(found, key=lambda i: distortions[i].severity_sign * distortions[i].strength)


def _powers(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`."""
    return [2**k for k in range(max(most, 0).bit_length())]
