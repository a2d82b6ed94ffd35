"""The augmentations of a batch: what moves, what stays, and targets that match the pixels."""

from __future__ import annotations

import pytest
import torch

from mixer_probe.training import augmentation
from mixer_probe.training.augmentation import Augmentation


@pytest.fixture
def batch() -> torch.Tensor:
    return torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("width", [32, 20])
def test_shift_and_flip_move_pixels_exactly(batch: torch.Tensor, width: int) -> None:
    torch.manual_seed(0)
    mean, std = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    images = batch[:8, :, :, :width]
    moved = Augmentation(trivial=0, erase=0, padding=2).distort(images, mean, std)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    shifts = [
        (flipped, y, x) for flipped in (padded, padded.flip(-1)) for y in range(5) for x in range(5)
    ]
    errors = torch.stack(
        [
            (flipped[:, :, y : y + 32, x : x + width] - moved).abs().amax((1, 2, 3))
            for flipped, y, x in shifts
        ]
    )
    assert errors.amin(dim=0).max() < 1e-5


def test_colours_stay_in_range_and_identity_changes_nothing(batch: torch.Tensor) -> None:
    strength = torch.linspace(-1, 1, 64).view(-1, 1, 1, 1)
    for index in range(len(augmentation.KINDS)):
        changed = augmentation.recolour(batch, torch.full((64, 1, 1, 1), index), strength)
        assert changed.min() >= 0
        assert changed.max() <= 1
        assert torch.equal(changed, batch) == (
            augmentation.KINDS[index] not in augmentation.COLOURS
        )


def test_mixed_targets_are_probabilities_that_match_the_pixels() -> None:
    torch.manual_seed(0)
    labels = torch.arange(64) % 10
    # Every image is one grey level of its own class, so that the mean pixel says what the target
    # must be.
    images = (labels / 10).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    targets = torch.nn.functional.one_hot(labels, 10).float()
    mixed, soft = Augmentation(mix=1.0).combine(images, targets)
    assert soft.sum(dim=1).allclose(torch.ones(64))
    assert mixed.mean(dim=(1, 2, 3)).allclose(soft @ (torch.arange(10) / 10), atol=1e-5)
    assert (soft.amax(dim=1) < 1).any()


@pytest.mark.parametrize("width", [32, 20])
def test_a_box_of_the_mean_colour_is_erased(batch: torch.Tensor, width: int) -> None:
    torch.manual_seed(0)
    images = 1 + batch[:, :, :, :width]
    erased = augmentation.erase(images, 1.0) == 0
    assert augmentation.erase(images, 0.0).equal(images)
    assert erased.any(dim=1).equal(erased.all(dim=1))
    assert (erased | (augmentation.erase(images, 0.0) == images)).all()
    for gone in erased[:, 0]:
        rows, columns = gone.any(dim=1), gone.any(dim=0)
        assert gone.equal(rows[:, None] & columns)
        # At most a third, but for a pixel on each side.
        assert gone.float().mean() <= (0.33**0.5 + 1 / 32) * (0.33**0.5 + 1 / width)
    # About as many as are asked for; a half may fall outside.
    some = (augmentation.erase(images.repeat(16, 1, 1, 1), 0.25) == 0).flatten(1).any(dim=1)
    assert float(some.float().mean()) == pytest.approx(0.25, abs=0.06)


def test_a_seed_of_torch_decides_all(batch: torch.Tensor) -> None:
    """And NumPy's and Python's generators nothing."""
    mean, std = torch.full((3, 1, 1), 0.5), torch.full((3, 1, 1), 0.25)
    targets = torch.nn.functional.one_hot(torch.arange(64) % 10, 10).float()
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        images = Augmentation().distort(batch, mean, std)
        found.append(torch.cat([t.flatten() for t in Augmentation().combine(images, targets)]))
    assert found[0].equal(found[1])
    assert not found[0].equal(found[2])
