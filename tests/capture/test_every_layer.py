"""Every readable layer of one network of each timm class, against the same tensors in float64 taken
another way.

The other way: the network sees one image at a time, hooks of the test's own clone what modules
return, and the axes are swapped by rules written from timm's source (`tests.networks`). One image
at a time, so that whatever mixes up images (Swin stacks its windows on their axis) shows.
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from mixer_probe.capture import extract
from mixer_probe.models import Model
from tests.networks import CASES, Case, askable, positions

IMAGES = 3
every_class = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@cache
def model_of(case: Case) -> Model:
    return case.model(torch.float64)


def clones(network: nn.Module, image: torch.Tensor) -> dict[tuple[str, int], torch.Tensor]:
    """What every call of every module returned for one image, copied as it was at that moment."""
    found: dict[tuple[str, int], torch.Tensor] = {}
    counts: dict[str, int] = {}

    def hook(path: str) -> object:
        def keep(_module: object, _args: object, output: object) -> None:
            call = counts.get(path, 0)
            counts[path] = call + 1
            if isinstance(output, torch.Tensor):
                found[path, call] = output.detach().clone()

        return keep

    handles = [m.register_forward_hook(hook(path)) for path, m in network.named_modules() if path]
    with torch.no_grad():
        network(image[None])
    for handle in handles:
        handle.remove()
    return found


@cache
def expected(case: Case) -> dict[str, np.ndarray]:
    """[image, position with prefix tokens first, channel] of every call, by name."""
    network = model_of(case).module
    rows = [clones(network, image) for image in case.images(IMAGES, torch.float64)]
    runs = {path: max(call for p, call in rows[0] if p == path) + 1 for path, _ in rows[0]}
    found = {}
    for path, call in rows[0]:
        name = f"{path}#{call}" if runs[path] > 1 else path
        if not re.search(case.unreadable, path):
            whole = torch.cat([row[path, call] for row in rows])
            layout = (
                "BC"
                if whole.ndim == 2
                else "BNC"
                if whole.ndim == 3 and case.layout(path) == "BCHW"
                else case.layout(path)
            )
            found[name] = positions(whole, layout).numpy()
    return found


def close(actual: np.ndarray, wanted: np.ndarray) -> None:
    assert actual.dtype == np.float64
    assert actual.shape == wanted.shape
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-11 * max(scale, 1))


@every_class
def test_every_layer_with_all_its_positions(case: Case) -> None:
    model = model_of(case)
    names = askable(model)
    found = extract(model, case.images(IMAGES, torch.float64), names, reduce="none", batch_size=2)
    assert list(found) == names
    for name in names:
        layer = model.layer(name)
        values = found[name] if layer.positions else found[name][:, None]
        if layer.prefix_tokens:
            values = np.concatenate([found.prefix(name), values], axis=1)
        close(values, expected(case)[name])


@every_class
def test_every_layer_averaged_over_positions(case: Case) -> None:
    model = model_of(case)
    names = askable(model)
    found = extract(model, case.images(IMAGES, torch.float64), names, batch_size=2)
    for name in names:
        tokens = expected(case)[name]
        skip = case.prefix if tokens.shape[1] == case.prefix + case.grid[0] * case.grid[1] else 0
        close(found[name], tokens[:, skip:].mean(1))


@pytest.mark.parametrize("case", [c for c in CASES.values() if c.prefix], ids=lambda c: c.name)
def test_the_class_token_of_every_layer_that_has_one(case: Case) -> None:
    model = model_of(case)
    names = [name for name in askable(model) if model.layer(name).prefix_tokens]
    found = extract(model, case.images(IMAGES, torch.float64), names, reduce="prefix", batch_size=2)
    tokens = case.prefix + case.grid[0] * case.grid[1]
    for name in names:
        assert expected(case)[name].shape[1] == tokens
        close(found[name], expected(case)[name][:, 0])


@every_class
def test_nothing_is_shut_or_dead(case: Case) -> None:
    """The comparison would be empty if the networks gave zeros, or the same for every image."""
    found = expected(case)
    for name in (case.head, *(layer.name for layer in model_of(case).select("blocks"))):
        values = found[name]
        assert values.std(axis=0).max() > 1e-4 * np.abs(values).max()
