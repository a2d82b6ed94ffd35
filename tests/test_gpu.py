"""On a CUDA device: the same numbers as on the CPU, copies that arrive whole, and memory that
really runs out.

Run with `pytest -m gpu`. TF32 is switched off, so that float32 products have float32's precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mixer_probe.capture.units as units
from mixer_probe.capture import every_position, extract, mean_over_positions, stream, to_host
from mixer_probe.channels import ChannelMoments
from mixer_probe.core.errors import OutOfMemoryWarning
from mixer_probe.core.result import same
from mixer_probe.images.labelled import from_arrays
from mixer_probe.invariance.own_accuracy import own_accuracy
from mixer_probe.models import load_model
from mixer_probe.models.load import resolve_device
from mixer_probe.similarity import compare_models
from mixer_probe.training import Trainer, train
from tests.networks import CASES, Case, as_model, askable, noise
from tests.training import small

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

# One network a family and more: fused attention, prefix tokens, windows, batch norm, channels-last
# blocks.
FAMILIES = (
    "mixer",
    "gmlp",
    "dinov2-registers",
    "eva",
    "swinv2",
    "resnet18",
    "convnext",
    "mobilenetv4",
)
every_family = pytest.mark.parametrize("case", [CASES[name] for name in FAMILIES], ids=FAMILIES)
# Largest difference over largest value. Float32 has 24 bits; sums over some thousand terms in
# another order lose a few.
FLOAT32 = 1e-4
FLOAT64 = 1e-11
# Norm of the difference over the norm: bfloat16 has 8 bits, and some twenty operations come in a
# row.
BFLOAT16 = 0.1


@pytest.fixture(autouse=True)
def _full_precision() -> Iterator[None]:
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


@every_family
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, FLOAT32), (torch.float64, FLOAT64)]
)
def test_every_layer_equals_the_cpus(case: Case, dtype: torch.dtype, tolerance: float) -> None:
    images = case.images(5, dtype)
    cpu, gpu = case.model(dtype), case.model(dtype, device="cuda")
    names = askable(cpu)
    assert askable(gpu) == names
    wanted = extract(cpu, images, names, reduce="none", batch_size=2)
    found = extract(gpu, images, names, reduce="none", batch_size=2)
    for name in names:
        assert found[name].dtype == wanted[name].dtype
        np.testing.assert_allclose(
            found[name], wanted[name], rtol=0, atol=tolerance * max(1, np.abs(wanted[name]).max())
        )


@every_family
@pytest.mark.parametrize("reduce", ["mean", "none"])
def test_bfloat16_autocast_is_near_float32(case: Case, reduce: str) -> None:
    model, images = case.model(device="cuda"), case.images(5)
    wanted = extract(model, images, "all", reduce=reduce, batch_size=2)  # type: ignore[arg-type]
    found = extract(model, images, "all", reduce=reduce, batch_size=2, autocast="bfloat16")  # type: ignore[arg-type]
    for name in wanted:
        assert found[name].dtype == np.float32
        assert np.linalg.norm(found[name] - wanted[name]) < BFLOAT16 * np.linalg.norm(
            wanted[name]
        ), name
    assert any(not np.array_equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("option", ["channels_last", "compiled"])
@pytest.mark.parametrize("name", ["mixer", "dinov2-registers", "resnet18", "convnext"])
def test_channels_last_and_compiled_are_near_the_plain_pass(name: str, option: str) -> None:
    case = CASES[name]
    model = as_model(case.network(), case.size, device="cuda", **{option: True})
    wanted = extract(case.model(device="cuda"), case.images(5), reduce="none", batch_size=3)
    found = extract(model, case.images(5), reduce="none", batch_size=3)
    for block in wanted:
        largest = max(1, np.abs(wanted[block]).max())
        np.testing.assert_allclose(found[block], wanted[block], rtol=0, atol=FLOAT32 * largest)


@pytest.mark.parametrize("reducer", [mean_over_positions, every_position])
def test_copies_beside_the_next_pass_arrive_whole(reducer: object) -> None:
    """Pinned, asynchronous copies against copies that are waited for, over many batches of some
    megabytes."""
    model = load_model("vit_tiny_patch16_224", pretrained=False, device="cuda", num_classes=0)
    images = noise(96, 224)
    layers = model.select("all")

    def pieces() -> Iterator[object]:
        return stream(model, images, layers, reducer, batch_size=8)  # type: ignore[arg-type]

    waited = []
    for piece in pieces():
        torch.cuda.synchronize()
        waited.append(piece.map(lambda t: t.cpu() if isinstance(t, torch.Tensor) else t))  # type: ignore[attr-defined]
    arrived = list(to_host(pieces()))  # type: ignore[arg-type]
    assert [(p.start, p.n) for p in arrived] == [(8 * i, 8) for i in range(12)]
    for one, other in zip(arrived, waited, strict=True):
        for layer in layers:
            a, b = one.found[layer.name], other.found[layer.name]
            for x, y in zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]:
                assert (x is None) == (y is None)
                assert x is None or (x.device.type == "cpu" and torch.equal(x, y))


def test_images_may_already_be_on_the_device() -> None:
    model = CASES["mixer"].model(device="cuda")
    there, here = extract(model, noise(5).cuda(), "all"), extract(model, noise(5), "all")
    assert all(np.array_equal(there[name], here[name]) for name in here)
    assert there.images.fingerprint == here.images.fingerprint


@pytest.mark.parametrize("reduce", ["mean", "none"])
def test_units_on_the_disk_hold_what_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reduce: str
) -> None:
    """Copies arrive one piece late, units end in between, and what is added up is of whole ones."""
    monkeypatch.setattr(units, "LEAST", 4)
    model, images = CASES["dinov2-registers"].model(device="cuda"), noise(11)
    layers = model.select("blocks")
    options: dict[str, Any] = {"reduce": reduce, "batch_size": 3}
    kept, stored = ChannelMoments(), ChannelMoments()
    a = extract(model, images, also=[kept.reading(model, layers)], **options)
    place = tmp_path / "run"
    b = extract(model, images, out=place, also=[stored.reading(model, layers)], **options)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
    record = a.record
    same_moments = (m.compute(record.model, record.images, layers) for m in (kept, stored))
    assert same(*same_moments)


def test_each_process_of_a_machine_takes_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK")
    for name in names:
        monkeypatch.setenv(name, "1")
    assert resolve_device("auto") == torch.device("cuda", 1 % torch.cuda.device_count())


def test_memory_that_runs_out_halves_the_batch() -> None:
    case = CASES["resnet18"]
    images = case.images(512)
    wanted = extract(case.model(), images[::16], "blocks")
    model = case.model(device="cuda")
    model.structure  # noqa: B018 - traced while there is room
    flags = [m.training for m in model.module.modules()]
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    # 512 images of conv1 and bn1 alone need 256 MiB.
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 200 * 2**20) / total)
    try:
        with pytest.warns(OutOfMemoryWarning, match="going on with batches of"):
            found = extract(model, images, "blocks", batch_size=512)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(found["layer1.0"]) == 512
    for name in wanted:
        np.testing.assert_allclose(
            found[name][::16], wanted[name], rtol=0, atol=FLOAT32 * np.abs(wanted[name]).max()
        )
    assert [m.training for m in model.module.modules()] == flags
    assert not any(m._forward_hooks for m in model.module.modules())


def test_nothing_stays_on_the_device() -> None:
    case = CASES["dinov2-registers"]
    model = case.model(device="cuda")
    extract(model, case.images(8), "all", reduce="none", batch_size=2)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        extract(model, case.images(8), "all", reduce="none", batch_size=2)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before


def test_auto_takes_the_gpu() -> None:
    model = as_model(CASES["mixer"].network(), device="auto")
    assert model.device.type == "cuda"
    assert model.untrained().device.type == "cuda"


def test_the_hash_does_not_depend_on_the_device() -> None:
    assert (
        CASES["resnet18"].model(device="cuda").fingerprint == CASES["resnet18"].model().fingerprint
    )


def test_random_numbers_of_the_gpu_are_left_alone() -> None:
    torch.cuda.manual_seed(3)
    wanted = torch.rand(3, device="cuda")
    torch.cuda.manual_seed(3)
    load_model("vit_tiny_patch16_224", pretrained=False, device="cuda", depth=1)
    assert torch.equal(torch.rand(3, device="cuda"), wanted)


def test_counts_do_not_depend_on_the_device() -> None:
    case = CASES["vit"]
    assert case.model(device="cuda").macs == case.model().macs


@pytest.mark.parametrize("positions", ["mean", "flatten"])
def test_similarity_streams_on_the_device(positions: str) -> None:
    cases = CASES["mixer"], CASES["dinov2-registers"]
    images = cases[0].images(40, torch.float64)
    matrices = []
    for device in ("cpu", "cuda"):
        a, b = (case.model(torch.float64, device=device) for case in cases)
        matrices.append(compare_models(a, b, images, positions=positions, batch_size=20))  # type: ignore[arg-type]
    cpu, gpu = matrices
    np.testing.assert_allclose(gpu.values, cpu.values, rtol=0, atol=FLOAT64)
    assert gpu.null is not None
    assert cpu.null is not None
    np.testing.assert_allclose(gpu.null.quantile95, cpu.null.quantile95, rtol=0, atol=1e-9)


@pytest.mark.parametrize("network", ["mixer", "resnet"])
def test_training_goes_on_and_is_measured(network: str, tmp_path: Path) -> None:
    """A run that was stopped is close to one that was not: convolutions add up in any order."""
    made = small.recipe(network, checkpoints=2)
    data, test = small.images(), small.images(30, "test", seed=1)
    whole = train(made, data, test, tmp_path / "whole", device="cuda")
    assert train(made, data, test, tmp_path / "halves", device="cuda", stop_after=10) is None
    halves = train(made, data, test, tmp_path / "halves", device="cuda")
    assert whole is not None
    assert halves is not None
    mine, other = (
        torch.cat([p.detach().flatten() for p in run.model(made).module.parameters()])
        for run in (whole, halves)
    )
    assert (mine - other).norm() < BFLOAT16 * mine.norm()
    for a, b in zip(whole.curve, halves.curve, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=BFLOAT16, nan_ok=True)
    # The card's accuracy, of float32 on the GPU, is that on the CPU but for images on the border.
    pixels = test.pixels.permute(0, 2, 3, 1).contiguous().numpy()
    shown = from_arrays(pixels, test.labels.numpy(), class_names=test.class_names)
    assert own_accuracy(whole.model(made), shown).right / 30 == pytest.approx(
        whole.accuracy, abs=1.5 / 30
    )


def test_no_step_of_training_waits_for_the_device(tmp_path: Path) -> None:
    data = small.images()
    trainer = Trainer(small.recipe(), data, data, tmp_path, torch.device("cuda"))
    # The first step of an epoch copies its order.
    trainer._one_step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer._one_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
