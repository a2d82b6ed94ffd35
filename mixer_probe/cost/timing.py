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
    """Seconds [runs] of each forward pass of one batch of noise, after three warm-up passes:
    `time_together` of one network."""
    return np.asarray(time_together([model], batch_size, runs)[0])


@checked(MeasureError)
def time_together(models: Sequence[Model], batch_size: int = 32, runs: int = RUNS) -> np.ndarray:
    """Seconds [model, run] of forward passes of one batch of noise, the networks in turns.

    In turns the other load of a machine affects all networks alike, so that ratios of their times
    are stable. Three warm-up rounds precede and are not timed. Without gradients, each network in
    its own type; CUDA and MPS devices are synchronised before and after each pass. Raises
    MeasureError for less than one run or image, and for a batch that exceeds memory."""
    check_count("runs", runs, MeasureError)
    batches = [
        torch.randn(batch_size, *m.input.size, generator=torch.Generator().manual_seed(0)).to(
            m.device, m.dtype
        )
        for m in models
    ]
    seconds = np.empty((len(models), WARM_RUNS + runs))
    try:
        for run in range(WARM_RUNS + runs):
            for i, (model, batch) in enumerate(zip(models, batches, strict=True)):
                with evaluating(model.module), torch.no_grad():
                    _synchronise(batch.device)
                    start = time.perf_counter()
                    model.module(batch)
                    _synchronise(batch.device)
                    seconds[i, run] = time.perf_counter() - start
    except torch.OutOfMemoryError as error:
        raise MeasureError(
            f"{batch_size} images do not fit into memory; use a smaller batch"
        ) from error
    return seconds[:, WARM_RUNS:]


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def device_name(device: torch.device) -> str:
    """The name of a device for reported times: the GPU, or the processor and its number of
    threads."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    if device.type != "cpu":
        return f"{platform.machine()} ({device.type})"
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = next(iter(names), platform.processor() or platform.machine())
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"
