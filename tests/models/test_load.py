"""`load_model`: names, inputs, devices, number types, random weights and their twins."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from mixer_probe.core.errors import ModelError
from mixer_probe.models import InputSpec, Model, check_name, load_model
from mixer_probe.models.load import google_note
from tests.networks import CASES, as_model, noise


def small(name: str = "vit_tiny_patch16_224", **options: Any) -> Model:
    options = {"pretrained": False, "device": "cpu", "num_classes": 5} | options
    return load_model(name, **options)


def weights_of(model: Model) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.module.state_dict().items()}


def equal(a: Model, b: Model) -> bool:
    one, other = a.module.state_dict(), b.module.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("mixer_b16_225", "mixer_b16_224"),
        ("resnet81", "resnet18"),
        ("resnet_50", "resnet50"),
        ("vit_base_patch16", "vit_base_patch16_224"),
    ],
)
def test_an_unknown_name_lists_the_closest(name: str, close: str) -> None:
    with pytest.raises(ModelError, match=rf"no model '{name}' in timm .*; closest: .*{close}"):
        load_model(name)
    with pytest.raises(ModelError, match="closest"):
        check_name(name)


def test_an_unknown_tag_lists_those_there_are() -> None:
    with pytest.raises(
        ModelError, match=r"no pretrained tag 'a1_in1' of resnet50 in timm .*; closest: a1_in1k"
    ):
        load_model("resnet50.a1_in1")


@pytest.mark.parametrize("name", ["vgg11", "mambaout_femto"])
def test_an_unknown_family_names_the_known_ones(name: str) -> None:
    with pytest.raises(
        ModelError,
        match=r"no block of a known family.*mixer \(Mixer, gMixer, ResMLP, gMLP\); vit .*; cnn \(",
    ):
        load_model(name, pretrained=False)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mobilevit_xxs", r"first axis is not the image"),
        ("pit_ti_224", r"its blocks see 50 and 197 and 730 tokens"),
    ],
)
def test_a_network_that_uses_known_blocks_in_its_own_way(name: str, reason: str) -> None:
    """MobileViT stacks patches on the image axis; PiT pools its tokens, class token apart, between
    its blocks."""
    with pytest.raises(
        ModelError, match=rf"is of no known family: .*{reason}.*; known families: mixer"
    ):
        load_model(name, pretrained=False, device="cpu").layers  # noqa: B018 - traced on first use


def test_what_is_no_model_at_all() -> None:
    with pytest.raises(ModelError, match=r"a model is a name or an nn.Module, not a PosixPath"):
        load_model(Path("resnet18"))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="known families"):
        as_model(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))


def test_arguments_that_a_network_does_not_take() -> None:
    with pytest.raises(
        ModelError,
        match=r"resnet18 does not take these arguments .*nonsense.*see timm.create_model",
    ):
        small("resnet18", nonsense=3)


def test_arguments_that_nobody_takes() -> None:
    """A misspelt argument is no silent default."""
    for model in ("zoo:mixer", CASES["mixer"].network()):
        with pytest.raises(
            ModelError, match="only networks that timm builds take further arguments, not inputsize"
        ):
            load_model(model, inputsize=(3, 32, 32))


def test_further_arguments_reach_timm() -> None:
    model = small(num_classes=7, depth=3)
    assert model.layers[-1].channels == 7
    assert len(model.select("blocks")) == 3


def test_a_name_of_ones_own() -> None:
    model = load_model("resnet18", pretrained=False, name="mine", device="cpu")
    assert model.name == model.record.name == "mine"


def test_the_module_is_the_network_itself() -> None:
    network = CASES["mixer"].network()
    model = as_model(network.train())
    assert model.module is network
    assert not network.training


# -- the zoo ---------------------------------------------------------------------------------------


def test_zoo_networks_and_their_twins() -> None:
    for name, family in (("mixer", "mixer"), ("vit", "vit"), ("resnet", "cnn")):
        model = load_model(f"zoo:{name}", device="cpu")
        assert (model.family, model.name, model.weights.trained) == (family, f"zoo:{name}-s0", True)
        twin = load_model(f"zoo:{name}?untrained", device="cpu")
        assert not twin.weights.trained
        assert "Untrained" in twin.weights.note
        assert equal(model.untrained(), twin)
        assert model.untrained().name == twin.name
        assert not equal(model, twin)
        random = load_model(f"zoo:{name}", pretrained=False, device="cpu")
        assert (random.name, random.weights) == (twin.name, twin.weights)
        assert equal(random, twin)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("zoo:mixre", "closest: mixer"),
        ("zoo:mixer?trained", "unknown option 'trained'; the only one is '[?]untrained'"),
    ],
)
def test_zoo_names_that_are_not_there(name: str, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        load_model(name)


# -- inputs ----------------------------------------------------------------------------------------


def test_input_is_that_of_timm() -> None:
    assert small("mixer_s32_224").input == InputSpec(
        (3, 224, 224), (0.5,) * 3, (0.5,) * 3, "bicubic", 0.875
    )
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert small("resnet18").input == InputSpec((3, 224, 224), mean, std, "bicubic", 0.95)


@pytest.mark.parametrize(
    "name",
    [
        "mixer_s32_224",
        "vit_tiny_patch16_224",
        "swin_tiny_patch4_window7_224",
        "vit_tiny_r_s16_p8_224",
    ],
)
def test_a_network_built_for_another_size_takes_that_size(name: str) -> None:
    model = small(name, img_size=64)
    assert model.input.size == (3, 64, 64)
    assert model.layers[-1].channels == 5


def test_what_is_given_replaces_what_timm_knows() -> None:
    model = small(
        "resnet18",
        input_size=(3, 64, 96),
        mean=[0, 0, 0],
        std=(1, 1, 1),
        interpolation="bilinear",
        crop_pct=0.5,
    )
    assert model.input == InputSpec((3, 64, 96), (0.0,) * 3, (1.0,) * 3, "bilinear", 0.5)
    assert model.layers[0].grid == (16, 24)


def test_a_network_that_carries_timms_config_needs_nothing() -> None:
    network = timm.create_model("resnet18", num_classes=5)
    model = load_model(network, device="cpu", crop_pct=0.8)
    assert model.input == InputSpec(
        (3, 224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", 0.8
    )


@pytest.mark.parametrize("missing", ["input_size", "mean", "std"])
def test_a_network_without_it_needs_all_three(missing: str) -> None:
    given = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3, missing: None}
    with pytest.raises(
        ModelError,
        match=r"MlpMixer does not say what images it takes; give input_size=.*mean=.*std=",
    ):
        load_model(CASES["mixer"].network(), **given)


def test_an_input_size_that_is_none() -> None:
    with pytest.raises(
        ModelError,
        match=(
            r"input_size is \(channels, height, width\), three whole numbers above 0, not \(32, "
            r"32\)"
        ),
    ):
        as_model(CASES["mixer"].network(), input_size=(32, 32))


def test_a_size_that_the_network_does_not_take() -> None:
    model = as_model(CASES["mixer"].network(), 48)
    with pytest.raises(
        ModelError,
        match=(
            r"MlpMixer does not run on images of \(3, 48, 48\) \(Input "
            r"height.*give the input_size"
        ),
    ):
        model.layers  # noqa: B018 - traced on first use


# -- device and number type ------------------------------------------------------------------------


def test_auto_takes_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from mixer_probe.models.load import resolve_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "tpu:0"])
def test_a_device_that_is_not_there(device: str) -> None:
    with pytest.raises(ModelError, match=rf"no device '{device}' here \(.*\); use 'auto' or 'cpu'"):
        small(device=device)


def test_devices_are_checked_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("built"))
    with pytest.raises(ModelError, match="no device"):
        small(device="gpu")
    with pytest.raises(ModelError, match="floating-point"):
        small(dtype="int8")


@pytest.mark.parametrize("dtype", ["float64", torch.float64])
def test_number_types(dtype: Any) -> None:
    model = small(dtype=dtype)
    assert model.dtype is torch.float64
    assert model.untrained().dtype is torch.float64


@pytest.mark.parametrize("dtype", ["int8", "half-precision", "nn", torch.int32])
def test_number_types_that_are_none(dtype: Any) -> None:
    with pytest.raises(
        ModelError,
        match="no floating-point type; use 'float32', 'float64', 'bfloat16' or 'float16'",
    ):
        small(dtype=dtype)


# -- random weights --------------------------------------------------------------------------------


def test_random_weights_are_those_of_their_seed() -> None:
    assert equal(small(seed=3), small(seed=3))
    assert not equal(small(seed=3), small(seed=4))


def test_random_numbers_of_the_caller_are_left_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    model = small()
    model.structure  # noqa: B018 - traced on first use
    model.untrained()
    as_model(CASES["convnext"].build()).untrained()
    torch.manual_seed(5)
    small().untrained()
    assert torch.equal(torch.rand(3), wanted)


def test_random_numbers_of_the_gpus_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _seed: pytest.fail("seeded the GPUs"))
    small()


def test_untrained_networks_say_so() -> None:
    model = small(seed=2)
    assert model.record.trained is False
    assert model.weights.source == "random (seed 2)"
    assert model.weights.note.startswith("Untrained")
    assert model.untrained() is model


# -- untrained baselines ---------------------------------------------------------------------------


def trained(tmp_path: Path, name: str = "vit_tiny_patch16_224", **options: Any) -> Model:
    """A model with weights from a file, and an input of its own."""
    network = timm.create_model(name, num_classes=5, img_size=64)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(7)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    return small(name, checkpoint=tmp_path / "w.safetensors", img_size=64, **options)


def test_the_twin_of_a_checkpoint_is_untrained(tmp_path: Path) -> None:
    model = trained(tmp_path, mean=(0, 0, 0), dtype="float64")
    twin = model.untrained()
    assert model.weights.trained
    assert not twin.weights.trained
    assert twin.name == f"{model.name}?untrained"
    assert (twin.input, twin.dtype, twin.family) == (model.input, model.dtype, model.family)
    assert equal(twin, small(img_size=64, dtype="float64"))
    assert all(p.abs().max() < 3 for p in twin.module.parameters())


def test_the_twin_of_a_network_of_ones_own_has_nothing_learned_left() -> None:
    """Also what no reset reaches: tokens, position embeddings, layer scales that are plain
    parameters."""
    for name in (
        "mixer",
        "resmlp",
        "gmlp",
        "vit",
        "dinov2-registers",
        "beit",
        "eva",
        "swinv2",
        "convnext",
        "resnet-bottleneck",
    ):
        network = CASES[name].build()
        with torch.no_grad():
            for p in network.parameters():
                p.fill_(7)
            for key, b in network.named_buffers():
                if key.endswith(("running_mean", "running_var")):
                    b.fill_(7)
        model = as_model(network, CASES[name].size)
        twin = model.untrained()
        state = twin.module.state_dict()
        assert all(torch.isfinite(v).all() for v in state.values())
        assert not any((v == 7).any() for v in state.values()), name
        assert all((p == 7).all() for p in network.parameters())  # the original is untouched
        assert state.keys() == network.state_dict().keys()
        assert equal(twin, model.untrained())
        assert twin.input == model.input


def test_a_reset_that_needs_arguments_is_left_alone() -> None:
    class Demanding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = CASES["mixer"].build()
            self.scale = nn.Parameter(torch.ones(3))

        def reset_parameters(self, seed: int) -> None:
            raise AssertionError(seed)

        def init_weights(self, module: nn.Module) -> None:
            raise AssertionError(module)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x * self.scale[:, None, None])

    twin = as_model(Demanding()).untrained()
    assert not torch.equal(twin.module.scale, torch.ones(3))
    assert torch.isfinite(twin.module(noise(1))).all()


def test_the_twin_of_a_norm_is_a_fresh_norm() -> None:
    network = CASES["resnet-bottleneck"].network()
    twin = as_model(network, 64).untrained().module
    assert torch.equal(twin.bn1.weight, torch.ones_like(twin.bn1.weight))
    assert torch.equal(twin.bn1.running_mean, torch.zeros_like(twin.bn1.running_mean))


# -- what the weights are --------------------------------------------------------------------------


def test_the_google_tags_say_what_they_hold_and_no_other_does() -> None:
    named = [tag for tag in timm.list_pretrained() if google_note(tag)]
    assert named == ["mixer_b16_224.goog_in21k_ft_in1k", "mixer_l16_224.goog_in21k_ft_in1k"]
    for tag, top1 in zip(named, ("76.616", "72.084"), strict=True):
        assert top1 in google_note(tag)
        assert "ImageNet-1k from scratch" in google_note(tag)
        assert google_note(f"hf-hub:timm/{tag}") == google_note(tag)


def test_the_hash_is_that_of_the_weights(tmp_path: Path) -> None:
    model, again = small(), small()
    assert model.fingerprint == again.fingerprint
    assert len(model.fingerprint) == 64
    for name in ("blocks.3.attn.qkv.weight", "head.bias"):
        changed = small()
        with torch.no_grad():
            flat = changed.module.get_parameter(name).view(-1)
            flat[-1] = torch.nextafter(flat[-1], torch.tensor(9.0))  # one bit of one weight
        assert changed.fingerprint != model.fingerprint


def test_the_hash_sees_buffers_names_and_types() -> None:
    model = CASES["resnet-bottleneck"].model()
    moved = CASES["resnet-bottleneck"].model()
    with torch.no_grad():
        moved.module.bn1.running_mean[0] += 1
    assert moved.fingerprint != model.fingerprint
    assert small(dtype="bfloat16").fingerprint != small().fingerprint


def test_the_hash_does_not_depend_on_memory_layout() -> None:
    model, other = CASES["resnet18"].model(), CASES["resnet18"].model()
    other.module.to(memory_format=torch.channels_last)
    assert other.fingerprint == model.fingerprint


def test_the_record_is_what_travels(tmp_path: Path) -> None:
    model = trained(tmp_path)
    record = model.record
    assert (record.name, record.family, record.trained) == ("vit_tiny_patch16_224", "vit", True)
    assert record.weights == "file w.safetensors"
    assert record.parameters == sum(p.numel() for p in model.module.parameters())
    assert re.fullmatch("[0-9a-f]{64}", record.fingerprint)
