"""Work that ends at a chosen moment: a process that is killed, or a disk that is full."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Killed(BaseException):
    """The process ends here."""


def ending(moment: int, error: BaseException) -> Callable[[Any], Any]:
    """A wrapper of functions: all that it wraps raise `error` once they were called `moment` times
    together."""
    left = moment

    def counted(work: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise error
            return work(*arguments, **options)

        return call

    return counted
