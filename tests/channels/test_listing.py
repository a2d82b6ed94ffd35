"""The table of channels: the numbers of its results, the order of its columns, and what a search
finds."""

from __future__ import annotations

from functools import cache

import numpy as np
import pandas as pd
import pytest

import mixer_probe as mp
from mixer_probe.channels import ChannelStatistics, ClassSelectivity
from mixer_probe.channels.listing import (
    drawable,
    list_channels,
    search_channels,
    sort_channels,
    sortable,
)
from mixer_probe.core.errors import MeasureError


@cache
def results() -> tuple[ChannelStatistics, ClassSelectivity]:
    """Statistics of one block, and selectivity of all blocks."""
    model, images = mp.load_model("zoo:mixer-s0"), mp.load_images("demo", split="test", limit=100)
    statistics = mp.channel_statistics(model, images, ["blocks.2"])
    return statistics, mp.class_selectivity(mp.extract(model, images), permutations=99)


def test_the_table_is_what_selectivity_and_statistics_give() -> None:
    statistics, selectivity = results()
    frame, wanted = (
        list_channels(statistics, selectivity, "deer"),
        selectivity.class_names.index("deer"),
    )
    np.testing.assert_array_equal(frame["auroc"], selectivity.auroc[2][:, wanted])
    np.testing.assert_array_equal(
        frame["selectivity"], np.abs(selectivity.auroc[2][:, wanted] - 0.5)
    )
    np.testing.assert_array_equal(frame["dprime"], selectivity.dprime[2][:, wanted])
    np.testing.assert_array_equal(frame["p_value"], selectivity.p_value[2])
    np.testing.assert_array_equal(frame["std"], statistics.std[0])
    anyone = list_channels(statistics, selectivity)
    np.testing.assert_array_equal(anyone["selectivity"], selectivity.strength[2])
    # What is beyond the null of its best class has a corrected p of 5 % or less.
    np.testing.assert_array_equal(
        anyone["beyond"], selectivity.strength[2] > selectivity.threshold[2]
    )
    pd.testing.assert_frame_equal(list_channels(statistics, None), statistics.to_frame())


def test_what_is_remarkable_comes_first() -> None:
    frame = list_channels(*results())
    assert sort_channels(frame, "p_value")["p_value"].is_monotonic_increasing
    assert sort_channels(frame, "std")["std"].is_monotonic_decreasing
    assert sort_channels(frame, "std", reverse=True)["std"].is_monotonic_increasing
    assert {*sortable(True), *drawable(True)} <= set(frame)
    assert {*sortable(False), *drawable(False)} <= set(list_channels(results()[0], None))


def test_search_reads_conditions_words_and_numbers() -> None:
    frame = pd.DataFrame(
        {
            "layer": ["blocks.0", "blocks.1", "blocks.1"],
            "channel": [0, 0, 7],
            "class": ["frog", "ship", "frog"],
            "auroc": [0.9, np.nan, 0.6],
            "dead": [False, True, False],
        }
    )
    found = {
        "frog": [0, 2],
        "FRO": [0, 2],
        "7": [2],
        "class = Frog, AUROC > 0.8": [0],
        "auroc<=0.6": [2],
        "dead = yes": [1],
        "layer=blocks.1 and dead=no": [2],
        "": [0, 1, 2],
    }
    for text, rows in found.items():
        assert search_channels(frame, text).equals(frame.iloc[rows].reset_index(drop=True)), text
    for text in ("colour > 3", "class > 3", "auroc > high"):
        with pytest.raises(MeasureError):
            search_channels(frame, text)
