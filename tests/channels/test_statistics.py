"""Channel statistics against NumPy on activations that plain hooks caught in float64."""

import numpy as np
import pytest
import timm
import torch

import mixer_probe as mp
from mixer_probe.channels import ChannelMoments, channel_moments
from mixer_probe.results import from_dict, to_dict


@pytest.fixture(scope="module")
def resnet() -> mp.Model:
    torch.manual_seed(0)
    network = timm.create_model("resnet18", zero_init_last=False)
    return mp.load_model(network, device="cpu")


def caught(model: mp.Model, images: torch.Tensor, name: str) -> np.ndarray:
    """[value, channel] in float64."""
    found: list[torch.Tensor] = []
    handle = model.module.get_submodule(name).register_forward_hook(lambda _m, _i, out: found.append(out.detach().clone()))
    with torch.no_grad():
        model.module(images)
    handle.remove()
    return found[0].double().permute(0, 2, 3, 1).flatten(0, 2).numpy()


def test_statistics_equal_numpy_at_any_batch_size(resnet: mp.Model) -> None:
    images = torch.randn(7, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    layers = ["bn1", "layer1.0", "layer4.1"]
    found = mp.channel_statistics(resnet, images, layers, batch_size=3)
    for i, name in enumerate(layers):
        values = caught(resnet, images, name)
        assert found.values[i] == len(values)
        np.testing.assert_allclose(found.mean[i], values.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.std[i], values.std(0), rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(found.minimum[i], values.min(0))
        np.testing.assert_array_equal(found.maximum[i], values.max(0))
        np.testing.assert_allclose(found.share_zero[i], (values == 0).mean(0), atol=1e-12)
        np.testing.assert_allclose(found.share_nonpositive[i], (values <= 0).mean(0), atol=1e-12)
    assert found.n == 7
    # bn1 is seen before the in-place ReLU that follows it.
    assert found.minimum[0].max() < 0


def test_dead_channels_are_those_that_never_change(resnet: mp.Model) -> None:
    with torch.no_grad():
        resnet.module.layer1[0].bn2.weight[5] = 0
        resnet.module.layer1[0].bn2.bias[5] = 0.25
    found = mp.channel_statistics(resnet, torch.randn(2, 3, 224, 224), ["layer1.0.bn2"])
    assert np.flatnonzero(found.dead[0]).tolist() == [5]
    assert found.mean[0][5] == pytest.approx(0.25)
    assert found.share_zero[0][5] == 0.0


def test_merging_equals_one_pass_even_far_from_zero(resnet: mp.Model) -> None:
    generator = torch.Generator().manual_seed(0)
    values = 1e4 + torch.randn(60, 9, 4, generator=generator, dtype=torch.float64)
    layer = mp.Layer("x", "block", 1.0, (3, 3), 4, 0, 9)
    parts = [ChannelMoments(), ChannelMoments()]
    for k, chunk in enumerate(values.split(17)):
        parts[k % 2].update({"x": channel_moments(layer, chunk, None)}, len(chunk))
    parts[0].merge(parts[1])
    record = resnet.record
    images = mp.load_images("demo", limit=10).record
    found = parts[0].compute(record, images, [layer])
    flat = values.reshape(-1, 4).numpy()
    np.testing.assert_allclose(found.mean[0], flat.mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.std[0], flat.std(0), rtol=1e-9)
    assert found.n == 60


def test_prefix_tokens_do_not_count() -> None:
    model = mp.load_model("vit_tiny_patch16_224", pretrained=False, device="cpu")
    found = mp.channel_statistics(model, torch.randn(2, 3, 224, 224), "blocks.0")
    assert found.values == (2 * 196,)


def test_tables_and_storage(resnet: mp.Model) -> None:
    found = mp.channel_statistics(resnet, torch.randn(2, 3, 224, 224), "blocks")
    assert len(found.to_frame()) == 2 * (64 + 128 + 256 + 512)
    assert found.summary()["layer"].tolist() == [layer.name for layer in found.layers]
    again = from_dict(to_dict(found))
    assert again.to_frame().equals(found.to_frame())
