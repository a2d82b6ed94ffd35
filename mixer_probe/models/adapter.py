"""What a family adapter states: the block classes of the family, their mixing parts, and what the
axes inside them mean.

A network is known by the timm block classes that it is built from, so that a custom model of such
blocks is read like timm's. Each family file (`mixer`, `vit`, `cnn`) is a table of `BlockSpec`s and
a few paths around the blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from mixer_probe.models.layer import Axes, Family

# Path prefixes with the axes of what lies under them, or with a sentence on why that is no
# representation.
AxesTable = tuple[tuple[str, Axes | str], ...]


def look_up(table: AxesTable, path: str) -> Axes | str | None:
    """The entry of the longest prefix of `path`, None if no prefix fits."""
    matches = [(prefix, axes) for prefix, axes in table if (path + ".").startswith(prefix + ".")]
    return max(matches, key=lambda match: len(match[0]))[1] if matches else None


@dataclass(frozen=True)
class BlockSpec:
    """One block class: which of its modules mix over positions and over channels, and the axes of
    what they return.

    `spatial` and `channel` are module paths inside the block; those that exist and run are listed
    as layers. `axes` holds for the block's own output and everything inside it that `inside` (path
    prefixes, the longest match wins) does not name. A prefix whose value is a sentence marks
    tensors that are no representation, and says what to take instead. `wraps` is for blocks that
    have no class of their own: the class is then found one level below the block.
    """

    cls: type[nn.Module]
    spatial: tuple[str, ...]
    channel: tuple[str, ...]
    axes: Axes
    inside: AxesTable = ()
    wraps: bool = False

    def axes_at(self, path: str, block: nn.Module) -> Axes | str:
        """Axes of the module at `path` inside the block ("" is the block itself), or the sentence
        of an unreadable one."""
        return look_up(self.inside, path) or self.axes


@dataclass(frozen=True)
class Adapter:
    """A family: its block classes and where stem, final norm and head are found.

    The path tuples are candidates in order of preference; the first that exists and runs is taken.
    `outside` gives the axes of 4-D tensors outside the blocks, except under the prefixes of
    `around`. `includes` names the networks in messages.
    """

    family: Family
    includes: str
    blocks: tuple[BlockSpec, ...]
    stems: tuple[str, ...]
    norms: tuple[str, ...]
    heads: tuple[str, ...]
    outside: Axes
    around: AxesTable = ()

    def spec(self, module: nn.Module) -> BlockSpec | None:
        """The spec of a block module, None for other modules. Subclasses are known by their
        base."""
        for spec in self.blocks:
            found: Any = getattr(module, "0", None) if spec.wraps else module
            if isinstance(found, spec.cls):
                return spec
        return None
