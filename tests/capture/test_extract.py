"""`extract`: reductions, selection, number types, what is not finite, and too little memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mixer_probe.capture import TensorImages, extract
from mixer_probe.core.errors import (
    ImagesError,
    LayerError,
    MixerProbeError,
    ModelError,
    NonFiniteWarning,
    OutOfMemoryWarning,
    StoreError,
)
from mixer_probe.core.result import ImagesRecord
from mixer_probe.images.labelled import index_batches
from mixer_probe.models import Model
from tests.networks import CASES, as_model, noise


@pytest.fixture
def mixer() -> Model:
    return CASES["mixer"].model()


@pytest.fixture
def vit() -> Model:
    return CASES["dinov2-registers"].model()


# -- what comes back -------------------------------------------------------------------------------


def test_shapes_of_the_three_reductions(vit: Model) -> None:
    mean = extract(vit, noise(3), "blocks.0")["blocks.0"]
    prefix = extract(vit, noise(3), "blocks.0", reduce="prefix")["blocks.0"]
    every = extract(vit, noise(3), ["blocks.0", "head"], reduce="none")
    assert mean.shape == prefix.shape == (3, 24)
    assert every["blocks.0"].shape == (3, 16, 24)
    assert every.prefix("blocks.0").shape == (3, 5, 24)
    assert every["head"].shape == (3, 5)


def test_mean_leaves_prefix_tokens_out_and_prefix_is_the_first(vit: Model) -> None:
    every = extract(vit, noise(3), "blocks", reduce="none")
    mean = extract(vit, noise(3), "blocks")
    prefix = extract(vit, noise(3), "blocks", reduce="prefix")
    for name in every:
        np.testing.assert_allclose(mean[name], every[name].mean(1), atol=1e-6)
        np.testing.assert_array_equal(prefix[name], every.prefix(name)[:, 0])


def test_pooled_layers_are_the_same_however_reduced(mixer: Model) -> None:
    heads = [extract(mixer, noise(3), "head", reduce=reduce)["head"] for reduce in ("mean", "none")]
    np.testing.assert_array_equal(*heads)


def test_a_convolutional_head_gives_image_and_channel() -> None:
    model = CASES["resnetv2"].model()
    found = extract(model, noise(2, 64), ["head", "head.fc", "head.global_pool"])
    assert {name: found[name].shape for name in found} == {
        "head.global_pool": (2, 48),
        "head.fc": (2, 5),
        "head": (2, 5),
    }


def test_batches_do_not_change_the_numbers(mixer: Model) -> None:
    whole = extract(mixer, noise(7), "all", batch_size=64)
    for size in (1, 3, 7):
        parts = extract(mixer, noise(7), "all", batch_size=size)
        for name in whole:
            np.testing.assert_allclose(
                parts[name], whole[name], atol=2e-6 * np.abs(whole[name]).max()
            )


def test_representations_know_where_they_are_from(mixer: Model) -> None:
    found = extract(mixer, noise(3), "blocks")
    assert found.model == mixer.record
    assert (found.images.n, found.ids, found.labels, found.reduce) == (
        3,
        ("0", "1", "2"),
        None,
        "mean",
    )
    assert found.names() == [layer.name for layer in mixer.select("blocks")] == list(found)
    assert len(found) == 2
    assert "blocks.1" in found
    assert "blocks.2" not in found
    with pytest.raises(LayerError, match=r"no layer 'blocks.2' in this run.*closest: blocks\.1"):
        found["blocks.2"]
    with pytest.raises(LayerError, match="no prefix tokens"):
        found.prefix("blocks.0")


def test_some_of_the_images(vit: Model) -> None:
    with torch.no_grad():
        vit.module.blocks[0].mlp.fc2.bias[5] = float("inf")
    with pytest.warns(NonFiniteWarning):
        whole = extract(vit, Listed(noise(5)), ["blocks.0.mlp", "head"], reduce="none")
    part = whole.take([3, 1], "odd")
    assert part.ids == (whole.ids[3], whole.ids[1])
    assert part.labels is not None
    assert part.labels.tolist() == [1, 1]
    assert (part.images.n, part.images.split) == (2, "odd")
    assert part.images.fingerprint not in (
        whole.images.fingerprint,
        whole.take([1, 3]).images.fingerprint,
    )
    for name in whole:
        np.testing.assert_array_equal(part[name], whole[name][[3, 1]])
    np.testing.assert_array_equal(part.prefix("blocks.0.mlp"), whole.prefix("blocks.0.mlp")[[3, 1]])
    assert part.non_finite["blocks.0.mlp"] == 2 * (16 + 5)
    assert extract(vit, noise(2), "stem").take([0]).non_finite == {}


def test_images_are_known_by_their_numbers() -> None:
    hashes = [TensorImages(x).record.fingerprint for x in (noise(2), noise(2), noise(2, seed=9))]
    assert hashes[0] == hashes[1] != hashes[2]


class Listed:
    """A source of images with labels and names, that counts what it hands out."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.ids = tuple(f"image {i}.png" for i in range(len(tensor)))
        self.labels = np.arange(len(tensor)) % 2
        self.class_names = ("cat", "dog")
        self.transform: Any = None
        self.record = ImagesRecord("listed", "test", len(tensor), 2, "f" * 64)

    def __len__(self) -> int:
        return len(self.tensor)

    def batches(
        self,
        transform: Callable[[Any], torch.Tensor],
        batches: int | Iterable[Sequence[int]],
        *,
        workers: int | Literal["auto"] = "auto",
        pin_memory: bool = False,
    ) -> Iterator[torch.Tensor]:
        self.transform = transform
        yield from (self.tensor[list(index)] for index in index_batches(batches, len(self)))


