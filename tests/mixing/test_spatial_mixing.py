"""Spatial mixing against full Jacobians, closed forms, and its own standard errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.convmixer import ConvMixer
from timm.models.mlp_mixer import MlpMixer, ResBlock
from torch import Tensor, nn

import mixer_probe as mp
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.hooks import hooked
from mixer_probe.core.section import Picture
from mixer_probe.core.switches import evaluating, frozen, not_in_place, unfused
from mixer_probe.mixing import SpatialMixing, spatial_mixing
from mixer_probe.mixing.attention_rows import attention_rows, has_plain_attention
from mixer_probe.mixing.cells import (
    centres,
    common_grid,
    overlap,
    rows_of_cells,
    sampled_positions,
)
from mixer_probe.mixing.energies import Energies
from mixer_probe.mixing.jacobians import (
    _gradient_rows,
    as_sequence,
    block_calls,
    block_products,
    cumulative_products,
    from_sequence,
)
from mixer_probe.mixing.quantities import QUANTITIES, _branch_ends, _Summary
from mixer_probe.mixing.views.spatial_mixing import spatial_mixing_section
from mixer_probe.models.layer import Axes
from tests.networks import CASES, Case, as_model, noise, randomised

CLOSED = ("mixer", "gmixer", "resmlp")
FAMILIES = (
    *CLOSED,
    "gmlp",
    "vit",
    "deit-distilled",
    "swin",
    "resnetv2-basic",
    "convnext",
    "convmixer",
)


def summary(P: np.ndarray, grid: tuple[int, int], size: int, **changes: Any) -> dict[str, float]:
    """The quantities of one group of two images with energies P [S, S]."""
    own = P[None].astype(float)
    nothing = np.zeros((1, len(P)))
    e = Energies(grid, grid, np.arange(len(P)), own, own, nothing, np.array([2]))
    found = _Summary(replace(e, **changes), (size, size), (2, 2), size / 4)
    return dict(zip(QUANTITIES, found.value.tolist(), strict=True)) | {
        "uniform_px": found.uniform_px
    }


# -- exact cases -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "size", "distance"),
    [
        (14, 224, 116.49222709176634),
        (7, 224, 115.50289413681635),
        (16, 224, 116.56505336724328),
        (28, 224, 116.72163629500587),
        (24, 384, 200.04798275765285),
    ],
)
def test_uniform_mixing(side: int, size: int, distance: float) -> None:
    found = summary(np.ones((side**2, side**2)), (side, side), size)
    assert found["distance_px"] == pytest.approx(distance, rel=1e-12)
    assert found["uniform_px"] == pytest.approx(distance, rel=1e-12)
    assert found["relative_distance"] == pytest.approx(1, rel=1e-12)
    # exp of the entropy, of which ln S is the largest, divided by S.
    assert found["effective_positions"] == pytest.approx(1, rel=1e-12)
    assert found["self_mass"] == pytest.approx(side**-2, rel=1e-12)
    assert found["participation"] == pytest.approx(side**-2, rel=1e-12)
    assert found["dynamic"] == 0


def test_reading_from_itself_alone() -> None:
    found = summary(np.eye(16), (4, 4), 32)
    assert found["distance_px"] == found["relative_distance"] == 0
    assert found["self_mass"] == found["near_mass"] == 1
    assert found["effective_positions"] == pytest.approx(1 / 16)
    assert found["participation"] == pytest.approx(1)
    # The identity is a convolution.
    assert found["translation"] == pytest.approx(1, abs=1e-12)


def test_a_convolution_is_translation_structured_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    conv = nn.Conv2d(1, 1, 5, padding=2, bias=False).double()
    columns = conv(torch.eye(64, dtype=torch.float64).reshape(64, 1, 8, 8)).detach().flatten(1).T
    found = summary(np.square(columns.numpy()), (8, 8), 32)
    assert found["translation"] == pytest.approx(1, abs=1e-12)
    noise = [summary(rng.chisquare(3, (64, 64)), (8, 8), 32)["translation"] for _ in range(20)]
    assert abs(np.mean(noise)) < 3 * np.std(noise) / np.sqrt(20) + 1e-3


def test_prefix_tokens_are_left_out_of_all_but_their_own_mass() -> None:
    P = np.random.default_rng(1).uniform(size=(16, 16))
    plain = summary(P, (4, 4), 32)
    prefix = P.sum(1)[None] / 3
    found = summary(P, (4, 4), 32, prefix=prefix)
    assert found["prefix_mass"] == pytest.approx(0.25)
    assert np.isnan(plain["prefix_mass"])
    assert {k: v for k, v in found.items() if k != "prefix_mass"} == {
        k: v for k, v in plain.items() if k != "prefix_mass"
    }


def test_grids_of_different_sizes_cover_the_same_image() -> None:
    np.testing.assert_allclose(overlap((8, 8), (7, 7)).sum(0), 64 / 49)
    np.testing.assert_allclose(overlap((4, 4), (8, 8)).sum(1), 1)
    np.testing.assert_allclose(centres((2, 1), (8, 6)), [[2, 3], [6, 3]])
    assert [common_grid((s, s)) for s in (32, 224, 256, 384, 448)] == [
        (4, 4),
        (7, 7),
        (8, 8),
        (8, 8),
        (7, 7),
    ]


@pytest.mark.parametrize("grid", [(14, 14), (8, 8), (7, 7), (4, 4), (2, 2), (56, 56), (3, 5)])
def test_one_position_of_every_cell_is_sampled(grid: tuple[int, int]) -> None:
    rows = sampled_positions(grid, (7, 7), np.random.default_rng(0))
    assert len(rows) == len(set(rows.tolist())) == min(grid[0] * grid[1], 49)
    to_cells = rows_of_cells(grid, (7, 7), rows)
    np.testing.assert_allclose(to_cells.sum(1), 1)
    assert to_cells.shape == (49, len(rows))


@pytest.mark.parametrize("axes", [Axes.BNC, Axes.BCHW, Axes.BHWC])
def test_sequences_of_blocks_turn_back(axes: Axes) -> None:
    x = torch.randn((2, 3, 4, 5) if axes is not Axes.BNC else (2, 12, 5))
    again = from_sequence(as_sequence(x, axes), axes, x)
    assert torch.equal(again, x)


# -- against full Jacobians ------------------------------------------------------------------------


def full_jacobians(name: str, n: int = 3) -> tuple[Any, dict[str, Any], Callable[..., Any]]:
    """A block of a network in float64: the full Jacobians of its views [image, row, channel,
    source, channel], its energies by formula, and the estimator."""
    case = CASES[name]
    model, x = case.model(dtype=torch.float64), case.images(n, torch.float64)
    with (
        evaluating(model.module),
        frozen(model.module),
        unfused(model.module),
        not_in_place(model.module),
    ):
        call = block_calls(model, x)[0]
        end, skips = next(_branch_ends(model))
        layer = model.layer(call.run.name)
        axes, prefix = call.run.block.spec.axes, layer.prefix_tokens
        rows = np.arange(layer.positions)[:: max(1, layer.positions // 6)]
        full = {}
        for view in ("branch", "block"):

            def output(one: Tensor, view: str = view) -> Tensor:
                y = call.output(one[None], end if view == "branch" or skips else None)
                sequence = as_sequence(y, axes)[0]
                if view == "block" and skips:
                    sequence = sequence + as_sequence(one[None], axes)[0]
                return sequence[prefix + torch.from_numpy(rows)]

            J = torch.stack([torch.func.jacrev(output)(one) for one in call.args[0]])
            shape = (*J.shape[:3], *call.args[0].shape[1:])
            full[view] = as_sequence(J.reshape(shape), axes)

    def estimate(probes: int, seed: int) -> Any:
        with evaluating(model.module), frozen(model.module), unfused(model.module):
            return block_products(call, end, skips, rows, prefix, probes, (seed,))

    return (prefix, rows), full, estimate


def energies(J: Tensor, prefix: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Own, crossed and prefix energies by their definitions."""
    n = len(J)
    own = J.square().sum((2, 4)).mean(0).numpy()
    crossed = sum((J[a] * J[b]).sum((1, 3)) for a in range(n) for b in range(n) if a != b)
    assert isinstance(crossed, Tensor)
    crossed_mean = (crossed / (n * (n - 1))).numpy()
    return own[:, prefix:], crossed_mean[:, prefix:], own[:, :prefix].sum(1)


