"""Sections of a report for the results of this room."""

from __future__ import annotations

import pandas as pd

from mixer_probe.core.section import Table


def folded_table(caption: str, frame: pd.DataFrame, columns: str) -> Table:
    """A folded table of some columns of `frame`, each named with or without a format: "layer
    depth:.2f"."""
    names = [column.partition(":") for column in columns.split()]
    formats = {name: f"{{:{digits}}}" for name, _, digits in names if digits}
    return Table(caption, frame[[name for name, _, _ in names]], formats, folded=True)