def test_a_source_gets_the_transform_of_the_model_and_keeps_its_names(mixer: Model) -> None:
    source = Listed(noise(5))
    found = extract(mixer, source, "blocks", batch_size=2)
    assert found.ids == source.ids
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 0, 1, 0]
    assert found.class_names == ("cat", "dog")
    grey = source.transform(Image.new("RGB", (32, 32), (255, 255, 255)))
    assert grey.shape == (3, 32, 32)
    torch.testing.assert_close(grey, torch.ones(3, 32, 32))  # (1 - 0.5) / 0.5


# -- selection -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ("blocks", ["blocks.0", "blocks.1"]),
        ("block", ["blocks.0", "blocks.1"]),
        ("spatial", ["blocks.0.mlp_tokens", "blocks.1.mlp_tokens"]),
        ("channel", ["blocks.0.mlp_channels", "blocks.1.mlp_channels"]),
        ("stem", ["stem"]),
        ("norm", ["norm"]),
        (["head", "stem"], ["stem", "head"]),
        ("blocks.*", ["blocks.0", "blocks.1"]),
        ("blocks.1", ["blocks.1"]),
        ("blocks.*.mlp_tokens", ["blocks.0.mlp_tokens", "blocks.1.mlp_tokens"]),
        ("*.fc1", None),
        ("**.mlp_tokens.fc1", ["blocks.0.mlp_tokens.fc1", "blocks.1.mlp_tokens.fc1"]),
        ("blocks.[1-9].norm?", ["blocks.1.norm1", "blocks.1.norm2"]),
        (["blocks", "blocks.0", "blocks.*"], ["blocks.0", "blocks.1"]),
        (["blocks.1.norm2", "blocks.0"], ["blocks.0", "blocks.1.norm2"]),
    ],
)
def test_words_names_and_globs(mixer: Model, asked: Any, names: list[str] | None) -> None:
    if names is None:
        with pytest.raises(LayerError, match=re.escape("no layer matches '*.fc1'; closest: ")):
            mixer.select(asked)
    else:
        assert [layer.name for layer in mixer.select(asked)] == names


def test_two_stars_cross_dots_and_one_does_not(mixer: Model) -> None:
    deep = [layer.name for layer in mixer.select("blocks.0.**")]
    flat = [layer.name for layer in mixer.select("blocks.0.*")]
    readable = [name for name in mixer.structure.names() if name.startswith("blocks.0.")]
    assert deep == readable
    assert flat == [name for name in readable if name.count(".") == 2]
    assert len(deep) > len(flat) > 2


def test_all_means_the_listed_layers(mixer: Model) -> None:
    assert mixer.select("all") == mixer.layers


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ("blocks.0.mlp_token", "no layer 'blocks.0.mlp_token'; closest: blocks.0.mlp_tokens"),
        ("block.1", "no layer 'block.1'; closest: blocks.1"),
        ("", "no layer ''; "),
        ([], "no layers asked for; give names, globs or a word such as 'blocks' or 'all'"),
        ("blocks.7.*", "no layer matches 'blocks.7.*'; closest: blocks"),
    ],
)
def test_what_matches_nothing_is_an_error_with_close_names(
    mixer: Model, asked: Any, sentence: str
) -> None:
    with pytest.raises(LayerError, match="^" + re.escape(sentence)):
        extract(mixer, noise(1), asked)


def test_a_word_for_layers_that_a_network_lacks() -> None:
    with pytest.raises(
        LayerError, match=r"no layer of kind 'norm'; its kinds: stem, spatial, channel, block, head"
    ):
        CASES["convmixer"].model().select("norm")


