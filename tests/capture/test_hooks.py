"""What capturing does to a network while it runs and after it: nothing that stays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import nn

from mixer_probe.capture import capture, every_position, extract, mean_over_positions, stream
from mixer_probe.core.errors import LayerError
from mixer_probe.models import Model
from tests.networks import CASES, as_model, noise, randomised


def hooks_of(network: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def mixed_flags(network: nn.Module) -> list[bool]:
    for i, module in enumerate(network.modules()):
        module.training = i % 3 == 0
    return flags_of(network)


def flags_of(network: nn.Module) -> list[bool]:
    return [m.training for m in network.modules()]


@pytest.fixture
def model() -> Model:
    return CASES["resnet-bottleneck"].model()


@pytest.fixture
def images() -> torch.Tensor:
    return CASES["resnet-bottleneck"].images(4)


class Failing(nn.Module):
    """Passes its input on until told to raise."""

    def __init__(self) -> None:
        super().__init__()
        self.error: BaseException | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.error:
            raise self.error
        return x


# -- left as it was found --------------------------------------------------------------------------


def test_success_leaves_the_network_as_it_was(model: Model, images: torch.Tensor) -> None:
    flags = mixed_flags(model.module)
    state = {k: v.clone() for k, v in model.module.state_dict().items()}
    extract(model, images, "all", batch_size=3)
    assert flags_of(model.module) == flags
    assert hooks_of(model.module) == 0
    assert all(torch.equal(v, state[k]) for k, v in model.module.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.module.parameters())


def test_batch_norm_statistics_do_not_move(model: Model, images: torch.Tensor) -> None:
    """Even where the caller left the network in training mode."""
    model.module.train()
    before = model.module.bn1.running_mean.clone(), model.module.bn1.num_batches_tracked.clone()
    first = extract(model, images, "blocks")
    assert torch.equal(model.module.bn1.running_mean, before[0])
    assert torch.equal(model.module.bn1.num_batches_tracked, before[1])
    model.module.eval()
    second = extract(model, images, "blocks")
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), SystemExit(3)])
def test_an_error_in_the_forward_pass_leaves_the_network_as_it_was(error: BaseException) -> None:
    model = CASES["resnet-bottleneck"].model()
    model.module.layer2.add_module("failing", Failing())
    model.structure  # noqa: B018 - traced while it still works
    model.module.layer2.failing.error = error
    flags = mixed_flags(model.module)
    with pytest.raises(type(error)) as caught:
        extract(model, noise(4, 64), "all")
    assert caught.value is error
    # The traceback in `caught` still holds every frame of the failed run.
    assert flags_of(model.module) == flags
    assert hooks_of(model.module) == 0


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_an_error_of_the_caller_leaves_the_network_as_it_was(
    model: Model, images: torch.Tensor, error: BaseException
) -> None:
    flags = mixed_flags(model.module)

    def use() -> None:
        for piece in stream(model, images, model.select("all"), mean_over_positions, batch_size=1):
            if piece.start == 2:
                raise error

    with pytest.raises(type(error)) as caught:
        use()
    assert caught.tb is not None
    assert flags_of(model.module) == flags
    assert hooks_of(model.module) == 0


def test_between_pieces_the_network_is_free(model: Model, images: torch.Tensor) -> None:
    """Two runs through one network may take turns, and the caller may use it in between."""
    model.module.train()
    early, late = model.select("layer1.0"), model.select("layer4.0")
    a = stream(model, images, early, mean_over_positions, batch_size=2)
    b = stream(model, images, late, mean_over_positions, batch_size=2)
    for one, other in zip(a, b, strict=True):
        assert hooks_of(model.module) == 0
        assert model.module.training
        assert list(one.found) == ["layer1.0"]
        assert list(other.found) == ["layer4.0"]
    alone = extract(model, images, "layer4.0", batch_size=2)
    np.testing.assert_array_equal(other.found["layer4.0"].numpy(), alone["layer4.0"][2:])


def test_a_stream_that_is_dropped_half_way_leaves_nothing(
    model: Model, images: torch.Tensor
) -> None:
    pieces = stream(model, images, model.select("blocks"), mean_over_positions, batch_size=1)
    next(pieces)
    del pieces
    assert hooks_of(model.module) == 0


def test_hooks_of_others_stay_and_still_run(model: Model, images: torch.Tensor) -> None:
    seen = []
    handle = model.module.layer1.register_forward_hook(lambda *_: seen.append(1))
    extract(model, images, "layer1.0")
    extract(model, images, "blocks")
    handle.remove()
    assert len(seen) == 1 + 1  # tracing, and the pass that goes beyond layer1
    assert hooks_of(model.module) == 0


def test_gradients_still_flow_afterwards() -> None:
    """Rotary embeddings and the like are cached in a first pass: in inference mode they would
    refuse gradients."""
    for name in ("eva", "beit", "swinv2", "mixer"):
        model = CASES[name].model()
        extract(model, CASES[name].images(2), "all")
        model.module(CASES[name].images(2)).sum().backward()
        assert all(
            torch.isfinite(p.grad).all() for p in model.module.parameters() if p.grad is not None
        )


def test_what_a_network_caches_in_a_first_pass_stays_usable() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 8, 8)
            self.blocks = nn.ModuleList([Block(8, 2)])
            self.scale: torch.Tensor | None = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x).flatten(2).transpose(1, 2)
            if self.scale is None:
                self.scale = torch.linspace(0.5, 1, 8)
            return self.blocks[0](x * self.scale)

    model = as_model(Caching())
    extract(model, noise(2), "blocks")
    model.module(noise(2)).sum().backward()
    assert model.module.stem.weight.grad is not None


def test_results_carry_no_gradient(model: Model, images: torch.Tensor) -> None:
    piece = next(stream(model, images.requires_grad_(), model.select("all"), every_position))
    tensors = [values for values, _ in piece.found.values()]
    assert not any(t.requires_grad or t.is_inference() for t in tensors)


# -- stopping early --------------------------------------------------------------------------------


def counting(network: nn.Module, paths: list[str]) -> dict[str, int]:
    """How often the forward of each of these modules starts, counted without hooks."""
    counts = dict.fromkeys(paths, 0)

    def wrap(path: str, forward: Any) -> Any:
        def counted(*args: Any) -> Any:
            counts[path] += 1
            return forward(*args)

        return counted

    for path in paths:
        module = network.get_submodule(path)
        module.forward = wrap(path, module.forward)
    return counts


def test_nothing_runs_after_the_last_layer_asked_for(images: torch.Tensor) -> None:
    model = CASES["resnet-bottleneck"].model()
    model.structure  # noqa: B018 - traced before counting
    counts = counting(model.module, ["layer1.0", "layer2.0", "layer2.1", "layer3.0", "fc"])
    extract(model, images, ["layer2.0", "layer1.0"], batch_size=2)
    assert counts == {"layer1.0": 2, "layer2.0": 2, "layer2.1": 0, "layer3.0": 0, "fc": 0}
    extract(model, images, "head", batch_size=2)
    assert counts["fc"] == 2


def test_a_network_that_catches_errors_does_not_swallow_the_stop() -> None:
    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 8, 8)
            self.blocks = nn.ModuleList([Block(8, 2), Block(8, 2)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x).flatten(2).transpose(1, 2)
            for block in self.blocks:
                try:
                    x = block(x)
                except Exception:
                    x = torch.zeros_like(x)
            return x

    model = as_model(Careful())
    model.structure  # noqa: B018 - traced before counting
    counts = counting(model.module, ["blocks.1"])
    assert extract(model, noise(2), "blocks.0")["blocks.0"].any()
    assert counts == {"blocks.1": 0}


# -- calls, memory layout, in-place writes ---------------------------------------------------------


class Twice(nn.Module):
    """One activation and one block used twice, the activation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 8, 8)
        self.act = nn.ReLU(inplace=True)
        self.blocks = nn.ModuleList([Block(8, 2)])
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.stem(x).flatten(2).transpose(1, 2))
        x = self.blocks[0](x)
        x = self.act(self.blocks[0](x))
        return self.head(x.mean(1))


