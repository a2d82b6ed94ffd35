"""Cached results and networks, in memory and across restarts.

A result is looked up in memory, then on the disk, and only then computed, by a worker beside the
page: a click meanwhile does not lose the work, and the page can stop it."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar
from weakref import WeakValueDictionary

import streamlit as st
import torch

import mixer_probe as mp
from mixer_probe.core.errors import MixerProbeError, MixerProbeWarning, ModelError
from mixer_probe.core.progress import listen
from mixer_probe.core.validate import shown
from mixer_probe.models import Model, check_name
from mixer_probe_app import disk
from mixer_probe_app.choice import CHECKPOINT, MOST, RUN, UNTRAINED, device
from mixer_probe_app.local_files import resolve
from mixer_probe_app.messages import Cancelled, plain

T = TypeVar("T")
Queue = Literal["work", "draw"]

# How many results of a kind stay in memory; representations, activations and pictures are the large
# ones.
_SIZES = {
    "representations": 2 * MOST,
    "pictures": 48,
    "reports": 2,
    "sections": 4,
    "images": 6,
    "token-mixing units": 8,
    "unit activations": 24,
}
_USUAL_SIZE = 64
# In seconds: a computation ends when no page has waited for it for so long, and a page looks for
# its result so often.
_PATIENCE, _MOMENT = 5.0, 0.1


@dataclass(frozen=True)
class CachedResult:
    """A result and the warnings that came with it."""

    value: Any
    warnings: tuple[str, ...]


@dataclass
class Slot:
    """Where a result stays in memory, None before it is computed."""

    result: CachedResult | None = None


@st.cache_resource(show_spinner=False)
def slots(kind: str) -> Callable[[Hashable], Slot]:
    """The slots of one kind by key, shared by all sessions; those least recently used leave
    first."""
    return lru_cache(_SIZES.get(kind, _USUAL_SIZE))(lambda key: Slot())


# -- computations ----------------------------------------------------------------------------------


class Stopped(BaseException):
    """A computation that nobody waits for any more. No `except Exception` of a study keeps it from
    ending."""


class Job:
    """A computation under way, and the last step that it reported as (name, done, total)."""

    def __init__(self, compute: Callable[[], Any]) -> None:
        self.compute = compute
        self.future: Future[CachedResult] = Future()
        self.stopped = threading.Event()
        self.step: tuple[str, int, int] | None = None
        self.watch()

    def watch(self) -> None:
        """Say that somebody waits for it."""
        self._watched = time.monotonic()

    @property
    def unwanted(self) -> bool:
        """Whether it was stopped, or nobody has waited for a while."""
        return self.stopped.is_set() or time.monotonic() - self._watched > _PATIENCE

    def report(self, step: str, done: int, total: int) -> None:
        """What `mixer_probe.core.progress` calls at every step; raises Stopped."""
        self.step = (step, done, total)
        if self.unwanted:
            raise Stopped


class Worker:
    """Does one job after the other. Progress and warnings belong to the whole process: only the
    queue "work" observes them."""

    def __init__(self, queue: Queue) -> None:
        self._observes = queue == "work"
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"mixer-probe-{queue}")
        self._jobs: dict[Hashable, Job] = {}
        self._lock = threading.Lock()

    def join(self, key: Hashable, compute: Callable[[], Any]) -> Job:
        """The job under `key` that is under way, or a new one."""
        with self._lock:
            job = self._jobs.get(key)
            if job is None or job.unwanted:
                job = self._jobs[key] = Job(compute)
                self._pool.submit(self._run, key, job)
            job.watch()
            return job

    def _run(self, key: Hashable, job: Job) -> None:
        found, error = None, None
        try:
            if job.unwanted:
                raise Stopped
            if self._observes:
                listen(job.report)
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("ignore")
                    warnings.simplefilter("always", MixerProbeWarning)
                    value = job.compute()
                found = CachedResult(value, tuple(dict.fromkeys(str(w.message) for w in caught)))
            else:
                found = CachedResult(job.compute(), ())
        except BaseException as raised:
            error = raised
        finally:
            if self._observes:
                listen(None)
        with self._lock:
            if self._jobs.get(key) is job:
                del self._jobs[key]
        # In this order: who has the result may ask for the same again, and joins no job that has
        # ended.
        if found is None:
            job.future.set_exception(error)
        else:
            job.future.set_result(found)


@st.cache_resource(show_spinner=False)
def worker(queue: Queue) -> Worker:
    """The worker for all computations, or that for drawing, which never waits for a computation."""
    return Worker(queue)


def cached(
    kind: str,
    key: Hashable,
    title: str,
    compute: Callable[[], T],
    *,
    queue: Queue = "work",
    on_disk: bool = True,
    warn: bool = True,
) -> T:
    """The result cached under `key`, or a new one, with a progress bar under `title` and a button
    to stop meanwhile.

    `key` has to name everything that decides the result: hashes of weights and images, and the
    settings. With `on_disk` results stay across restarts; with `warn` their warnings are shown at
    every visit. `compute` runs in another thread: it must not call Streamlit. Raises what `compute`
    raises, and Cancelled where the person stopped it, which `guarded` takes."""
    found = lookup(kind, key)
    if found is None:
        found = slots(kind)(key).result = _wait(kind, key, title, compute, queue)
        if on_disk:
            disk.write(kind, key, found.value, found.warnings)
    for text in found.warnings if warn else ():
        st.warning(plain(text), icon=":material/warning:")
    value: T = found.value
    return value


def lookup(kind: str, key: Hashable) -> CachedResult | None:
    """The result of an earlier computation, in memory or on the disk; None where there is none."""
    slot = slots(kind)(key)
    if slot.result is None and (stored := disk.read(kind, key)) is not None:
        slot.result = CachedResult(*stored)
    return slot.result


def _wait(
    kind: str, key: Hashable, title: str, compute: Callable[[], Any], queue: Queue
) -> CachedResult:
    """Wait for the job while the page shows its progress. Every look at the page is also where
    Streamlit can rerun it."""
    name = (kind, key)
    cancelled: set[Hashable] = st.session_state.setdefault("cancelled", set())
    if name in cancelled:
        st.info(f"{plain(title)}: stopped.", icon=":material/stop_circle:")
        st.button("Resume", key=f"go on {name}", on_click=cancelled.discard, args=(name,))
        raise Cancelled
    job = worker(queue).join(name, compute)
    place, bar = None, None
    try:
        while True:
            try:
                return job.future.result(timeout=_MOMENT)
            except NotYet:
                if job.future.done():
                    raise
            except Stopped:
                st.info("This calculation was stopped.", icon=":material/stop_circle:")
                st.button("Resume", key=f"again {id(job)}")
                raise Cancelled from None
            if place is None or bar is None:
                place = st.empty()
                with place.container(horizontal=True, vertical_alignment="center"):
                    bar = st.progress(0.0, text=plain(title))
                    # Not the job: Streamlit keeps what a button is given, and a job keeps its
                    # result.
                    stop: dict[str, Any] = {"on_click": _stop, "args": (name, job.stopped)}
                    st.button("Stop", key=f"stop {name}", icon=":material/stop:", **stop)
            job.watch()
            if job.step is not None:
                step, done, total = job.step
                bar.progress(
                    min(1.0, done / max(1, total)),
                    f"{plain(title)} · {plain(step)} ({done} of {total})",
                )
            else:
                bar.progress(0.0, plain(title))
    finally:
        if place is not None:
            place.empty()


def _stop(name: Hashable, stopped: threading.Event) -> None:
    st.session_state["cancelled"].add(name)
    stopped.set()


# -- networks --------------------------------------------------------------------------------------


@st.cache_resource(show_spinner=False)
def networks() -> WeakValueDictionary[tuple[str, str], Model]:
    """The networks in memory by choice and device. Only sessions hold them: one that nobody looks
    at leaves memory."""
    return WeakValueDictionary()


def hold_networks(names: Iterable[str]) -> None:
    """Hold the networks that this session looks at, and let go of the others."""
    held: dict[tuple[str, str], Model] = st.session_state.setdefault("networks", {})
    left = held.keys() - {(name, device()) for name in names}
    # In place: the state of a session holds a value that was replaced until the next run.
    for name in left:
        del held[name]
    if left and torch.cuda.is_available():
        torch.cuda.empty_cache()


def model(choice: str) -> Model:
    """The network `choice`. Raises ModelError; a failure is remembered, since looking for weights
    can take a minute."""
    failed: dict[str, str] = st.session_state.setdefault("failed models", {})
    if choice in failed:
        raise ModelError(failed[choice])
    name = (choice, device())
    found = networks().get(name)
    if found is None:
        try:
            found = _wait("models", name, f"Loading {choice}", lambda: load(*name), "work").value
        except MixerProbeError as error:
            failed[choice] = str(error)
            raise
        networks()[name] = found
    st.session_state.setdefault("networks", {})[name] = found
    return found


def load(choice: str, device: str) -> Model:
    """A network from its choice. Raises ModelError, CheckpointError, StoreError."""
    if choice.startswith(CHECKPOINT):
        label, _, architecture = choice.removeprefix(CHECKPOINT).rpartition("@")
        # What is behind other names than timm's would be read from elsewhere.
        if any(mark in architecture for mark in ":/\\"):
            raise ModelError(
                "a checkpoint is of a network of timm by name, such as resnet18, not "
                f"{shown(architecture)}"
            )
        check_name(architecture)
        name = f"{architecture} from {label.rpartition('/')[2]}"
        return mp.load_model(
            architecture, checkpoint=resolve(label, "checkpoint"), device=device, name=name
        )
    if choice.startswith(RUN):
        raise ModelError(
            f"'{choice.removeprefix(RUN)}' is a stored run: it has representations, for Similarity "
            "and Probes, and no network; this page needs the network itself"
        )
    if choice.startswith("zoo:"):
        return mp.load_model(choice, device=device)
    if ":" in choice:
        raise ModelError(
            f"'{choice}' is neither a bundled network nor a timm name; `mixer-probe report` on a "
            "command line takes it"
        )
    return mp.load_model(
        choice.removesuffix(UNTRAINED), pretrained=not choice.endswith(UNTRAINED), device=device
    )
