"""Settings of every test run: the study that many tests share, and how long tests took when that
was last recorded."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

import pytest
import torch

from tests.tiny import study

__all__ = ["study"]

# Threads that wait for one another cost these small networks more than they gain, above all beside
# other work; so in the processes that tests start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# Mean seconds per case of every test function that takes a twentieth of a second or more: as it
# ran, and `alone`, with all the fixtures that it shares with others.
DURATIONS = Path(__file__).parent / "durations.csv"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew")
    parser.addoption(
        "--update-durations",
        action="store_true",
        help=f"write {DURATIONS.name} anew, from a run of all tests",
    )
    parser.addoption(
        "--faster-than",
        type=float,
        metavar="SECONDS",
        help="only tests whose recorded duration is shorter",
    )


@pytest.fixture(scope="session")
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))


def function_of(nodeid: str) -> str:
    return nodeid.partition("[")[0]


def recorded(column: str) -> dict[str, float]:
    with DURATIONS.open(encoding="utf-8") as file:
        return {row["test"]: float(row[column]) for row in csv.DictReader(file)}


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--update-durations"):
        # Processes that run tests measure fixtures; the one that hears of all tests adds up and
        # writes.
        config.pluginmanager.register(Fixtures())
        if not hasattr(config, "workerinput"):
            config.pluginmanager.register(Recorder())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files that take longest come first, so that no process is left with one of them at the
    end."""
    limit = config.getoption("--faster-than")
    if limit is not None:
        alone = recorded("alone")
        slow = [item for item in items if alone.get(function_of(item.nodeid), 0) >= limit]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in set(slow)]
    seconds, total = recorded("seconds"), defaultdict[Path, float](float)
    for item in items:
        total[item.path] += seconds.get(function_of(item.nodeid), 0)
    items.sort(key=lambda item: -total[item.path])


class Fixtures:
    """Tells with every test how long the fixtures took that it shares with others."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str, int], float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Generator[None, Any, Any]:
        start = perf_counter()
        try:
            return (yield)
        finally:
            if fixturedef.scope != "function":
                self.seconds[fixturedef.baseid, fixturedef.argname, request.param_index] = (
                    perf_counter() - start
                )

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: Any
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        indices = getattr(getattr(item, "callspec", None), "indices", {})
        used = [
            (definition.baseid, name, indices.get(name, 0))
            for name, definitions in item._fixtureinfo.name2fixturedefs.items()
            for definition in definitions
        ]
        report.user_properties = [("shared", sum(self.seconds.get(key, 0) for key in used))]
        return report


class Recorder:
    """Adds up what every case took, and writes it at the end."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.alone: dict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration
        shared = float(dict(report.user_properties)["shared"]) if report.when == "setup" else 0.0
        self.alone[report.nodeid] += max(report.duration, shared)

    def pytest_sessionfinish(self) -> None:
        cases: dict[str, list[str]] = defaultdict(list)
        for nodeid in self.seconds:
            cases[function_of(nodeid)].append(nodeid)
        with DURATIONS.open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["test", "seconds", "alone"])
            for name, nodes in sorted(cases.items()):
                means = [
                    fmean(found[node] for node in nodes) for found in (self.seconds, self.alone)
                ]
                if max(means) >= 0.05:
                    rows.writerow([name, *(f"{mean:.2f}" for mean in means)])
