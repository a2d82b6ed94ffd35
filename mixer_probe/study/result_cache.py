"""`ResultCache`: the finished steps of a study, kept in a folder, so that a second start goes on
where the first one stopped."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import mixer_probe
from mixer_probe.capture import Representations
from mixer_probe.core.errors import StoreError
from mixer_probe.core.files import remedy
from mixer_probe.core.result import Result, load_results, save_results, to_dict
from mixer_probe.core.skipped import Skipped
from mixer_probe.core.text import slug
from mixer_probe.models import Model

_PACKAGES = ("torch", "timm", "numpy", "captum", "scikit-learn")


@dataclass(frozen=True)
class ResultCache:
    """Finished steps, one results file each in `folder`, found again by what decides their numbers.

    A step belongs to its name, its settings, and the code that computed it: this package's source
    and the versions of the packages that it computes with. The file can be read with
    `mp.load_results`; the folder can be deleted at any time."""

    folder: Path

    def get(
        self, name: str, settings: Mapping[str, Any], compute: Callable[[], Iterable[Result]]
    ) -> list[Result]:
        """The results of the step `name`: those kept from an earlier start, or else of `compute()`,
        which are then kept.

        `settings` is all that decides the numbers: models, images, representations, dataclasses and
        plain values. A step that left something out because a file could not be read or written
        (`Skipped.again`) is not kept and tried again next time. Results come back as a later start
        reads them, so that both go on with the same.

        Raises StoreError, with what to do, if the results cannot be kept; the steps before stay."""
        content = {
            "step": name,
            "settings": {key: identity(value) for key, value in settings.items()},
            "code": _code(),
        }
        file = self.folder / f"{slug(name)[:80]}-{_digest(content)[:16]}.json"
        # A file that cannot be read is computed anew, which is always right.
        with suppress(StoreError):
            if file.is_file() and (earlier := list(load_results(file))):
                return earlier
        try:
            found = list(compute())
        except Exception as error:
            error.add_note(
                f"This was the step '{name}'; the same start goes on from those finished, which "
                f"are in {self.folder}."
            )
            raise
        if not found or any(isinstance(r, Skipped) and r.again for r in found):
            return found
        try:
            save_results(found, file, content)
        except StoreError as error:
            raise StoreError(
                f"the step '{name}' cannot be kept ({error}): {remedy(error)} and start the same "
                f"again, which goes on from the {len(self)} finished before, in {self.folder}"
            ) from error
        return list(load_results(file))

    def __len__(self) -> int:
        """How many finished steps there are, of all settings."""
        return len(list(self.folder.glob("*.json")))


def identity(value: Any) -> Any:
    """What decides the numbers that are computed from `value`, as JSON data: of a model its weights
    and settings, of images their content and classes, each with the names that results repeat, of
    representations what they are of."""
    if isinstance(value, Model):
        where = (value.device.type, str(value.dtype), *value.options)
        return {"model": to_dict(value.record), "input": to_dict(value.input), "where": list(where)}
    if isinstance(value, Representations):
        return {
            **value.record.identity(),
            "names": [value.model.name, value.images.name, value.images.split],
        }
    if callable(getattr(value, "batches", None)) and hasattr(value, "record"):
        return {
            "images": to_dict(value.record),
            "classes": list(value.class_names or ()),
            "ids": _digest(list(value.ids)),
        }
    if isinstance(value, np.ndarray):
        return [
            str(value.dtype),
            list(value.shape),
            hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest(),
        ]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): identity(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [identity(v) for v in value]
    return to_dict(value)


@cache
def _code() -> dict[str, Any]:
    """The versions of what computes the numbers, and a hash over this package's source: one version
    has many states."""
    digest = hashlib.sha256()
    for file in sorted(Path(mixer_probe.__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"mixer_probe": mixer_probe.__version__, "source": digest.hexdigest(), **versions}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def file_digests(paths: Iterable[str | None]) -> dict[str, str]:
    """Hash of the content of every path that is a file."""
    files = [Path(path) for path in paths if path]
    return {
        str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()
    }
