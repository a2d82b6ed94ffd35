"""Networks of a study analysed in parallel processes, which fill the folder of finished steps that
the study then reads."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from mixer_probe.core.errors import MixerProbeError, MixerProbeWarning
from mixer_probe.core.fingerprint import learn_keys
from mixer_probe.core.progress import task
from mixer_probe.core.settings import StudySettings
from mixer_probe.core.threads import available_cores, use_cores
from mixer_probe.images import Images
from mixer_probe.models import Model
from mixer_probe.study.result_cache import ResultCache
from mixer_probe.study.study import Study


def fill_steps(
    loaders: Sequence[Callable[[], Model]],
    images: Images,
    train: Images | None,
    settings: StudySettings,
    store: Path | None,
    steps: ResultCache,
    workers: int,
    names: Mapping[str, Sequence[str]] | None = None,
    shared: Mapping[str, Any] | None = None,
) -> None:
    """Compute what a study says of each network alone, `workers` networks in parallel, which divide
    the cores. `names` and `shared` are those of `Study`.

    Results are kept in `steps` and representations in `store`, where `run_study` of the same finds
    them. What cannot be computed here is left to that study, which raises its error. Warnings are
    given again in this process."""
    context, waiting = get_context("spawn"), list(loaders)
    known = images.known_keys() | (train.known_keys() if train is not None else {})
    running: dict[Connection, SpawnProcess] = {}
    try:
        with task("networks in parallel", len(loaders)) as advance:
            while waiting or running:
                while waiting and len(running) < workers:
                    here, there = context.Pipe(duplex=False)
                    given = (
                        there,
                        waiting.pop(0),
                        images,
                        train,
                        settings,
                        store,
                        steps,
                        names,
                        dict(shared or {}),
                        known,
                        max(1, available_cores() // workers),
                    )
                    process = context.Process(target=_fill, args=given, daemon=True)
                    process.start()
                    there.close()
                    running[here] = process
                ready = wait(list(running))
                for end in [end for end in running if end in ready]:
                    # The end of a process that was killed is the end of its messages.
                    with suppress(EOFError):
                        for message, category in end.recv():
                            warnings.warn(message, category, stacklevel=2)
                    running.pop(end).join()
                    advance(1)
    finally:
        for process in running.values():
            process.terminate()


def _fill(
    there: Connection,
    loader: Callable[[], Model],
    images: Images,
    train: Images | None,
    settings: StudySettings,
    store: Path | None,
    steps: ResultCache,
    names: Mapping[str, Sequence[str]] | None,
    shared: dict[str, Any],
    known: dict[str, tuple[int, str]],
    cores: int,
) -> None:
    parent = parent_process()
    assert parent is not None

    def leave_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
    use_cores(cores)
    learn_keys(known)
    found: list[tuple[str, Any]] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with suppress(MixerProbeError):
            study = Study(images, train, settings, store, steps, names, shared=shared)
            study.add(loader())
        found = [
            (str(w.message), w.category)
            for w in caught
            if issubclass(w.category, MixerProbeWarning)
        ]
    there.send(list(dict.fromkeys(found)))
