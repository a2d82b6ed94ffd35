"""The spatial kernel of every channel of a layer, for every architecture that has them, in one
form.

All kernels of a layer are sums over a few basis kernels: K_c = sum_k coefficients[c, k] * basis_k.
The products <basis_k, basis_l> then give every inner product of kernels, and no S x S matrix per
channel is computed:

- Depthwise convolutions (ConvNeXt, EfficientNet, ConvMixer): the weights [C, kh, kw]; a basis
  kernel is one tap. From weights alone.
- Mixer: K_c = E_x[W2 diag(act'(h_c(x))) W1] = W2 diag(g_c) W1 with g_c = E_x act'(h_c), the mean
  Jacobian of the token MLP in channel c, exactly. Basis kernels are the outer products of columns
  of W2 and rows of W1, with Gram matrix (W2'W2) o (W1 W1').
- Mixer with a token MLP per group of channels (`zoo.architectures.UntiedMlp`): the same with the
  weights of the channel's own group, K_c = W2_g diag(g_c) W1_g. Basis kernels are the K_c
  themselves, or the outer products of all groups where these are fewer.
- gMixer: out = W2 (v * act(s)), v and s the two halves of fc1. The mean Jacobian is W2 diag(E
  act(s_c)) Wv + W2 diag(E v_c act'(s_c)) Ws: the same with two coefficients a hidden unit.
- ViT: K_c = sum_h E_x[A_h] (Wo_h Wv_h)_cc, from channel c to channel c with the attention patterns
  held fixed. Positions only: prefix tokens are left out as queries and keys, and rows are not
  renormalised. At most one kernel per head is shared.
- ResMLP and gMLP: every channel has the same matrix, tied by construction up to the layer scale
  (ResMLP) or the other half of the channels (gMLP).

The norm before the layer and, except for ResMLP, layer scales after it are left out: they scale a
channel's kernel and change no shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import timm.layers
import torch
from scipy.linalg import block_diag
from timm.layers.mlp import GluMlp
from timm.models import beit, eva, vision_transformer
from torch import nn

from mixer_probe.capture import ImageSource, Reading, Reducer, stream
from mixer_probe.core.accumulator import Accumulator, state_field
from mixer_probe.core.errors import ModelError
from mixer_probe.models.layer import Layer
from mixer_probe.models.model import Model
from mixer_probe.models.structure import Block
from mixer_probe.weights.kernels import known_grid, spatial_convolutions
from mixer_probe.weights.offsets import Grid, offset_mean, offset_pairs, product_offset_sums
from mixer_probe.weights.operators import double_array
from mixer_probe.weights.token_matrices import has_untied_mlps, spatial_mixers, token_matrices
from mixer_probe.zoo.architectures import UntiedMlp

Summed = tuple[list[Layer], Reducer[torch.Tensor]]
HAVE_THEM = (
    "kernel tying is for ConvNeXt, EfficientNet, MobileNet and ConvMixer (depthwise weights), and "
    "for Mixer, gMixer, ResMLP, gMLP and ViT (effective kernels)"
)


@dataclass(frozen=True)
class ChannelKernels:
    """The kernels of all channels of one layer: K_c = sum_k coefficients[c, k] * basis_k.

    `gram` [k, k] holds the products of basis kernels and `expand` makes a kernel of coefficients
    [k]: [kh, kw] or [S, S]. `pictures` [k, oh, ow] are the basis kernels in offset space, for S x S
    kernels the mean over the `pairs` [oh, ow] of positions of each offset. `source` is "weights",
    "data" or "construction"."""

    block: str
    layer: str
    depth: float
    source: str
    shape: tuple[int, int]
    coefficients: np.ndarray
    gram: np.ndarray
    pictures: np.ndarray
    pairs: np.ndarray
    expand: Callable[[np.ndarray], np.ndarray]

    def kernel(self, channel: int) -> np.ndarray:
        """The kernel of one channel: [kh, kw], or K_c[i, j] = "position i reads from j" [S, S]."""
        return self.expand(self.coefficients[channel])

    @property
    def in_offset_space(self) -> np.ndarray:
        """[C, oh, ow]: the kernels themselves, or sqrt(pairs) * mean for S x S kernels.

        These are the coordinates of the projection on BTTB matrices, so their sum of squares is
        energy of K_c."""
        weighted = self.pictures * np.sqrt(self.pairs)
        kernels: np.ndarray = np.tensordot(self.coefficients, weighted, 1)
        return kernels


@dataclass(eq=False)
class KernelSums(Accumulator):
    """Sums over images of what the kernels of a Mixer or ViT depend on, by block: derivatives of
    its token MLP, or attention patterns."""

    n: int = state_field(0)
    _sums: dict[str, torch.Tensor] = state_field(dict)

    def reading(self, model: Model) -> Reading:
        """What adds the images of a pass. Raises ModelError for a network without kernels per
        channel, or whose kernels are known from its weights."""
        layers, reducer = (attention_patterns if model.family == "vit" else gate_slopes)(model)
        return Reading(
            layers,
            reducer,
            lambda piece: self.update(piece.found, piece.n),
            into=self,
            name="sums of kernels",
            again=lambda: KernelSums().reading(model),
        )

    def update(self, found: Mapping[str, torch.Tensor], images: int) -> None:
        """Add the sums of so many images."""
        self.n += images
        for name, part in found.items():
            part = part.cpu()
            self._sums[name] = self._sums[name] + part if name in self._sums else part

    def merge(self, other: KernelSums) -> None:
        """Add the images of `other`, which stays as it is."""
        self.update(other._sums, other.n)

    def compute(self) -> list[np.ndarray]:
        """The means over images of every block, float64: of derivatives [hidden unit, channel], or
        of patterns [head, position, position]."""
        return [part.numpy() / self.n for part in self._sums.values()]


def channel_kernels(
    model: Model,
    images: ImageSource | torch.Tensor | None = None,
    *,
    sums: KernelSums | None = None,
    batch_size: int = 32,
) -> list[ChannelKernels]:
    """The kernels of every layer of a model that has one per channel, in execution order.

    `images` are needed where kernels are measured on data (Mixer, gMixer, ViT); they are streamed,
    and memory does not grow with their number; or `sums` over them, read in another pass. Raises
    ModelError for a network without kernels per channel, or whose images are missing."""
    if model.family == "cnn":
        depthwise = [c for c in spatial_convolutions(model) if c.depthwise]
        if not depthwise:
            raise ModelError(
                f"{model.name} has no spatial kernel of its own for each channel: it mixes "
                f"positions by {spatial_mixers(model)}, with a kernel for each pair of channels; "
                f"{HAVE_THEM}"
            )
        return [taps_kernels(c.weight[:, 0], c.block.path, c.path, c.depth) for c in depthwise]
    grid, blocks = known_grid(model), model.structure.blocks
    places = [(block.path, (i + 1) / len(blocks)) for i, block in enumerate(blocks)]
    if model.family == "vit":
        gains = [
            value_gains(block.module.get_submodule("attn")) for block in _attention_blocks(model)
        ]
        patterns = (sums or kernel_sums(model, _required(model, images), batch_size)).compute()
        return [
            _stacked(maps, gain, path, f"{path}.attn", depth, "data", grid)
            for (path, depth), maps, gain in zip(places, patterns, gains, strict=True)
        ]
    if needs_images(model):
        slopes = (sums or kernel_sums(model, _required(model, images), batch_size)).compute()
        return [
            jacobian_kernels(block.module.get_submodule("mlp_tokens"), slope.T, *place, grid)
            for block, place, slope in zip(blocks, places, slopes, strict=True)
        ]
    found = []
    for block, (path, depth) in zip(blocks, places, strict=True):
        # ResMLP and gMLP: one matrix, and a factor per channel.
        residual = hasattr(block.module, "linear_tokens")
        layer = f"{path}.{'linear_tokens' if residual else 'mlp_channels.gate.proj'}"
        matrix = double_array(model.module.get_parameter(f"{layer}.weight"))
        factors = (
            double_array(block.module.get_parameter("ls1"))
            if residual
            else np.ones(model.layer(layer).channels)
        )
        found.append(
            _stacked(matrix[None], factors[:, None], path, layer, depth, "construction", grid)
        )
    return found


def needs_images(model: Model) -> bool:
    """Whether the kernels of this model's channels are measured on data."""
    return model.family == "vit" or (
        model.family == "mixer"
        and (has_untied_mlps(model) or token_matrices(model)[0].write is not None)
    )


