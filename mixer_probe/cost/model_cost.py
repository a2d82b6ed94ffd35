"""`model_cost`: what a network costs - parameters, multiply-accumulates, memory of activations, and
time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
import pandas as pd

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.cost.counting import MacParts, count_parts, head_parameters
from mixer_probe.cost.memory import peak_activation_bytes
from mixer_probe.cost.timing import RUNS, device_name, time_together
from mixer_probe.models.model import Model
from mixer_probe.stats import median_interval


@dataclass(frozen=True)
class ModelCost(Result):
    """The cost of one network on `device` in the type `dtype`, for batches of `batch_size` images
    of `input_size`.

    `head_parameters` are those of the classifier, part of `model.parameters`. `macs` are of one
    image. `peak_bytes` are the activations alive at once in a forward pass of one batch, the batch
    included (`peak_activation_bytes`). `seconds` [run] are the times of forward passes of one
    batch, measured warm (`time_together`); none where time was not measured."""

    title: ClassVar[str] = "Cost"

    model: ModelRecord
    input_size: tuple[int, int, int]
    head_parameters: int
    macs: MacParts
    device: str
    dtype: str
    batch_size: int
    peak_bytes: int
    seconds: np.ndarray

    @property
    def bytes_per_image(self) -> float:
        """Peak bytes of activations divided by the images of the batch."""
        return self.peak_bytes / self.batch_size

    @property
    def throughput(self) -> float:
        """Images per second: batch size over the median time; NaN where time was not measured."""
        return (
            self.batch_size / float(np.median(self.seconds)) if len(self.seconds) else float("nan")
        )

    @property
    def throughput_interval(self) -> tuple[float, float]:
        """95 % interval (low, high) of the throughput over passes; NaN where time was not
        measured."""
        if not len(self.seconds):
            return float("nan"), float("nan")
        fast, slow = median_interval(self.seconds)
        return self.batch_size / slow, self.batch_size / fast

    def to_frame(self) -> pd.DataFrame:
        """One row."""
        low, high = self.throughput_interval
        parts = {f"{f.name}_macs": getattr(self.macs, f.name) for f in fields(self.macs)}
        row = {
            "model": self.model.name,
            "family": self.model.family,
            "input": "×".join(map(str, self.input_size)),
            "parameters": self.model.parameters,
            "head_parameters": self.head_parameters,
            "macs": self.macs.total,
            **parts,
            "batch_size": self.batch_size,
            "peak_activation_bytes": self.peak_bytes,
            "images_per_second": self.throughput,
            "low": low,
            "high": high,
            "runs": len(self.seconds),
            "dtype": self.dtype,
            "device": self.device,
        }
        return pd.DataFrame([row])


@checked(MeasureError)
def model_cost(model: Model, *, batch_size: int = 32, runs: int = RUNS) -> ModelCost:
    """The cost of one network on its device. `runs` = 0 counts only.

    Raises MeasureError for a batch of no images and one that does not fit into memory."""
    return model_costs([model], batch_size=batch_size, runs=runs)[0]


@checked(MeasureError)
def model_costs(
    models: Sequence[Model], *, batch_size: int = 32, runs: int = RUNS
) -> list[ModelCost]:
    """`model_cost` of several networks, all in memory, timed in turns so that their times are
    comparable."""
    seconds = time_together(models, batch_size, runs) if runs else np.empty((len(models), 0))
    return [
        ModelCost(
            model=model.record,
            input_size=model.input.size,
            head_parameters=head_parameters(model),
            macs=count_parts(model),
            device=device_name(model.device),
            dtype=str(model.dtype).removeprefix("torch."),
            batch_size=batch_size,
            peak_bytes=peak_activation_bytes(model, batch_size),
            seconds=row,
        )
        for model, row in zip(models, seconds, strict=True)
    ]
