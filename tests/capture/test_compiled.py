"""Networks whose blocks `torch.compile` runs, or whose convolutions compute in channels_last: the
same numbers, hooks that all run, and runs that say so.

The backend here runs the graph that it is given as it is, and counts, so that no compiler is
needed."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mixer_probe as mp
from mixer_probe.attribution import attribute
from mixer_probe.capture import extract, mean_over_positions, open_run, stream
from mixer_probe.core.errors import MixerProbeError, ModelError, StoreError
from mixer_probe.models import Model
from mixer_probe.study.result_cache import identity
from tests.networks import CASES, as_model, askable, noise
from tests.test_cli import Run


class Counting:
    """A backend of torch.compile that compiles nothing and counts: graphs that it was given, and
    how often they ran."""

    def __init__(self) -> None:
        self.compiled = self.ran = 0

    def __call__(self, graph: torch.fx.GraphModule, _inputs: Any) -> Callable[..., Any]:
        self.compiled += 1

        def run(*inputs: Any) -> Any:
            self.ran += 1
            return graph.forward(*inputs)

        return run


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    torch._dynamo.reset()
    counting = Counting()
    monkeypatch.setattr("mixer_probe.capture.compiled._BACKEND", counting)
    yield counting
    torch._dynamo.reset()


def both(name: str) -> tuple[Model, Model]:
    """The same network, one of them compiled."""
    network = CASES[name].network()
    size = CASES[name].size
    return as_model(network, size), as_model(copy.deepcopy(network), size, compiled=True)


def same(a: mp.Representations, b: mp.Representations) -> None:
    assert a.names() == b.names()
    for name in a.names():
        assert np.array_equal(a[name], b[name]), name


# -- compiled blocks -------------------------------------------------------------------------------


@pytest.mark.parametrize("name, shapes", [("mixer", 1), ("vit", 1), ("resnet-bottleneck", 5)])
def test_blocks_of_one_shape_are_compiled_once_for_all_batches(
    name: str, shapes: int, backend: Counting
) -> None:
    plain, model = both(name)
    images = CASES[name].images(7)
    same(extract(model, images, batch_size=4), extract(plain, images, batch_size=4))
    assert backend.ran == 2 * CASES[name].blocks
    extract(model, images, batch_size=5)
    assert backend.compiled == shapes


def test_a_single_image_is_compiled_for_itself(backend: Counting) -> None:
    """torch takes a size of 1 for a constant."""
    plain, model = both("mixer")
    for n in (2, 1, 3, 1):
        same(extract(model, noise(n)), extract(plain, noise(n)))
    assert backend.compiled == 2


@pytest.mark.parametrize("name", ["mixer", "vit", "swin", "resnet-bottleneck"])
def test_all_that_lies_inside_of_blocks_is_captured(name: str, backend: Counting) -> None:
    """Attention maps included."""
    plain, model = both(name)
    images, layers = CASES[name].images(3), askable(plain)
    found = extract(model, images, layers, reduce="none")
    same(found, extract(plain, images, layers, reduce="none"))
    assert found.names() == [layer.name for layer in plain.select(layers)]
    assert backend.ran == 0


def test_one_block_that_is_looked_into_runs_as_it_is(backend: Counting) -> None:
    plain, model = both("vit")
    layers = ["blocks.0.attn", "blocks.1"]
    same(extract(model, noise(2), layers), extract(plain, noise(2), layers))
    assert backend.ran == 1


@pytest.mark.parametrize("layer, blocks", [("blocks.0", 2), ("blocks.0.attn", 1)])
def test_interventions_act(layer: str, blocks: int, backend: Counting) -> None:
    plain, model = both("vit")
    with mp.intervene(plain, {layer: mp.ablate("zero", channels=[1, 2])}):
        expected = extract(plain, noise(2), "blocks")
    with mp.intervene(model, {layer: mp.ablate("zero", channels=[1, 2])}):
        assert model.fingerprint == expected.model.fingerprint
        same(extract(model, noise(2), "blocks"), expected)
    assert backend.ran == blocks
    assert not np.array_equal(extract(plain, noise(2))["blocks.1"], expected["blocks.1"])


def test_operations_gradients_and_layers_are_those_of_the_network(backend: Counting) -> None:
    plain, model = both("vit")
    extract(model, noise(2))
    assert model.macs == plain.macs
    assert model.layers == plain.layers
    found, expected = (attribute(m, noise(2), "saliency", target=0) for m in (model, plain))
    assert np.array_equal(found.maps, expected.maps)
    assert backend.ran == 2


def test_gradients_in_a_pass(backend: Counting) -> None:
    """What a reducer computes of a block has its gradients."""
    _, model = both("vit")
    block = model.module.get_submodule("blocks.1")

    def gradient(_layer: Any, positions: torch.Tensor, _prefix: Any) -> torch.Tensor:
        with torch.enable_grad():
            x = positions.clone().requires_grad_()
            return torch.autograd.grad(block(x).sum(), x)[0]

    [piece] = stream(model, noise(2), model.select("blocks.0"), gradient)
    assert piece.found["blocks.0"].any()
    assert backend.ran == 1


def test_other_threads_see_the_network_as_it_is(backend: Counting) -> None:
    plain, model = both("mixer")
    before, seen = plain.fingerprint, list[Any]()

    def elsewhere() -> None:
        with torch.no_grad():
            seen.extend((model.fingerprint, model.module(noise(2))))

    def reducer(layer: Any, positions: torch.Tensor, prefix: Any) -> torch.Tensor:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return mean_over_positions(layer, positions, prefix)

    list(stream(model, noise(2), model.select("blocks.1"), reducer))
    assert seen[0] == before
    with torch.no_grad():
        assert torch.equal(seen[1], plain.module(noise(2)))
    assert backend.ran == 2


def test_the_network_is_left_as_it_was(backend: Counting) -> None:
    plain, model = both("mixer")
    model.module.train()
    for _ in stream(model, noise(4), model.select("blocks"), mean_over_positions, batch_size=2):
        assert not any("forward" in vars(module) for module in model.module.modules())
        assert model.fingerprint == plain.fingerprint
        assert all(module.training for module in model.module.modules())
    assert backend.ran == 4
    pickle.loads(pickle.dumps(model.module))
    again = as_model(copy.deepcopy(model.module), compiled=True)
    same(extract(again, noise(2)), extract(plain, noise(2)))
    assert backend.compiled == 1


def test_a_forward_pass_of_the_users_own_is_kept(backend: Counting) -> None:
    _, model = both("mixer")
    block: Any = model.module.get_submodule("blocks.0")
    own = block.forward = lambda x: 2 * x
    found = extract(model, noise(2), ["stem", "blocks.0"])
    assert np.allclose(found["blocks.0"], 2 * found["stem"])
    assert block.forward is own
    assert backend.ran == 0


def failing(_graph: Any, _inputs: Any) -> Any:
    raise FileNotFoundError("No working C++ compiler found\nand much more")


def test_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("mixer_probe.capture.compiled._BACKEND", failing)
    plain, model = both("mixer")
    said = (
        r"^torch.compile fails for a MixerBlock \(No working C\+\+ compiler found\); leave out "
        r"compiled=True \(--compile\)$"
    )
    with pytest.raises(ModelError, match=said):
        extract(model, noise(2), out=tmp_path / "run")
    assert not any("forward" in vars(module) for module in model.module.modules())
    monkeypatch.setattr("mixer_probe.capture.compiled._BACKEND", "eager")
    same(extract(model, noise(2), out=tmp_path / "run"), extract(plain, noise(2)))
    monkeypatch.setattr("mixer_probe.capture.compiled._BACKEND", failing)
    out = str(tmp_path / "other")
    code, _, err = Run(monkeypatch, capsys)(
        "extract", "zoo:mixer-s0", "--limit", "4", "--device", "cpu", "--compile", "--out", out
    )
    assert code == 2
    assert "(--compile)" in err
    assert len(err.strip().splitlines()) == 1


def test_too_little_memory_for_compiling_is_too_little_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(_graph: Any, _inputs: Any) -> Any:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr("mixer_probe.capture.compiled._BACKEND", full)
    _, model = both("mixer")
    with pytest.raises(MixerProbeError, match="too little memory for one image"):
        extract(model, noise(1))


# -- channels_last ---------------------------------------------------------------------------------


# One of each way to convolve.
CONVOLUTIONS = (
    *("resnet-d-se", "resnetv2", "regnet-y", "efficientnet"),
    *("mobilenetv3", "convnext", "convnext-conv-mlp", "convmixer"),
)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_channels_last_gives_the_same_at_every_layer(name: str) -> None:
    case = CASES[name]
    plain = case.model(torch.float64)
    model = as_model(case.network(), case.size, dtype=torch.float64, channels_last=True)
    images, layers = case.images(2, torch.float64), askable(plain)
    found = extract(model, images, layers, reduce="none")
    expected = extract(plain, images, layers, reduce="none")
    assert "channels_last" in model.options
    assert "channels_last" in model.untrained().options
    assert model.fingerprint == plain.fingerprint
    for layer in expected.names():
        assert found[layer].shape == expected[layer].shape
        assert np.allclose(found[layer], expected[layer], rtol=1e-9, atol=1e-9), layer


def test_channel_statistics_in_channels_last() -> None:
    case = CASES["resnet-bottleneck"]
    model = as_model(case.network(), case.size, channels_last=True)
    a, b = (mp.channel_statistics(m, case.images(4)).to_frame() for m in (model, case.model()))
    numbers = a.select_dtypes("number").columns
    assert np.allclose(a[numbers], b[numbers], rtol=1e-3, atol=1e-4, equal_nan=True)


# -- the record ------------------------------------------------------------------------------------


OPTIONS: dict[str, dict[str, Any]] = {
    "compiled": {"compiled": True},
    "channels_last": {"channels_last": True},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_runs_and_steps_say_how_they_were_computed(
    option: str, backend: Counting, tmp_path: Path
) -> None:
    case = CASES["mixer"]
    plain, model = case.model(), as_model(case.network(), case.size, **OPTIONS[option])
    assert plain.options == ()
    assert model.options == model.untrained().options == (option,)
    assert model.record == plain.record
    assert identity(model) != identity(plain)
    extract(plain, noise(2), out=tmp_path / "run")
    with pytest.raises(StoreError, match="already holds another run"):
        extract(model, noise(2), out=tmp_path / "run")
    extract(model, noise(2), out=tmp_path / "other")
    assert open_run(tmp_path / "other").record.autocast == f"torch.float32, {option}"
    assert open_run(tmp_path / "run").record.autocast == "torch.float32"


def test_commands_take_both(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    backend: Counting,
    tmp_path: Path,
) -> None:
    options = ("--channels-last", "--compile", "--autocast", "bfloat16", "--device", "cpu")
    code, _, _ = Run(monkeypatch, capsys)(
        "extract", "zoo:mixer-s0", "--limit", "4", *options, "--out", str(tmp_path / "run")
    )
    assert code == 0
    assert open_run(tmp_path / "run").record.autocast == "bfloat16, channels_last, compiled"
    assert backend.ran == len(mp.load_model("zoo:mixer-s0").select("blocks"))