def _required(
    model: Model, images: ImageSource | torch.Tensor | None
) -> ImageSource | torch.Tensor:
    if images is None:
        what = "attention patterns" if model.family == "vit" else "token MLPs' activations"
        raise ModelError(
            f"the kernels of {model.name}'s channels depend on its {what}, so kernel tying needs "
            "images: give images=load_images(...)"
        )
    return images


def taps_kernels(kernels: np.ndarray, block: str, layer: str, depth: float) -> ChannelKernels:
    """The kernels of a depthwise convolution, from its weights [C, kh, kw]."""
    shape = (kernels.shape[1], kernels.shape[2])
    taps = np.eye(shape[0] * shape[1])
    flat = np.asarray(kernels, dtype=np.float64).reshape(len(kernels), -1)
    return ChannelKernels(
        block,
        layer,
        depth,
        "weights",
        shape,
        flat,
        taps,
        taps.reshape(-1, *shape),
        np.ones(shape),
        lambda c: c.reshape(shape),
    )


# -- Mixer: the mean Jacobian of the token MLP -----------------------------------------------------


def jacobian_kernels(
    mlp: Any, gates: np.ndarray, block: str, depth: float, grid: Grid
) -> ChannelKernels:
    """The kernels W2 diag(g_c) W1 of a token MLP with mean gates g [C, D_S] (see `gate_slopes`);
    those of an `UntiedMlp` with the weights of the channel's group."""
    if isinstance(mlp, UntiedMlp):
        return _untied_kernels(mlp, gates, block, depth, grid)
    read, write = double_array(mlp.fc1.weight), double_array(mlp.fc2.weight).T
    if len(write) < len(read):
        # Both halves of a gated MLP write through the same columns.
        write = np.concatenate([write, write])
    return _outer_products(read, write, gates, block, depth, grid)


