"""One network in several threads, grad modes and types, and inside of what training code puts
around it: the same numbers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from timm.utils.model_ema import ModelEmaV2, ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

import mixer_probe as mp
from mixer_probe.attribution import attribute, layer_conductance
from mixer_probe.core.errors import MeasureError, ModelError
from mixer_probe.core.switches import copied, evaluating, frozen, lock_of, seeded, unfused
from mixer_probe.core.threads import parallel_map
from mixer_probe.invariance.predictions import predictions
from mixer_probe.models.macs import count_macs_by_module
from mixer_probe.probing import attentive_probe, linear_probe
from mixer_probe.visualization import visualize
from mixer_probe.visualization.transforms import NO_TRANSFORMS
from tests.networks import as_model, noise, randomised

Compute = Callable[[mp.Model], np.ndarray]


def vit(seed: int = 0) -> nn.Module:
    return randomised(
        VisionTransformer(
            img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5
        ),
        seed,
    )


def mixer(seed: int = 0) -> nn.Module:
    return randomised(
        MlpMixer(img_size=32, patch_size=8, embed_dim=16, num_blocks=2, num_classes=5), seed
    )


def resnet(seed: int = 0) -> nn.Module:
    sizes = {"channels": (8, 8, 16, 16), "stem_width": 8, "num_classes": 5}
    return randomised(ResNet(BasicBlock, [1, 1, 1, 1], **sizes), seed).eval()


def features(model: mp.Model) -> np.ndarray:
    run = mp.extract(model, noise(12), "all", batch_size=2)
    return np.concatenate([run[name].reshape(12, -1) for name in run], 1)


def maps(method: str, **options: Any) -> Compute:
    return lambda model: attribute(model, noise(3), method, target=1, **options).maps


def pictures(model: mp.Model) -> np.ndarray:
    return visualize(model, "blocks.0", 0, seeds=(0,), steps=2, transforms=NO_TRANSFORMS).trace


COMPUTED: dict[str, Compute] = {
    "representations": features,
    "attention_rollout": maps("attention_rollout"),
    "gradient_attention": maps("gradient_attention"),
    "smoothgrad": maps("smoothgrad", samples=2),
    "gradcam": maps("gradcam"),
    "integrated_gradients": maps("integrated_gradients", n_steps=4, max_steps=8, tolerance=9.0),
    "conductance": lambda model: layer_conductance(
        model, noise(3), "blocks.0", target=1, n_steps=4
    ).values[0],
    "layers": lambda model: np.array(
        [layer.channels for layer in mp.load_model(model.module, **SPEC).layers]
    ),
    "macs": lambda model: np.array(
        list(count_macs_by_module(model.module, model.input.size).values())
    ),
}
SPEC: dict[str, Any] = {
    "input_size": (3, 32, 32),
    "mean": (0.5,) * 3,
    "std": (0.5,) * 3,
    "device": "cpu",
}


# -- threads ---------------------------------------------------------------------------------------


def test_threads_on_one_network_have_their_own_numbers() -> None:
    """Every computation at once, beside a thread that uses the network as it is: each as when it is
    alone."""
    network = vit()
    model = as_model(network)
    alone = {name: compute(model) for name, compute in COMPUTED.items()}
    with torch.no_grad():
        logits = network(noise(2))
    jobs = [(name, compute) for _ in range(3) for name, compute in COMPUTED.items()]
    done = threading.Event()
    seen: list[float] = []

    def plainly() -> None:
        while not done.is_set():
            with torch.no_grad():
                # Attention that is written out for a rollout rounds differently from the fused one.
                seen.append(float((network(noise(2)) - logits).abs().max()))

    user = threading.Thread(target=plainly)
    user.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda job: job[1](model), jobs))
    finally:
        done.set()
        user.join()
    for (name, _), values in zip(jobs, found, strict=True):
        assert np.array_equal(values, alone[name], equal_nan=True), name
    assert seen
    assert max(seen) < 1e-5
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert all(p.requires_grad for p in network.parameters())
    assert all(m.fused_attn for m in network.modules() if hasattr(m, "fused_attn"))


def test_untrained_weights_are_those_of_their_seed_in_every_thread() -> None:
    with ThreadPoolExecutor(4) as pool:
        small = partial(
            mp.load_model, "mixer_s32_224", pretrained=False, num_classes=3, device="cpu"
        )
        found = list(pool.map(lambda seed: small(seed=seed), [0, 1, 0, 1]))
    weights = [m.module.stem.proj.weight for m in found]
    assert torch.equal(weights[0], weights[2])
    assert torch.equal(weights[1], weights[3])
    assert not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize("switch", [evaluating, frozen, unfused])
def test_every_switch_holds_the_lock(
    switch: Callable[[nn.Module], AbstractContextManager[None]],
) -> None:
    network = vit().train()
    taken: list[bool] = []

    def other() -> None:
        taken.append(lock_of(network).acquire(blocking=False))

    with switch(network), evaluating(network):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert taken == [False]
    assert lock_of(network).acquire(blocking=False)
    assert network.training


def test_a_copy_has_no_hooks_of_another_thread() -> None:
    network, inside, done = vit(), threading.Event(), threading.Event()

    def watch() -> None:
        with evaluating(network):
            handle = network.register_forward_hook(lambda *_: None)
            inside.set()
            done.wait(0.2)
            handle.remove()

    thread = threading.Thread(target=watch)
    thread.start()
    inside.wait()
    assert not copied(network)._forward_hooks
    done.set()
    thread.join()


@pytest.mark.parametrize("fails", [False, True])
def test_libraries_have_their_threads_again(fails: bool) -> None:
    from threadpoolctl import threadpool_info, threadpool_limits

    def work(k: int) -> int:
        if fails and k:
            raise ValueError("no")
        return k

    with threadpool_limits(2):
        before = torch.get_num_threads(), [pool["num_threads"] for pool in threadpool_info()]
        with ThreadPoolExecutor(2) as pool:
            runs = [pool.submit(parallel_map, work, range(4)) for _ in range(4)]
            assert all((run.exception() is not None) is fails for run in runs)
        assert (
            torch.get_num_threads(),
            [pool["num_threads"] for pool in threadpool_info()],
        ) == before


# -- modes of the caller ---------------------------------------------------------------------------


MODES: dict[str, tuple[Callable[[], AbstractContextManager[Any]], ...]] = {
    "no_grad": (torch.no_grad,),
    "inference_mode": (torch.inference_mode,),
    "autocast": (lambda: torch.autocast("cpu", torch.bfloat16),),
    "inference_mode and autocast": (
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
    ),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [*COMPUTED, "pictures", "predictions", "untrained"])
def test_the_callers_mode_changes_no_number(mode: str, name: str) -> None:
    compute = (
        COMPUTED.get(name)
        or {
            "pictures": pictures,
            "predictions": lambda model: predictions(model, mp.load_images("demo", limit=10))[0],
            "untrained": lambda model: features(model.untrained()),
        }[name]
    )
    network = vit()
    expected = compute(as_model(copied(network)))
    with ExitStack() as stack:
        for enter in MODES[mode]:
            stack.enter_context(enter())
        before = (
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.is_grad_enabled(),
        )
        found = compute(as_model(network))
        assert (
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.is_grad_enabled(),
        ) == before
    assert np.array_equal(found, expected, equal_nan=True)


@pytest.mark.parametrize("name", ["mixer_s32_224", "zoo:mixer"])
def test_what_is_loaded_in_inference_mode_takes_gradients(name: str) -> None:
    options = {"num_blocks": 1, "patch_size": 16} if name.startswith("mixer") else {}
    with torch.inference_mode():
        model = mp.load_model(
            name, pretrained=not options, device="cpu", dtype="float64", **options
        )
        baseline = model.untrained().to("cpu")
    for network in (model.module, baseline.module):
        assert not any(
            tensor.is_inference() for tensor in network.state_dict(keep_vars=True).values()
        )
        images = torch.rand(1, *model.input.size, dtype=torch.float64, requires_grad=True)
        network(images).sum().backward()
        assert images.grad is not None


def test_a_network_made_in_inference_mode_is_refused() -> None:
    with torch.inference_mode():
        network = vit()
    with pytest.raises(
        ModelError, match=r"'cls_token' of VisionTransformer was made in torch.inference_mode"
    ):
        as_model(network)
    assert attribute(as_model(copied(network)), noise(1), "saliency", target=0).maps.any()


PROBES: dict[str, Callable[[Any, Any], Any]] = {
    "ridge": lambda train, test: linear_probe(train, test),
    "logistic": lambda train, test: linear_probe(train, test, method="logistic"),
    "attentive": lambda train, test: attentive_probe(train, test, epochs=2),
    "similarity": lambda _, test: mp.compare(
        test, test, ["cka", "procrustes"], permutations=0, resamples=0
    )[0],
}


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("mode", MODES)
def test_the_callers_mode_changes_no_probe(mode: str, probe: str) -> None:
    model = as_model(mixer())
    reduce = "none" if probe == "attentive" else "mean"
    train, test = (
        mp.extract(model, mp.load_images("demo", split=s, limit=20), "blocks.1", reduce=reduce)
        for s in ("train", "test")
    )
    expected = PROBES[probe](train, test).to_frame()
    with ExitStack() as stack:
        for enter in MODES[mode]:
            stack.enter_context(enter())
        found = PROBES[probe](train, test).to_frame()
    pd.testing.assert_frame_equal(found, expected, check_exact=True)


def test_gradients_that_are_zero_for_another_reason_than_the_head() -> None:
    network = mixer()
    with torch.no_grad():
        network.norm.weight.zero_()
    with pytest.raises(
        MeasureError, match="has an attribution; load other weights or other images"
    ):
        attribute(as_model(network), noise(1), "saliency", target=0)
    with torch.no_grad():
        network.head.weight.zero_()
    with pytest.raises(
        MeasureError,
        match="has an attribution: its head is zero, as timm's untrained networks have it",
    ):
        attribute(as_model(network), noise(1), "saliency", target=0)


def test_autocast_that_is_asked_for() -> None:
    model, x = as_model(mixer()), noise(2)
    asked = mp.extract(model, x, "blocks", autocast="bfloat16")["blocks.1"]
    with torch.autocast("cpu", torch.float16):
        assert np.array_equal(
            mp.extract(model, x, "blocks", autocast="bfloat16")["blocks.1"], asked
        )
    assert not np.array_equal(mp.extract(model, x, "blocks")["blocks.1"], asked)


# -- wrapped networks ------------------------------------------------------------------------------


def _only_says_so(_module: nn.Module, *_: Any) -> Any:
    raise RuntimeError("forward is not written")


_only_says_so.__module__ = "lightning.pytorch.core.module"


class Trains(nn.Module):
    """As Lightning's: a network and a loss, and no forward pass."""

    def __init__(self, network: nn.Module, name: str = "model") -> None:
        super().__init__()
        setattr(self, name, network)
        self.loss = nn.CrossEntropyLoss(weight=torch.ones(5))


