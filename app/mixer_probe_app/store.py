"""What the app keeps between clicks and across restarts: networks, and results by what they were made from.

A result is looked for in memory, then on the disk, and only then made, by a worker beside the page: a click meanwhile does not
lose the work, and the page can stop it."""

from __future__ import annotations

import threading
import time
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import streamlit as st
import torch

import mixer_probe as mp
from mixer_probe.core.errors import MixerProbeError, MixerProbeWarning, ModelError
from mixer_probe.core.progress import listen
from mixer_probe.core.validate import shown
from mixer_probe.models import Model, check_name
from mixer_probe_app import disk
from mixer_probe_app.choice import CHECKPOINT, MOST, RUN, UNTRAINED, device
from mixer_probe_app.messages import Halted, plain
from mixer_probe_app.offers import resolve

T = TypeVar("T")
Lane = Literal["work", "draw"]

# How many results of a kind are kept in memory; representations, activations and pictures are the large ones.
_SIZES = {"representations": 2 * MOST, "pictures": 48, "reports": 2, "images": 6, "token mixing": 8, "firing": 24}
_USUAL_SIZE = 64
# After so many seconds without a page that waits for it, a calculation stops.
_PATIENCE = 5.0
_MOMENT = 0.1


@dataclass(frozen=True)
class Kept:
    """A result and the warnings that came with it."""

    value: Any
    warnings: tuple[str, ...]


class Shelf:
    """The `size` things last used, by key."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[Hashable, Kept] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Kept | None:
        """What is kept under `key`."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def put(self, key: Hashable, kept: Kept) -> None:
        """Keep it, and let go of what was not used for longest."""
        with self._lock:
            self._kept[key] = kept
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)

    def __len__(self) -> int:
        return len(self._kept)


@st.cache_resource(show_spinner=False)
def shelf(kind: str) -> Shelf:
    """The results of one kind, shared by all sessions."""
    return Shelf(_SIZES.get(kind, _USUAL_SIZE))


# -- calculations ------------------------------------------------------------------------------------------------------------


class Stopped(BaseException):
    """A calculation that nobody waits for any more. No `except Exception` of a study keeps it from ending."""


class Job:
    """A calculation under way. `watch` says that somebody still waits for it."""

    def __init__(self, work: Callable[[], Kept]) -> None:
        self._work = work
        self._watched = time.monotonic()
        self.stopped = threading.Event()
        self.step: tuple[str, int, int] | None = None
        self.future: Future[Kept] = Future()

    def watch(self) -> None:
        """Somebody waits."""
        self._watched = time.monotonic()

    def stop(self) -> None:
        """End it at its next step."""
        self.stopped.set()

    @property
    def unwanted(self) -> bool:
        """Whether it was stopped, or nobody has waited for a while."""
        return self.stopped.is_set() or time.monotonic() - self._watched > _PATIENCE

    def report(self, step: str, done: int, total: int) -> None:
        """What `mixer_probe.core.progress` calls at every step; raises Stopped."""
        self.step = (step, done, total)
        if self.unwanted:
            raise Stopped

    def run(self) -> Callable[[], None]:
        """Do it; calling what is returned hands over what came of it."""
        try:
            if self.unwanted:
                raise Stopped
            value = self._work()
        except BaseException as error:
            return partial(self.future.set_exception, error)
        return partial(self.future.set_result, value)


