"""Early reading: logit lens, Jacobian lens and probes against independent computations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom, binomtest
from sklearn.linear_model import Ridge
from torch import nn

import mixer_probe as mp
from mixer_probe.capture.stream import transform_of
from mixer_probe.core.errors import ImagesError, MeasureError
from mixer_probe.core.result import load_results, save_results
from mixer_probe.images import Images, from_arrays
from mixer_probe.mixing import ClassLens, class_lens
from mixer_probe.mixing.figures.lens import lens_curves
from mixer_probe.mixing.findings.lens import lens_sentences
from mixer_probe.mixing.lens import LOGIT, READERS, SAME
from mixer_probe.mixing.lens_readers import (
    JacobianLens,
    activations,
    in_memory,
    jacobian_lenses,
    logit_lens,
    places,
    pooled,
    unlike_last,
)
from mixer_probe.models import Model
from mixer_probe.models.layer import Layer
from tests.networks import CASES, as_model, module_output

NAMES = ("cat", "dog", "frog", "bird", "ship")


def pictures(n: int, seed: int = 0, classes: int = 3, size: int = 32) -> Images:
    """Noise with a colour by class."""
    rng, labels = np.random.default_rng(seed), np.arange(n) % classes
    colours = np.eye(3)[labels % 3][:, None, None]
    pixels = rng.integers(0, 150, (n, size, size, 3)) + (90 * colours).astype(int)
    return from_arrays(
        pixels.astype(np.uint8), labels, class_names=NAMES[:classes], name="pictures"
    )


def network(case: str, dtype: torch.dtype = torch.float32) -> Model:
    return as_model(CASES[case].network(), CASES[case].size, dtype=dtype, class_names=NAMES)


def stream(model: Model) -> tuple[Layer, ...]:
    return tuple(layer for layer in model.layers if layer.kind in ("stem", "block"))


def inputs(model: Model, images: Images) -> torch.Tensor:
    (batch,) = images.batches(transform_of(model), len(images))
    return batch.to(model.dtype)


@pytest.mark.parametrize("case", CASES)
def test_after_the_last_block_the_logit_lens_is_the_network(case: str) -> None:
    model = network(case, torch.float64)
    images, layers = pictures(3, size=CASES[case].size), stream(model)
    readable = [layer for layer in layers if not unlike_last(layer, layers[-1])]
    found, kept = logit_lens(model, images, readable, layers, batch_size=2)
    with torch.no_grad():
        own = model.module(inputs(model, images)).numpy()
    assert found.shape == (len(readable), 3, 5)
    np.testing.assert_allclose(found[-1], own, rtol=1e-9, atol=1e-12)
    alone = activations(model, images, layers, batch_size=3)
    assert list(kept) == list(alone)
    for name, values in alone.items():
        torch.testing.assert_close(kept[name], values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("case", "readable"), [("mixer", 3), ("vit-gap", 3), ("vit", 2), ("resnet18", 2), ("swin", 2)]
)
def test_the_logit_lens_is_the_rest_of_the_network_given_another_output(
    case: str, readable: int
) -> None:
    """A forward hook of its own that replaces the output of the last block, layer by layer."""
    model = network(case, torch.float64)
    images, layers = pictures(3, size=CASES[case].size), stream(model)
    chosen = [layer for layer in layers if not unlike_last(layer, layers[-1])]
    assert len(chosen) == readable
    (found, _), x = logit_lens(model, images, chosen), inputs(model, images)
    for layer, logits in zip(chosen, found, strict=True):
        h = module_output(model, x, layer.name)
        last = model.module.get_submodule(chosen[-1].name)
        handle = last.register_forward_hook(lambda _m, _i, _o, h=h: h)  # type: ignore[misc]
        with torch.no_grad():
            np.testing.assert_allclose(model.module(x).numpy(), logits, rtol=1e-9, atol=1e-12)
        handle.remove()


class Backward(nn.Module):
    """A Mixer whose output looks back at the batch that it was given."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + 0.1 * x.mean((1, 2, 3))[:, None]  # type: ignore[no-any-return]


