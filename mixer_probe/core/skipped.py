"""`Skipped`: an analysis of a study that could not be run, with the reason."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import ClassVar

from mixer_probe.core.errors import StoreError
from mixer_probe.core.files import causes
from mixer_probe.core.frame import Frame
from mixer_probe.core.result import Result

# A full disk, a full quota, and a file larger than may be.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Skipped(Result):
    """`step` was skipped because of `reason`. `again`: another run may succeed, since a file could
    not be read or written."""

    title: ClassVar[str] = "Skipped analyses"
    frame = Frame("", "step reason")

    step: str
    reason: str
    again: bool = False

    @classmethod
    def because(cls, step: str, error: Exception) -> Skipped:
        """The step that ended with `error`."""
        return cls(step, str(error), again=was_refused(error))


def was_refused(error: BaseException) -> bool:
    """Whether an error has a file that could not be read or written as a cause."""
    return any(isinstance(cause, (StoreError, OSError)) for cause in causes(error))


def has_no_room(error: BaseException) -> bool:
    """Whether an error has a full disk as a cause."""
    return any(isinstance(cause, OSError) and cause.errno in _NO_ROOM for cause in causes(error))
