"""Hooks to activations: capture in a context, streaming extraction, and the on-disk store."""

from mixer_probe.capture.analysis_inputs import Inputs
from mixer_probe.capture.extraction import extract
from mixer_probe.capture.hooks import (
    Reducer,
    capture,
    every_position,
    first_prefix_token,
    mean_over_positions,
)
from mixer_probe.capture.interventions import (
    Intervention,
    ablate,
    edit,
    fixed,
    intervene,
    noise,
    patch,
    reference_means,
    scale,
)
from mixer_probe.capture.representations import Representations, RunRecord
from mixer_probe.capture.run_files import open_run
from mixer_probe.capture.stream import (
    ImageSource,
    Piece,
    Reading,
    TensorImages,
    as_source,
    check_parts,
    input_pictures,
    part_of,
    pixel_batches,
    stream,
    to_host,
)

__all__ = [
    "ImageSource",
    "Inputs",
    "Intervention",
    "Piece",
    "Reading",
    "Reducer",
    "Representations",
    "RunRecord",
    "TensorImages",
    "ablate",
    "as_source",
    "capture",
    "check_parts",
    "edit",
    "every_position",
    "extract",
    "first_prefix_token",
    "fixed",
    "input_pictures",
    "intervene",
    "mean_over_positions",
    "noise",
    "open_run",
    "part_of",
    "patch",
    "pixel_batches",
    "reference_means",
    "scale",
    "stream",
    "to_host",
]