@pytest.mark.parametrize("name", [*CLOSED, "untied-mixer", "grouped-mixer"])
@pytest.mark.parametrize("n", [2, 3])
def test_closed_forms_are_the_jacobian(name: str, n: int) -> None:
    (prefix, _), full, estimate = full_jacobians(name, n)
    found = estimate(1, 0)
    for view, J in full.items():
        (own, crossed, _), form = found[view]
        assert form == "closed form"
        right = energies(J, prefix)
        np.testing.assert_allclose(own, right[0], rtol=1e-10, atol=1e-10 * right[0].max())
        np.testing.assert_allclose(crossed, right[1], rtol=1e-10, atol=1e-10 * right[0].max())


def test_a_residual_mlp_with_layer_norms_is_estimated() -> None:
    """The closed form is that of its affine map."""
    network = MlpMixer(
        img_size=32, patch_size=8, embed_dim=8, num_blocks=1, mlp_ratio=4, block_layer=ResBlock
    )
    found = spatial_mixing(as_model(randomised(network)), noise(2), views=("branch",))
    assert found.forms == ("VJP",)


def test_the_mixing_of_a_linear_layer_does_not_depend_on_the_image() -> None:
    case = CASES["resmlp"]
    found = spatial_mixing(case.model(), case.images(4), views=("branch",))
    assert (found.value[0, :, found.index("dynamic")] == 0).all()
    assert found.forms == ("closed form",)


