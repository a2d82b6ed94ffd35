"""`Skipped`: a step of a study that could not be done, kept with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pandas as pd

from mixer_probe.results import Result


@dataclass(frozen=True)
class Skipped(Result):
    """`step` was left out because of `reason`."""

    title: ClassVar[str] = "Left out"

    step: str
    reason: str

    def to_frame(self) -> pd.DataFrame:
        """One row."""
        return pd.DataFrame({"step": [self.step], "reason": [self.reason]})