# -- input that cannot be --------------------------------------------------------------------------


def test_images_of_another_size_are_named() -> None:
    model = CASES["resnet-bottleneck"].model()
    with pytest.raises(
        ImagesError, match=re.escape("the images are (3, 96, 96) and ResNet takes (3, 64, 64)")
    ):
        extract(model, noise(2, 96), "blocks")


class Cut(nn.Module):
    """Returns the first `channels` of its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., : self.channels]


def test_a_network_changed_after_loading_is_noticed(mixer: Model) -> None:
    mixer.structure  # noqa: B018 - traced before the change
    mixer.module.head = nn.Sequential(mixer.module.head, cut := Cut(4))
    assert mixer.layer("head").channels == extract(mixer, noise(2), "head")["head"].shape[1] == 4
    cut.channels = 3
    with pytest.raises(
        LayerError, match=r"'head' returned shape \(2, 3\) where 1 positions and 4 channels"
    ):
        extract(mixer, noise(2), "head")


@pytest.mark.parametrize("images", [torch.zeros(3, 32, 32), torch.zeros(0, 3, 32, 32)])
def test_a_tensor_that_holds_no_images(mixer: Model, images: torch.Tensor) -> None:
    with pytest.raises(ImagesError, match=r"shape \[n, channels, height, width\]"):
        extract(mixer, images)


def test_something_else_than_images(mixer: Model) -> None:
    with pytest.raises(ImagesError, match=r"load_images returns or a tensor.*not a str"):
        extract(mixer, "photos")  # type: ignore[arg-type]


def test_no_images(mixer: Model) -> None:
    with pytest.raises(ImagesError, match="image set is empty"):
        extract(mixer, Listed(noise(0)))


@pytest.mark.parametrize("size", [0, -1])
def test_batches_of_nothing(mixer: Model, size: int) -> None:
    with pytest.raises(ImagesError, match="batch_size is a whole number, 1 or more"):
        extract(mixer, noise(2), batch_size=size)


def test_an_unknown_reduction(mixer: Model) -> None:
    with pytest.raises(LayerError, match="unknown reduce 'max'; known: mean, prefix, none"):
        extract(mixer, noise(1), reduce="max")  # type: ignore[arg-type]


def test_a_prefix_where_there_is_none(mixer: Model, vit: Model) -> None:
    with pytest.raises(
        LayerError, match=r"'blocks.0' of MlpMixer has no prefix token.*reduce='mean'"
    ):
        extract(mixer, noise(1), reduce="prefix")
    with pytest.raises(LayerError, match="'patch_embed' of VisionTransformer has no prefix token"):
        extract(vit, noise(1), "all", reduce="prefix")


def test_more_numbers_than_memory(mixer: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sysconf", lambda name: 2**12 if name == "SC_PAGE_SIZE" else 2)
    with pytest.raises(
        StoreError, match=r"give out=FOLDER to store them on disk, or use reduce='mean'"
    ):
        extract(mixer, noise(4), "all", reduce="none")


# -- number types ----------------------------------------------------------------------------------


def test_float64_stays_float64() -> None:
    model = CASES["mixer"].model(torch.float64)
    found = extract(model, noise(2), "blocks")
    assert found["blocks.0"].dtype == np.float64


@pytest.mark.parametrize("reduce", ["mean", "none", "prefix"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_networks_give_float32(dtype: torch.dtype, reduce: Any) -> None:
    """Half-precision numbers are float32 numbers: what is stored is exactly what the network
    gave."""
    model = CASES["vit"].model(dtype)
    found = extract(model, noise(3), "blocks.0", reduce=reduce)["blocks.0"]
    assert found.dtype == np.float32
    with torch.no_grad():
        kept = []
        handle = model.module.blocks[0].register_forward_hook(
            lambda _m, _a, out: kept.append(out.float())
        )
        model.module(noise(3).to(dtype))
        handle.remove()
    tokens = kept[0].numpy()
    wanted = {
        "mean": tokens[:, 1:].mean(1, dtype=np.float64),
        "none": tokens[:, 1:],
        "prefix": tokens[:, 0],
    }[reduce]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 if reduce == "mean" else 0)


def test_bfloat16_autocast_is_near_float32() -> None:
    """bfloat16 has 8 significant bits: each operation errs by up to 2^-8 of its size, and some
    twenty come in a row."""
    for name in ("mixer", "vit", "resnet-bottleneck"):
        case = CASES[name]
        plain = extract(case.model(), case.images(3), "all", reduce="none")
        fast = extract(case.model(), case.images(3), "all", reduce="none", autocast="bfloat16")
        assert fast.record.identity() != plain.record.identity()
        for layer in plain:
            difference = np.linalg.norm(fast[layer] - plain[layer]) / np.linalg.norm(plain[layer])
            assert difference < 0.1, (name, layer)
        assert any(not np.array_equal(fast[layer], plain[layer]) for layer in plain)


@pytest.mark.parametrize("autocast", ["float32", "int8", "fast"])
def test_autocast_to_something_else(mixer: Model, autocast: str) -> None:
    with pytest.raises(ModelError, match=r"'bfloat16'.*'float16'"):
        extract(mixer, noise(1), autocast=autocast)


# -- NaN and infinity ------------------------------------------------------------------------------


def test_values_that_are_not_finite_are_counted_and_kept(vit: Model) -> None:
    with torch.no_grad():
        vit.module.blocks[1].norm2.weight[3] = float("nan")
        vit.module.blocks[0].mlp.fc2.bias[5] = float("inf")
    with pytest.warns(NonFiniteWarning) as caught:
        found = extract(
            vit, noise(4), ["blocks.0.mlp", "blocks.1.norm2"], reduce="none", batch_size=3
        )
    tokens = 16 + 5
    said = [str(w.message) for w in caught]
    assert said[0].startswith(
        f"{4 * tokens} values of layer 'blocks.0.mlp' of VisionTransformer are NaN or infinite"
    )
    assert found.non_finite["blocks.0.mlp"] == 4 * tokens
    assert np.isinf(found["blocks.0.mlp"][..., 5]).all()
    assert np.isfinite(np.delete(found["blocks.0.mlp"], 5, axis=-1)).all()
    assert np.isnan(found["blocks.1.norm2"]).all()
    assert len(said) == 2


def test_finite_values_give_no_warning(vit: Model) -> None:
    assert extract(vit, noise(2), "all").non_finite == {}


# -- too little memory -----------------------------------------------------------------------------


class Narrow(nn.Module):
    """A device with memory for `room` images."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.seen: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return x