def test_a_network_that_looks_back_at_its_batch_is_read_layer_by_layer() -> None:
    plain, images = network("mixer", torch.float64), pictures(3)
    model = as_model(Backward(plain.module), dtype=torch.float64, class_names=NAMES)
    found, kept = logit_lens(model, images, stream(model), stream(model))
    shift = 0.1 * inputs(model, images).mean((1, 2, 3)).numpy()
    expected = logit_lens(plain, images, stream(plain))[0] + shift[None, :, None]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert {len(values) for values in kept.values()} == {3}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("case", ["mixer", "gmlp", "resmlp", "vit", "deit-distilled", "convmixer"])
def test_the_jacobian_is_that_of_the_rest_of_the_network(case: str) -> None:
    """Against torch.func.jacrev of the network after a block, image by image."""
    model = network(case, torch.float64)
    images, layers, classes = pictures(3), stream(model), [0, 2, 4]
    x, found = inputs(model, images), jacobian_lenses(model, images, layers, classes)
    for layer in layers[-2:]:
        module, h = model.module.get_submodule(layer.name), module_output(model, x, layer.name)

        def rest(one: torch.Tensor, i: int, module: nn.Module = module) -> torch.Tensor:
            handle = module.register_forward_hook(lambda *_: one[None])
            logits = model.module(x[i : i + 1])[0, classes]
            handle.remove()
            return logits  # type: ignore[no-any-return]

        slopes = torch.stack(
            [
                torch.stack(
                    [places(row[None], layer)[0] for row in torch.func.jacrev(rest)(one, i)]
                )
                for i, one in enumerate(h)
            ]
        ).mean(0)
        expected = slopes - slopes.mean(0)
        torch.testing.assert_close(
            found[layer.name].jacobian, expected.detach(), rtol=1e-10, atol=1e-10
        )
        mean = places(h, layer).mean(0)
        torch.testing.assert_close(found[layer.name].mean, mean, rtol=1e-10, atol=1e-12)
    for name, parameter in model.module.named_parameters():
        assert parameter.grad is None, name
        assert parameter.requires_grad


def test_every_family_has_a_jacobian_after_every_layer() -> None:
    for case in ("swin", "beit", "eva", "resnet18", "convnext", "gmixer"):
        model = network(case)
        layers = stream(model)
        found = jacobian_lenses(model, pictures(2, size=CASES[case].size), layers, [0, 1])
        for layer in layers:
            shape = layer.prefix_tokens + layer.positions, layer.channels
            assert found[layer.name].jacobian.shape == (2, *shape)
            assert found[layer.name].jacobian.abs().max() > 0


def linear_after_the_first_block() -> Model:
    """A ResMLP: blocks are linear where the channel MLP is switched off, and so is its last norm,
    an affine map."""
    model = network("resmlp", torch.float64)
    second = model.module.blocks[1]  # type: ignore[index,union-attr]
    with torch.no_grad():
        second.ls2.zero_()
    return model


def test_for_a_network_that_is_linear_after_a_block_the_jacobian_lens_is_the_network() -> None:
    model, images = linear_after_the_first_block(), pictures(12, seed=1)
    layers = stream(model)
    lens = jacobian_lenses(model, pictures(3), layers, range(5))["blocks.0"]
    h = activations(model, images, layers)
    with torch.no_grad():
        logits = model.module(inputs(model, images))
    expected = logits - logits.mean(1, keepdim=True)
    torch.testing.assert_close(lens.read(h["blocks.0"]), expected, rtol=1e-9, atol=1e-10)
    assert not torch.allclose(lens.averaged.read(h["blocks.0"]), expected, rtol=1e-2)
    # After the last block the mean over positions and the head follow: every position alike.
    last = jacobian_lenses(model, pictures(3), layers, range(5))["blocks.1"]
    assert last.cosine == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(last.averaged.read(h["blocks.1"]), expected, rtol=1e-9, atol=1e-10)