class Worker:
    """Does one job after the other. Hooks sit on shared networks, and progress and warnings are of the whole process."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"mixer-probe-{lane}")
        self._jobs: dict[Hashable, Job] = {}
        self._lock = threading.Lock()

    def join(self, key: Hashable, work: Callable[[], Kept]) -> Job:
        """The job under `key` that is under way, or a new one."""
        with self._lock:
            job = self._jobs.get(key)
            if job is None or job.unwanted:
                job = self._jobs[key] = Job(work)
                self._pool.submit(self._run, key, job)
            job.watch()
            return job

    def _run(self, key: Hashable, job: Job) -> None:
        if self._lane == "work":
            listen(job.report)
        hand_over = job.run()
        if self._lane == "work":
            listen(None)
        with self._lock:
            if self._jobs.get(key) is job:
                del self._jobs[key]
        # In this order: who has the result may ask for the same again, and joins no job that has ended.
        hand_over()


@st.cache_resource(show_spinner=False)
def worker(lane: Lane) -> Worker:
    """The one that does all calculations, and the one that draws; drawing never waits for a calculation."""
    return Worker(lane)


def made(
    kind: str, key: Hashable, title: str, make: Callable[[], T], *, lane: Lane = "work", keep: bool = True, tell: bool = True
) -> T:
    """The result kept under `key`, or a new one from `make`, with a progress bar under `title` and a button to stop meanwhile.

    `key` has to name everything that decides the result: hashes of weights and images, and the settings. With `keep` results
    are also kept on the disk; with `tell` their warnings are shown at every visit. `make` runs in another thread: it must not
    call Streamlit. Raises what `make` raises, and Halted where the person stopped it, which `guarded` takes."""
    kept = find(kind, key)
    if kept is None:
        kept = _wait(kind, key, title, make, lane)
        shelf(kind).put(key, kept)
        if keep:
            disk.write(kind, key, kept.value, kept.warnings)
    for text in kept.warnings if tell else ():
        st.warning(plain(text), icon=":material/warning:")
    found: T = kept.value
    return found


def find(kind: str, key: Hashable) -> Kept | None:
    """What is kept of an earlier calculation, in memory or on the disk."""
    kept = shelf(kind).get(key)
    if kept is None and (stored := disk.read(kind, key)) is not None:
        kept = Kept(*stored)
        shelf(kind).put(key, kept)
    return kept


def _wait(kind: str, key: Hashable, title: str, make: Callable[[], Any], lane: Lane) -> Kept:
    """Wait for the job while the page shows how far it is. Every look at the page is also where Streamlit can begin it anew."""
    halted: set[Hashable] = st.session_state.setdefault("halted", set())
    name = (kind, key)
    if name in halted:
        st.info(f"{plain(title)}: stopped.", icon=":material/stop_circle:")
        st.button("Resume", key=f"go on {name}", on_click=halted.discard, args=(name,))
        raise Halted
    job = worker(lane).join(name, lambda: _observed(make, lane))
    if (kept := _quick(job)) is not None:
        return kept
    place = st.empty()
    with place.container(horizontal=True, vertical_alignment="center"):
        bar = st.progress(0.0, text=plain(title))
        st.button("Stop", key=f"stop {name}", on_click=_halt, args=(name, job.stopped), icon=":material/stop:")
    try:
        while (kept := _quick(job)) is None:
            job.watch()
            bar.progress(*_progress(title, job))
        return kept
    finally:
        place.empty()


def _halt(name: Hashable, stopped: threading.Event) -> None:
    # Not the job: Streamlit keeps what a button is given, and a job keeps its result.
    st.session_state["halted"].add(name)
    stopped.set()


def _quick(job: Job) -> Kept | None:
    """What came of the job, if it ends in this moment. Raises what it raised."""
    try:
        return job.future.result(timeout=_MOMENT)
    except NotYet:
        if job.future.done():
            raise
        return None
    except Stopped:
        # Another session stopped it while this one was waiting.
        st.info("This calculation was stopped.", icon=":material/stop_circle:")
        st.button("Resume", key=f"again {id(job)}")
        raise Halted from None


def _progress(title: str, job: Job) -> tuple[float, str]:
    if job.step is None:
        return 0.0, plain(title)
    step, done, total = job.step
    return min(1.0, done / max(1, total)), f"{plain(title)} · {plain(step)} ({done} of {total})"


def _observed(make: Callable[[], Any], lane: Lane) -> Kept:
    if lane == "draw":
        return Kept(make(), ())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", MixerProbeWarning)
        value = make()
    return Kept(value, tuple(dict.fromkeys(str(w.message) for w in caught)))


# -- networks ----------------------------------------------------------------------------------------------------------------


class Lease:
    """The networks that one session looks at. It ends with the session, since nothing else holds it."""

    def __init__(self) -> None:
        self.names: frozenset[tuple[str, str]] = frozenset()


class Networks:
    """The networks in memory: those that a session has a lease on, and no others."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, str], Model] = {}
        self._leases: weakref.WeakSet[Lease] = weakref.WeakSet()
        self._lock = threading.Lock()

    def renew(self, lease: Lease, names: Iterable[tuple[str, str]]) -> None:
        """This session now looks at `names`; what nobody looks at is let go."""
        with self._lock:
            lease.names = frozenset(names)
            self._leases.add(lease)
            wanted = frozenset().union(*(held.names for held in self._leases))
            left = [name for name in self._models if name not in wanted]
            for name in left:
                del self._models[name]
        if left and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def get(self, name: tuple[str, str]) -> Model | None:
        """A network in memory."""
        return self._models.get(name)

    def put(self, name: tuple[str, str], model: Model) -> None:
        """Keep a network until no session looks at it."""
        with self._lock:
            self._models[name] = model

    def __len__(self) -> int:
        return len(self._models)


@st.cache_resource(show_spinner=False)
def networks() -> Networks:
    """Those of all sessions."""
    return Networks()


def look_at(names: Iterable[str]) -> None:
    """Say which networks this session looks at; those that it left are freed."""
    lease: Lease = st.session_state.setdefault("lease", Lease())
    networks().renew(lease, [(name, device()) for name in names])


def model(choice: str) -> Model:
    """The network `choice`. Raises ModelError; a failure is remembered, since looking for weights can take a minute."""
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
        networks().put(name, found)
    return found


def forget_failures() -> None:
    """Let networks that could not be loaded be tried again."""
    st.session_state.pop("failed models", None)


def load(choice: str, device: str) -> Model:
    """A network from its choice. Raises ModelError, CheckpointError, StoreError."""
    if choice.startswith(CHECKPOINT):
        label, _, architecture = choice.removeprefix(CHECKPOINT).rpartition("@")
        _check_timm(architecture)
        name = f"{architecture} from {label.rpartition('/')[2]}"
        return mp.load_model(architecture, checkpoint=resolve(label, "checkpoint"), device=device, name=name)
    if not choice.startswith(("zoo:", RUN)) and ":" in choice:
        raise ModelError(
            f"'{choice}' is neither a bundled network nor a timm name; `mixer-probe report` on a command line takes it"
        )
    if choice.startswith(RUN):
        raise ModelError(
            f"'{choice.removeprefix(RUN)}' is a stored run: it has representations, for Similarity and Probes, and no network; "
            "this page needs the network itself"
        )
    if choice.startswith("zoo:"):
        return mp.load_model(choice, device=device)
    return mp.load_model(choice.removesuffix(UNTRAINED), pretrained=not choice.endswith(UNTRAINED), device=device)


def _check_timm(architecture: str) -> None:
    """Raise ModelError unless it is a name of timm: what is behind other names would be read from elsewhere."""
    if any(mark in architecture for mark in ":/\\"):
        raise ModelError(f"a checkpoint is of a network of timm by name, such as resnet18, not {shown(architecture)}")
    check_name(architecture)
