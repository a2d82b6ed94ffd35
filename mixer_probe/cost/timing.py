"""Throughput: how long a forward pass takes, measured warm."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mixer_probe.core.errors import MeasureError
from mixer_probe.core.switches import evaluating
from mixer_probe.core.validate import check_count, checked
from mixer_probe.models.model import Model

RUNS = 15
WARM_RUNS = 3


@checked(MeasureError)
def time_forward(model: Model, batch_size: int = 32, runs: int = RUNS) -> np.ndarray:
    """Seconds [runs] that each forward pass of one batch of noise takes, after three passes that are not timed.

    As `time_together`, of one network."""
    return np.asarray(time_together([model], batch_size, runs)[0])


@checked(MeasureError)
def time_together(models: Sequence[Model], batch_size: int = 32, runs: int = RUNS) -> np.ndarray:
    """Seconds [model, run] of forward passes of one batch of noise, the networks in turns.

    Whatever else a machine does comes and goes; in turns it meets all networks alike, so that their ratios stay. Three rounds
    that are not timed go before. Without gradients, each in its own type; a device with a queue of its own is waited for before
    and after each pass. Raises MeasureError for less than one run or image, and where the batch does not fit into memory."""
    check_count("runs", runs, MeasureError)
    batches = [_noise(model, batch_size) for model in models]
    try:
        rounds = [[_timed(m, batch) for m, batch in zip(models, batches, strict=True)] for _ in range(WARM_RUNS + runs)]
    except torch.OutOfMemoryError as error:
        raise MeasureError(f"{batch_size} images do not fit into memory; use a smaller batch") from error
    return np.array(rounds[WARM_RUNS:]).T


def _noise(model: Model, batch_size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch_size, *model.input.size, generator=generator).to(model.device, model.dtype)


def _timed(model: Model, batch: torch.Tensor) -> float:
    with evaluating(model.module), torch.no_grad():
        _wait(batch.device)
        start = time.perf_counter()
        model.module(batch)
        _wait(batch.device)
        return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def device_name(device: torch.device) -> str:
    """What to call a device beside a time: the card, or the processor and its threads."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}"
    return f"{platform.machine()} ({device.type})"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())