def test_a_mean_over_positions_leaves_prefix_tokens_alone_and_its_cosine_is_exact() -> None:
    J = torch.randn(3, 7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lens = JacobianLens(J, torch.zeros(7, 4).double(), torch.zeros(3).double(), prefix=2)
    mean = lens.averaged.jacobian
    torch.testing.assert_close(mean[:, :2], J[:, :2])
    for s in range(2, 7):
        torch.testing.assert_close(mean[:, s], J[:, 2:].mean(1))
    a, b = J[:, 2:].flatten(), mean[:, 2:].flatten()
    assert lens.cosine == pytest.approx(float(a @ b / a.norm() / b.norm()), abs=1e-12)
    # Alike everywhere, and each position on a channel of its own: 1 and 1 / sqrt(positions).
    alike = replace(lens, jacobian=J[:, :1].expand(-1, 7, -1))
    own = replace(lens, jacobian=torch.eye(5).double()[None].repeat(3, 1, 1), prefix=0)
    assert alike.cosine == pytest.approx(1)
    assert own.cosine == pytest.approx(5**-0.5)
    h = torch.randn(6, 7, 4, dtype=torch.float64)
    torch.testing.assert_close(pooled(h, 2)[:, 2], h[:, 2:].mean(1))
    torch.testing.assert_close(pooled(h, 2)[:, :2], h[:, :2])


def test_probes_are_ridge_regressions_of_all_places_and_of_their_mean() -> None:
    """scikit-learn's Ridge on standardised features, the penalty by leave-one-out by hand."""
    model, train, test = network("deit-distilled", torch.float64), pictures(12), pictures(9, seed=3)
    found, layer = class_lens(model, test, train, jacobian_images=2), stream(model)[1]
    h = activations(model, train, [layer])
    other = activations(model, test, [layer])
    for k, take in ((3, lambda a: a), (4, lambda a: pooled(a, 2))):
        X, new = (take(part[layer.name]).flatten(1).numpy() for part in (h, other))
        Z, z = ((part - X.mean(0)) / X.std(0) for part in (X, new))
        labels = np.asarray(train.labels)
        T = 2.0 * np.eye(3)[labels] - 1
        penalties = len(X) * np.logspace(-4, 3, 15)
        right = []
        for l2 in penalties:
            rows = [np.delete(np.arange(len(X)), i) for i in range(len(X))]
            fits = [Ridge(alpha=l2).fit(Z[r], T[r]) for r in rows]
            right.append(
                sum(f.predict(Z[[i]])[0].argmax() == labels[i] for i, f in enumerate(fits))
            )
        best = penalties[np.flatnonzero(right == np.max(right))[-1]]
        expected = Ridge(alpha=best).fit(Z, T).predict(z).argmax(1)
        np.testing.assert_array_equal(found.predicted[k, 1], expected)


@pytest.fixture(scope="module")
def found() -> ClassLens:
    return class_lens(network("vit"), pictures(30, seed=1), pictures(24), jacobian_images=6)


def test_all_numbers_follow_from_the_answers(found: ClassLens) -> None:
    model, test = network("vit"), pictures(30, seed=1)
    assert found.readers == READERS
    assert [layer.name for layer in found.layers] == ["patch_embed", "blocks.0", "blocks.1"]
    assert found.classes == NAMES[:3]
    assert (found.n, found.n_jacobian, found.chance) == (30, 6, 1 / 3)
    with torch.no_grad():
        own = model.module(inputs(model, test))[:, :3].argmax(1).numpy()
    np.testing.assert_array_equal(found.final, own)
    # Of the outputs only those of the labels are read.
    np.testing.assert_array_equal(found.predicted[0, 2], own)
    np.testing.assert_array_equal(
        found.agreement[0], [np.nan, (found.predicted[0, 1] == own).mean(), 1]
    )
    assert "0 prefix tokens" in found.no_logit_lens[0]
    assert found.no_logit_lens[1:] == ("", "")
    assert found.no_jacobian == ("", "", "")
    right = found.predicted[3, 1] == test.labels
    result = binomtest(int(right.sum()), 30, 1 / 3, alternative="greater")
    assert found.accuracy[3, 1] == pytest.approx(right.mean())
    assert found.p_chance[3, 1] == pytest.approx(result.pvalue)
    wilson = binomtest(int(right.sum()), 30).proportion_ci(method="wilson")
    assert (found.low[3, 1], found.high[3, 1]) == pytest.approx((wilson.low, wilson.high))
    mine = found.predicted[1, 1] == test.labels
    assert found.behind[3, 1] == pytest.approx(mine.mean() - right.mean())
    alone = int((mine & ~right).sum()), int((right & ~mine).sum())
    p = min(1.0, 2 * binom.cdf(min(alone), sum(alone), 0.5))
    assert found.behind_p[3, 1] == pytest.approx(p)
    assert np.isnan(found.behind[1]).all()
    assert np.isnan(found.behind[0, 0])
    # Of the last block only the class token is read.
    assert np.isnan(found.cosine[2])
    np.testing.assert_allclose(found.same_everywhere, 0.25)
    frame = found.to_frame()
    assert len(frame) == 15
    assert frame.accuracy.isna().sum() == 1


def test_a_file_has_the_same_result(found: ClassLens, tmp_path: Any) -> None:
    (again,) = load_results(save_results([found], tmp_path / "lens.json"))
    assert again == found


def test_a_half_of_the_images_is_fitted_on_without_train() -> None:
    model, images = network("mixer"), pictures(24)
    twice = from_arrays(
        np.stack([np.asarray(images[i]) for i in [*range(24), 0]]),
        np.append(np.asarray(images.labels), 0),
        class_names=NAMES[:3],
        name="pictures",
    )
    result = class_lens(model, twice, jacobian_images=3, seed=1)
    assert result.images_train.split == "fitting half"
    assert result.images_test.split == "test half"
    # A duplicate is in one part only.
    assert result.images_train.n + result.images_test.n in (24, 25)
    assert result.defined.all()


def test_a_network_that_reads_colours_is_read_early() -> None:
    """Trained classes are not needed: the probes see the colour from the stem on."""
    result = class_lens(network("mixer"), pictures(60, 1), pictures(30), jacobian_images=3)
    assert (result.accuracy[3:] > 0.9).all()
    sentences = lens_sentences(result, None)
    assert "pooled probe from stem on" in sentences[0]
    assert "position-wise probe from stem on" in sentences[0]


def test_a_zero_head_reads_every_class_alike() -> None:
    model = network("mixer")
    with torch.no_grad():
        model.module.head.weight.zero_()  # type: ignore[union-attr,operator]
    result = class_lens(model, pictures(12, 1), pictures(12), jacobian_images=3)
    assert (result.predicted[:3] == -1).all()
    assert (result.final == -1).all()
    assert result.defined[3:].all()
    assert set(result.no_logit_lens) == set(result.no_jacobian) == {SAME}
    assert np.isnan(result.accuracy[:3]).all()
    assert np.isnan(result.agreement).all()
    assert SAME in lens_sentences(result, None)[0]
    lens_curves([result])


def test_groups_of_layers_fit_into_memory() -> None:
    layers = stream(network("mixer"))
    assert [len(group) for group in in_memory(layers, 10, 4)] == [3]
    one = layers[0].positions * layers[0].channels * 4
    assert [len(group) for group in in_memory(layers, 2**30 // one // 2, 4)] == [2, 1]
    assert [len(group) for group in in_memory(layers, 2**32 // one, 4)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"images": from_arrays(np.zeros((4, 32, 32, 3), np.uint8))}, ImagesError, "label"),
        ({"images": pictures(12)}, ImagesError, "test images are also in train"),
        ({"train": pictures(12, 5).subset([0, 1, 3, 4])}, ImagesError, "'frog'"),
        ({"images": pictures(6, 1, 1), "train": pictures(6, 0, 1)}, MeasureError, "1 classes"),
        ({"jacobian_images": 0}, Exception, "limit"),
    ],
)
def test_refusals_are_one_sentence(
    change: dict[str, Any], error: type[Exception], said: str
) -> None:
    given: dict[str, Any] = {"images": pictures(6, 1), "train": pictures(12)} | change
    with pytest.raises(error, match=said):
        class_lens(network("mixer"), **given)


def test_labels_that_do_not_meet_the_outputs_are_refused() -> None:
    others = replace(pictures(12), class_names=("oak", "elm", "ash"))
    with pytest.raises(MeasureError, match="none of the classes"):
        class_lens(network("mixer"), others)
    blind = network("mixer")
    blind.module.reset_classifier(0)  # type: ignore[operator]
    with pytest.raises(MeasureError, match="no classifier"):
        class_lens(blind, pictures(12))


def test_activations_that_are_not_finite_are_refused() -> None:
    model = network("mixer")
    with torch.no_grad():
        model.module.blocks[0].norm1.weight.fill_(float("nan"))  # type: ignore[index,union-attr]
    with pytest.raises(MeasureError, match="NaN or infinite"):
        class_lens(model, pictures(12, 1), pictures(12), jacobian_images=2)


def test_layers_unlike_the_last_are_named() -> None:
    resnet = stream(network("resnet18"))
    assert unlike_last(resnet[-1], resnet[-1]) == ""
    assert unlike_last(resnet[0], resnet[-1]).startswith("maxpool has 64 channels")
    assert mp.mixing.class_lens is class_lens
    assert LOGIT == "logit lens"
