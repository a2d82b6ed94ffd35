"""Interventions: what layers return, changed inside a context while everything else runs as usual.

Extraction, probes, attribution and accuracy work inside, on a network with a name and a fingerprint
of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from operator import index
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
import torch
from torch import nn

from mixer_probe.capture.positions import raw, tokens
from mixer_probe.capture.representations import Representations
from mixer_probe.capture.stream import ImageSource, as_source, stream
from mixer_probe.core.errors import ImagesError, LayerError
from mixer_probe.core.fingerprint import digest, keys_of
from mixer_probe.core.hooks import Call, Passes, first_image, hooked
from mixer_probe.core.memory import at_once, check_fits, slices
from mixer_probe.core.switches import evaluating
from mixer_probe.core.validate import check_choice, checked, shown
from mixer_probe.models.fingerprint import tensor_digest
from mixer_probe.models.layer import Axes, Layer
from mixer_probe.models.model import Model

# Where the hidden units of a token-mixing MLP are read: behind activation and gate.
_UNITS = "drop1"
# So many selected indices are named in the name of the network.
_FEW = 3
Ablation = Literal["zero", "mean", "resample", "skip"]
Position = int | tuple[int, int]
_PARTS = ("channels", "positions", "heads", "units")


class Part(TypedDict, total=False):
    """The part of a layer that an intervention changes; see `ablate`."""

    channels: Sequence[int] | np.ndarray
    positions: Sequence[Position] | np.ndarray
    heads: Sequence[int] | np.ndarray
    units: Sequence[int] | np.ndarray


@checked(LayerError)
@dataclass(frozen=True, eq=False)
class Intervention:
    """What is done to the output of a layer, and to which part of it: see `ablate`, `scale`,
    `noise`, `patch` and `edit`, which make it."""

    name: str
    channels: tuple[int, ...] | None = None
    positions: tuple[Position, ...] | None = None
    heads: tuple[int, ...] | None = None
    units: tuple[int, ...] | None = None
    factor: float = 1.0
    sd: float = 0.0
    relative: bool = True
    seed: int = 0
    values: Representations | np.ndarray | None = None
    change: Callable[[torch.Tensor], torch.Tensor] | None = None

    @property
    def selected(self) -> str:
        """The part of the layer in words, empty for all of it."""
        parts = []
        for name in _PARTS:
            chosen = getattr(self, name)
            if chosen is not None:
                few = len(chosen) <= _FEW
                one = name[:-1] if len(chosen) == 1 else name
                parts.append(
                    f"{one} {', '.join(map(str, chosen))}" if few else f"{len(chosen)} {name}"
                )
        return " of ".join(parts)


def _made(name: str, part: Mapping[str, Any], **settings: Any) -> Intervention:
    """An intervention on a part of a layer. Raises LayerError for an unknown kind of part."""
    chosen: dict[str, Any] = {
        check_choice("part of a layer", key, _PARTS, LayerError): _indices(key, given)
        for key, given in part.items()
        if given is not None
    }
    return Intervention(name, **chosen, **settings)


def _indices(name: str, given: Any) -> tuple[Any, ...]:
    """Whole numbers, or pairs of them for positions, each once. Raises LayerError for others."""
    pairs = ", or of (row, column) pairs" if name == "positions" else ""
    try:
        found = tuple(
            (index(i[0]), index(i[1])) if pairs and hasattr(i, "__len__") else index(i)
            for i in (given if hasattr(given, "__len__") else [given])
        )
    except (TypeError, IndexError):
        raise LayerError(f"{name} is a list of whole numbers{pairs}, not {shown(given)}") from None
    if not found:
        raise LayerError(f"{name} is empty: give at least one, or None for the whole layer")
    return tuple(dict.fromkeys(found))


@checked(LayerError)
def ablate(how: Ablation = "mean", *, seed: int = 0, **part: Unpack[Part]) -> Intervention:
    """An ablation: the values of a layer are replaced by ones that say nothing of the image.

    "zero" puts zeros, "mean" the mean over the reference images of `intervene` per position and
    channel, and "resample" the activations of another of them, drawn with `seed`. Without reference
    images these are the images of the batch. "skip" puts the input of the module in place of its
    output, so that a block is left out.

    The `part` is given by `channels`, `positions` (indices, or (row, column) pairs, of positions
    without prefix tokens), `heads` (of an attention layer: the part of the input of its output
    projection that is theirs) or `units` (hidden units of a token-mixing MLP, behind activation and
    gate), by default the whole output with prefix tokens. Raises LayerError for an unknown
    ablation and for a part that is no list of whole numbers."""
    return _made(f"ablate {how}", part, seed=seed)


@checked(LayerError)
def scale(factor: float, **part: Unpack[Part]) -> Intervention:
    """A multiplication of the values by `factor`; `part` as for `ablate`."""
    return _made(f"scale {factor:g}", part, factor=factor)


@checked(LayerError)
def noise(sd: float, relative: bool = True, *, seed: int = 0, **part: Unpack[Part]) -> Intervention:
    """Normal noise of standard deviation `sd` added to the values, drawn with `seed` image by
    image.

    Where `relative` it is in units of the standard deviation of the image's own values in that part
    of the layer. `part` as for `ablate`."""
    if sd < 0:
        raise LayerError(f"sd is a number of 0 or more, not {sd}")
    unit = "" if relative else " (absolute)"
    return _made(f"noise {sd:g}{unit}", part, sd=sd, relative=relative, seed=seed)


def patch(representations: Representations, **part: Unpack[Part]) -> Intervention:
    """Stored activations in place of the values: those of `extract(..., reduce="none")` at the same
    layers, prefix tokens included.

    Image i that passes gets row i, and the first row follows the last. The index i is that of the
    image in its set where the package streams it (`extract` and all that reads in a stream, also
    after an interruption or with less memory); other images are counted from when the context was
    entered. A batch that repeats the one before it, or its beginning, has the same rows again.
    Attributions along a path pass changed copies of the images: their rows are right where all
    images pass in one batch. `part` as for `ablate`; single heads cannot be patched, since what
    they return is no output of a module."""
    if not isinstance(representations, Representations):
        raise LayerError(
            "patch takes representations that extract returns, not a "
            f"{type(representations).__name__}"
        )
    return _made("patch", part, values=representations)


def fixed(values: np.ndarray, **part: Unpack[Part]) -> Intervention:
    """The `values` [token, channel] of one layer (prefix tokens first) for every image; `part` as
    for `ablate`."""
    return _made("fixed", part, values=np.asarray(values))


@checked(LayerError)
def edit(
    name: str, change: Callable[[torch.Tensor], torch.Tensor], **part: Unpack[Part]
) -> Intervention:
    """What `change` makes of the values [image, token, channel] (prefix tokens first), in their
    shape; `name` stands for it in the fingerprint of the changed network. `part` as for
    `ablate`."""
    return _made(f"edit {name}", part, change=change)


@dataclass(frozen=True, eq=False)
class _Site:
    """One intervention at one layer. `layer` is where it acts; with heads it acts on the input of
    the module `projection`. Indices are of tokens and channels, None for all."""

    layer: Layer
    what: Intervention
    projection: str = ""
    tokens: torch.Tensor | None = None
    channels: torch.Tensor | None = None
    # Reference activations [token, channel], or [image, token, channel] to resample from.
    reference: torch.Tensor | None = None

    @property
    def place(self) -> tuple[str, int]:
        """The module whose output or input is changed, and which of its calls."""
        return self.projection or self.layer.module, self.layer.call


Interventions = Mapping[str, Intervention | Sequence[Intervention]]


@checked(LayerError)
@contextmanager
def intervene(
    model: Model,
    interventions: Interventions,
    *,
    images: ImageSource | torch.Tensor | None = None,
    batch_size: int = 64,
) -> Iterator[Model]:
    """The model, whose layers return what the `interventions` make of their outputs inside the
    context.

    Their keys are layer names, globs or words as `Model.select` takes them, their values what
    `ablate`, `scale`, `noise`, `patch` and `edit` return, or several of these, applied in order. A
    key of several layers does the same to each. Inside, every pass of this thread is changed,
    whatever runs it, gradients pass through, the network is in eval mode, and `model.fingerprint`
    and `model.record` are those of the changed network: they depend on interventions, patched
    values and reference images. Contexts inside one another act in the order in which they were
    entered.

    `images` are the reference images of "mean" and "resample", read once on entering, from the
    network as it is then: per position and channel the mean over them, or for image i any of them
    but the one that has this index. Without them "mean" is over the batch as it passes, and
    "resample" moves every image of the batch to the place of another, so that results depend on the
    batch size.

    Raises LayerError for a layer that does not exist or has no such part or other sizes, and
    ImagesError for reference images as `extract` does, and where one image alone is to be
    resampled."""
    if not isinstance(interventions, Mapping):
        raise LayerError(
            f"interventions are given as {{layer name: ablate(...)}}, not {shown(interventions)}"
        )
    sites = [
        _site(model, layer, what)
        for name, given in interventions.items()
        for layer in model.select(name)
        for what in ([given] if isinstance(given, Intervention) else given)
    ]
    if not sites:
        raise LayerError("no intervention was given; give {layer name: ablate(...)}")
    source = None if images is None else as_source(images)
    if source is not None:
        sites = _with_references(model, sites, source, batch_size)
    session = _Session(sites)
    paths = ["", *(place for place, _ in (site.place for site in sites))]
    identity = digest(*map(_identity, sites), "" if source is None else "".join(keys_of(source)))
    with (
        evaluating(model.module),
        hooked(
            model.module,
            paths,
            session.after,
            session.before,
            lambda: identity if session.active else "",
        ) as session.passes,
        model.renamed(_short_name(sites)),
    ):
        try:
            yield model
        finally:
            # A copy of the network that was made inside keeps the hooks.
            session.active = False


def _site(model: Model, layer: Layer, what: Any) -> _Site:
    """An intervention at a layer, with the indices of the selected part. Raises LayerError for a
    part that the layer does not have."""
    if not isinstance(what, Intervention):
        raise LayerError(
            f"an intervention is what ablate, scale, noise or patch returns, not {shown(what)}"
        )
    if what.name == "ablate skip" and what.selected:
        raise LayerError("ablate('skip') replaces the whole output: it takes no part of a layer")
    if what.heads is not None and (what.units is not None or what.channels is not None):
        raise LayerError("heads are given without channels and units, which they consist of")
    if what.units is not None:
        if what.positions is not None:
            raise LayerError("units stand in the place of positions: give one of them")
        layer = _unit_layer(model, layer)
        chosen = _within("unit", what.units, layer, layer.positions)
        return _checked_values(_Site(layer, what, "", chosen, _channels(what, layer)))
    positions = None
    if what.positions is not None:
        positions = layer.prefix_tokens + _positions(what.positions, layer)
    if what.heads is None:
        return _checked_values(_Site(layer, what, "", positions, _channels(what, layer)))
    projection, heads, width = _projection(model, layer)
    if what.values is not None:
        raise LayerError(
            "heads cannot be patched: representations have no output of a single head; patch "
            f"'{layer.name}' as a whole, or ablate or scale its heads"
        )
    if positions is not None and Axes[layer.axes] is not Axes.BNC:
        raise LayerError(
            f"'{layer.name}' attends in windows, where single positions of heads are not known; "
            "give heads or positions"
        )
    which = _within("head", what.heads, layer, heads)
    channels = (which[:, None] * width + torch.arange(width)).flatten()
    return _Site(layer, what, projection, positions, channels)


def _within(noun: str, chosen: Sequence[int], layer: Layer, count: int) -> torch.Tensor:
    """The chosen indices. Raises LayerError for one that is out of range."""
    outside = [i for i in chosen if not 0 <= i < count]
    if outside:
        raise LayerError(
            f"'{layer.name}' has no {noun} {outside[0]}: it has {count}, from 0 to {count - 1}"
        )
    return torch.tensor(chosen)


def _channels(what: Intervention, layer: Layer) -> torch.Tensor | None:
    if what.channels is None:
        return None
    return _within("channel", what.channels, layer, layer.channels)


def _positions(chosen: Sequence[Position], layer: Layer) -> torch.Tensor:
    """Indices of positions, from indices and (row, column) pairs."""
    if not layer.positions:
        raise LayerError(f"'{layer.name}' is pooled and has no positions; give channels")
    found = []
    for place in chosen:
        if isinstance(place, tuple):
            if layer.grid is None:
                raise LayerError(
                    f"the positions of '{layer.name}' are no grid: give indices, not {place}"
                )
            rows, columns = layer.grid
            if not (0 <= place[0] < rows and 0 <= place[1] < columns):
                raise LayerError(
                    f"'{layer.name}' has no position {place}: its grid has {rows} rows and "
                    f"{columns} columns"
                )
            place = place[0] * columns + place[1]
        found.append(place)
    return _within("position", found, layer, layer.positions)


def _unit_layer(model: Model, layer: Layer) -> Layer:
    """Where the hidden units of a token-mixing MLP are. Raises LayerError for a layer without."""
    if Axes[layer.axes] is Axes.BCU:
        return layer
    path, _, call = layer.name.partition("#")
    name = f"{path}.{_UNITS}" + (f"#{call}" if call else "")
    if Axes[layer.axes] is not Axes.BCN or name not in model.structure.names():
        raise LayerError(
            f"'{layer.name}' is no token-mixing MLP, which alone has hidden units over positions; "
            "the channels of other layers are selected with channels="
        )
    return model.layer(name)


def _projection(model: Model, layer: Layer) -> tuple[str, int, int]:
    """Path of the module whose input holds the outputs of the heads side by side, the number of
    heads and their width. Raises LayerError for a layer without heads."""
    modules = dict(model.module.named_modules())
    path = layer.module
    parent = path.rpartition(".")[0]
    # Swin's branch ends in drop_path1; parallel blocks project in the block itself.
    if path.endswith("drop_path1"):
        path = f"{parent}.attn"
    candidates = [(f"{path}.proj", path)]
    if path.endswith("out_proj"):
        candidates.append((path, parent))
    for projection, owner in candidates:
        heads = getattr(modules.get(owner), "num_heads", None)
        linear = modules.get(projection)
        if isinstance(heads, int) and isinstance(linear, nn.Linear):
            # A block may project its heads together with an MLP, whose units come after them.
            width = linear.out_features if owner == parent else linear.in_features
            return projection, heads, width // heads
    attention = [one.name for one in model.layers if one.module == f"{layer.module}.attn"]
    instead = f"; its heads are those of '{attention[0]}'" if attention else ""
    raise LayerError(
        f"'{layer.name}' is no attention layer with an output projection, so it has no heads"
        f"{instead}"
    )


def _checked_values(site: _Site) -> _Site:
    """The site. Raises LayerError for values of other sizes than the layer's."""
    layer, values = site.layer, site.what.values
    if isinstance(values, Representations):
        stored = {one.name: one for one in values.layers}.get(layer.name)
        if stored is None:
            raise LayerError(
                f"'{layer.name}' is not among the layers of the representations to patch with: "
                f"{', '.join(values.names()[:8])}"
            )
        if values.reduce != "none" and layer.positions:
            raise LayerError(
                f"'{layer.name}' is patched at all positions: extract with reduce='none', not "
                f"'{values.reduce}'"
            )
        own, theirs = ((one.positions, one.prefix_tokens, one.channels) for one in (layer, stored))
        if own != theirs:
            sizes = "{} positions, {} prefix tokens and {} channels"
            raise LayerError(
                f"'{layer.name}' has {sizes.format(*own)}, and that of the representations has "
                f"{sizes.format(*theirs)}"
            )
    elif values is not None:
        expected = max(layer.positions, 1) + layer.prefix_tokens, layer.channels
        if values.shape != expected and not site.projection:
            raise LayerError(
                f"'{layer.name}' returns {expected} tokens and channels, not {values.shape}"
            )
    return site


