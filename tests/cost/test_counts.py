"""Parts of multiply-accumulates against formulas, and Table 1 of the Mixer paper against counts
made elsewhere."""

from __future__ import annotations

import pytest
import torch

from mixer_probe.cost import count_parts, head_parameters, mixer_scales
from tests.networks import CASES

# From an independent count of timm's networks without their classifier: parameters,
# multiply-accumulates at 224 px.
TABLE1 = {
    "S/32": (18591624, 1001914368),
    "S/16": (18015264, 3776446464),
    "B/32": (59524428, 3236954112),
    "B/16": (59111472, 12600999936),
    "L/32": (205914264, 11252269056),
    "L/16": (207171168, 44546654208),
    "H/14": (431069952, 120988631040),
}
# In millions, as Tolstikhin et al. 2021 print them.
PRINTED = {"S/32": 19, "S/16": 18, "B/32": 60, "B/16": 59, "L/32": 206, "L/16": 207, "H/14": 431}
S, C, K, L, P = 16, 24, 5, 2, 8


def test_table_1() -> None:
    found = mixer_scales()
    assert {s.name: (p, m) for s, p, m in zip(found.scales, found.parameters, found.macs)} == TABLE1
    assert {s.name: (s.parameters, s.macs) for s in found.scales} == TABLE1
    assert {s.name: s.printed_millions for s in found.scales} == PRINTED
    frame = found.to_frame().set_index("scale")
    assert (frame["parameters"] / 1e6).round().astype(int).to_dict() == PRINTED
    assert frame.loc["B/16", ["C", "S", "D_S", "D_C", "layers"]].tolist() == [
        768,
        196,
        384,
        3072,
        12,
    ]


def test_parts_of_a_mixer() -> None:
    parts = count_parts(CASES["mixer"].model())
    d_s, d_c = 12, 96
    assert (parts.stem, parts.spatial, parts.channel) == (
        S * 3 * P * P * C,
        L * 2 * S * d_s * C,
        L * 2 * S * C * d_c,
    )
    assert (parts.rest, parts.head) == (0, C * K)
    assert parts.without_head == parts.total - C * K
    assert head_parameters(CASES["mixer"].model()) == C * K + K


def test_a_gate_inside_a_channel_mlp_is_spatial() -> None:
    parts = count_parts(CASES["gmlp"].model())
    hidden = 6 * C
    assert parts.spatial == L * S * S * hidden // 2
    assert parts.channel == L * (S * C * hidden + S * hidden // 2 * C)


def test_parts_of_a_vit() -> None:
    """Attention with its projections: 4 N C^2 and two products of N^2 C; one class token."""
    parts = count_parts(CASES["vit"].model())
    n = S + 1
    assert parts.spatial == L * (4 * n * C * C + 2 * n * n * C)
    assert parts.channel == L * 2 * n * C * 4 * C


def test_parts_of_a_swin() -> None:
    """Three stages of two blocks: windows of 4x4 positions, widths 8, 16 and 32, merged in between
    by 4 C -> 2 C."""
    parts = count_parts(CASES["swin"].model())
    stages = [(256, 8), (64, 16), (16, 32)]
    assert parts.spatial == sum(2 * (4 * n * c * c + 2 * n * 16 * c) for n, c in stages)
    assert parts.channel == sum(2 * 8 * n * c * c for n, c in stages)
    assert parts.stem == 256 * 3 * 4 * 8 + 64 * 32 * 16 + 16 * 64 * 32
    assert parts.rest == 0


@pytest.mark.parametrize(
    "name", ["resnet-bottleneck", "convnext", "swin", "mobilenetv2", "gmixer", "resmlp"]
)
def test_parts_add_up(name: str) -> None:
    model = CASES[name].model()
    parts = count_parts(model)
    assert parts.total == model.macs
    assert min(parts.stem, parts.spatial, parts.channel, parts.head) > 0
    assert parts.rest >= 0


def test_counting_takes_no_memory_on_the_meta_device() -> None:
    model = CASES["mixer"].model()
    expected = count_parts(model)
    model.module.to("meta")
    assert count_parts(model) == expected
    assert next(model.module.parameters()).device == torch.device("meta")