class OfLightning(Trains):
    """Its base class has a forward pass that raises."""

    forward = _only_says_so


def _parallel(network: nn.Module) -> nn.Module:
    if not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    return nn.parallel.DistributedDataParallel(network)


def _blocks_compiled(network: nn.Module) -> nn.Module:
    network.blocks[0] = torch.compile(network.blocks[0])
    network.blocks[1].mlp = torch.compile(network.blocks[1].mlp)
    return network


def _compiled_in_place(network: nn.Module) -> nn.Module:
    network.compile(backend="eager")
    network.blocks[0].compile(backend="eager")
    return network


WRAPPERS: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "compile": (torch.compile, "OptimizedModule"),
    "compiled blocks": (_blocks_compiled, "its torch.compile'd parts"),
    "compiled in place": (_compiled_in_place, ""),
    "data parallel": (nn.DataParallel, "DataParallel"),
    "distributed": (_parallel, "DistributedDataParallel"),
    "compiled distributed": (
        lambda network: torch.compile(nn.DataParallel(network)),
        "OptimizedModule, DataParallel",
    ),
    "stochastic weight averaging": (AveragedModel, "AveragedModel"),
    "timm's EMA": (ModelEmaV2, "ModelEmaV2"),
    "timm's new EMA": (ModelEmaV3, "ModelEmaV3"),
    "a module that trains": (Trains, "Trains"),
    "one of Lightning's": (OfLightning, "OfLightning"),
    "one with a backbone": (
        lambda network: Trains(torch.compile(network), "backbone"),
        "Trains, OptimizedModule",
    ),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_network_inside_wrappers(wrapper: str) -> None:
    wrap, note = WRAPPERS[wrapper]
    expected, plain = features(as_model(vit())), as_model(vit())
    model = as_model(wrap(vit()))
    assert model.weights.note == (f"Taken out of {note}." if note else "")
    assert [layer.name for layer in model.layers] == [layer.name for layer in plain.layers]
    assert np.array_equal(features(model), expected)
    assert np.array_equal(
        COMPUTED["attention_rollout"](model), COMPUTED["attention_rollout"](plain)
    )
    assert model.untrained().module.state_dict().keys() == plain.module.state_dict().keys()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def test_compiled_blocks_keep_their_place_and_share_parameters() -> None:
    """The network that was given is as before, and what is trained in it shows in the model."""
    network = _blocks_compiled(vit())
    model = as_model(network)
    assert type(network.blocks[0]).__name__ == "OptimizedModule"
    assert {id(p) for p in model.module.parameters()} == {id(p) for p in network.parameters()}
    assert lock_of(model.module) is lock_of(network)
    before = features(model)
    with torch.no_grad():
        network.pos_embed.mul_(2)
    assert not np.array_equal(features(model), before)