def narrow(room: int) -> tuple[Model, Narrow]:
    network = CASES["mixer"].network()
    gate = Narrow(10**6)
    network.norm = nn.Sequential(network.norm, gate)
    model = as_model(network)
    model.structure  # noqa: B018 - traced while there is room
    gate.room, gate.seen = room, []
    return model, gate


def test_out_of_memory_halves_the_batch_and_goes_on() -> None:
    whole = extract(CASES["mixer"].model(), noise(13), "head")["head"]
    model, gate = narrow(3)
    with pytest.warns(OutOfMemoryWarning) as caught:
        found = extract(model, noise(13), "head", batch_size=8)
    assert [str(w.message) for w in caught] == [
        "out of memory on the device: going on with batches of 4",
        "out of memory on the device: going on with batches of 2",
    ]
    # 8 and 4 are too many; what fits is kept for the batches that follow.
    assert gate.seen == [8, 4, 2, 2, 2, 2, 2, 2, 1]
    np.testing.assert_allclose(found["head"], whole, atol=1e-6)


def test_out_of_memory_half_way_gives_every_image_once() -> None:
    """Memory that runs out in the middle: what was done before stays, and nothing is done twice."""
    model, gate = narrow(4)
    source = Listed(noise(11))
    tensor = source.tensor

    def batches(_transform: Any, batches: Any, **_: Any) -> Iterator[torch.Tensor]:
        for i, index in enumerate(index_batches(batches, len(tensor))):
            gate.room = 4 if i == 0 else 1
            yield tensor[list(index)]

    source.batches = batches  # type: ignore[method-assign]
    with pytest.warns(OutOfMemoryWarning):
        found = extract(model, source, "head", batch_size=4)
    whole = extract(CASES["mixer"].model(), noise(11), "head")
    np.testing.assert_allclose(found["head"], whole["head"], atol=1e-6)


def test_too_little_memory_for_one_image() -> None:
    model, _ = narrow(0)
    with (
        pytest.warns(OutOfMemoryWarning),
        pytest.raises(
            MixerProbeError, match=r"too little memory for one image.*fewer layers"
        ) as caught,
    ):
        extract(model, noise(4), "head", batch_size=2)
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert not any(m._forward_hooks for m in model.module.modules())


def test_other_errors_of_the_network_are_its_own(mixer: Model) -> None:
    mixer.structure  # noqa: B018 - traced before the change
    mixer.module.blocks[0].norm1.forward = lambda x: nn.functional.layer_norm(x, (7,))
    with pytest.raises(RuntimeError, match="normalized_shape"):
        extract(mixer, noise(2), "blocks")