@pytest.mark.parametrize("name", [n for n in FAMILIES if n not in CLOSED])
def test_vector_products_estimate_the_jacobian_without_bias(name: str) -> None:
    (prefix, _), full, estimate = full_jacobians(name)
    draws = [estimate(1, seed) for seed in range(60)]
    for view, J in full.items():
        right = energies(J, prefix)
        for k in range(3):
            values = np.array([d[view][0][k].sum() for d in draws])
            error = values.std(ddof=1) / np.sqrt(len(values))
            assert abs(values.mean() - right[k].sum()) <= 4 * error + 1e-9 * abs(right[0].sum())


@pytest.mark.parametrize("name", FAMILIES)
def test_tangents_estimate_the_jacobian_from_the_image_without_bias(name: str) -> None:
    case = CASES[name]
    model, x = case.model(dtype=torch.float64), case.images(2, torch.float64)
    layers = [model.layer(run.name) for run in model.structure.runs]
    rows = [np.array([0, layer.positions - 1]) for layer in layers]
    half = slice(0, x.shape[-1] // 2)
    with (
        evaluating(model.module),
        frozen(model.module),
        unfused(model.module),
        not_in_place(model.module),
    ):
        last, axes = len(layers) - 1, model.structure.runs[-1].block.spec.axes
        prefix, path = layers[last].prefix_tokens, layers[last].module

        def output(corner: Tensor, one: Tensor) -> Tensor:
            image = one.clone()
            image[..., half, half] = corner
            captured: list[Tensor] = []
            with hooked(model.module, [path], lambda call: captured.append(call.output)) as passes:
                passes.run(image[None])
            return as_sequence(captured[0], axes)[0, prefix + torch.from_numpy(rows[last])]

        J = [torch.func.jacrev(output)(one[..., half, half], one) for one in x]
        right = torch.stack(J).square().sum((2, 3, 4, 5)).mean(0).numpy()
        draws = np.stack(
            [
                cumulative_products(model, x, rows, (2, 2), 1, (seed,), lambda _: None)[last][0][
                    :, 0
                ]
                for seed in range(40)
            ]
        )
    error = draws.std(0, ddof=1) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(0) - right) <= 4 * error + 1e-9 * right.max()).all()


