"""Model stitching: planted maps are found, controls recover nothing, and networks stay as they
are."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer

import mixer_probe as mp
from mixer_probe.concepts import Stitching, asymmetry, stitch
from mixer_probe.concepts.channel_maps import on_grid
from mixer_probe.concepts.donors import NetworkDonor, NoiseDonor, class_noise
from mixer_probe.concepts.findings.stitching import stitching_sentences
from mixer_probe.concepts.stitched_passes import Receiver, batched, fit_ridge, fit_task
from mixer_probe.concepts.stitching import CONDITIONS
from mixer_probe.core.errors import ImagesError, MeasureError
from mixer_probe.images import Images
from mixer_probe.linear import RidgeProbe
from mixer_probe.similarity.predictivity import PENALTIES
from mixer_probe.stats import mcnemar, paired_counts
from mixer_probe.study import run_analyses
from tests.concepts import samples
from tests.invariance.planted import quadrants, taught

TINY: dict[str, Any] = {"img_size": 16, "patch_size": 4, "num_classes": 4}


@cache
def parts() -> tuple[Images, Images]:
    """Images to fit and to test on, whose class is the bright quadrant."""
    images = quadrants(60)
    return images.subset(range(160)), images.subset(range(160, 240))


@cache
def mixer(seed: int = 0) -> mp.Model:
    torch.manual_seed(seed)
    network = MlpMixer(embed_dim=24, num_blocks=2, **TINY)
    return taught(network, quadrants(60), 16, f"mixer-{seed}")


@cache
def vit() -> mp.Model:
    network = VisionTransformer(embed_dim=16, depth=2, num_heads=2, **TINY)
    return taught(network, quadrants(60), 16, "vit")


@cache
def resnet() -> mp.Model:
    torch.manual_seed(0)
    network = ResNet(BasicBlock, [1, 1, 1, 1], channels=(8, 8, 16, 16), num_classes=4)
    options: dict[str, Any] = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return mp.load_model(network, name="resnet", device="cpu", **options)


def test_a_network_recovers_itself_and_shuffled_images_do_not() -> None:
    r = stitch(mixer(), mixer(), *parts(), controls=["shuffled"])
    assert r.conditions == ("donor", "shuffled")
    assert r.own_accuracy > 0.95
    equal = np.arange(2)
    assert (r.r2[0, equal, equal] > 0.9999).all()
    np.testing.assert_array_equal(r.predicted[0, 0, equal, equal], np.stack([r.own] * 2))
    assert r.recovered[0, 0, equal, equal] == pytest.approx(1)
    assert (r.recovered_low[0, 0] > r.recovered_high[0, 1]).all()
    assert (r.recovered[0, 1] < 0.4).all()
    # What a position shares with all images is left.
    assert (r.r2[1] < 0.3).all()


def test_rotated_channels_are_rotated_back() -> None:
    donor = replace(mixer(), module=copy.deepcopy(mixer().module), name="rotated")
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(24, 24)))[0]
    turn = torch.from_numpy(rotation)
    donor.module.blocks[0].register_forward_hook(lambda _m, _i, out: out @ turn)
    r = stitch(donor, mixer(), *parts(), layers="blocks.0", controls=())
    np.testing.assert_array_equal(r.predicted[0, 0, 0, 0], r.own)
    assert r.r2[0, 0, 0] > 0.9999
    (train, _), layer = parts(), mixer().layer("blocks.0")
    rows, held = batched(np.arange(len(train)), 64), np.arange(len(train)) % 5 == 0
    receiver = Receiver(mixer(), (layer,), train, 64)
    found = fit_ridge(receiver, NetworkDonor(donor, (layer,)), train, rows, held)[0][0]
    np.testing.assert_allclose(found.weight, rotation.T, atol=1e-3)


def test_the_map_is_the_ridge_regression_of_numpy() -> None:
    (train, _), a, b = parts(), vit(), mixer()
    held = np.arange(len(train)) % 5 == 0
    rows = batched(np.arange(len(train)), 50)
    source, layer = a.layer("blocks.0"), b.layer("blocks.1")
    receiver = Receiver(b, (b.layer("blocks.0"), layer), train, 64)
    found = fit_ridge(receiver, NetworkDonor(a, (source,)), train, rows, held)[0][1]
    X, Y = (
        mp.extract(model, train, name, reduce="none", dtype="float64")[name].astype(float)
        for model, name in ((a, "blocks.0"), (b, "blocks.1"))
    )

    def ridge(rows: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        x, y = X[rows].reshape(-1, X.shape[-1]), Y[rows].reshape(-1, Y.shape[-1])
        z = (x - x.mean(0)) / x.std(0)
        l2 = penalty * np.linalg.eigvalsh(z.T @ z).mean()
        solved = np.linalg.solve(z.T @ z + l2 * np.eye(z.shape[1]), z.T @ (y - y.mean(0)))
        weight = solved / x.std(0)[:, None]
        return weight, y.mean(0) - x.mean(0) @ weight

    errors = []
    for penalty in PENALTIES:
        weight, bias = ridge(~held, penalty)
        errors.append(np.square(Y[held] - X[held] @ weight - bias).sum())
    weight, bias = ridge(held >= 0, PENALTIES[int(np.argmin(errors))])
    np.testing.assert_allclose(found.weight, weight, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.bias, bias, rtol=1e-6, atol=1e-9)
    total = np.square(Y[held] - Y[~held].mean((0, 1))).sum()
    assert found.r2 == pytest.approx(1 - min(errors) / total)


def test_training_on_the_task_lowers_the_loss_and_changes_neither_network() -> None:
    train, test = parts()
    donor, receiver = vit(), mixer()
    before = [model.fingerprint for model in (donor, receiver)]
    receiver.module.blocks[1].train()
    flags = [module.training for module in receiver.module.modules()]
    bench = Receiver(receiver, (receiver.layer("blocks.0"),), train, 64)
    given = NetworkDonor(donor, (donor.layer("blocks.0"),))
    rows, held = batched(np.arange(len(train)), 64), np.arange(len(train)) % 5 == 0
    ridge = fit_ridge(bench, given, train, rows, held)
    arguments = (bench, given, train, train.labels, np.arange(4), ridge)
    options: dict[str, Any] = {"epochs": 4, "learning_rate": 1e-2, "batch_size": 32, "seed": 0}
    maps, losses = fit_task(*arguments, **options)
    again, _ = fit_task(*arguments, **options)
    assert losses[-1, 0, 0] < 0.8 * losses[0, 0, 0]
    torch.testing.assert_close(maps[0][0].weight, again[0][0].weight, rtol=0, atol=0)
    assert not torch.allclose(maps[0][0].weight, ridge[0][0].weight, atol=1e-3)
    # Without a step it is the ridge map.
    still, _ = fit_task(*arguments, **{**options, "epochs": 0})
    torch.testing.assert_close(still[0][0].weight, ridge[0][0].weight, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(still[0][0].bias, ridge[0][0].bias, rtol=1e-9, atol=1e-12)
    assert [model.fingerprint for model in (donor, receiver)] == before
    assert [module.training for module in receiver.module.modules()] == flags
    receiver.module.eval()
    for model in (donor, receiver):
        assert all(p.requires_grad and p.grad is None for p in model.module.parameters())
        assert not any(
            m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m)
            for m in model.module.modules()
        )
    r = stitch(donor, receiver, train, test, layers="blocks.0", fit="both", controls=())
    assert r.fits == ("ridge", "task")
    assert r.epochs == 3


def test_the_rest_of_the_network_reads_what_is_put_in() -> None:
    """Its own activations give its own logits; prefix tokens are means over the images."""
    train, _ = parts()
    for model, name in ((mixer(), "blocks.0"), (mixer(), "stem"), (vit(), "blocks.0")):
        layer = model.layer(name)
        receiver = Receiver(model, (layer,), train, 64)
        (own,) = receiver.passes(train, [np.arange(30)])
        logits = receiver.rest(own, layer, own.values[name])
        expected = own.logits
        if layer.prefix_tokens:
            mean = torch.from_numpy(mp.extract(model, train, name, reduce="prefix")[name].mean(0))

            def put(_m: Any, _i: Any, out: torch.Tensor, mean: torch.Tensor = mean) -> Any:
                return torch.cat([mean.to(out).expand(len(out), 1, -1), out[:, 1:]], 1)

            handle = model.module.get_submodule(layer.module).register_forward_hook(put)
            with torch.no_grad():
                expected = model.module(own.x)
            handle.remove()
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)


def test_grids_are_averaged_and_interpolated() -> None:
    layer = replace(mixer().layer("blocks.0"), grid=(2, 4), positions=8)
    values = torch.arange(8.0)[None, :, None].repeat(1, 1, 3)
    half = on_grid(values, layer, (2, 2))[0, :, 0]
    assert half.tolist() == [0.5, 2.5, 4.5, 6.5]
    # Bilinear, with corners at the edges of cells: a quarter and three quarters between rows.
    both = on_grid(values, layer, (4, 2))[0, :, 0]
    assert both.tolist() == [0.5, 2.5, 1.5, 3.5, 3.5, 5.5, 4.5, 6.5]
    assert on_grid(values, layer, (2, 4)) is values


def test_networks_of_other_grids_and_input_sizes_meet() -> None:
    train, test = parts()
    r = stitch(resnet(), mixer(), train, test, depths=2, controls=[])
    assert [layer.grid for layer in r.donor_layers] == [(8, 8), (1, 1)]
    assert [layer.grid for layer in r.receiver_layers] == [(4, 4)] * 2
    # One position knows nothing of the place, and many do.
    assert r.r2[0, 0, 0] > r.r2[0, 1, 0]
    back = stitch(mixer(), vit(), train, test, receiver_layers="blocks.1", controls=[])
    assert back.predicted.shape == (1, 1, 2, 1, 80)


def test_class_noise_is_as_readable_as_the_layer_it_stands_for() -> None:
    train, test = parts()
    layers, labels = vit().select("blocks"), (train.labels, test.labels)
    noise = class_noise(vit(), layers, parts(), labels, 64, 0)  # type: ignore[arg-type]
    runs = [mp.extract(vit(), part) for part in parts()]
    for layer in layers:
        name = layer.name
        found = [
            (RidgeProbe(None).fit(x, labels[0]).predict(y) == labels[1]).mean()
            for x, y in ([part.numpy() for part in noise.values[name]], [r[name] for r in runs])
        ]
        assert found[0] == pytest.approx(found[1], abs=0.03)
    (batch,) = noise.batches(test, [np.array([3, 1])], False)
    assert batch[name].shape == (2, 16, 16)
    assert torch.equal(batch[name][1, 5], noise.values[name][1][1])
    assert isinstance(noise, NoiseDonor)


def test_controls_that_are_made_and_their_layers() -> None:
    train, test = parts()
    r = stitch(vit(), mixer(), train, test, layers="blocks", seed_model=mixer(1))
    assert r.conditions == CONDITIONS
    assert r.seed_model == mixer(1).record
    assert r.source_layers[3].tolist() == ["blocks.0", "blocks.1"]
    frame = r.to_frame()
    assert len(frame) == 20
    assert set(frame["condition"]) == set(r.conditions)
    np.testing.assert_allclose(frame["accuracy"], r.accuracy.ravel())


def test_untrained_features_serve_a_trained_network_less() -> None:
    """Bundled networks, after the second block."""
    train, test = (
        mp.load_images("demo", split=split, limit=n) for split, n in (("train", 60), ("test", 40))
    )
    donor, receiver = mp.load_model("zoo:vit-s0"), mp.load_model("zoo:mixer-s0")
    controls = ("shuffled", "untrained")
    r = stitch(donor, receiver, train, test, layers="blocks.1", controls=controls)
    real, shuffled, untrained = r.recovered[0, :, 0, 0]
    assert real > 0.5
    assert shuffled < 0.35
    assert untrained < real
    donor_right, shuffled_right, _ = r.right[0, :, 0, 0]
    assert mcnemar(paired_counts(donor_right, shuffled_right)) < 0.001


def test_recovered_accuracy_and_asymmetry_follow_from_the_predictions() -> None:
    a, b = samples.stitchings()
    right, own = a.predicted == a.labels, a.own == a.labels
    np.testing.assert_allclose(
        a.recovered, (right.mean(-1) - 0.25) / (own.mean() - 0.25), rtol=1e-12
    )
    assert ((a.recovered_low < a.recovered) & (a.recovered < a.recovered_high)).all()
    value, low, high = asymmetry(a, b, "task")
    np.testing.assert_allclose(value, a.recovered[1, 0] - b.recovered[1, 0].T)
    turned = asymmetry(b, a, "task")
    np.testing.assert_allclose(turned, -np.stack([value, high, low]).transpose(0, 2, 1))
    # The delta method against draws of images.
    rng, drawn = np.random.default_rng(0), []
    for _ in range(2000):
        rows = rng.integers(a.n, size=a.n)
        sides = [
            (right[1, 0, i, j][rows].mean() - 0.25) / ((r.own == r.labels)[rows].mean() - 0.25)
            for r, right, i, j in (
                (a, a.predicted == a.labels, 0, 1),
                (b, b.predicted == b.labels, 1, 0),
            )
        ]
        drawn.append(sides[0] - sides[1])
    bounds = np.quantile(drawn, [0.025, 0.975])
    np.testing.assert_allclose([low[0, 1], high[0, 1]], bounds, atol=0.03)
    with pytest.raises(MeasureError, match="the two directions of one pair of networks"):
        asymmetry(a, a)


def test_a_receiver_at_chance_recovers_nothing() -> None:
    a, b = samples.stitchings()
    blind = replace(a, own=(a.labels + 1) % 4)
    assert np.isnan(blind.recovered).all()
    assert np.isnan(asymmetry(blind, b)).all()
    said = stitching_sentences([blind, b])
    assert "not above chance, so that nothing can be recovered" in said[0]


def test_a_study_stitches_pairs_of_networks_in_both_directions() -> None:
    train, test = parts()
    found = run_analyses([mixer(), vit()], {"concepts": ["stitching"]}, test, train)
    assert [type(r) for r in found] == [Stitching] * 2
    assert [(r.donor.name, r.receiver.name) for r in found] == [  # type: ignore[attr-defined]
        ("mixer-0", "vit"),
        ("vit", "mixer-0"),
    ]
    assert asymmetry(*found).shape == (3, 2, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"layers": "blocks.0.mlp_tokens"}, MeasureError, "neither its stem nor a block"),
        ({"layers": "head"}, MeasureError, "'head' of mixer-0 is neither its stem nor a block"),
        ({"controls": ["shufled"]}, MeasureError, "unknown control 'shufled'"),
        ({"controls": ["seed"]}, MeasureError, "the control 'seed' needs seed_model="),
        ({"train": slice(0, 8)}, MeasureError, "8 training images are too few"),
        ({"train": slice(0, 160, 4)}, ImagesError, "no image to fit on shows 'top right'"),
        ({"train": slice(100, 240)}, ImagesError, "80 test images are also in train"),
        ({"fit": "lasso"}, MeasureError, "unknown fit 'lasso'"),
        ({"depths": 0}, MeasureError, "depths is a whole number, 1 or more, not 0"),
        ({"learning_rate": 0}, MeasureError, "learning_rate is a number above 0, not 0"),
        ({"names": ("a", "b", "c", "d")}, MeasureError, "none of the classes"),
    ],
)
def test_what_cannot_be_stitched_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    images, options = quadrants(60), dict(changes)
    test = images.subset(range(160, 240))
    train = images.subset(np.arange(240)[options.pop("train", slice(0, 160))])
    if names := options.pop("names", None):
        train, test = (replace(part, class_names=names) for part in (train, test))
    with pytest.raises(error, match=message):
        stitch(mixer(), mixer(), train, test, **options)


def test_constant_layers_and_one_class_are_refused() -> None:
    train, test = parts()
    constant = replace(mixer(), module=copy.deepcopy(mixer().module), name="constant")
    constant.module.blocks[1].register_forward_hook(lambda _m, _i, out: torch.ones_like(out))
    options: dict[str, Any] = {"layers": "blocks.1", "controls": ()}
    with pytest.raises(MeasureError, match=r"'blocks.1' of the donor is constant"):
        stitch(constant, mixer(), train, test, **options)
    with pytest.raises(MeasureError, match=r"'blocks.1' of constant is constant"):
        stitch(mixer(), constant, train, test, **options)
    with pytest.raises(MeasureError, match="'untrained' needs a trained donor, and mixer-0"):
        stitch(mixer().untrained(), mixer(), train, test, controls=["untrained"])
    one = [part.subset(part.labels == 0) for part in (train, test)]
    with pytest.raises(MeasureError, match="all images are of class 'top left'"):
        stitch(mixer(), mixer(), *one, **options)


def test_layers_without_a_grid_are_refused() -> None:
    layer = replace(mixer().layer("blocks.0"), grid=None)
    model = replace(mixer())
    model.select = lambda _layers: (layer,)  # type: ignore[method-assign]
    with pytest.raises(MeasureError, match=r"'blocks.0' of mixer-0 form no grid"):
        stitch(model, mixer(), *parts())