@torch.no_grad()
def test_modules_that_run_twice_have_a_name_a_call() -> None:
    model = as_model(randomised(Twice()).double(), dtype="float64")
    images = noise(3, dtype=torch.float64)
    names = ["act#0", "blocks.0#0", "blocks.0#1", "act#1"]
    found = extract(model, images, names, reduce="none", batch_size=2)
    assert list(found) == names
    x = F.relu(model.module.stem(images).flatten(2).transpose(1, 2))
    np.testing.assert_allclose(found["act#0"], x, atol=1e-12)
    x = model.module.blocks[0](x)
    np.testing.assert_allclose(found["blocks.0#0"], x, atol=1e-12)
    x = model.module.blocks[0](x)
    np.testing.assert_allclose(found["blocks.0#1"], x, atol=1e-12)
    np.testing.assert_allclose(found["act#1"], F.relu(x), atol=1e-12)


def test_one_call_of_two_can_be_asked_for_alone() -> None:
    model = as_model(randomised(Twice()))
    both = extract(model, noise(2), ["act#0", "act#1"], reduce="none")
    for name in ("act#0", "act#1"):
        np.testing.assert_array_equal(
            extract(model, noise(2), name, reduce="none")[name], both[name]
        )


@pytest.mark.parametrize("name", ["act", "act#2", "act#x", "act#-1"])
def test_the_call_has_to_be_named_and_to_exist(name: str) -> None:
    with pytest.raises(LayerError, match=r"runs 2 times.*act#0 or act#1"):
        extract(as_model(Twice()), noise(1), [name])


