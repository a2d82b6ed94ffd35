"""Probes of runs on disk, read in blocks of images, are those of the same runs in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mixer_probe.capture import representations
from mixer_probe.capture.representations import Representations
from mixer_probe.core.rows import Rows
from mixer_probe.probing import (
    Target,
    calibration,
    control_task,
    few_shot_probe,
    linear_probe,
    matched,
    online_code,
    random_label_probe,
    target_probe,
)
from tests.helpers.runs import write_run

N = 1300


def targets(run: Any, seed: int) -> list[Target]:
    """A number, an angle and a class, of which the first is not defined for every image."""
    random = np.random.default_rng(seed)
    n = len(run.ids)
    number = random.normal(size=n) + (run.labels == 3)
    return [
        Target("number", "regression", run.ids, np.where(np.arange(n) % 7, number, np.nan)),
        Target("angle", "angle", run.ids, random.uniform(0, 360, n)),
        Target("class", "classification", run.ids, run.labels % 3 * 1.0, ("a", "b", "c")),
    ]


PROBES: dict[str, Callable[[Any, Any], Any]] = {
    **{
        method: lambda train, test, method=method: linear_probe(train, test, method=method)
        for method in ("ridge", "knn", "centroid")
    },
    "logistic": lambda train, test: linear_probe(
        train, test, method="logistic", values=[10.0, 1e3], probabilities=True
    ),
    "few-shot": lambda train, test: few_shot_probe(train, test, (1, 5), 2),
    "few-shot ridge": lambda train, test: few_shot_probe(train, test, (5,), 2, "ridge"),
    "controls": lambda train, test: control_task(train, test, controls=3),
    "random labels": lambda train, test: random_label_probe(train, test, draws=2),
    "targets": lambda train, test: target_probe(train, test, targets(train, 0), targets(test, 1)),
    "calibration": lambda train, test: calibration(linear_probe(train, test), (train, test)),
    "code": lambda train, test: online_code(train, fractions=(0.1, 1.0), l2=(1.0,), orders=2),
    "transfer": lambda train, test: linear_probe(*matched(train, test)),
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Representations, Representations]:
    folder = tmp_path_factory.mktemp("runs")
    train, test = (write_run(folder / split, N, 2, 6, split) for split in ("train", "test"))
    return train, test


@pytest.mark.filterwarnings("ignore::mixer_probe.core.errors.UndefinedProbeWarning")
@pytest.mark.parametrize("name", PROBES)
def test_probes_of_stored_runs(
    stored: tuple[Representations, Representations], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, of images in any order."""
    order = np.random.default_rng(0).permutation(N)[: N - 100]
    pairs = []
    for budget in (0, representations.WORKING):
        monkeypatch.setattr(representations, "WORKING", budget)
        pairs.append((stored[0].take(order, "part"), stored[1].take(np.arange(N))))
    assert isinstance(pairs[0][0].array("blocks.0"), Rows)
    assert isinstance(pairs[1][0].array("blocks.0"), np.ndarray)
    on_disk, in_memory = (PROBES[name](*pair) for pair in pairs)
    assert on_disk == in_memory
