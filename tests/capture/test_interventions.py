"""Interventions against edited weights, against hooks of their own, and against nothing at all."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mixer_probe as mp
from mixer_probe.capture import edit, fixed, reference_means, stream
from mixer_probe.core.errors import ImagesError, LayerError, MixerProbeError, StoreError
from mixer_probe.core.hooks import passing
from mixer_probe.images import Images, from_arrays
from mixer_probe.invariance.own_accuracy import own_accuracy
from mixer_probe.models import Model
from tests.networks import CASES, as_model, module_output, noise

F64 = torch.float64


def outputs(model: Model, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.module(images)
    return found


def changed(model: Model, batch: torch.Tensor, name: str, what: Any, **more: Any) -> torch.Tensor:
    with mp.intervene(model, {name: what}, **more):
        return outputs(model, batch)


@contextmanager
def by_hand(model: Model, name: str, change: Any) -> Iterator[None]:
    """A hook that replaces what a module returns."""
    hook = model.module.get_submodule(name).register_forward_hook(lambda _m, _i, out: change(out))
    yield
    hook.remove()


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


# -- what changes nothing --------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_what_a_layer_returned_anyway_changes_no_bit(name: str) -> None:
    case = CASES[name]
    model, images = case.model(), case.images(3)
    few = case.blocks > 6
    kinds = {layer.kind: layer for layer in model.layers if not few or layer.kind == "block"}
    swin = [layer for layer in model.layers if layer.module.endswith("drop_path1")][:1]
    base = outputs(model, images)
    for layer in [*kinds.values(), *swin]:
        own = mp.extract(model, images, layer.name, reduce="none")
        for what in (mp.scale(1.0), mp.patch(own), mp.patch(own, channels=[1]), mp.noise(0.0)):
            assert torch.equal(changed(model, images, layer.name, what), base), (layer, what.name)


@pytest.mark.parametrize("name", ["mixer", "deit-distilled", "swin", "convnext"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_of_numbers(name: str, dtype: torch.dtype) -> None:
    model, images = CASES[name].model(dtype), CASES[name].images(3, dtype)
    layer = next(one.name for one in model.layers if one.kind == "spatial")
    own = mp.extract(model, images, layer, reduce="none")
    for what in (mp.scale(1.0), mp.patch(own)):
        assert torch.equal(changed(model, images, layer, what), outputs(model, images))


# -- the same by hand ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "branch", "last"),
    [
        ("mixer", "blocks.1.mlp_channels", "fc2"),
        ("mixer", "blocks.0.mlp_tokens", "fc2"),
        ("gmixer", "blocks.0.mlp_tokens", "fc2"),
        ("resmlp", "blocks.1.linear_tokens", ""),
        ("gmlp", "blocks.1.mlp_channels", "fc2"),
        ("vit", "blocks.0.attn", "proj"),
        ("deit-distilled", "blocks.1.mlp", "fc2"),
        ("swin", "layers.0.blocks.1.mlp", "fc2"),
        ("convnext", "stages.2.blocks.0.mlp", "fc2"),
        ("resnet-bottleneck", "layer2.0.conv3", ""),
    ],
)
def test_zero_is_a_branch_whose_last_weights_are_zero(name: str, branch: str, last: str) -> None:
    model, images = CASES[name].model(F64), CASES[name].images(3, F64)
    found = changed(model, images, branch, mp.ablate("zero"))
    assert not torch.equal(found, outputs(model, images))
    linear: Any = model.module.get_submodule(f"{branch}.{last}".rstrip("."))
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.zero_()
    close(found, outputs(model, images))


def test_an_edit_is_what_its_function_makes_of_the_values() -> None:
    model, images = CASES["vit"].model(F64), CASES["vit"].images(3, F64)
    for part in ({}, {"channels": [1, 2]}, {"positions": [3], "channels": [0]}):
        half = edit("half", lambda x: 0.5 * x, **part)  # type: ignore[arg-type]
        expected = changed(model, images, "blocks.0", mp.scale(0.5, **part))  # type: ignore[arg-type]
        assert changed(model, images, "blocks.0", half).equal(expected)
    prints = set()
    for name in ("one", "other"):
        with mp.intervene(model, {"blocks.0": edit(name, torch.zeros_like)}):
            prints.add(model.fingerprint)
    assert len(prints | {model.fingerprint}) == 3


HEADS = [
    ("vit", "blocks.1.attn", "blocks.1.attn.proj"),
    ("beit", "blocks.0.attn", "blocks.0.attn.proj"),
    ("eva", "blocks.0.attn", "blocks.0.attn.proj"),
    ("swin", "layers.1.blocks.1.drop_path1", "layers.1.blocks.1.attn.proj"),
    ("swinv2", "layers.2.blocks.0.drop_path1", "layers.2.blocks.0.attn.proj"),
    ("parallel-scaling", "blocks.0.attn_out_proj", "blocks.0.attn_out_proj"),
    ("parallel-things", "blocks.0.attns.1.attn", "blocks.0.attns.1.attn.proj"),
    ("vit-differential", "blocks.0.attn", "blocks.0.attn.proj"),
    ("parallel-fused", "blocks.1.out_proj", "blocks.1.out_proj"),
]


@pytest.mark.parametrize(("name", "layer", "projection"), [h for h in HEADS if h[0] in CASES])
def test_a_head_is_columns_of_the_output_projection(name: str, layer: str, projection: str) -> None:
    model, images = CASES[name].model(F64), CASES[name].images(3, F64)
    linear: Any = model.module.get_submodule(projection)
    owner: Any = model.module.get_submodule(projection.rpartition(".")[0])
    assert changed(model, images, layer, mp.scale(1.0, heads=[0])).equal(outputs(model, images))
    last = owner.num_heads - 1
    found = changed(model, images, layer, mp.ablate("zero", heads=[last]))
    mean = changed(model, images, layer, mp.ablate("mean", heads=[last]), images=images)
    width = (linear.out_features if name == "parallel-fused" else linear.in_features) // (last + 1)
    columns = slice(last * width, (last + 1) * width)
    whole = linear.weight.detach().clone()
    with torch.no_grad():
        linear.weight[:, columns] = 0
    close(found, outputs(model, images))
    with torch.no_grad():
        linear.weight.copy_(whole)
    inputs: list[torch.Tensor] = []
    hook = linear.register_forward_pre_hook(lambda _m, args: inputs.append(args[0].clone()))
    outputs(model, images)
    hook.remove()
    x = inputs[0].unflatten(0, (3, -1))
    x[..., columns] = x[..., columns].mean(0, keepdim=True)
    hook = linear.register_forward_pre_hook(lambda _m, _args: (x.flatten(0, 1),))
    close(mean, outputs(model, images))
    hook.remove()


@pytest.mark.parametrize("name", ["mixer", "gmixer"])
def test_a_hidden_unit_is_a_column_of_the_second_layer(name: str) -> None:
    model, images = CASES[name].model(F64), CASES[name].images(3, F64)
    found = changed(model, images, "blocks.0.mlp_tokens", mp.ablate("zero", units=[1, 3]))
    same = changed(model, images, "blocks.0.mlp_tokens.drop1", mp.ablate("zero", units=[3, 1]))
    model.module.blocks[0].mlp_tokens.fc2.weight.data[:, [1, 3]] = 0  # type: ignore[index]
    close(found, outputs(model, images))
    close(same, found)


def test_a_channel_is_a_column_of_what_reads_it() -> None:
    model, images = CASES["resnet-bottleneck"].model(F64), noise(3, 64, F64)
    found = changed(model, images, "layer4.0", mp.ablate("zero", channels=[7, 90]))
    model.module.fc.weight.data[:, [7, 90]] = 0
    close(found, outputs(model, images))


def test_positions_and_channels_together() -> None:
    model, images = CASES["deit-distilled"].model(F64), CASES["deit-distilled"].images(3, F64)
    what = mp.scale(2.0, positions=[(1, 2), 0], channels=[5, 6])

    def change(out: torch.Tensor) -> torch.Tensor:
        out = out.clone()
        for token in (2 + 1 * 4 + 2, 2):
            out[:, token, 5:7] *= 2
        return out

    with by_hand(model, "blocks.0", change):
        expected = outputs(model, images)
    close(changed(model, images, "blocks.0", what), expected)


@pytest.mark.parametrize(
    ("name", "layer", "axis"),
    [
        ("mixer", "blocks.0.mlp_tokens", 0),
        ("swin", "layers.0.blocks.0", 0),
        ("convnext", "stem", 0),
    ],
)
def test_the_mean_is_over_reference_images_or_the_batch(name: str, layer: str, axis: int) -> None:
    case = CASES[name]
    model, images, others = case.model(F64), case.images(3, F64), noise(5, case.size, F64, seed=9)
    for reference, given in ((others, {"images": others}), (images, {})):
        mean = module_output(model, reference, layer).mean(axis, keepdim=True)
        with by_hand(model, layer, lambda out, mean=mean: mean.expand_as(out)):
            expected = outputs(model, images)
        found = changed(model, images, layer, mp.ablate("mean"), batch_size=2, **given)
        close(found, expected)
        values = reference_means(model, [model.layer(layer)], reference)[layer]
        close(changed(model, images, layer, fixed(values)), expected)


def test_resampling_takes_the_activations_of_another_image() -> None:
    case = CASES["vit"]
    model, images = case.model(F64), case.images(5, F64)
    reps = mp.extract(model, images, "blocks.0", reduce="none")
    own = np.concatenate([reps.prefix("blocks.0"), reps["blocks.0"]], axis=1)

    def sources(given: torch.Tensor | None, seed: int) -> list[int]:
        what = mp.ablate("resample", seed=seed)
        with mp.intervene(model, {"blocks.0": what}, images=given):
            found = mp.extract(model, images, "blocks.0", reduce="none")
        rows = np.concatenate([found.prefix("blocks.0"), found["blocks.0"]], axis=1)
        return [int(np.flatnonzero((own == row).all((1, 2)))[0]) for row in rows]

    for given in (images, None):
        drawn = [sources(given, seed) for seed in range(3)]
        assert all(i != j for one in drawn for i, j in enumerate(one))
        assert drawn[0] != drawn[1] or drawn[0] != drawn[2]
        assert drawn[0] == sources(given, 0)
    assert sorted(sources(None, 0)) == [*range(5)]
    with pytest.raises(ImagesError, match="give images to intervene"):
        changed(model, images[:1], "blocks.0", mp.ablate("resample"))
    changed(model, images[:1], "blocks.0", mp.ablate("resample"), images=images)


def test_noise_is_of_the_layer_s_scale_and_the_same_for_an_image_in_any_batch() -> None:
    case = CASES["resmlp"]
    model, images = case.model(F64), case.images(6, F64)
    plain = mp.extract(model, images, "blocks.0", reduce="none")["blocks.0"]

    def noisy(batch_size: int, **how: Any) -> np.ndarray:
        with mp.intervene(model, {"blocks.0": mp.noise(0.5, **how)}):
            reps = mp.extract(model, images, "blocks.0", reduce="none", batch_size=batch_size)
        return reps["blocks.0"]

    np.testing.assert_allclose(noisy(4), noisy(6), atol=1e-12)
    assert not np.allclose(noisy(6), noisy(6, seed=1))
    spread = (noisy(6) - plain).std((1, 2)) / plain.std((1, 2))
    np.testing.assert_allclose(spread, 0.5, atol=0.06)
    np.testing.assert_allclose((noisy(6, relative=False) - plain).std(), 0.5, atol=0.03)


@pytest.mark.parametrize("name", ["mixer", "vit", "swin", "resnet-bottleneck", "convmixer"])
def test_a_skipped_block_returns_its_input(name: str) -> None:
    case = CASES[name]
    model, images = case.model(F64), case.images(3, F64)
    block = model.structure.blocks[1].path
    inputs: list[torch.Tensor] = []
    hook = model.module.get_submodule(block).register_forward_pre_hook(
        lambda _m, args: inputs.append(args[0].clone())
    )
    outputs(model, images)
    hook.remove()
    if inputs[0].shape != module_output(model, images, block).shape:
        with pytest.raises(LayerError, match="cannot be skipped"):
            changed(model, images, block, mp.ablate("skip"))
        return
    with by_hand(model, block, lambda _out: inputs[0]):
        expected = outputs(model, images)
    close(changed(model, images, block, mp.ablate("skip")), expected)


# -- patching --------------------------------------------------------------------------------------


def test_rows_follow_the_images() -> None:
    model, images = CASES["vit"].model(), CASES["vit"].images(5)
    reps = mp.extract(model, images, "blocks.0", reduce="none")
    base, other = outputs(model, images), noise(12, seed=5)
    with mp.intervene(model, {"blocks.0": mp.patch(reps)}):

        def rows(batch: torch.Tensor) -> list[int]:
            found = outputs(model, batch)
            return [int((base - row).abs().sum(1).argmin()) for row in found]

        assert rows(other[:3]) == [0, 1, 2]
        assert rows(torch.zeros(2, 3, 32, 32)) == [0, 1]  # blank images are not counted
        assert rows(other[3:7]) == [3, 4, 0, 1]  # across the end
        assert rows(other[3:5]) == [3, 4]  # half of the batch before, after it did not fit
        assert rows(other[5:7]) == [0, 1]
        assert rows(other[5:7]) == [0, 1]  # the same batch again
        assert rows(other[7:9]) == [2, 3]
        assert rows(other[:1].expand(3, -1, -1, -1)) == [4, 0, 1]  # copies of one image
        assert rows(other[:1].expand(3, -1, -1, -1)) == [2, 3, 4]
        with passing(4):
            assert rows(other[7:9]) == [4, 0]
        pieces = stream(
            model, images, [model.layer("head")], lambda _l, x, _p: x[:, 0], rows=[range(3, 5)]
        )
        logits = torch.cat([piece.found["head"] for piece in pieces])
    assert torch.equal(logits, base[3:])


def test_memory_that_runs_out_does_not_move_the_rows() -> None:
    model, images = CASES["mixer"].model(), CASES["mixer"].images(8)
    reps = mp.extract(model, noise(8, seed=3), "blocks.0", reduce="none")
    with mp.intervene(model, {"blocks.0": mp.patch(reps)}):
        expected = mp.extract(model, images, "blocks.1")["blocks.1"]
        run, forward = [0], model.module.blocks[1].forward  # type: ignore[index]

        def failing(x: torch.Tensor) -> torch.Tensor:
            run[0] += 1
            if len(x) > 2:
                raise torch.OutOfMemoryError
            return forward(x)  # type: ignore[operator, no-any-return]

        model.module.blocks[1].forward = failing  # type: ignore[index]
        with pytest.warns(match="out of memory"):
            found = mp.extract(model, images, "blocks.1", batch_size=8)["blocks.1"]
        del model.module.blocks[1].forward  # type: ignore[index]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert run[0] > 4


def test_a_key_of_several_layers_and_several_interventions() -> None:
    model, images = CASES["vit"].model(F64), CASES["vit"].images(3, F64)
    with mp.intervene(model, {"channel": mp.ablate("zero")}) as inside:
        assert inside is model
        found = outputs(model, images)
        assert model.record.name.endswith("and 1 more")
    for block in model.module.blocks:  # type: ignore[union-attr]
        for parameter in block.mlp.fc2.parameters():  # type: ignore[union-attr]
            parameter.data.zero_()
    close(found, outputs(model, images))
    twice = [mp.scale(2.0, channels=[0]), mp.scale(3.0)]
    with by_hand(model, "blocks.0", lambda x: torch.cat([6 * x[..., :1], 3 * x[..., 1:]], -1)):
        expected = outputs(model, images)
    close(changed(model, images, "blocks.0", twice), expected)
    with mp.intervene(model, {"blocks.0": twice[0]}), mp.intervene(model, {"blocks.0": twice[1]}):
        close(outputs(model, images), expected)


def test_one_call_of_a_module_that_runs_twice() -> None:
    model, images = CASES["mixer"].model(F64), CASES["mixer"].images(3, F64)
    model.module.blocks[1] = model.module.blocks[0]  # type: ignore[index, operator]
    model = as_model(model.module, dtype=F64)
    name = next(n for n in model.structure.names() if n.startswith("blocks.0#"))
    assert {"blocks.0#0", "blocks.0#1"} <= set(model.structure.names()), name
    expected = outputs(model, images)
    block, head = model.module.blocks[0], model.module  # type: ignore[index]
    with torch.no_grad():
        x = block(head.stem(images))  # type: ignore[operator]
        for layer, inputs in (("blocks.0#1", block(x) * 2), ("blocks.0#0", block(2 * x))):  # type: ignore[operator]
            expected = head.forward_head(head.norm(inputs))  # type: ignore[operator]
            for _ in range(2):
                close(changed(model, images, layer, mp.scale(2.0)), expected)


# -- identity --------------------------------------------------------------------------------------


def test_a_changed_network_has_a_name_and_a_fingerprint_of_its_own(tmp_path: Path) -> None:
    model, images = CASES["vit"].model(), CASES["vit"].images(4)
    before, reps = model.record, mp.extract(model, images, "blocks.0", reduce="none")
    shifted = mp.extract(model, noise(4, seed=8), "blocks.0", reduce="none")
    others = noise(4, seed=7)
    different: list[tuple[Any, Any]] = [
        (mp.ablate("zero"), None),
        (mp.ablate("zero", channels=[1]), None),
        (mp.ablate("zero", positions=[1]), None),
        (mp.ablate("mean"), None),
        (mp.ablate("mean"), images),
        (mp.ablate("mean"), others),
        (mp.ablate("resample", seed=1), images),
        (mp.ablate("resample", seed=2), images),
        (mp.scale(0.5), None),
        (mp.scale(0.25), None),
        (mp.noise(0.5), None),
        (mp.noise(0.5, seed=1), None),
        (mp.patch(reps), None),
        (mp.patch(shifted), None),
        (mp.patch(reps.take([1, 0, 2, 3])), None),
    ]
    found = [before.fingerprint]
    for what, given in different:
        with mp.intervene(model, {"blocks.0": what}, images=given):
            inside = model.record
            assert inside.name.startswith(f"{before.name} + {what.name.partition(' ')[0]}")
            found.append(inside.fingerprint)
            assert mp.extract(model, images).model == inside
        assert model.record == before
    assert len(set(found)) == len(found)
    with mp.intervene(model, {"blocks.0": mp.scale(0.5)}):
        assert model.fingerprint == found[9]
        assert model.record.name == f"{before.name} + scale 0.5 of blocks.0"
        with mp.intervene(model, {"blocks.1.attn": mp.ablate("zero", heads=[1])}):
            assert model.record.name.endswith("blocks.0 + ablate zero of head 1 of blocks.1.attn")
            assert model.fingerprint not in found
        assert model.fingerprint == found[9]
        mp.extract(model, images, out=tmp_path / "run.zarr")
    with pytest.raises(StoreError):
        mp.extract(model, images, out=tmp_path / "run.zarr")


def test_it_ends_whatever_happens_and_other_threads_see_nothing() -> None:
    model, images = CASES["mixer"].model(), CASES["mixer"].images(2)
    base, before = outputs(model, images), model.record
    model.module.train()

    def failing() -> None:
        with mp.intervene(model, {"stem": mp.ablate("zero")}):
            kept.append(copy.deepcopy(model.module))
            thread = threading.Thread(
                target=lambda: elsewhere.extend([outputs(model, images), model.fingerprint])
            )
            thread.start()
            thread.join()
            assert not torch.equal(outputs(model, images), base)
            raise ZeroDivisionError

    kept: list[Any] = []
    elsewhere: list[Any] = []
    with pytest.raises(ZeroDivisionError):
        failing()
    assert model.module.training
    assert torch.equal(outputs(model, images), base)
    assert torch.equal(elsewhere[0], base)
    assert elsewhere[1] == model.record.fingerprint == before.fingerprint
    with torch.no_grad():
        assert torch.equal(kept[0].eval()(images), base)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.module.modules())


# -- what works inside -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "what",
    [
        mp.scale(0.5),
        mp.scale(0.5, channels=[1]),
        mp.noise(0.1),
        mp.ablate("zero"),
        mp.ablate("zero", channels=[1]),
        mp.ablate("mean"),
    ],
    ids=lambda what: f"{what.name}-{what.selected}",
)
@pytest.mark.parametrize("layer", ["blocks.0", "blocks.1.mlp_tokens"])
def test_gradients_pass_through(what: Any, layer: str) -> None:
    model, images = CASES["mixer"].model(F64), CASES["mixer"].images(3, F64).requires_grad_()
    with mp.intervene(model, {layer: what}):
        model.module(images).sum().backward()
    assert images.grad is not None
    constant = layer == "blocks.0" and not what.selected and what.name.startswith("ablate")
    assert bool(images.grad.any()) != constant


def labelled(n: int = 12) -> Images:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (n, 32, 32, 3), dtype=np.uint8)
    return from_arrays(pictures, np.arange(n) % 2, class_names=("cat", "dog"), name="pictures")


@pytest.mark.filterwarnings("ignore::mixer_probe.core.errors.MixerProbeWarning")
def test_probes_attribution_and_accuracy_work_inside() -> None:
    model = as_model(CASES["mixer"].network(), 32, class_names=("cat", "dog", "a", "b", "c"))
    images = labelled()
    parts = images.subset(range(6)), images.subset(range(6, 12))
    # The same network with the branch gone for good.
    edited = as_model(CASES["mixer"].network(), 32, class_names=("cat", "dog", "a", "b", "c"))
    for parameter in edited.module.blocks[1].mlp_channels.fc2.parameters():  # type: ignore[index]
        parameter.data.zero_()
    with mp.intervene(model, {"blocks.1.mlp_channels": mp.ablate("zero")}):
        probe = mp.linear_probe(*(mp.extract(model, part) for part in parts), l2=[1.0])
        maps = mp.attribute(model, images, "integrated_gradients", target="labels")
        accuracy = own_accuracy(model, images)
        record = model.record
    expected = mp.linear_probe(*(mp.extract(edited, part) for part in parts), l2=[1.0])
    np.testing.assert_array_equal(probe.accuracy, expected.accuracy)
    there = mp.attribute(edited, images, "integrated_gradients", target="labels")
    np.testing.assert_allclose(maps.maps, there.maps, atol=1e-6)
    assert accuracy.right == own_accuracy(edited, images).right
    assert probe.model == maps.model == record


# -- refusals --------------------------------------------------------------------------------------


def _stored(name: str, layer: str, reduce: Any = "none") -> Any:
    return mp.extract(CASES[name].model(), CASES[name].images(2), layer, reduce=reduce)


REFUSED: list[tuple[str, str, Any, str]] = [
    ("vit", "blocks.9", lambda: mp.ablate("zero"), "no layer 'blocks.9'"),
    ("vit", "blocks.0", lambda: mp.ablate("nought"), "unknown how"),
    ("vit", "blocks.0", lambda: mp.scale(float("nan")), "finite number"),
    ("vit", "blocks.0", lambda: mp.noise(-1.0), "0 or more"),
    ("vit", "blocks.0", lambda: mp.patch(np.zeros(3)), "representations that extract"),  # type: ignore[arg-type]
    ("vit", "blocks.0", lambda: "zero", "what ablate, scale, noise or patch returns"),
    ("vit", "blocks.0", lambda: mp.scale(2.0, channel=[1]), "unknown part of a layer"),  # type: ignore[call-arg]
    ("vit", "blocks.0", lambda: mp.scale(2.0, channels=[]), "channels is empty"),
    ("vit", "blocks.0", lambda: mp.scale(2.0, channels="ab"), "list of whole numbers"),
    ("vit", "blocks.0", lambda: mp.scale(2.0, channels=[24]), "no channel 24: it has 24"),
    ("vit", "blocks.0", lambda: mp.scale(2.0, positions=[16]), "no position 16"),
    ("vit", "blocks.0", lambda: mp.scale(2.0, positions=[(0, 4)]), "4 rows and 4 columns"),
    ("vit", "head", lambda: mp.scale(2.0, positions=[0]), "pooled"),
    ("vit", "blocks.0", lambda: mp.scale(2.0, heads=[0]), "those of 'blocks.0.attn'"),
    ("vit", "blocks.0.attn", lambda: mp.scale(2.0, heads=[2]), "no head 2: it has 2"),
    ("mixer", "blocks.0.mlp_tokens", lambda: mp.scale(2.0, heads=[0]), "has no heads"),
    ("mixer", "blocks.0.mlp_tokens", lambda: mp.scale(2.0, units=[99]), "no unit 99"),
    ("mixer", "blocks.0.mlp_channels", lambda: mp.scale(2.0, units=[0]), "hidden units"),
    ("resmlp", "blocks.0.linear_tokens", lambda: mp.scale(2.0, units=[0]), "hidden units"),
    (
        "mixer",
        "blocks.0.mlp_tokens.act",
        lambda: mp.scale(2.0, positions=[(0, 0)]),
        "no grid",
    ),
    (
        "vit",
        "blocks.0.attn",
        lambda: mp.scale(2.0, heads=[0], channels=[0]),
        "heads are given without channels",
    ),
    (
        "mixer",
        "blocks.0.mlp_tokens",
        lambda: mp.scale(2.0, units=[0], positions=[0]),
        "units stand in the place",
    ),
    (
        "swin",
        "layers.0.blocks.0.drop_path1",
        lambda: mp.scale(2.0, heads=[0], positions=[0]),
        "attends in windows",
    ),
    ("swin", "layers.0.blocks.0.attn", lambda: mp.scale(2.0, heads=[0]), "drop_path1"),
    ("vit", "blocks.0", lambda: mp.ablate("skip", channels=[0]), "takes no part"),
    ("vit", "patch_embed", lambda: mp.ablate("skip"), "cannot be skipped"),
    ("vit", "blocks.0", lambda: mp.patch(_stored("vit", "blocks.1")), "not among the layers"),
    ("vit", "blocks.0", lambda: mp.patch(_stored("vit", "blocks.0", "mean")), "reduce='none'"),
    (
        "vit",
        "blocks.0",
        lambda: mp.patch(_stored("deit-distilled", "blocks.0")),
        "2 prefix tokens and 24 channels",
    ),
    (
        "vit",
        "blocks.0.attn",
        lambda: mp.patch(_stored("vit", "blocks.0.attn"), heads=[0]),
        "heads cannot be patched",
    ),
    ("vit", "blocks.0", lambda: fixed(np.zeros((16, 24))), "tokens and channels"),
]


@pytest.mark.parametrize(
    ("name", "layer", "what", "match"), REFUSED, ids=[row[3] for row in REFUSED]
)
def test_what_a_layer_does_not_have_is_refused_in_one_sentence(
    name: str, layer: str, what: Any, match: str
) -> None:
    model, images = CASES[name].model(), CASES[name].images(2)
    with pytest.raises(LayerError, match=match) as error:
        changed(model, images, layer, what())
    assert str(error.value).count(". ") == 0
    outputs(model, images)


def test_no_interventions_are_refused() -> None:
    model = CASES["vit"].model()
    for given in ({}, [mp.scale(1.0)]):
        with pytest.raises(MixerProbeError), mp.intervene(model, given):  # type: ignore[arg-type]
            pass
