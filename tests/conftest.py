"""Settings of every test run, and the study that many tests share."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import study

__all__ = ["study"]

# Threads that wait for one another cost these small networks more than they gain, above all beside other work.
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew")


@pytest.fixture(scope="session")
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))