@pytest.mark.parametrize("name", ["vit-gap", "deit-distilled", "dinov2-registers"])
def test_rows_of_plain_attention_are_vector_products(name: str) -> None:
    case = CASES[name]
    model, x = case.model(dtype=torch.float64), case.images(2, torch.float64)
    with evaluating(model.module), frozen(model.module), unfused(model.module):
        call = block_calls(model, x)[-1]
        (end, skips), given = list(_branch_ends(model))[-1], call.args[0].requires_grad_()
        assert skips
        assert has_plain_attention(call.run.block.module, call.args[1:], call.kwargs)
        at = torch.tensor([0, 3, given.shape[1] - 1])
        vectors = torch.randn(3, given.shape[2], dtype=torch.float64)
        with torch.enable_grad():
            right = _gradient_rows(call.output(given, end), given, Axes.BNC, at, vectors)
    found = attention_rows(call.run.block.module, given.detach(), at, vectors)
    torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-12)


def test_other_attention_is_not_plain() -> None:
    for name in (
        "eva",
        "beit",
        "swin",
        "res-post",
        "vit-differential",
        "mixer",
        "parallel-scaling",
    ):
        block = CASES[name].model().structure.runs[0].block.module
        assert not has_plain_attention(block, (), {})


# -- standard errors -------------------------------------------------------------------------------


SMALL_CNN = replace(
    CASES["convmixer"],
    name="small ConvMixer",
    build=lambda: ConvMixer(6, 2, kernel_size=3, patch_size=4, num_classes=3),
    size=16,
)


def population(case: Case, n: int) -> tuple[Any, Tensor, np.ndarray]:
    """A network, the images of a population, and over these the quantities [view, quantity] of the
    first block's branch and from the image to the last block, from full Jacobians."""
    model, x = case.model(dtype=torch.float64), case.images(n, torch.float64)
    layers = [model.layer(run.name) for run in model.structure.runs]
    axes, prefix = model.structure.runs[0].block.spec.axes, layers[0].prefix_tokens
    path, side = layers[-1].module, case.size // 4

    def last(image: Tensor) -> Tensor:
        found: list[Tensor] = []
        with hooked(model.module, [path], lambda call: found.append(call.output)) as passes:
            passes.run(image[None])
        return as_sequence(found[0], axes)[0, prefix:]

    with (
        evaluating(model.module),
        frozen(model.module),
        unfused(model.module),
        not_in_place(model.module),
    ):
        (end, _), call = next(_branch_ends(model)), block_calls(model, x)[0]

        def branch(one: Tensor) -> Tensor:
            return as_sequence(call.output(one[None], end), axes)[0, prefix:]

        def of_branch(one: Tensor) -> Tensor:
            J = torch.func.jacrev(branch, chunk_size=64)(one)
            return as_sequence(J, axes)[..., prefix:, :]

        def of_image(one: Tensor) -> Tensor:
            """Cells of the image as positions, their pixels as channels."""
            J = torch.func.jacrev(last, chunk_size=64)(one)
            J = J.unflatten(-2, (4, side)).unflatten(-1, (4, side))
            return J.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(2, 3)

        truth = []
        for one_of, given, source in (
            (of_branch, call.args[0], layers[0].grid),
            (of_image, x, (4, 4)),
        ):
            squares, total = torch.zeros(()), torch.zeros(())
            for one in given:
                J = one_of(one)
                squares, total = squares + J.square().sum((1, 3)), total + J
            pairs = (total.square().sum((1, 3)) - squares) / (n * (n - 1))
            both = torch.stack([squares / n, pairs])[:, None].numpy()
            grid, rows = layers[0].grid, np.arange(both.shape[2])
            assert grid is not None
            assert source is not None
            none = np.zeros((1, len(rows)))
            e = Energies(grid, source, rows, both[0], both[1], none, np.array([2]))
            truth.append(_Summary(e, (case.size,) * 2, (4, 4), case.size / 4).value)
    return model, x, np.array(truth)


