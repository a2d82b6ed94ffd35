"""Views against padding, turning and interpolation by other libraries."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates, uniform_filter
from scipy.stats import chisquare

from mixer_probe.core.errors import MeasureError
from mixer_probe.visualization import NO_TRANSFORMS, AffineParams, Transforms, sample_views


def pictures(n: int, height: int, width: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(
        n, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).to(dtype)


def placed(
    window: float = 1.0, centre: tuple[float, float] = (0, 0), angle: float = 0.0
) -> AffineParams:
    return AffineParams(*(torch.tensor([v], dtype=torch.float64) for v in (window, centre, angle)))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("size", [(9, 12), (32, 32), (7, 5)])
def test_nothing_changes_without_transformations(
    size: tuple[int, int], dtype: torch.dtype, tolerance: float
) -> None:
    images = pictures(2, *size, dtype)
    drawn = [NO_TRANSFORMS.draw(torch.Generator().manual_seed(s), size) for s in (0, 1)]
    both = AffineParams(
        *(torch.cat([getattr(d, name) for d in drawn]) for name in ("window", "centre", "angle"))
    )
    torch.testing.assert_close(sample_views(images, both), images, rtol=0, atol=tolerance)


@pytest.mark.parametrize("shift", [(0, 1), (2, -3), (-1, 0)])
def test_shifts_cut_from_the_mirrored_image(shift: tuple[int, int]) -> None:
    images = pictures(1, 6, 8)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (3, 3), (3, 3)), mode="symmetric")
    row, column = 3 + shift[0], 3 + shift[1]
    expected = padded[:, :, row : row + 6, column : column + 8]
    np.testing.assert_allclose(sample_views(images, placed(centre=shift)), expected, atol=1e-12)


def test_the_mean_over_all_shifts_is_a_box_filter() -> None:
    images = pictures(1, 8, 8)
    shifts = list(product(range(-2, 3), repeat=2))
    mean = sum(sample_views(images, placed(centre=s)) for s in shifts) / len(shifts)
    expected = uniform_filter(images.numpy(), size=(1, 1, 5, 5), mode="reflect")
    np.testing.assert_allclose(mean, expected, atol=1e-12)


def test_turns() -> None:
    square, wide = pictures(1, 6, 6), pictures(1, 4, 9)
    quarter = sample_views(square, placed(angle=math.pi / 2))
    assert any(torch.allclose(quarter, torch.rot90(square, k, (2, 3)), atol=1e-12) for k in (1, 3))
    torch.testing.assert_close(
        sample_views(wide, placed(angle=math.pi)), wide.flip(2, 3), rtol=0, atol=1e-12
    )


def test_any_placement_is_bilinear_interpolation() -> None:
    height, width = 10, 14
    images = pictures(1, height, width)
    window, centre, angle = 0.8, (1.0, -2.0), 0.3
    rows, columns = np.meshgrid(
        np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij"
    )
    # A turn by the angle, in pixels, whatever the sides of the image are.
    at = [
        window * (math.cos(angle) * rows + math.sin(angle) * columns)
        + centre[0]
        + (height - 1) / 2,
        window * (math.cos(angle) * columns - math.sin(angle) * rows) + centre[1] + (width - 1) / 2,
    ]
    expected = [map_coordinates(plane, at, order=1, mode="reflect") for plane in images[0].numpy()]
    found = sample_views(images, placed(window, centre, angle))[0].numpy()
    inside = (at[0] > 0) & (at[0] < height - 1) & (at[1] > 0) & (at[1] < width - 1)
    assert inside.mean() > 0.5
    np.testing.assert_allclose(found[:, inside], np.stack(expected)[:, inside], atol=1e-12)


def test_draws_are_uniform_and_within_their_bounds() -> None:
    transforms = Transforms(shift=0.05, window=(0.9, 1.1), rotation=5.0, views=4000)
    drawn = transforms.draw(torch.Generator().manual_seed(0), (32, 64))
    # 5 % of 32 px is 2 whole pixels, of 64 px 3.
    for axis, most in ((0, 2), (1, 3)):
        values, counts = np.unique(drawn.centre[:, axis], return_counts=True)
        np.testing.assert_array_equal(values, np.arange(-most, most + 1))
        assert chisquare(counts).pvalue > 0.001
    assert 0.9 <= drawn.window.min() < 0.91
    assert 1.09 < drawn.window.max() <= 1.1
    assert math.radians(4.9) < drawn.angle.max() <= math.radians(5)
    assert abs(drawn.angle.mean()) < math.radians(0.2)


def test_crops_lie_anywhere_inside() -> None:
    crops = Transforms(shift=0.0, window=(0.5, 1.0), rotation=0.0, inside=True, views=4000)
    drawn = crops.draw(torch.Generator().manual_seed(0), (20, 40))
    for axis, side in ((0, 20), (1, 40)):
        reach = drawn.centre[:, axis].abs() + drawn.window * side / 2
        assert reach.max() <= side / 2 + 1e-9
        assert reach.max() > 0.99 * side / 2
    assert not drawn.angle.any()


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": (0.0, 1.0)},
        {"window": (1.1, 0.9)},
        {"window": (0.5, 1.2), "inside": True},
        {"shift": -0.1},
        {"noise": -1.0},
        {"views": 0},
    ],
)
def test_impossible_settings_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(MeasureError):
        Transforms(**wrong)
