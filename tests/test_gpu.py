"""On CUDA: the same numbers as on the CPU within stated tolerances, real memory limits, nothing left behind.

Run with `make gpu-test`. Errors are |gpu - cpu| / |cpu| in the Euclidean norm of a layer. In float32 with TF32 off the order of
additions differs: 1e-4 allows for some hundred layers of it. bfloat16 keeps eight bits: 5e-2 for mean-pooled layers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

import mixer_probe as mp
from mixer_probe.capture import every_position, stream, to_host
from mixer_probe.errors import OutOfMemoryWarning
from mixer_probe.similarity import StreamingCKA

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none here"),
]

FLOAT32, BFLOAT16 = 1e-4, 5e-2
NAMES = ("zoo:mixer", "zoo:vit", "zoo:resnet")
BIG = ("mixer_s32_224", "resmlp_12_224", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "resnet18", "convnext_atto")


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    matmul, conv = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, conv


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def pair(name: str) -> tuple[mp.Model, mp.Model]:
    arguments = {} if name.startswith("zoo:") else {"pretrained": False}
    return mp.load_model(name, device="cuda", **arguments), mp.load_model(name, device="cpu", **arguments)


def constant(layer: np.ndarray) -> bool:
    """Zero-initialised branches of untrained networks have no direction to compare."""
    return bool(np.linalg.norm(layer) < 1e-6)


def test_auto_takes_cuda() -> None:
    assert mp.load_model("zoo:mixer").device.type == "cuda"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reduce", ["mean", "none"])
def test_zoo_layers_on_real_images_equal_the_cpu(name: str, reduce: str) -> None:
    gpu, cpu = pair(name)
    images = mp.load_images("demo", limit=50)
    on_gpu = mp.extract(gpu, images, "all", reduce=reduce, batch_size=16)
    on_cpu = mp.extract(cpu, images, "all", reduce=reduce, batch_size=50)
    assert on_gpu.ids == on_cpu.ids
    for layer in on_cpu:
        assert error(on_gpu[layer], on_cpu[layer]) < FLOAT32, layer


@pytest.mark.parametrize("name", BIG)
def test_layers_at_224_pixels_equal_the_cpu(name: str) -> None:
    gpu, cpu = pair(name)
    images = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    on_gpu, on_cpu = mp.extract(gpu, images, "all", batch_size=3), mp.extract(cpu, images, "all")
    for layer in on_cpu:
        if not constant(on_cpu[layer]):
            assert error(on_gpu[layer], on_cpu[layer]) < FLOAT32, layer


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_stays_within_its_precision(name: str) -> None:
    gpu, cpu = pair(name)
    images = mp.load_images("demo", limit=50)
    half, full = mp.extract(gpu, images, autocast="bfloat16"), mp.extract(cpu, images)
    for layer in full:
        assert half[layer].dtype == np.float32
        assert 0 < error(half[layer], full[layer]) < BFLOAT16, layer


def test_a_model_in_bfloat16_gives_float32_means() -> None:
    images = mp.load_images("demo", limit=50)
    half = mp.extract(mp.load_model("zoo:mixer", device="cuda", dtype="bfloat16"), images)
    full = mp.extract(mp.load_model("zoo:mixer", device="cpu"), images)
    assert error(half["blocks.7"], full["blocks.7"]) < BFLOAT16


def test_asynchronous_copies_equal_plain_ones() -> None:
    model = mp.load_model("zoo:vit", device="cuda")
    images = mp.load_images("demo", limit=90)
    layers = model.select("all")
    plain = [{k: v[0].cpu() for k, v in p.found.items()} for p in stream(model, images, layers, every_position, batch_size=8)]
    copied = list(to_host(stream(model, images, layers, every_position, batch_size=8)))
    assert [p.start for p in copied] == list(range(0, 90, 8))
    for expected, piece in zip(plain, copied, strict=True):
        for name, value in expected.items():
            assert torch.equal(piece.found[name][0], value), name


def test_a_full_device_halves_the_batch_and_goes_on() -> None:
    model = mp.load_model("vit_tiny_patch16_224", pretrained=False, device="cuda")
    images = torch.randn(96, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    expected = mp.extract(model, images, batch_size=8)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 150 * 2**20) / total)
    try:
        with pytest.warns(OutOfMemoryWarning, match="going on with batches of"):
            found = mp.extract(model, images, batch_size=96)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    for layer in expected:
        assert error(found[layer], expected[layer]) < FLOAT32, layer


def test_the_model_is_left_as_it_was() -> None:
    model = mp.load_model("zoo:resnet", device="cuda")
    model.module.layer1.train()
    before = {name: m.training for name, m in model.module.named_modules()}
    mp.extract(model, mp.load_images("demo", limit=20))
    assert {name: m.training for name, m in model.module.named_modules()} == before
    assert not any(m._forward_hooks for m in model.module.modules())
    assert model.device.type == "cuda"


def test_analyses_take_a_model_on_the_gpu() -> None:
    gpu, cpu = pair("zoo:resnet")
    images = mp.load_images("demo", limit=40)
    for i, std in enumerate(mp.channel_statistics(cpu, images).std):
        assert error(mp.channel_statistics(gpu, images).std[i], std) < FLOAT32
    on_gpu = mp.compare_models(gpu, mp.load_model("zoo:mixer", device="cuda"), images)
    on_cpu = mp.compare_models(cpu, mp.load_model("zoo:mixer", device="cpu"), images)
    np.testing.assert_allclose(on_gpu.values, on_cpu.values, atol=1e-4)
    np.testing.assert_array_equal(mp.stem_filters(gpu).filters, mp.stem_filters(cpu).filters)
    assert mp.load_model("zoo:mixer", device="cuda").sha256 == mp.load_model("zoo:mixer", device="cpu").sha256


def test_streaming_cka_on_the_gpu_is_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    X, Y = (30 + torch.randn(200, 64, generator=generator) for _ in range(2))
    accumulator = StreamingCKA()
    for x, y in zip(X.split(30), Y.split(30)):
        accumulator.update({"x": x.cuda()}, {"y": y.cuda()})
    assert accumulator.compute().values[0, 0] == pytest.approx(mp.cka(X.numpy(), Y.numpy()), abs=1e-10)