def test_what_was_compiled_in_place_is_afterwards() -> None:
    network = _compiled_in_place(vit())
    calls = [m._compiled_call_impl for m in network.modules()]
    model = as_model(network)
    before = model.fingerprint
    features(model)
    with evaluating(network):
        assert model.fingerprint == before
    assert [m._compiled_call_impl for m in network.modules()] == calls


def test_a_wrapper_that_computes_is_a_network_of_its_own() -> None:
    class Brighter(Trains):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x + 1)

    model = as_model(Brighter(vit()))
    assert not model.weights.note
    expected = mp.extract(as_model(vit()), noise(2) + 1, "blocks")["blocks.1"]
    assert np.array_equal(mp.extract(model, noise(2), "blocks")["model.blocks.1"], expected)


def test_one_of_several_networks_is_to_be_named() -> None:
    both = Trains(vit())
    both.teacher = vit(1)
    with pytest.raises(
        ModelError, match=r"has no forward pass of its own and holds 2 networks \(model, teacher\)"
    ):
        as_model(both)
    assert as_model(both.teacher).family == "vit"


def quantised(network: nn.Module) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(network, {nn.Linear}, dtype=torch.qint8)


def of_integers(network: nn.Module) -> nn.Module:
    network.head.weight = nn.Parameter(network.head.weight.to(torch.int8), requires_grad=False)
    return network