def _identity(site: _Site) -> str:
    """Hash of what an intervention is: kind, settings, part, and values."""
    what = site.what
    settings = (what.name, what.factor, what.sd, what.relative, what.seed)
    part = (what.channels, what.positions, what.heads, what.units)
    parts = [repr((site.layer.name, site.projection, settings, part))]
    if isinstance(what.values, Representations):
        reps, name = what.values, site.layer.name
        size = at_once(8 * max(1, site.layer.positions) * site.layer.channels)
        parts += [
            tensor_digest(torch.from_numpy(np.array(reps.rows(name, rows))))
            for rows in slices(len(reps.ids), size)
        ]
        if site.layer.prefix_tokens:
            parts.append(tensor_digest(torch.from_numpy(np.array(reps.prefix(name)))))
    elif what.values is not None:
        parts.append(tensor_digest(torch.from_numpy(np.ascontiguousarray(what.values))))
    return digest(*parts)


def _short_name(sites: Sequence[_Site]) -> str:
    """ " + ablate mean of blocks.3", with a count of what is not named."""
    first = sites[0]
    part = f"{first.what.selected} of " if first.what.selected else ""
    more = f" and {len(sites) - 1} more" if len(sites) > 1 else ""
    return f" + {first.what.name} of {part}{first.layer.name}{more}"


