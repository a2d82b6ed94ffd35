"""The Jacobian of token mixing in closed form, for Mixer (with one token MLP or one per group of
channels), gMixer and ResMLP.

The token MLP of a Mixer sees each channel c alone, so that its Jacobian over positions is a matrix
M_c = W2 diag(act'(h_c)) W1 per channel (for the gated MLP of gMixer with a term for each half of
fc1, for an untied MLP with the weights of the channel's group), and that of the layer norm before
it is g_c / s_j (delta_cd - 1/C - z_jc z_jd / C) at position j, with the gain g, s_j the root of
variance plus eps, and z = (x - mean) / s. With r_j = mean over channels of z_jc^2,

    |J_ij|_F^2 = sum_c M_c[i, j]^2 (g_c / s_j)^2 (1 - 1/C - (2 - r_j) z_jc^2 / C),

and for two images x, y with z and w the inner product of their blocks has
1 - 1/C - (z_jc^2 + w_jc^2)/C + z_jc w_jc (z_j . w_j) / C^2 in the place of the last factor. ResMLP
is linear: J_ij = L[i, j] diag(ls1 alpha)."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.mlp import GluMlp, Mlp
from timm.models.mlp_mixer import Affine, MixerBlock, ResBlock
from torch import Tensor, nn

from mixer_probe.core.memory import WORKING, at_once, slices
from mixer_probe.zoo.architectures import UntiedMlp

Pair = tuple[Tensor, Tensor]


def has_closed_form(block: nn.Module) -> bool:
    """Whether the spatial mixing of a block is one whose Jacobian is known: that of timm's
    MixerBlock with a plain, gated or untied MLP and a layer norm, or of ResBlock with its affine
    map."""
    if isinstance(block, ResBlock):
        return isinstance(block.norm1, Affine)
    mlp: Any = getattr(block, "mlp_tokens", None)
    return (
        isinstance(block, MixerBlock)
        and isinstance(block.norm1, nn.LayerNorm)
        and (
            isinstance(mlp, UntiedMlp)
            or (
                isinstance(mlp, (Mlp, GluMlp))
                and isinstance(mlp.fc1, nn.Linear)
                and isinstance(mlp.norm, nn.Identity)
            )
        )
    )


@torch.no_grad()
def branch_products(block: nn.Module, x: Tensor, rows: Tensor) -> tuple[Pair, Pair]:
    """Of the residual branch of token mixing at inputs x [image, S, C] of a group, for output
    positions `rows` [R]: (own, crossed) [R, S] as of `Energies`, and the traces [R] that the skip
    connection needs, of J_ii averaged over images and again over pairs (the same number twice)."""
    any_block: Any = block
    if isinstance(block, ResBlock):
        scale = (any_block.ls1 * any_block.norm1.alpha.flatten()).double()
        weight = any_block.linear_tokens.weight[rows].double()
        own = weight.square() * scale.square().sum()
        trace = weight.gather(1, rows[:, None])[:, 0] * scale.sum()
        return (own, own), (trace, trace)
    norm, mlp = any_block.norm1, any_block.mlp_tokens
    images, positions, channels = x.shape
    untied = isinstance(mlp, UntiedMlp)
    first: Tensor = mlp.fc1_weight if untied else mlp.fc1.weight
    centred = (x - x.mean(-1, keepdim=True)).to(first.dtype)
    spread = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    z = centred / spread
    gain = torch.ones_like(x[0, 0]) if norm.weight is None else norm.weight
    # g_c / s_j of every image [image, C, S].
    slope = (gain / spread).transpose(1, 2)
    z = z.transpose(1, 2)
    hidden = (mlp.pre_activation if untied else mlp.fc1)(norm(x).transpose(1, 2))
    slopes = _slopes(mlp, hidden)
    last: Tensor = mlp.fc2_weight[:, rows] if untied else mlp.fc2.weight[rows]
    if untied:
        # The matrices of every channel.
        first, last = (w.repeat_interleave(channels // mlp.groups, 0) for w in (first, last))
    width = last.shape[-1]
    reads = [first] if len(slopes) == 1 else [first[:width], first[width:]]
    own, crossed = z.new_zeros(2, len(rows), positions, dtype=torch.float64)
    trace = own.new_zeros(len(rows))
    each = len(rows) * max(positions, width) * images * 4 * last.element_size()
    squares = z.square()
    # Neighbours in a circle: every image is in as many pairs.
    pairs = [(a, (a + 1) % images) for a in range(images if images > 2 else images - 1)]
    dots = {(a, b): (z[a] * z[b]).sum(0) for a, b in pairs}
    for part in slices(channels, at_once(each, WORKING)):
        M = sum(
            (
                (_of(last, part) * one[:, part, None, :]) @ _of(read, part)
                for one, read in zip(slopes, reads, strict=True)
            ),
            start=torch.zeros(()).to(last),
        )
        # With the slope of the norm, [image, channel, R, S].
        J = M * slope[:, part, None, :]
        total, own_factor = 1 - 1 / channels, z.square().mean(1, keepdim=True)
        factor = total - (2 - own_factor) * squares[:, part] / channels
        own += torch.einsum("bcrs,bcs->rs", J.square(), factor)
        diagonal = J.gather(3, rows[None, None, :, None].expand(*J.shape[:2], -1, 1))[..., 0]
        trace += (diagonal * (total - squares[:, part][..., rows] / channels)).sum((0, 1))
        for a, b in pairs:
            factor = (
                total
                - (squares[a, part] + squares[b, part]) / channels
                + z[a, part] * z[b, part] * dots[a, b] / channels**2
            )
            crossed += torch.einsum("crs,crs,cs->rs", J[a], J[b], factor)
    crossed = crossed / len(pairs) if pairs else torch.full_like(crossed, torch.nan)
    return (own / images, crossed), (trace / images, trace / images)


def _of(weight: Tensor, channels: slice) -> Tensor:
    """The matrices of some channels, or the one matrix of all."""
    return weight[channels] if weight.ndim == 3 else weight


def _slopes(mlp: nn.Module, hidden: Tensor) -> list[Tensor]:
    """Derivatives of the hidden units by the outputs `hidden` of fc1: of each unit, or of a gated
    one by its first and by its second half."""
    any_mlp: Any = mlp
    with torch.enable_grad():
        given = hidden.detach().requires_grad_()
        if isinstance(mlp, GluMlp):
            a, b = given.chunk(2, dim=-1)
            units = a * any_mlp.act(b) if any_mlp.gate_last else any_mlp.act(a) * b
        else:
            units = any_mlp.act(given)
        (slope,) = torch.autograd.grad(units.sum(), given)
    return list(slope.chunk(2, dim=-1)) if isinstance(mlp, GluMlp) else [slope]