def _untied_kernels(
    mlp: UntiedMlp, gates: np.ndarray, block: str, depth: float, grid: Grid
) -> ChannelKernels:
    """Those of a token MLP per group of channels, in the smaller of two bases: the outer products
    of all groups, or the kernels."""
    # [group, unit, position], and the gates [group, channel, unit].
    read, write = double_array(mlp.fc1_weight), double_array(mlp.fc2_weight).transpose(0, 2, 1)
    units, positions = read.shape[1:]
    own = gates.reshape(mlp.groups, -1, units)
    if units < own.shape[1]:
        flat = (read.reshape(-1, positions), write.reshape(-1, positions))
        return _outer_products(*flat, block_diag(*own), block, depth, grid)
    kernels = np.concatenate(
        [
            (write[g].T * own[g][:, None, :]) @ read[g]  # [channel, position, position]
            for g in range(mlp.groups)
        ]
    )

    def expand(c: np.ndarray) -> np.ndarray:
        # The kernels take much memory, and are made again of the weights.
        gate = (c.reshape(mlp.groups, -1, 1) * own).sum(1)
        kernel: np.ndarray = np.einsum("gui,gu,guj->ij", write, gate, read, optimize=True)
        return kernel

    layer = f"{block}.mlp_tokens"
    found = _stacked(kernels, np.eye(len(kernels)), block, layer, depth, "data", grid)
    return replace(found, expand=expand)


def _outer_products(
    read: np.ndarray,
    write: np.ndarray,
    coefficients: np.ndarray,
    block: str,
    depth: float,
    grid: Grid,
) -> ChannelKernels:
    """Kernels that are sums of outer products of `write` and `read` [k, S]."""
    pairs = offset_pairs(grid)
    return ChannelKernels(
        block=block,
        layer=f"{block}.mlp_tokens",
        depth=depth,
        source="data",
        shape=(read.shape[1], read.shape[1]),
        coefficients=coefficients,
        gram=(write @ write.T) * (read @ read.T),
        pictures=product_offset_sums(write, read, grid) / pairs,
        pairs=pairs,
        expand=lambda c: (write.T * c) @ read,
    )


def gate_slopes(model: Model) -> Summed:
    """Layers, one per block of a Mixer or gMixer, and a reducer to [D_S, C], float64: the sum over
    images of the derivative of the token MLP's pointwise part, in each channel that of its group
    where groups have MLPs of their own.

    With g [C, D_S] the transposed mean K_c = W2 diag(g_c) W1, in gMixer with W2 repeated for the
    two halves. Raises ModelError for an MLP that is not pointwise between fc1 and fc2."""
    mlps: dict[str, Any] = {}
    for b in model.structure.blocks:
        mlp = b.module.get_submodule("mlp_tokens")
        # Hidden units of an untied MLP are no layer, and are computed from its input.
        mlps[f"{b.path}.{'norm1' if isinstance(mlp, UntiedMlp) else 'mlp_tokens.fc1'}"] = mlp
    for path, mlp in mlps.items():
        if not isinstance(norm := getattr(mlp, "norm", nn.Identity()), nn.Identity):
            raise ModelError(
                f"'{path.removesuffix('.fc1')}' has a {type(norm).__name__} between its two "
                "layers, which mixes hidden units; kernel tying is for token MLPs with nothing but "
                "a pointwise function there"
            )

    def derivative(
        layer: Layer, hidden: torch.Tensor, _prefix: torch.Tensor | None
    ) -> torch.Tensor:
        # Every hidden unit feeds one input of fc2, so the gradient of their sum has all
        # derivatives.
        mlp = mlps[layer.module]
        rows = hidden.detach().transpose(1, 2)
        if isinstance(mlp, UntiedMlp):
            rows = mlp.pre_activation(rows).detach()
        with torch.enable_grad():
            h = rows.clone().requires_grad_()
            # An activation may work in place, which a leaf does not allow.
            copied = h * 1
            if isinstance(mlp, GluMlp):
                first, second = copied.chunk(2, dim=-1)
                out = first * mlp.act(second) if mlp.gate_last else mlp.act(first) * second
            else:
                out = mlp.act(copied)
            (gradient,) = torch.autograd.grad(out.sum(), h)
        return gradient.transpose(1, 2).sum(0, dtype=torch.float64)

    return [model.layer(path) for path in mlps], derivative