# -- reference images ------------------------------------------------------------------------------


def _with_references(
    model: Model, sites: Sequence[_Site], images: ImageSource, batch_size: int
) -> list[_Site]:
    """The sites with the activations of the reference images that they need, from one pass."""
    wanted = {
        i: s for i, s in enumerate(sites) if s.what.name in ("ablate mean", "ablate resample")
    }
    if not wanted:
        return list(sites)
    given: dict[str, torch.Tensor] = {}
    n, found = 0, dict[int, Any]()

    def see(call: Call) -> None:
        given[call.path] = call.args[0]

    def read(layer: Layer, positions: torch.Tensor, prefix: torch.Tensor | None) -> dict[int, Any]:
        whole = positions if prefix is None else torch.cat([prefix, positions], 1)
        own = {}
        for i, site in wanted.items():
            if site.layer.name == layer.name:
                x = whole
                if site.projection:
                    inner = given[site.projection]
                    x = inner.reshape(len(whole), -1, inner.shape[-1])
                mean = site.what.name == "ablate mean"
                own[i] = x.sum(0, dtype=torch.float64) if mean else x.to("cpu", copy=True)
        return own

    kept = sum(
        (max(s.layer.positions, 1) + s.layer.prefix_tokens) * s.layer.channels
        for s in wanted.values()
        if s.what.name == "ablate resample"
    )
    check_fits(
        8 * kept * len(images),
        f"{len(images)} reference images to resample from",
        "give fewer of them",
        ImagesError,
    )
    layers = list({s.layer.name: s.layer for s in wanted.values()}.values())
    inputs = [s.projection for s in wanted.values() if s.projection]
    with hooked(model.module, inputs, lambda _call: None, see) if inputs else nullcontext():
        for piece in stream(
            model, images, layers, read, batch_size=batch_size, title=f"{model.name}: reference"
        ):
            for i, part in itertools.chain.from_iterable(d.items() for d in piece.found.values()):
                if wanted[i].what.name == "ablate mean":
                    found[i] = found.get(i, 0) + part
                else:
                    found.setdefault(i, []).append(part)
            n += piece.n
    return [
        replace(s, reference=torch.cat(found[i]) if isinstance(found[i], list) else found[i] / n)
        if i in found
        else s
        for i, s in enumerate(sites)
    ]