def sparse(network: nn.Module) -> nn.Module:
    network.head.weight = nn.Parameter(network.head.weight.detach().to_sparse())
    return network


def scripted(network: nn.Module) -> nn.Module:
    network.blocks[0].mlp = torch.jit.trace(
        network.blocks[0].mlp.eval(), torch.zeros(1, 17, 16), check_trace=False
    )
    return network


def exported(network: nn.Module) -> nn.Module:
    return torch.fx.symbolic_trace(network)


def without_values(network: nn.Module) -> nn.Module:
    return network.to("meta")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*quantize", "ignore:.*torch.jit")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            quantised,
            r"'blocks.0.attn.qkv' of VisionTransformer is a quantised Linear; give the network as "
            r"before quantising",
        ),
        (
            of_integers,
            r"'head.weight' of VisionTransformer is torch.int8; give a network whose parameters "
            r"are dense floating",
        ),
        (
            scripted,
            r"is compiled by TorchScript, which leaves no classes of layers; give what it was made "
            r"from",
        ),
        (exported, r"has no block of a known family"),
        (
            without_values,
            r"'cls_token' of VisionTransformer is on torch's meta device and has no values; make "
            r"the network on",
        ),
        (
            sparse,
            r"'head.weight' of VisionTransformer is torch.sparse_coo; give a network whose "
            r"parameters are dense floating",
        ),
    ],
)
def test_networks_whose_parameters_are_no_numbers(
    change: Callable[[nn.Module], nn.Module], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        as_model(change(vit()))


def test_draws_leave_the_generators_as_they_were() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeded(1):
        torch.rand(7)
    assert torch.equal(torch.rand(3), expected)