# -- ViT: attention patterns held fixed ------------------------------------------------------------


_ATTENTIONS: tuple[Any, ...] = (
    vision_transformer.Attention,  # type: ignore[attr-defined]
    beit.Attention,
    eva.EvaAttention,
    *filter(None, [getattr(timm.layers, "AttentionRope", None)]),
)


def _attention_blocks(model: Model) -> tuple[Block, ...]:
    """The blocks, whose attention has global patterns and values that are linear in their input.
    Raises ModelError."""
    for block in model.structure.blocks:
        attention: Any = getattr(block.module, "attn", None)
        reason = ""
        if attention is None:
            reason = "has no attention module of its own"
        elif not isinstance(attention, _ATTENTIONS):
            reason = (
                f"has attention of class {type(attention).__name__}, which is no sum over heads of "
                "one global pattern each"
            )
        elif getattr(attention, "gate", None) is not None or not isinstance(
            getattr(attention, "norm", nn.Identity()), nn.Identity
        ):
            reason = "gates or normalises what its heads read"
        elif getattr(attention, "num_kv_heads", attention.num_heads) != attention.num_heads:
            reason = "shares values between heads"
        if reason:
            raise ModelError(
                f"'{block.path}' of {model.name} {reason}, so its channels have no effective "
                f"kernel; {HAVE_THEM}"
            )
    return model.structure.blocks


def value_gains(attention: Any) -> np.ndarray:
    """(Wo_h Wv_h)_cc [channel, head], float64: the gain of head h from channel c of an attended
    position to channel c."""
    fused = getattr(attention, "qkv", None)
    value = double_array(attention.v_proj.weight if fused is None else fused.weight.chunk(3)[2])
    out = double_array(attention.proj.weight)
    heads = int(attention.num_heads)
    gains: np.ndarray = (out * value.T).reshape(len(out), heads, -1).sum(-1)
    return gains


def attention_patterns(model: Model) -> Summed:
    """Layers, one per block of a ViT, and a reducer to [head, S, S], float64: the sum over images
    of the attention patterns A_h from patch to patch.

    The softmax is over all tokens; prefix tokens are then dropped without renormalising, so rows
    sum to less than 1."""
    layers = []
    for block in _attention_blocks(model):
        # Attention maps [image, head, query, key], read as queries with (head, key) for channels.
        branch = model.layer(f"{block.path}.attn")
        heads: Any = block.module.get_submodule("attn").num_heads
        columns = int(heads) * (branch.positions + branch.prefix_tokens)
        layers.append(
            replace(
                branch,
                name=f"{block.path}.attn.attn_drop",
                kind="other",
                channels=columns,
                axes="BHND",
            )
        )

    def total(layer: Layer, rows: torch.Tensor, _prefix: torch.Tensor | None) -> torch.Tensor:
        n, s = rows.shape[:2]
        maps = rows.reshape(n, s, -1, s + layer.prefix_tokens)
        return maps[..., layer.prefix_tokens :].sum(0, dtype=torch.float64).transpose(0, 1)

    return layers, total


def _stacked(
    matrices: np.ndarray,
    coefficients: np.ndarray,
    block: str,
    layer: str,
    depth: float,
    source: str,
    grid: Grid,
) -> ChannelKernels:
    """Kernels that are sums of a few S x S matrices [k, S, S]."""
    flat = matrices.reshape(len(matrices), -1)
    return ChannelKernels(
        block=block,
        layer=layer,
        depth=depth,
        source=source,
        shape=(matrices.shape[1], matrices.shape[2]),
        coefficients=coefficients,
        gram=flat @ flat.T,
        pictures=offset_mean(matrices, grid),
        pairs=offset_pairs(grid),
        expand=lambda c: np.tensordot(c, matrices, 1),
    )


def kernel_sums(
    model: Model, images: ImageSource | torch.Tensor, batch_size: int = 32
) -> KernelSums:
    """Sums over all images, from a pass of their own."""
    sums = KernelSums()
    reading = sums.reading(model)
    title = f"{model.name}: channel kernels"
    for piece in stream(
        model, images, reading.layers, reading.reducer, batch_size=batch_size, title=title
    ):
        reading.add(piece)
    return sums
