"""Multiply-accumulates by the part of a network that they are spent in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from mixer_probe.core.result import storable
from mixer_probe.models.macs import count_macs_by_module
from mixer_probe.models.model import Model


@storable
@dataclass(frozen=True)
class MacParts:
    """Multiply-accumulates of one image in matrix products and convolutions, products of attention
    included.

    `spatial` and `channel` are the mixing parts of the blocks (attention with its projections is
    spatial), `rest` what else is inside blocks (shortcuts, the first 1x1 convolution of a
    bottleneck). `head` is the classifier. `stem` is what is outside of blocks and head: the patch
    embedding of Mixer and ViT, in CNNs also layers between stages."""

    stem: int
    spatial: int
    channel: int
    rest: int
    head: int

    @property
    def total(self) -> int:
        """Multiply-accumulates of all parts."""
        return sum(getattr(self, f.name) for f in fields(self))

    @property
    def without_head(self) -> int:
        """All but the classifier, as in Table 1 of the Mixer paper."""
        return self.total - self.head


def count_parts(model: Model) -> MacParts:
    """Multiply-accumulates of one forward pass of one image, by part; also on the meta device,
    where it takes no memory."""
    counts = count_macs_by_module(model.module, model.input.size)
    blocks = [block.path for block in model.structure.blocks]
    channels, heads = _paths(model, "channel"), _paths(model, "head")
    # Where a layer is what follows attention (Swin's merged windows), the attention itself is a
    # sibling module.
    spatials = [*_paths(model, "spatial"), *(f"{block}.attn" for block in blocks)]
    # gMLP's spatial gate is inside its channel MLP.
    nested = [path for path in spatials if _inside(path, channels)]
    spatial, head, inside = _sum(counts, spatials), _sum(counts, heads), _sum(counts, blocks)
    channel = _sum(counts, channels) - _sum(counts, nested)
    return MacParts(counts[""] - inside - head, spatial, channel, inside - spatial - channel, head)


def _paths(model: Model, kind: str) -> list[str]:
    return [layer.module for layer in model.layers if layer.kind == kind]


def _sum(counts: dict[str, int], paths: Sequence[str]) -> int:
    """Sum over the `paths`, each once; of nested modules only the outer one counts."""
    return sum(counts.get(path, 0) for path in dict.fromkeys(paths) if not _inside(path, paths))


def _inside(path: str, others: Sequence[str]) -> bool:
    return any(path.startswith(f"{other}.") for other in others)


def head_parameters(model: Model) -> int:
    """Parameters of the classifier, 0 for a network without one."""
    return sum(
        p.numel()
        for path in _paths(model, "head")
        for p in model.module.get_submodule(path).parameters()
    )
