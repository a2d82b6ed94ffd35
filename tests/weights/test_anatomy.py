"""What modules mix, against what a person who knows the architectures says, and their sizes against
published counts."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import pytest
import timm
import torch
from torch import nn

import mixer_probe as mp
from mixer_probe.core.errors import LayerError, MeasureError
from mixer_probe.core.result import from_dict, to_dict
from mixer_probe.models.layer import Axes
from mixer_probe.models.macs import count_by_module
from mixer_probe.weights import Anatomy, anatomy, mixing_of
from tests.networks import CASES, as_model

UNITS = {
    "across": r"AvgPool|MaxPool|AdaptivePool|UntiedMlp",
    "both": (
        r"Attention|Attn|SEModule|SqueezeExcite|GlobalResponseNorm|GroupNorm|PatchMerging"
        r"|ParallelScalingBlock"
    ),
    "within": r"LayerNorm|RmsNorm|Mlp$",
    "neither": r"BatchNorm|Affine|LayerScale",
}


def truth(path: str, module: nn.Module) -> str:
    """Convolutions by their kernel and groups, linear layers by the axis they see, the rest by what
    it is known for."""
    if isinstance(module, nn.Linear):
        return (
            "across"
            if re.search(r"\.(mlp_tokens\.fc\d|linear_tokens|gate\.proj)$", path)
            else "within"
        )
    if isinstance(module, nn.Conv2d):
        wide, deep = max(module.kernel_size) > 1, module.in_channels > module.groups
        return {(True, True): "both", (True, False): "across", (False, True): "within"}[wide, deep]
    name = type(module).__name__
    return next(mixes for mixes, pattern in UNITS.items() if re.search(pattern, name))


def real(name: str, **arguments: Any) -> mp.Model:
    return as_model(timm.create_model(name, **arguments).eval(), 224)


# -- the definition --------------------------------------------------------------------------------

X = torch.randn(1, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
MAP = torch.randn(1, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def seeded(make: Any) -> Any:
    torch.manual_seed(0)
    return make().double()


def attention(x: torch.Tensor) -> torch.Tensor:
    return (x @ x.mT).softmax(-1) @ x


@pytest.mark.parametrize(
    "function, mixes",
    [
        (lambda x: 2 * x.tanh(), "neither"),
        (lambda x: x @ torch.ones(4, 3, dtype=x.dtype), "within"),
        (lambda x: x - x.mean(2, keepdim=True), "within"),
        (lambda x: x - x.mean(1, keepdim=True), "across"),
        # attention with fixed weights
        (lambda x: torch.ones(6, 6, dtype=x.dtype).softmax(1) @ x, "across"),
        (attention, "both"),
        (lambda x: x * x.mean((1, 2), keepdim=True).sigmoid(), "both"),
        (lambda x: x.flip(1), "neither"),  # moves positions, mixes none
        (lambda x: x.roll(1, 2), "neither"),
        # a gain as small as that of a fresh layer scale
        (lambda x: x + 1e-7 * x.mean(1, keepdim=True), "across"),
    ],
)
def test_functions_of_a_sequence(function: Any, mixes: str) -> None:
    assert mixing_of(function, X, Axes.BNC, Axes.BNC) == mixes


@pytest.mark.parametrize(
    "make, mixes",
    [
        (lambda: nn.Conv2d(4, 8, 1), "within"),
        (lambda: nn.Conv2d(4, 8, 1, stride=2), "within"),
        (lambda: nn.Conv2d(4, 8, 1, groups=2), "within"),
        (lambda: nn.Conv2d(4, 8, 1, groups=4), "neither"),
        (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), "across"),
        # only several positions to one, never one to several
        (lambda: nn.Conv2d(4, 8, 2, stride=2, groups=4), "across"),
        (lambda: nn.Conv2d(4, 8, 3, stride=3), "both"),
        (lambda: nn.Conv2d(4, 8, 3, dilation=2, padding=2), "both"),  # neighbours meet in no output
        (lambda: nn.Conv2d(4, 8, (3, 1), padding=(1, 0)), "both"),
        (lambda: nn.Conv2d(4, 8, (1, 3), stride=(1, 3)), "both"),
        (lambda: nn.Conv2d(4, 8, (3, 1), stride=(3, 1)), "both"),
        (lambda: nn.MaxPool2d(2), "across"),
        (lambda: nn.AvgPool2d(2), "across"),
        (lambda: nn.BatchNorm2d(4).eval(), "neither"),
        (lambda: nn.GroupNorm(2, 4), "both"),
        (lambda: nn.ReLU(), "neither"),
    ],
)
def test_layers_of_a_map(make: Any, mixes: str) -> None:
    assert mixing_of(seeded(make), MAP, Axes.BCHW, Axes.BCHW, places=(0, 1, 6)) == mixes


def test_channels_last_is_the_same_module_with_other_axes() -> None:
    swapped = MAP.movedim(1, -1)
    assert (
        mixing_of(seeded(lambda: nn.Linear(4, 8)), swapped, Axes.BHWC, Axes.BHWC, places=(0, 1, 6))
        == "within"
    )
    assert (
        mixing_of(seeded(lambda: nn.Linear(6, 6)), MAP, Axes.BCHW, Axes.BCHW, places=(0, 1, 6))
        == "across"
    )


def test_pooling_mixes_locations_and_a_pooled_vector_has_none() -> None:
    assert mixing_of(lambda x: x.mean(1), X, Axes.BNC, Axes.BC) == "across"
    assert (
        mixing_of(seeded(lambda: nn.Linear(4, 2)), X[:, 0], Axes.BC, Axes.BC, places=(0,))
        == "within"
    )


def test_heads_are_channels() -> None:
    by_head = torch.randn(
        1, 2, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    assert mixing_of(seeded(lambda: nn.LayerNorm(4)), by_head, Axes.BHND, Axes.BHND) == "within"
    assert mixing_of(attention, by_head, Axes.BHND, Axes.BHND) == "both"


def test_outputs_that_are_not_finite_are_refused() -> None:
    with pytest.raises(MeasureError, match="not finite"):
        mixing_of(lambda x: x / 0, X, Axes.BNC, Axes.BNC)


# -- networks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_every_module_of_every_class_of_network(name: str) -> None:
    model = CASES[name].model()
    found = anatomy(model)
    modules = dict(model.module.named_modules())
    checked = [m for m in found.modules if m.role in ("unit", "inside")]
    wrong = [
        (m.module, m.kind, m.mixes)
        for m in checked
        if m.mixes != truth(m.module, modules[m.module])
    ]
    assert not wrong
    assert (
        sum(m.parameters for m in found.units)
        == found.parameters
        == sum(p.numel() for p in model.module.parameters())
    )
    assert sum(m.macs for m in found.units) == found.macs
    assert {m.part for m in found.modules} >= {"stem", "spatial", "head"}


def test_the_standard_parts() -> None:
    """The channel MLP of a Mixer never moves another position; that of a gMLP holds the gate that
    does."""
    found = {
        name: anatomy(CASES[name].model())
        for name in ("mixer", "gmixer", "resmlp", "gmlp", "vit", "convnext", "swin")
    }
    for name in ("mixer", "gmixer"):
        assert found[name].mixes("blocks.0.mlp_tokens") == "across"
    for name in ("mixer", "gmixer", "resmlp"):
        assert found[name].mixes("blocks.1.mlp_channels") == "within"
    assert found["resmlp"].mixes("blocks.0.linear_tokens") == "across"
    assert [
        found["gmlp"].mixes(f"blocks.0.mlp_channels{p}") for p in ("", ".gate", ".gate.proj")
    ] == ["both", "both", "across"]
    assert [
        found["vit"].mixes(f"blocks.0.{p}") for p in ("attn", "attn.qkv", "attn.proj", "mlp")
    ] == [
        "both",
        "within",
        "within",
        "within",
    ]
    assert [found["convnext"].mixes(f"stages.0.blocks.0.{p}") for p in ("conv_dw", "mlp")] == [
        "across",
        "within",
    ]
    assert found["swin"].mixes("layers.0.blocks.1.attn") == "both"
    with pytest.raises(LayerError, match=r"blocks\.0\.attn"):
        found["vit"].mixes("blocks.0.attnn")


def test_what_is_fresh_and_zero_is_seen_as_what_it_is() -> None:
    """Zero heads, zero last batch norms, gammas of 1e-6 and gates of 1e-6 hide nothing."""
    mixer, resnet = (CASES[name].build().eval() for name in ("mixer", "resnet-bottleneck"))
    assert not mixer.head.weight.any()  # type: ignore[union-attr]
    assert not resnet.layer1[0].bn3.weight.any()  # type: ignore[union-attr, index]
    for name in ("mixer", "gmlp", "resmlp", "resnet-bottleneck", "convnext"):
        network = CASES[name].build().eval()
        before = {k: v.clone() for k, v in network.state_dict().items()}
        fresh = anatomy(as_model(network, CASES[name].size))
        settled = anatomy(CASES[name].model())
        assert [(m.module, m.role, m.mixes) for m in fresh.modules] == [
            (m.module, m.role, m.mixes) for m in settled.modules
        ]
        assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize("name", ["mixer", "swin", "resnet-d-se"])
def test_the_seed_does_not_matter(name: str) -> None:
    model = CASES[name].model()
    first, second = anatomy(model, seed=0), anatomy(model, seed=1)
    assert first.modules == second.modules


def test_the_network_is_left_as_it_was() -> None:
    model = CASES["vit"].model()
    model.module.train()
    asking = [p.requires_grad for p in model.module.parameters()]
    anatomy(model)
    assert all(m.training for m in model.module.modules())
    assert [p.requires_grad for p in model.module.parameters()] == asking
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.module.modules())


def test_weights_that_are_not_finite_are_named() -> None:
    model = CASES["mixer"].model()
    with torch.no_grad():
        model.module.blocks[1].mlp_tokens.fc1.weight.fill_(float("nan"))  # type: ignore[union-attr, index]
    with pytest.raises(MeasureError, match=r"'blocks\.1\.mlp_tokens\.fc1' of .* not finite"):
        anatomy(model)


# -- sizes -----------------------------------------------------------------------------------------


def test_macs_of_modules_by_hand() -> None:
    """A ViT of 17 tokens of width 24 in two blocks: attention has 4 N C^2 in its layers and 2 N^2 C
    of its own."""
    n, c = 17, 24
    model = CASES["vit"].model()
    counted = count_by_module(model.module, model.input.size)
    macs, own, order = counted.macs, counted.own, list(counted.macs)
    assert macs["patch_embed.proj"] == 16 * 3 * 8 * 8 * c
    assert macs["blocks.0.attn.qkv"] == 3 * n * c * c
    assert own["blocks.0.attn"] == 2 * n * n * c
    assert macs["blocks.0.attn"] == 4 * n * c * c + 2 * n * n * c
    assert macs["blocks.0.mlp"] == 8 * n * c * c
    assert (own["blocks.0"], macs["blocks.0"]) == (0, macs["blocks.0.attn"] + macs["blocks.0.mlp"])
    assert macs[""] == model.macs
    assert (
        order.index("blocks.0.attn.qkv")
        < order.index("blocks.0.attn")
        < order.index("blocks.1.attn.qkv")
    )


def test_token_mixing_of_mixer_b16() -> None:
    """Table 1's network: 1,813,296 weights and biases of token MLPs, 3.07 % of the 59,111,472
    without the head."""
    model = real("mixer_b16_224")
    found = anatomy(model)
    table = found.summary().set_index("mixes")
    positions, hidden = 196, 384
    token_mixing = 12 * (2 * positions * hidden + hidden + positions)
    assert token_mixing == 1813296
    assert table.loc["across", "parameters"] == token_mixing
    assert table.loc["across", "macs"] == 1387266048
    assert found.parameters == model.parameters == 59880472
    assert found.macs == model.macs == pytest.approx(12.6018e9, rel=1e-2)
    assert table.loc["across", "parameter_fraction"] == pytest.approx(token_mixing / 59880472)
    headless = found.summary(head=False).set_index("mixes")
    assert headless["parameters"].sum() == 59111472
    assert headless.loc["across", "parameter_fraction"] == pytest.approx(
        0.030675872866099494, rel=1e-12
    )
    assert {m.mixes for m in found.modules if "mlp_channels" in m.module} == {"within"}
    assert {m.mixes for m in found.modules if "mlp_tokens" in m.module} == {"across"}


PUBLISHED = {
    "resmlp_12_224": (15350872, 3.0097, "blocks.0.linear_tokens"),
    "vit_tiny_patch16_224": (5717416, 1.2537, None),
    "resnet50": (25557032, 4.0892, None),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_timms_networks_at_their_real_size(name: str) -> None:
    parameters, gigamacs, across = PUBLISHED[name]
    model = real(name)
    found = anatomy(model)
    assert sum(m.parameters for m in found.units) == parameters
    assert sum(m.macs for m in found.units) / 1e9 == pytest.approx(gigamacs, rel=0.01)
    modules = dict(model.module.named_modules())
    assert all(
        m.mixes == truth(m.module, modules[m.module])
        for m in found.modules
        if m.role in ("unit", "inside")
    )
    assert across is None or found.mixes(across) == "across"


def test_resnet_convolutions_by_hand() -> None:
    """ResNet-18's 3x3 convolutions and its stem mix both; its three 1x1 shortcuts and the
    classifier stay in place."""
    found = anatomy(CASES["resnet18"].model())
    table = found.summary().set_index("mixes")
    widths = (64, 128, 256, 512)
    full = 3 * 64 * 49 + 9 * (4 * 64 * 64 + sum(a * b + 3 * b * b for a, b in pairwise(widths)))
    assert table.loc["both", "parameters"] == full
    assert (
        table.loc["within", "parameters"] == sum(a * b for a, b in pairwise(widths)) + 512 * 5 + 5
    )
    assert table.loc["across", "units"] == 2  # two poolings
    assert table.loc["rest", "parameters"] == 0


# -- the result ------------------------------------------------------------------------------------


def test_tables_and_storage() -> None:
    found = mp.anatomy(CASES["vit"].model())
    frame = found.to_frame()
    columns = [
        "module",
        "part",
        "kind",
        "role",
        "mixes",
        "parameters",
        "parameter_fraction",
        "macs",
        "mac_fraction",
    ]
    assert frame.columns.tolist() == ["model", *columns]
    counted = frame[frame["role"].isin(["unit", "rest"])]
    assert counted["parameter_fraction"].sum() == pytest.approx(1)
    assert counted["mac_fraction"].sum() == pytest.approx(1)
    # position embeddings and class token
    assert frame.set_index("module").loc["(rest)", "parameters"] == 17 * 24 + 24
    summary = found.summary()
    assert summary["mixes"].tolist() == ["across", "both", "within", "neither", "rest"]
    assert summary["parameters"].sum() == found.parameters
    restored: Anatomy = from_dict(json.loads(json.dumps(to_dict(found))))
    assert restored == found
