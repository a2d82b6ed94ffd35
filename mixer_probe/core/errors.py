"""The errors this package raises on purpose: one clear sentence each, saying what was wrong and
what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class MixerProbeError(Exception):
    """Base of every error raised on purpose; the command line prints it as one line and exits with
    2."""


class ModelError(MixerProbeError, ValueError):
    """A model that is unknown, of an unknown family, or whose weights are unavailable."""


class CheckpointError(ModelError):
    """A checkpoint that is missing, truncated, not plain data, or made for another network."""


class LayerError(MixerProbeError, KeyError):
    """A layer name that matches nothing, or a layer that cannot give what was asked of it."""

    def __str__(self) -> str:
        # KeyError would print the repr of the message.
        return str(self.args[0]) if self.args else ""


class ImagesError(MixerProbeError, ValueError):
    """Images that are missing, unreadable, or unlabelled where labels are needed."""


class StoreError(MixerProbeError, ValueError):
    """A stored run or result that is unfinished, of another version, or in the way."""


class MeasureError(MixerProbeError, ValueError):
    """Input that a measure is not defined on: wrong shape, too few images, constant features."""


class MixerProbeWarning(UserWarning):
    """Base of the warnings raised on purpose."""


class NonFiniteWarning(MixerProbeWarning):
    """Activations that are NaN or infinite; the values are kept."""


class UndefinedSimilarityWarning(MixerProbeWarning):
    """Cells of a similarity matrix that are NaN because a layer is constant or not finite, or the
    images are too few."""


class UndefinedUnitsWarning(MixerProbeWarning):
    """Units of constant or not finite weight, which have no frequency, orientation or phase; these
    are NaN."""


class DegenerateWeightsWarning(MixerProbeWarning):
    """Weights that are all zero or not finite, whose ranks or similarities are NaN."""


class UndefinedProbeWarning(MixerProbeWarning):
    """Layers or images that a probe leaves out because what it reads, or reads from, is constant or
    undefined there."""


class OutOfMemoryWarning(MixerProbeWarning):
    """The batch was halved after the device ran out of memory."""


class ImagesWarning(MixerProbeWarning):
    """Something about the images that a reader of the results should know."""


class UndefinedKernelWarning(MixerProbeWarning):
    """Numbers of a spatial kernel that are NaN because it is zero, or the same for all pairs of
    positions."""


class UndefinedChannelsWarning(MixerProbeWarning):
    """Channels that are constant or not finite, which select no class and correlate with nothing;
    these are NaN."""


class UndefinedConceptsWarning(MixerProbeWarning):
    """Concepts that are in no image, which no channel can mark; these are NaN."""


class UnconvergedWarning(MixerProbeWarning):
    """A fit that ended before its gradient was as small as asked for."""


class IncompleteAttributionWarning(MixerProbeWarning):
    """Attributions that should add up to the difference of two logits and do not, within the
    tolerance asked for."""


class EmptyAttributionWarning(MixerProbeWarning):
    """Images whose attribution is zero everywhere, so that it ranks no pixel above another."""


class UndefinedInvarianceWarning(MixerProbeWarning):
    """Networks right no more often than chance, or right on all images or none: what a distortion
    takes is not defined there."""


class UndefinedVisualizationWarning(MixerProbeWarning):
    """Units that no pixel moves, so that no image excites them more than another; their activations
    are NaN."""


def closest(name: str, known: Iterable[str], n: int = 5) -> str:
    """The names of `known` most like `name`, as text to end an error sentence with."""
    pool = list(known)
    close = difflib.get_close_matches(name, pool, n=n, cutoff=0.4)
    if not close:
        # difflib misses prefixes of much longer names: "blocks.0" in "blocks.0.mlp_tokens.fc1".
        close = [candidate for candidate in pool if name in candidate][:n]
    if close:
        return "closest: " + ", ".join(close)
    return "known: " + ", ".join(pool[:n]) + (", ..." if len(pool) > n else "")


def layer_index(key: int | str, paths: Sequence[tuple[str, ...]], model: str, noun: str) -> int:
    """Index of a layer given by number (negative counts from the end) or by one of its `paths`
    [layer].

    Raises LayerError with the range or close paths; `noun` is what the layers are called:
    "block"."""
    if isinstance(key, str):
        found = next((i for i, own in enumerate(paths) if key in own), None)
        if found is None:
            known = dict.fromkeys(path for own in paths for path in own)
            raise LayerError(f"no {noun} '{key}' in {model}; {closest(key, known)}")
        return found
    if not -len(paths) <= key < len(paths):
        raise LayerError(f"{model} has {noun}s 0 to {len(paths) - 1}, not {key}")
    return key % len(paths)