@checked(ImagesError)
def reference_means(
    model: Model, layers: Sequence[Layer], images: ImageSource | torch.Tensor, batch_size: int = 64
) -> dict[str, np.ndarray]:
    """Means over images [token, channel] of every layer, prefix tokens first, from one pass: the
    values of `fixed` that make it an ablation to the mean."""
    sites = [_Site(layer, ablate("mean")) for layer in layers]
    found = _with_references(model, sites, as_source(images), batch_size)
    return {s.layer.name: s.reference.cpu().numpy() for s in found if s.reference is not None}


# -- passes ----------------------------------------------------------------------------------------


class _Session:
    """The state of one context: which images pass, and what is made of each output."""

    passes: Passes

    def __init__(self, sites: Sequence[_Site]) -> None:
        self.active = True
        self._outputs: dict[tuple[str, int], list[_Site]] = {}
        self._inputs: dict[tuple[str, int], list[_Site]] = {}
        for site in sites:
            where = self._inputs if site.projection else self._outputs
            where.setdefault(site.place, []).append(site)
        # Images counted before the batch, those of the batch, and the batch before.
        self._next, self._rows = 0, np.arange(0)
        self._before: torch.Tensor | None = None
        self._blank = False

    def before(self, call: Call) -> tuple[Any, ...] | None:
        """At the beginning of a pass its images are counted; inputs of projections are changed."""
        if not self.active:
            return None
        if not call.path:
            self.passes.finished.clear()
            self._begin(call.args[0] if call.args else None)
            return None
        sites = self._inputs.get((call.path, call.number))
        if not sites:
            return None
        given: torch.Tensor = call.args[0]
        x = given.reshape(len(self._rows) or len(given), -1, given.shape[-1])
        for site in sites:
            x = self._changed(site, x)
        return (_like(given, x.reshape(given.shape)), *call.args[1:])

    def after(self, call: Call) -> torch.Tensor | None:
        """The changed output of a layer; None leaves it as it is."""
        sites = self._outputs.get((call.path, call.number)) if self.active else None
        if not sites:
            return None
        output: torch.Tensor = call.output
        for site in sites:
            if site.what.name == "ablate skip":
                given = call.args[0] if call.args else None
                if not isinstance(given, torch.Tensor) or given.shape != output.shape:
                    raise LayerError(
                        f"'{site.layer.name}' returns another shape than it is given, so it cannot "
                        "be skipped; use ablate('mean')"
                    )
                output = _like(output, given)
            else:
                x = self._changed(site, tokens(output, site.layer))
                output = _like(output, raw(x, site.layer, output.shape))
        return output

    def _begin(self, batch: Any) -> None:
        """Which images pass: by the stream's own count, or counted on."""
        if not isinstance(batch, torch.Tensor):
            self._rows, self._blank = np.arange(0), False
            return
        n, first = len(batch), first_image()
        batch = batch.detach()
        # Blank images, with which the package counts outputs, are none of the images.
        self._blank = first is None and not bool(batch.any())
        if first is None and not self._blank:
            before = self._before
            again = (
                before is not None
                and n <= len(before)
                and before.shape[1:] == batch.shape[1:]
                and before.dtype == batch.dtype
                and before.device == batch.device
                and torch.equal(before[:n], batch)
                # Copies of one image are as many images.
                and not (n > 1 and torch.equal(batch[1:], batch[:-1]))
            )
            if again:
                self._next -= len(before)  # type: ignore[arg-type]
            first, self._before = self._next, batch.clone()
            self._next += n
        self._rows = (first or 0) + np.arange(n)

    def _changed(self, site: _Site, x: torch.Tensor) -> torch.Tensor:
        """Values [image, token, channel] after an intervention."""
        rows = None if site.tokens is None else site.tokens.to(x.device)
        columns = None if site.channels is None else site.channels.to(x.device)

        def part(values: torch.Tensor) -> torch.Tensor:
            """The selected tokens and channels, of values that have these as their last axes."""
            if rows is not None:
                values = values.index_select(-2, rows.to(values.device))
            if columns is not None:
                values = values.index_select(-1, columns.to(values.device))
            return values

        new = self._new(site, x, part)
        if rows is None and columns is None:
            # A gradient of zero, where the values no longer depend on the input.
            return x.clone().copy_(new) if x.requires_grad else new.expand(x.shape)
        whole = x.clone()
        if rows is None:
            whole[:, :, columns] = new
        elif columns is None:
            whole[:, rows] = new
        else:
            whole[:, rows[:, None], columns] = new
        return whole

    def _new(
        self, site: _Site, x: torch.Tensor, part: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """The values of the selected part, or what broadcasts to them."""
        what, own = site.what, part(x)
        match what.name.split():
            case ["scale", *_]:
                return own * what.factor
            case ["noise", *_]:
                return own + self._noise(site, own)
            case ["edit", *_] if what.change is not None:
                return what.change(own)
            case ["patch"]:
                return part(self._stored(site, x))
            case ["fixed"]:
                return part(torch.from_numpy(np.asarray(what.values)).to(x.device, x.dtype))
            case ["ablate", "zero"]:
                return torch.zeros_like(own)
            case ["ablate", "mean"]:
                mean = (
                    own.detach().mean(0, dtype=_wide(x))
                    if site.reference is None
                    else part(site.reference)
                )
                return mean.to(x.device, x.dtype)
        reference = site.reference
        if reference is not None:
            n = len(reference)
            others = [(i + 1 + self._draw(what.seed, i, n - 1)) % n for i in self._numbers(len(x))]
            return part(reference[others]).to(x.device, x.dtype)
        if self._blank:
            return own
        if len(own) < 2:
            raise ImagesError(
                f"'{site.layer.name}' of one image cannot be resampled from its own batch: give "
                "images to intervene, from which others are taken"
            )
        # Each takes the place of the next in a random circle, so that none keeps its own.
        circle = np.random.default_rng((what.seed, self._numbers(len(x))[0])).permutation(len(x))
        before = np.roll(circle, 1)[np.argsort(circle)]
        return own.detach()[torch.from_numpy(before).to(x.device)]

    def _numbers(self, n: int) -> list[int]:
        """The indices of the images of the batch."""
        return [int(i) for i in self._rows] if len(self._rows) == n else list(range(n))

    @staticmethod
    def _draw(seed: int, i: int, n: int) -> int:
        return int(np.random.default_rng((seed, i)).integers(n)) if n > 1 else 0

    def _noise(self, site: _Site, own: torch.Tensor) -> torch.Tensor:
        """Noise by image, the same wherever an image stands in a batch."""
        what, drawn = site.what, []
        for i in self._numbers(len(own)):
            seed = int(digest(f"{what.seed} {i} {site.layer.name}")[:15], 16)
            generator = torch.Generator().manual_seed(seed)
            drawn.append(torch.randn(own.shape[1:], generator=generator, dtype=torch.float64))
        sd = torch.full((len(own), 1, 1), what.sd, dtype=torch.float64, device=own.device)
        if what.relative:
            sd = sd * own.detach().double().flatten(1).std(1, correction=0)[:, None, None]
        return (torch.stack(drawn).to(own.device) * sd).to(own.dtype)

    def _stored(self, site: _Site, x: torch.Tensor) -> torch.Tensor:
        """Stored activations [image, token, channel] of the images that pass."""
        reps: Any = site.what.values
        layer, rows = site.layer, np.array(self._numbers(len(x))) % len(site.what.values.ids)  # type: ignore[union-attr]
        values = np.asarray(reps.rows(layer.name, rows)).reshape(
            len(x), max(layer.positions, 1), layer.channels
        )
        if layer.prefix_tokens:
            values = np.concatenate([reps.prefix(layer.name)[rows], values], axis=1)
        return torch.from_numpy(np.array(values)).to(x.device, x.dtype)


def _wide(x: torch.Tensor) -> torch.dtype:
    return x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32


def _like(output: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The values in memory as `output` has them, so that what follows computes in the same order,
    to the last bit."""
    strides = output.stride()
    if any(step == 0 for step, size in zip(strides, output.shape, strict=True) if size > 1):
        return values.contiguous()
    like = torch.empty_strided(output.shape, strides, dtype=output.dtype, device=output.device)
    return like.copy_(values)
