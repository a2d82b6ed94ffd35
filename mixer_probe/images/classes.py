"""Labels meet by the name of their class: an index means nothing outside the data set that it was
counted in."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from mixer_probe.core.errors import ImagesError

# So many classes of a set are listed in a message.
_LISTED = 8


@dataclass(frozen=True)
class Labelled:
    """`labels` [n] of the images called `images`, and the `names` of the classes by index, None
    where they have none."""

    labels: np.ndarray
    names: tuple[str, ...] | None
    images: str

    @property
    def present(self) -> np.ndarray:
        """The classes that have an image, sorted."""
        return np.unique(self.labels)

    def name(self, label: int) -> str:
        """What a class is called."""
        return class_name(label, self.names)


def class_name(label: int, names: Sequence[str] | None) -> str:
    """The name of a class, or its index where it has none."""
    return names[label] if names is not None and 0 <= label < len(names) else str(label)


def quoted(name: str) -> str:
    """A class as a message calls it."""
    return f"'{name}'"


def listed(names: Sequence[str]) -> str:
    """Classes as a message lists them: the first few in quotes, and how many there are in all."""
    text = ", ".join(map(quoted, names[:_LISTED]))
    return text if len(names) <= _LISTED else f"{text}, ... ({len(names)} in all)"


def require_labels(
    labels: np.ndarray | None, images: str, purpose: str, n: int | None = None
) -> np.ndarray:
    """The labels [n] of the images called `images`.

    Raises ImagesError, which names the `purpose`, where there are none, there is no image, or they
    are not `n`."""
    if labels is None:
        raise ImagesError(
            f"{images} have no labels: {purpose} needs them, so sort the images into one folder "
            "per class or take a labelled set"
        )
    if n == 0 or (n is None and not len(labels)):
        raise ImagesError(f"there is no image among {images}: {purpose} needs some")
    if n is not None and len(labels) != n:
        raise ImagesError(
            f"{images} have {len(labels)} labels for {n} images: each image needs one"
        )
    return np.asarray(labels)


def shared_classes(train: Labelled, test: Labelled) -> tuple[np.ndarray, np.ndarray]:
    """The labels of both sets by the class indices of `train`.

    Classes are the same if they have the same name; where neither set has names, if they have the
    same index. A class that only `train` has stays a possible, wrong answer.

    Raises ImagesError for one class in train, names in one of the sets only, two classes of one
    name, and classes of `test` that `train` has no image of; it lists the classes of both."""
    known = train.present
    if len(known) < 2:
        raise ImagesError(
            f"all {train.images} are of class {quoted(train.name(known[0]))}: take images of two "
            "classes or more"
        )
    if (train.names is None) != (test.names is None):
        with_names, without = (train, test) if test.names is None else (test, train)
        raise ImagesError(
            f"the classes of {without.images} have no names to match those of {with_names.images} "
            f"by ({listed([with_names.name(k) for k in with_names.present])}): give class_names "
            "for both, or for neither"
        )
    there = test.present.tolist()
    # One list of classes, such as ImageNet's, may call two of them the same.
    one_list = train.names == test.names
    place = {k if one_list else train.name(k): k for k in known.tolist()}
    if len(place) < len(known):
        names = [train.name(k) for k in known.tolist()]
        twice = next(name for name in names if names.count(name) > 1)
        raise ImagesError(
            f"two classes of {train.images} are called {quoted(twice)}: give each a name of its own"
        )
    found = [place.get(k if one_list else test.name(k), -1) for k in there]
    missing = [test.name(k) for k, index in zip(there, found, strict=True) if index < 0]
    if missing:
        classes = "class" if len(missing) == 1 else "classes"
        raise ImagesError(
            f"{test.images} have {len(missing)} {classes} that {train.images} do not have: "
            f"{listed(missing)} (the former have {listed([test.name(k) for k in there])}; the "
            f"latter {listed([train.name(k) for k in known.tolist()])})"
        )
    return train.labels, np.array(found, dtype=np.int64)[np.searchsorted(there, test.labels)]


def spelled(name: str) -> str:
    """A class's name without what spellings differ in: case, underscores for spaces, composed
    characters."""
    return " ".join(unicodedata.normalize("NFC", name).replace("_", " ").casefold().split())


@cache
def imagenet_names(subset: str = "imagenet-1k") -> tuple[str, ...]:
    """What the classes of an ImageNet, as timm calls it, are called by index: the first of a
    class's words; all of them where two classes share the first, and with the WordNet id behind
    where these are no clearer."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo(subset)
    full, ids = [str(text) for text in info.label_descriptions()], info.label_names()  # type: ignore[no-untyped-call]
    short = [text.split(",")[0] for text in full]
    # A word that several classes begin with names none of them, not even that which has no other.
    times = Counter(map(spelled, short))
    shared = Counter(map(spelled, full)) + times
    return tuple(
        first
        if times[spelled(first)] == 1
        else text
        if shared[spelled(text)] == 1
        else f"{text} ({wordnet})"
        for first, text, wordnet in zip(short, full, ids, strict=True)
    )