@pytest.mark.parametrize(
    "case", [CASES["mixer"], CASES["vit"], SMALL_CNN], ids=lambda case: case.name
)
def test_intervals_hold_the_full_jacobian(case: Case) -> None:
    """20 samples of 16 images of a population: how often the intervals of estimates hold the
    quantities of the full Jacobian over the population."""
    model, images, truth = population(case, 64)
    rng, inside = np.random.default_rng(5), []
    asked = [QUANTITIES.index(q) for q in ("relative_distance", "self_mass", "dynamic")]
    for seed in range(20):
        sample = images[torch.from_numpy(rng.choice(len(images), 16, replace=False))]
        views: Any = ("branch", "cumulative")
        r = spatial_mixing(model, sample, views=views, cells=(4, 4), seed=seed)
        ends = [0, 1], [0, len(r.layers) - 1]
        inside.append((r.low[ends] <= truth) & (truth <= r.high[ends]))
    assert 0.90 <= np.array(inside)[..., asked].mean() <= 0.99


# -- results ---------------------------------------------------------------------------------------


def test_positions_views_and_probes_are_what_was_asked_for() -> None:
    case = CASES["vit"]
    found = spatial_mixing(case.model(), case.images(5), views=("block",), positions=4, probes=2)
    assert found.views == ("block",)
    assert set(found.positions.tolist()) == {4}
    assert (found.n, found.groups, found.probes) == (5, 2, 2)
    np.testing.assert_allclose(found.matrix.sum(-1), 1, rtol=1e-5)
    assert found.curve("block", "self_mass").shape == (3, len(found.layers))


def test_one_image_has_no_interval() -> None:
    case = CASES["mixer"]
    found = spatial_mixing(case.model(), case.images(1))
    assert np.isfinite(found.value[..., found.index("distance_px")]).all()
    assert np.isnan(found.se).all()
    assert np.isnan(found.value[..., found.index("dynamic")]).all()


def test_branches_that_are_zero_are_said_to_be_so() -> None:
    case = CASES["vit"]
    network = case.network()
    for block in network.blocks:  # type: ignore[union-attr]
        nn.init.zeros_(block.attn.proj.weight)
        nn.init.zeros_(block.attn.proj.bias)
    from mixer_probe.mixing.findings.spatial_mixing import distance_sentence

    found = spatial_mixing(as_model(network, case.size), case.images(4))
    assert found.zero[0].all()
    assert np.isnan(found.value[0]).all()
    assert not found.zero[1:].any()
    assert "is exactly zero and has no distance" in distance_sentence(found)


def test_results_of_different_views_are_in_one_section() -> None:
    from mixer_probe.core.section import Picture
    from mixer_probe.mixing.findings.spatial_mixing import distance_sentence
    from mixer_probe.mixing.views.spatial_mixing import spatial_mixing_section

    case = CASES["mixer"]
    model, images = case.model(), case.images(4)
    found = [spatial_mixing(model, images, views=v) for v in (("branch", "block"), ("cumulative",))]
    (section,) = spatial_mixing_section(found)
    assert [item.draw() is not None for item in section.content if isinstance(item, Picture)] == [
        True
    ] * 3
    blocks, image = map(distance_sentence, found)
    assert f"averaged over {len(found[0].layers)} blocks" in blocks
    assert "averaged" not in image
    assert "reads the image from" in image


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"views": ()}, "give at least one of each"),
        ({"probes": 0}, "give at least one of each"),
        ({"positions": 0}, "give at least one of each"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], sentence: str) -> None:
    case = CASES["mixer"]
    with pytest.raises(MeasureError, match=sentence):
        spatial_mixing(case.model(), case.images(2), **options)


def test_unknown_quantities_list_close_ones() -> None:
    case = CASES["mixer"]
    found: SpatialMixing = spatial_mixing(case.model(), case.images(2), views=("branch",))
    with pytest.raises(MeasureError, match="self_mass"):
        found.curve("branch", "self_mas")
    with pytest.raises(MeasureError, match="branch"):
        found.curve("branches", "self_mass")


def test_networks_whose_branches_are_all_zero_are_drawn() -> None:
    model = mp.load_model("resnet18", pretrained=False, input_size=(3, 32, 32))
    images = noise(2, 32)
    found = spatial_mixing(model, images, positions=4, cells=(2, 2))
    assert found.zero[0].all()
    (section,) = spatial_mixing_section([found])
    assert all(p.encoded for p in section.content if isinstance(p, Picture))
