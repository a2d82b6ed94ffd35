"""The planted networks, made once."""

import pytest

import mixer_probe as mp
from tests.attribution.planted import planted_models


@pytest.fixture(scope="session")
def planted() -> dict[str, mp.Model]:
    return planted_models()