class Scrambled(nn.Module):
    """Outputs that no `.view` takes: transposed, expanded, strided; and a sum written into what a
    module returned."""

    def __init__(self) -> None:
        super().__init__()
        self.num_prefix_tokens = 0
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.turn = Turn()
        self.every_second = EverySecond()
        self.blocks = nn.ModuleList([Block(8, 2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).flatten(2)
        x = self.every_second(self.turn(x))
        y = self.blocks[0](x)
        y += 100  # overwrites what the block returned
        return y


class Turn(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2)


class EverySecond(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, ::2]


@pytest.mark.parametrize("reduce", ["none", "mean"])
@torch.no_grad()
def test_outputs_that_are_not_contiguous(reduce: Any) -> None:
    model = as_model(randomised(Scrambled()).double(), dtype="float64")
    images = noise(3, dtype=torch.float64)
    found = extract(
        model, images, ["turn", "every_second", "blocks.0"], reduce=reduce, batch_size=2
    )
    turned = model.module.stem(images).flatten(2).transpose(1, 2)
    assert not turned.is_contiguous()
    wanted = {
        "turn": turned,
        "every_second": turned[:, ::2],
        "blocks.0": model.module.blocks[0](turned[:, ::2]),
    }
    for name, tensor in wanted.items():
        np.testing.assert_allclose(
            found[name], tensor if reduce == "none" else tensor.mean(1), atol=1e-12
        )


@pytest.mark.parametrize("reducer", [mean_over_positions, every_position])
@torch.no_grad()
def test_reducers_return_what_later_writes_cannot_reach(reducer: Any) -> None:
    """One position a map, where a mean would be a view; one pooled output; both overwritten after
    their hook."""

    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 32, 32)
            self.flat = nn.Flatten()
            self.blocks = nn.ModuleList([Block(8, 2)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            x.zero_()
            y = self.flat(x + 1)
            y.zero_()
            z = self.blocks[0](y[:, None])
            z.zero_()
            return z

    model = as_model(randomised(Overwriting()))
    with capture(model, model.select(["stem", "flat", "blocks.0"]), reducer) as run:
        found = run(noise(2))
    for values in found.values():
        tensor = values[0] if isinstance(values, tuple) else values
        assert tensor.any()


def test_capture_gives_only_whole_passes(model: Model, images: torch.Tensor) -> None:
    """After a pass that failed the next one starts from nothing."""
    with capture(model, model.select(["layer1.0", "head"]), mean_over_positions) as run:
        with pytest.raises(RuntimeError, match=r"dtype|type"):
            run(images.double())
        assert list(run(images)) == ["layer1.0", "fc"]


def test_a_layer_that_runs_for_blank_images_only_is_missed_aloud() -> None:
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 8, 8)
            self.extra = nn.Identity()
            self.blocks = nn.ModuleList([Block(8, 2)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            blank = not x.any()
            x = self.stem(x).flatten(2).transpose(1, 2)
            return self.blocks[0](self.extra(x) if blank else x)

    with pytest.raises(LayerError, match="'extra' did not run"):
        extract(as_model(Moody()), noise(2), ["extra", "blocks.0"])


@pytest.fixture(autouse=True)
def _no_leftovers() -> Iterator[None]:
    assert torch.is_grad_enabled()
    yield
    assert torch.is_grad_enabled()
