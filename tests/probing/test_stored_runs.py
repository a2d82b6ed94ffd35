"""Probes of runs on disk, read in blocks of images, are those of the same runs in memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
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
    for budget in (0, representations.IN_MEMORY):
        monkeypatch.setattr(representations, "IN_MEMORY", budget)
        pairs.append((stored[0].take(order, "part"), stored[1].take(np.arange(N))))
    assert isinstance(pairs[0][0].array("blocks.0"), Rows)
    assert isinstance(pairs[1][0].array("blocks.0"), np.ndarray)
    on_disk, in_memory = (PROBES[name](*pair) for pair in pairs)
    assert on_disk == in_memory


MEASURED = """
import sys
import mixer_probe as mp
from mixer_probe.capture.analysis_inputs import halves
from mixer_probe.probing import control_task

a, b, train = (mp.open_run(f"{sys.argv[1]}/{name}") for name in ("a", "b", "train"))
mp.compare(a, b, ["cka", "procrustes"], permutations=19, resamples=0)
mp.linear_probe(train, a)
mp.probing.few_shot_probe(train, a, (1, 5), 2)
control_task(train, a, controls=1)
fit, rest = halves(a.labels, "a", a.class_names, 0)
mp.linear_probe(a.take(fit, "fit"), a.take(rest, "rest"))
with open("/proc/self/status") as status:
    print(*(int(line.split()[1]) for line in status if line.startswith("VmHWM")))
"""


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    peaks = []
    for n in (2_000, 20_000):
        folder = tmp_path / str(n)
        for name, split, side in (("a", "test", 0), ("b", "test", 1), ("train", "train", 0)):
            write_run(folder / name, n, 2, 160, split, side)
        found = subprocess.run(
            [sys.executable, "-c", MEASURED, folder], capture_output=True, text=True, check=True
        )
        peaks.append(int(found.stdout) / 1024)
    # One layer of 20,000 images has 24 MiB in float64, and is needed several times.
    assert peaks[1] - peaks[0] < 50, peaks
