"""Distortions: exact undoing, closed forms of the filters, what each moves and leaves, and images
distorted when asked for."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
import torch
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor

import mixer_probe as mp
from mixer_probe.capture.stream import transform_of
from mixer_probe.core.errors import ImagesError, StoreError
from mixer_probe.core.result import from_dict, to_dict
from mixer_probe.images import (
    Chain,
    DistortedImages,
    Distortion,
    HighPass,
    LowPass,
    PatchDrop,
    PatchShuffle,
    PixelShuffle,
    Shift,
    distort,
    from_arrays,
    paper_shuffle,
)
from mixer_probe.images.distortions import from_cells, permute_cells, to_cells
from tests.networks import randomised
from tests.tiny import SPEC

EXACT: tuple[Distortion, ...] = (
    PatchShuffle(2),
    PatchShuffle(4, seed=3),
    PatchShuffle((2, 6), seed=1, shared=True),
    PixelShuffle(1),
    PixelShuffle(4, seed=5, tied=False),
    PixelShuffle((4, 3), shared=True),
    Shift(3, -5),
    Shift(0, 0),
    paper_shuffle(4),
    Chain((PatchShuffle(2), Shift(1, 2), PixelShuffle(1))),
)


def noise(
    n: int = 3, height: int = 24, width: int = 36, dtype: torch.dtype = torch.float32
) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if dtype == torch.uint8:
        return torch.randint(0, 256, (n, 3, height, width), generator=generator, dtype=torch.uint8)
    return torch.rand(n, 3, height, width, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.float32, torch.float64, torch.bfloat16], ids=str
)
@pytest.mark.parametrize("distortion", EXACT, ids=lambda d: d.label)
def test_undoing_gives_the_image_back_bit_for_bit(
    distortion: Distortion, dtype: torch.dtype
) -> None:
    images = noise(dtype=dtype)
    changed = distortion(images, [7, 8, 2])
    assert changed.dtype == dtype
    assert torch.equal(distortion.undo(changed, [7, 8, 2]), images)
    assert torch.equal(images, noise(dtype=dtype)), "the input was written to"


@pytest.mark.parametrize("distortion", EXACT, ids=lambda d: d.label)
def test_nothing_but_the_place_of_a_pixel_changes(distortion: Distortion) -> None:
    """Every image keeps its set of pixels, colours together."""
    images = noise(dtype=torch.uint8).int().to(torch.float64)
    changed = distortion(images)
    codes = [
        (x[:, 0] * 65536 + x[:, 1] * 256 + x[:, 2]).flatten(1).sort(1).values
        for x in (images, changed)
    ]
    assert torch.equal(*codes)
    if distortion.strength:
        assert not torch.equal(changed, images)


def test_the_cells_of_a_shuffle_are_where_its_order_says() -> None:
    images = noise(2, 8, 8)
    shuffle = PatchShuffle(4, seed=2)
    changed, order = shuffle(images, [5, 9]), shuffle.order([5, 9])
    for image in range(2):
        for cell in range(16):
            row, column = divmod(cell, 4)
            from_row, from_column = divmod(int(order[image, cell]), 4)
            expected = images[
                image, :, 2 * from_row : 2 * from_row + 2, 2 * from_column : 2 * from_column + 2
            ]
            assert torch.equal(
                changed[image, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2], expected
            )


def test_cells_and_back() -> None:
    images = noise()
    assert torch.equal(from_cells(to_cells(images, (4, 6)), (4, 6)), images)
    assert to_cells(images, (4, 6)).shape == (3, 24, 3, 6, 6)
    assert torch.equal(permute_cells(images, torch.arange(24), (4, 6)), images)


def test_a_shuffle_of_the_finest_grid_is_a_shuffle_of_pixels() -> None:
    """A grid of one-pixel cells and a shuffle inside one cell are both a permutation of all
    pixels."""
    images = noise(1, 6, 6)
    assert torch.equal(
        to_cells(images, 6).flatten(1).sort(1).values,
        PixelShuffle(1)(images).flatten(1).sort(1).values,
    )


def test_pixels_inside_cells_stay_in_their_cell_and_tied_cells_share_the_order() -> None:
    places = torch.arange(64.0).reshape(1, 1, 8, 8).expand(1, 3, 8, 8)
    tied, free = (
        to_cells(PixelShuffle(2, seed=1, tied=t)(places), 2)[0, :, 0].flatten(1)
        for t in (True, False)
    )
    plain = to_cells(places, 2)[0, :, 0].flatten(1)
    for changed in (tied, free):
        assert torch.equal(changed.sort(1).values, plain.sort(1).values)
    # Cells differ by a constant, so that the same order gives the same differences.
    assert all(torch.equal(tied[k] - plain[k, 0], tied[0] - plain[0, 0]) for k in range(4))
    assert not all(torch.equal(free[k] - plain[k, 0], free[0] - plain[0, 0]) for k in range(4))


def test_every_image_has_its_own_order_and_shared_ones_have_one() -> None:
    images = noise(1).repeat(6, 1, 1, 1)
    own, shared = PatchShuffle(4)(images), PatchShuffle(4, shared=True)(images)
    assert len({x.numpy().tobytes() for x in own}) == 6
    assert len({x.numpy().tobytes() for x in shared}) == 1
    assert torch.equal(paper_shuffle(4)(images)[0], paper_shuffle(4)(images)[5])


def test_the_order_of_an_image_hangs_on_its_number_and_the_seed_alone() -> None:
    images = noise(4)
    whole = PatchShuffle(4)(images, [3, 1, 4, 15])
    assert torch.equal(PatchShuffle(4)(images[2:], [4, 15]), whole[2:])
    assert not torch.equal(PatchShuffle(4, seed=1)(images, [3, 1, 4, 15]), whole)


def test_no_shuffle_is_the_identity_and_all_others_come_up() -> None:
    """Of four cells 23 orders remain; each is drawn about equally often."""
    order = PatchShuffle(2).order(range(23 * 200)).numpy()
    found, counts = np.unique(order, axis=0, return_counts=True)
    assert len(found) == 23
    assert [0, 1, 2, 3] not in found.tolist()
    chi_squared = float(((counts - 200) ** 2 / 200).sum())
    assert chi_squared < 46.8  # 99.8 % of a chi-squared distribution with 22 degrees of freedom


def test_patches_dropped_are_that_share_and_the_others_are_untouched() -> None:
    images = noise(2, 24, 24)
    for fraction in (0, 0.25, 0.5, 1):
        changed = to_cells(PatchDrop(fraction, 4, fill=(0.1, 0.2, 0.3))(images), 4)
        gone = (changed == torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)).flatten(2).all(2)
        assert gone.sum(1).tolist() == [16 * fraction] * 2
        assert torch.equal(changed[~gone], to_cells(images, 4)[~gone])
    assert torch.equal(PatchDrop(0, 4)(images), images)


def test_a_larger_share_drops_what_a_smaller_one_drops() -> None:
    images = torch.zeros(1, 3, 8, 8)
    few, many = (PatchDrop(fraction, 4, fill=(1, 1, 1))(images) for fraction in (0.25, 0.75))
    assert bool((many >= few).all())
    assert many.sum() == 3 * few.sum()


def test_fill_of_bytes() -> None:
    changed = PatchDrop(1, 2, fill=(0.0, 0.5, 1.0))(noise(1, dtype=torch.uint8))
    assert changed.dtype == torch.uint8
    assert changed[0, :, 0, 0].tolist() == [0, 128, 255]


def test_shifts() -> None:
    images = noise(2, 6, 8)
    cyclic = Shift(2, -3)(images)
    assert all(
        torch.equal(cyclic[:, :, r, c], images[:, :, (r - 2) % 6, (c + 3) % 8])
        for r in range(6)
        for c in range(8)
    )
    repeated = Shift(2, -3, "repeat")(images)
    for r in range(6):
        for c in range(8):
            assert torch.equal(repeated[:, :, r, c], images[:, :, max(r - 2, 0), min(c + 3, 7)])
    assert Shift(2, -3).strength == 3
    # Farther than the image is wide nothing but the border is left.
    assert torch.equal(Shift(0, 99, "repeat")(images), images[..., :1].expand_as(images))


@pytest.mark.parametrize("kind", ["gaussian", "ideal"])
@pytest.mark.parametrize(("down", "right"), [(0, 0), (3, 0), (0, 5), (2, 4)])
def test_a_wave_is_passed_by_the_transfer_function(kind: str, down: int, right: int) -> None:
    """A cosine of (down, right) cycles per image is an eigenfunction: the filter multiplies it by
    H(f)."""
    rows, columns = torch.arange(16, dtype=torch.float64), torch.arange(20, dtype=torch.float64)
    wave = torch.cos(2 * math.pi * (down * rows[:, None] / 16 + right * columns / 20) + 0.4).expand(
        1, 3, 16, 20
    )
    f, cutoff = math.hypot(down, right), 4.2
    expected = float(f <= cutoff) if kind == "ideal" else math.exp(-(f**2) / (2 * cutoff**2))
    low, high = (cls(cutoff, kind)(wave) for cls in (LowPass, HighPass))
    torch.testing.assert_close(low, expected * wave, atol=1e-12, rtol=0)
    torch.testing.assert_close(high, (1 - expected) * wave, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["gaussian", "ideal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_low_and_high_add_up_to_the_image(kind: str, dtype: torch.dtype) -> None:
    images = noise(dtype=dtype)
    for cutoff in (0.5, 3.0, 40.0):
        total = LowPass(cutoff, kind)(images) + HighPass(cutoff, kind)(images)
        assert (total - images).abs().max() <= torch.finfo(dtype).eps


def test_filters_at_their_ends() -> None:
    images = noise(dtype=torch.float64)
    mean = images.mean((2, 3), keepdim=True)
    torch.testing.assert_close(
        LowPass(0.5, "ideal")(images), mean.expand_as(images), atol=1e-12, rtol=0
    )
    torch.testing.assert_close(LowPass(99.0, "ideal")(images), images, atol=1e-12, rtol=0)
    torch.testing.assert_close(
        LowPass(2.0)(images).mean((2, 3), keepdim=True), mean, atol=1e-12, rtol=0
    )
    level = HighPass(2.0, level=(0.2, 0.4, 0.6))(images).mean((2, 3))
    torch.testing.assert_close(
        level, torch.tensor([[0.2, 0.4, 0.6]] * 3, dtype=torch.float64), atol=1e-12, rtol=0
    )


def test_filters_of_bytes_are_floats_with_one_for_white() -> None:
    images = noise(dtype=torch.uint8)
    total = LowPass(2.0)(images) + HighPass(2.0)(images)
    torch.testing.assert_close(total, images.float() / 255, atol=1e-6, rtol=0)


def test_normalising_before_or_after_is_the_same_where_the_fill_is_the_mean() -> None:
    """Shuffles, shifts, drops to the mean colour and filters commute with normalisation, so the
    pixel space is no choice."""
    mean, std = (
        torch.tensor(v, dtype=torch.float64).view(3, 1, 1)
        for v in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.25])
    )
    images, zero = noise(2, 24, 24, torch.float64), (0.0, 0.0, 0.0)
    pairs = [(d, d) for d in (*EXACT[:2], EXACT[3], Shift(2, 1, "repeat"), LowPass(3.0))]
    pairs += [(PatchDrop(0.5, 4, fill=(0.5, 0.4, 0.3)), PatchDrop(0.5, 4, fill=zero))]
    pairs += [(HighPass(3.0, level=(0.5, 0.4, 0.3)), HighPass(3.0, level=zero))]
    for before, after in pairs:
        torch.testing.assert_close(
            (before(images) - mean) / std, after((images - mean) / std), atol=1e-12, rtol=0
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: PatchShuffle(5)(noise()),
            r"5×5 does not divide images of 24×36 px; grids that do: 1, 2, 3, 4, 6, 12",
        ),
        (lambda: PatchShuffle(0), "each 1 or more, not 0"),
        (lambda: PatchDrop(1.2, 4), "between 0 and 1"),
        (lambda: LowPass(0.0), "positive number of cycles"),
        (lambda: LowPass(1.0, "gauss"), "known: gaussian, ideal"),
        (lambda: Shift(1, 1, "fill"), "known: cyclic, repeat"),
        (lambda: Chain(()), "at least one step"),
        (lambda: PatchDrop(0.5, 2).undo(noise()), "cannot be undone"),
        (lambda: Shift(1, 1, "repeat").undo(noise()), "edge='cyclic' can"),
        (lambda: Chain((PatchShuffle(2), LowPass(2.0))).undo(noise()), "cannot be undone"),
        (lambda: PatchShuffle(2)(noise()[0]), r"tensor \[n, 3, height, width\], not \(3, 24, 36\)"),
        (lambda: PatchShuffle(2)(noise().int()), "uint8 or floating-point, not torch.int32"),
        (lambda: PatchShuffle(2)(noise(), [1]), "1 numbers for 3 images"),
        (lambda: permute_cells(noise(), torch.arange(3), 2), "order of 3 cells"),
        (lambda: distort("demo", PatchShuffle(2)), "not a str"),
    ],
)
def test_what_makes_no_sense_is_an_error(make: object, message: str) -> None:
    with pytest.raises(ImagesError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    "distortion",
    [*EXACT, PatchDrop(0.5, 4), LowPass(2.0), HighPass(2.0, "ideal")],
    ids=lambda d: d.label,
)
def test_a_distortion_is_data(distortion: Distortion) -> None:
    assert from_dict(to_dict(distortion)) == distortion
    assert hash(distortion) == hash(from_dict(to_dict(distortion)))
    assert distortion.kind in distortion.label or isinstance(distortion, Chain)


def test_equal_grids_are_equal_records() -> None:
    assert PatchShuffle((4, 4)) == PatchShuffle(4)
    assert PatchShuffle((2, 4)).strength_text == "2×4"


# -- images that are distorted when asked for ------------------------------------------------------


def model() -> mp.Model:
    network = randomised(
        MlpMixer(img_size=32, patch_size=8, embed_dim=16, num_blocks=1, num_classes=5)
    )
    return mp.load_model(
        network, input_size=(3, 32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25), device="cpu"
    )


def test_a_network_sees_distorted_pixels_normalised_after() -> None:
    images, network, distortion = (
        mp.load_images("demo", limit=7),
        model(),
        PatchDrop(0.5, 4, fill=(0.9, 0.1, 0.5)),
    )
    view = distort(images, distortion)
    found = torch.cat(list(view.batches(transform_of(network), 3)))
    pixels = torch.stack(
        [torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 for image in images]
    )
    numbers = [zlib.crc32(name.encode()) for name in images.ids]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (network.input.mean, network.input.std))
    torch.testing.assert_close(found, (distortion(pixels, numbers) - mean) / std)


def test_no_distortion_gives_the_very_same_inputs() -> None:
    images, network = mp.load_images("demo", limit=5), model()
    plain, same = (
        torch.cat(list(x.batches(transform_of(network), 2)))
        for x in (images, distort(images, PatchDrop(0, 4)))
    )
    assert torch.equal(plain, same)


def test_an_image_is_distorted_alike_in_any_batch_and_subset() -> None:
    images, transform = mp.load_images("demo", limit=9), transform_of(model())
    view = distort(images, PatchShuffle(4))
    whole = torch.cat(list(view.batches(transform, 4)))
    assert torch.equal(
        torch.cat(list(view.batches(transform, [[8, 3], [3, 0]]))), whole[[8, 3, 3, 0]]
    )
    assert torch.equal(next(view.subset([7, 2]).batches(transform, 2)), whole[[7, 2]])
    chosen = view.sample(4, seed=1)
    assert torch.equal(
        next(chosen.batches(transform, 4)), whole[[images.ids.index(i) for i in chosen.ids]]
    )


def test_a_view_tells_itself_from_its_images() -> None:
    images = mp.load_images("demo", limit=5)
    views = [
        distort(images, d) for d in (PatchShuffle(4), PatchShuffle(4, seed=1), PatchShuffle(2))
    ]
    assert len({images.record.fingerprint, *(v.record.fingerprint for v in views)}) == 4
    assert views[0].record.name == "demo (patches shuffled, 4×4)"
    assert views[0].ids == images.ids
    assert views[0].labels is images.labels
    assert views[0].class_names == images.class_names
    assert len(views[0]) == 5


def test_extract_takes_a_view_and_a_store_keeps_it_apart(tmp_path: object) -> None:
    images, network = mp.load_images("demo", limit=6), model()
    view = distort(images, PatchShuffle(2))
    plain, moved = (mp.extract(network, x, "blocks") for x in (images, view))
    assert not np.allclose(plain["blocks.0"], moved["blocks.0"])
    stored = mp.extract(network, view, "blocks", out=f"{tmp_path}/run")
    np.testing.assert_array_equal(stored["blocks.0"], moved["blocks.0"])
    with pytest.raises(StoreError):
        mp.extract(network, images, "blocks", out=f"{tmp_path}/run")


def test_a_distorted_view_can_be_distorted_again_and_tensors_at_once() -> None:
    images, transform = mp.load_images("demo", limit=3), transform_of(model())
    twice = distort(distort(images, PatchShuffle(4)), Shift(1, 0))
    assert isinstance(twice, DistortedImages)
    assert twice.distortion == Chain((PatchShuffle(4), Shift(1, 0)))
    once = torch.cat(list(distort(images, PatchShuffle(4)).batches(transform, 3)))
    torch.testing.assert_close(torch.cat(list(twice.batches(transform, 3))), once.roll(1, 2))
    assert torch.equal(distort(noise(), Shift(1, 2)), Shift(1, 2)(noise()))


def test_a_grid_that_does_not_divide_the_input_is_told_when_images_are_read() -> None:
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    network = mp.load_model(MlpMixer(img_size=32, patch_size=8, embed_dim=8, num_blocks=1), **SPEC)
    with pytest.raises(ImagesError, match="grids that do: 1, 2, 4, 8, 16, 32"):
        mp.extract(network, distort(from_arrays(pixels), PatchShuffle(3)), "blocks")
