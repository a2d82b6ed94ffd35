"""Settings of every test run: the study that many tests share, and how long tests took when that was last recorded."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean

import pytest
import torch

from tests.tiny import study

__all__ = ["study"]

# Threads that wait for one another cost these small networks more than they gain, above all beside other work.
torch.set_num_threads(1)

# Mean seconds a case of every test function that takes a tenth of a second or more.
DURATIONS = Path(__file__).parent / "durations.csv"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew")
    parser.addoption("--update-durations", action="store_true", help=f"write {DURATIONS.name} anew, from a run of all tests")
    parser.addoption("--faster-than", type=float, metavar="SECONDS", help="only tests whose recorded duration is shorter")


@pytest.fixture(scope="session")
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))


def function_of(nodeid: str) -> str:
    return nodeid.partition("[")[0]


def recorded() -> dict[str, float]:
    with DURATIONS.open(encoding="utf-8") as file:
        return {row["test"]: float(row["seconds"]) for row in csv.DictReader(file)}


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--update-durations") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files that take longest come first, so that no process is left with one of them at the end."""
    known = recorded()
    limit = config.getoption("--faster-than")
    if limit is not None:
        config.hook.pytest_deselected(items=[i for i in items if known.get(function_of(i.nodeid), 0) >= limit])
        items[:] = [i for i in items if known.get(function_of(i.nodeid), 0) < limit]
    total: dict[Path, float] = defaultdict(float)
    for item in items:
        total[item.path] += known.get(function_of(item.nodeid), 0)
    items.sort(key=lambda item: -total[item.path])


class Recorder:
    """Adds up setup, call and teardown of every case, in the one process that hears of all."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        write_durations(self.seconds.items())


def write_durations(seconds: Iterable[tuple[str, float]]) -> None:
    cases: dict[str, list[float]] = defaultdict(list)
    for nodeid, duration in seconds:
        cases[function_of(nodeid)].append(duration)
    rows = [(name, f"{fmean(found):.1f}") for name, found in sorted(cases.items()) if fmean(found) >= 0.1]
    with DURATIONS.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("test", "seconds"), *rows])
