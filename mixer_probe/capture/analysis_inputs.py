"""`Inputs` of an analysis: a network with images, settings, representations and the results of
earlier analyses."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from mixer_probe.capture.extraction import extract
from mixer_probe.capture.representations import IN_MEMORY, Reduce, Representations
from mixer_probe.capture.run_files import bytes_per_image, stored_shape
from mixer_probe.capture.stream import Reading, divide_hashing, stream
from mixer_probe.capture.units import Units
from mixer_probe.core.errors import ImagesError, MeasureError, MixerProbeError
from mixer_probe.core.fingerprint import apart, digest
from mixer_probe.core.result import ModelRecord, Result
from mixer_probe.core.settings import StudySettings
from mixer_probe.core.text import slug
from mixer_probe.images import Images
from mixer_probe.images.classes import class_name, quoted, require_labels
from mixer_probe.models import Model
from mixer_probe.parallel import agree, ranks

T = TypeVar("T")
R = TypeVar("R", bound=Result)


class _Counted(Protocol):
    @property
    def n(self) -> int:
        """Images."""


A = TypeVar("A", bound=_Counted)


class Inputs:
    """One network and all that its analyses share. Expensive parts are computed on first use, once.

    `train` are images to fit probes on, None for a half of `images`. `found` are the results of
    earlier analyses. `shared` is one dictionary for all networks of a study: options of a command
    beyond the settings, and what is computed once for all. With `store` representations are kept in
    that folder. Without it those that fit into `IN_MEMORY` bytes are in memory, and larger ones in
    the folder `shared["runs"]`, by default a temporary one that is removed with `shared`. `trained`
    is the network whose untrained baseline this is. `reads` give what else is read in the pass that
    extracts the representations of `images`, also of its baseline.

    After `close` the network is no longer in memory, unless it `stays`; of its representations
    those of the test images remain."""

    def __init__(
        self,
        model: Model | None,
        images: Images | None = None,
        train: Images | None = None,
        settings: StudySettings | None = None,
        shared: dict[str, Any] | None = None,
        store: Path | None = None,
        trained: Inputs | None = None,
        record: ModelRecord | None = None,
    ) -> None:
        self.record = record if model is None else model.record  # type: ignore[assignment]
        self.train, self.store, self.trained = train, store, trained
        self.settings = settings or StudySettings()
        self.shared: dict[str, Any] = {} if shared is None else shared
        self.found: list[Result] = []
        self.reads: list[Callable[[Inputs], Sequence[Reading]]] = []
        self.stays = False
        self._model, self._images = model, images
        self._kept: dict[str, tuple[Any, MixerProbeError | None]] = {}
        self._open = ExitStack()

    record: ModelRecord

    @classmethod
    def of_runs(cls, test: Representations, train: Representations | None, like: Inputs) -> Inputs:
        """Runs without a network, such as raw pixels, on the images and with the settings of
        another network."""
        inputs = cls(None, like._images, like.train, like.settings, like.shared, record=test.model)
        inputs._kept = {"test": (test, None), "train": (train, None), "baseline": (None, None)}
        return inputs

    @property
    def model(self) -> Model:
        """The network."""
        assert self._model is not None, f"{self.record.name} has left memory"
        return self._model

    @property
    def images(self) -> Images:
        """The images to analyse. Raises ImagesError where there are none."""
        if self._images is None:
            raise ImagesError("the analysis needs images, and none were given")
        return self._images

    @property
    def baseline(self) -> Inputs | None:
        """The same network untrained; None for an untrained network, and where the settings want no
        baselines."""

        def untrained() -> Inputs | None:
            if not self.settings.baselines or not self.model.weights.trained:
                return None
            inputs = Inputs(
                self.model.untrained(),
                self._images,
                self.train,
                self.settings,
                self.shared,
                self.store,
                self,
            )
            inputs.reads = self.reads
            return inputs

        return self.keep("baseline", untrained)

    @property
    def whole(self) -> Representations:
        """`test`, with the head whose logits give the accuracy of the network."""

        def extracted() -> Representations:
            also = [reading for read in self.reads for reading in read(self)]
            return self._extract(self.images, "test", self.trained is None, also)

        return self.keep("whole", extracted)

    @property
    def test(self) -> Representations:
        """Representations of the images, of the layers of the settings."""

        def chosen() -> Representations:
            return self.whole.only(
                [layer.name for layer in self.model.select(self.settings.layers)]
            )

        return self.keep("test", chosen)

    @property
    def extracted(self) -> bool:
        """Whether the representations of the images have been extracted."""
        return "test" in self._kept and self._kept["test"][1] is None

    @property
    def parts(self) -> tuple[Representations, Representations]:
        """Representations of the images to fit and to test on: without `train` of two halves of the
        images, with every class in both where there are classes. Raises MeasureError for a class of
        one image."""

        def fit_and_test() -> tuple[Representations, Representations]:
            test, train = self.test, self.train
            if train is not None:
                return self.keep("train", lambda: self._extract(train, "train")), test
            fit, rest = halves(
                test.labels, test.images.name, test.class_names, self.settings.seed, len(test.ids)
            )
            return test.take(apart(test.keys, fit, rest), "fitting half"), test.take(
                rest, "test half"
            )

        return self.keep("parts", fit_and_test)

    @property
    def image_parts(self) -> tuple[Images, Images]:
        """The labelled images to fit and to test on. Raises as `parts`, and ImagesError without
        labels."""
        i = self.images
        if self.train is not None:
            return self.train, i
        labels = require_labels(i.labels, f"the images ({i.name})", "a probe")
        fit, rest = halves(labels, i.name, i.class_names, self.settings.seed)
        return replace(i.subset(apart(i.keys, fit, rest)), split="fitting half"), replace(
            i.subset(rest), split="test half"
        )

    @property
    def has_images(self) -> bool:
        """Whether there are images."""
        return self._images is not None

    def sample(self, most: int | None) -> Images:
        """At most so many of the images, sampled by the seed."""
        return (
            self.images
            if most is None
            else self.images.sample(min(most, len(self.images)), self.settings.seed)
        )

    def rows(self, most: int | None) -> np.ndarray:
        """The indices of the images of `sample`, ascending."""
        return self.images.sampled(most, self.settings.seed)

    def passed(self, name: str, kind: type[A], n: int) -> A | None:
        """What was added up under this name (`keep`) in the pass that extracts the representations,
        made now if it has not been, and is no longer kept here; None unless it is of `n` images."""
        if self.reads:
            with suppress(MixerProbeError):
                _ = self.test
        found, _ = self._kept.pop(name, (None, None))
        return found if isinstance(found, kind) and found.n == n else None

    def batches(self, rows: np.ndarray) -> list[range]:
        """The batches with some of the images `rows`, of the pass that extracts the
        representations: what passes in the same batches is the same to the last bit."""
        units = Units.of(len(self.images), bytes_per_image(self.whole.record))
        every = (
            batch
            for unit in range(len(units))
            for batch in units.batches(unit, self.settings.batch_size)
        )
        return [batch for batch in every if np.isin(rows, batch).any()]

    def pass_again(self, reading: Reading) -> None:
        """Read some images in batches of the pass that extracts the representations: one that
        another process has made, or an earlier start."""
        assert reading.rows is not None
        s = self.settings
        for _ in stream(
            self.model,
            self.images,
            (),
            lambda *_: None,
            rows=self.batches(reading.rows),
            autocast=s.autocast,
            also=[reading],
        ):
            pass

    def results(self, kind: type[R]) -> list[R]:
        """The results of one type that were found of this network."""
        of = [getattr(r, "model", getattr(r, "model_a", None)) == self.record for r in self.found]
        return [r for r, own in zip(self.found, of, strict=True) if own and isinstance(r, kind)]

    def keep(self, name: str, make: Callable[[], T]) -> T:
        """The value of `make`, computed once for this network; an error that it raises is raised
        each time."""
        if name not in self._kept:
            try:
                self._kept[name] = make(), None
            except MixerProbeError as error:
                self._kept[name] = None, error
        value, failure = self._kept[name]
        if failure is not None:
            raise failure
        return value  # type: ignore[no-any-return]

    def forget(self, name: str) -> None:
        """Free what is kept under this name."""
        self._kept.pop(name, None)

    def share(self, name: str, make: Callable[[], T]) -> T:
        """The value of `make`, computed once for all networks of the study, unless `shared` has it
        already."""
        if name not in self.shared:
            self.shared[name] = make()
        return self.shared[name]  # type: ignore[no-any-return]

    def open(self, resource: AbstractContextManager[T]) -> T:
        """Enter a context, such as a temporary folder, that is left when the network leaves
        memory."""
        return self._open.enter_context(resource)

    def with_settings(self, **changes: Any) -> Inputs:
        """The same inputs with other settings that representations do not depend on."""
        changed = copy.copy(self)
        changed.settings = replace(self.settings, **changes)
        return changed

    def extract_all(self) -> None:
        """Extract what `test` and `parts` are made of, of the network and of its baseline."""
        for i in (self, self.baseline):
            if i is not None:
                _ = i.test
                if i.train is not None:
                    _ = i.parts

    def close(self) -> None:
        """Release the network, and all but the representations of the test images."""
        self._open.close()
        baseline, _ = self._kept.get("baseline", (None, None))
        if baseline is not None:
            baseline.close()
        if not self.stays:
            self._model = None
        self._kept = {"baseline": (baseline, None)} | {
            k: v for k, v in self._kept.items() if k == "test"
        }

    def extract(
        self,
        images: Images,
        layers: str | Sequence[str],
        *,
        reduce: Reduce = "mean",
        part: str = "",
        also: Sequence[Reading] = (),
    ) -> Representations:
        """Representations of some images by the network, kept where the others are; `part` is in
        the name of a stored run. Other arguments, and errors, are those of `extract`."""
        divide_hashing(images)
        s, record, selected = self.settings, self.record, self.model.select(layers)
        names = [layer.name for layer in selected]
        computed = s.autocast or "", *self.model.options
        of = digest(record.fingerprint, images.fingerprint, reduce, *computed, *names)[:16]
        # Of float32; twice as much, of a network in float64, has room too.
        size = 4 * len(images) * sum(math.prod(stored_shape(x, reduce)[0]) for x in selected)
        out = self.place(f"{slug(record.name)}-{of}-{part}.zarr", size)
        options: dict[str, Any] = {"batch_size": s.batch_size, "autocast": s.autocast}
        return extract(self.model, images, layers, reduce=reduce, out=out, also=also, **options)

    def place(self, name: str, size: int) -> Path | None:
        """Where a run of so many bytes lies; None for one that is in memory."""
        folder = self.store
        if folder is None and (size > IN_MEMORY or ranks().world > 1):
            folder = self.share("runs", lambda: temporary_folder(self.shared))
        return None if folder is None else folder / name

    def _extract(
        self, images: Images, part: str, with_head: bool = False, also: Sequence[Reading] = ()
    ) -> Representations:
        layers = self.settings.layers
        heads = [layer.name for layer in self.model.layers if layer.kind == "head"][-1:]
        chosen = [*([layers] if isinstance(layers, str) else layers), *(heads if with_head else [])]
        return self.extract(images, chosen, part=part, also=also)


def temporary_folder(shared: dict[str, Any]) -> Path:
    """A folder that is removed with `shared`; all ranks have that of the first."""

    def make() -> str:
        folder = tempfile.TemporaryDirectory(prefix="mixer-probe-")
        shared["temporary folder"] = folder
        return folder.name

    return Path(agree(make))


def halves(
    labels: np.ndarray | None, name: str, class_names: Sequence[str] | None, seed: int, n: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of two halves of the images called `name`, drawn with `seed`: every class in both, or
    of `n` images without labels.

    Raises MeasureError naming a class that has one image only."""
    rng = np.random.default_rng(seed)
    if labels is None:
        order = rng.permutation(n)
        return np.sort(order[: n // 2]), np.sort(order[n // 2 :])
    fit: list[int] = []
    rest: list[int] = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) < 2:
            what = quoted(class_name(int(label), class_names))
            raise MeasureError(
                f"class {what} of {name} has one image; a probe needs one to fit on and one to "
                "test on"
            )
        fit += members[: len(members) // 2].tolist()
        rest += members[len(members) // 2 :].tolist()
    return np.sort(fit), np.sort(rest)
