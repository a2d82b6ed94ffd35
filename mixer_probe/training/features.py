"""What studies of training measure on each network: token-mixing units, what probes read, and
similarity to other runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixer_probe.capture import ImageSource, Representations, extract
from mixer_probe.models import Model
from mixer_probe.probing import linear_probe
from mixer_probe.similarity import compare
from mixer_probe.weights import token_mixing

# Quantities of token-mixing units, with their units of measurement.
UNIT_QUANTITIES = {
    "mean frequency of token-mixing units": "cycles/token",
    "mean spread of token-mixing units": "px",
    "fraction of token-mixing units with a significant opposite-phase unit": "%",
}


def unit_features(model: Model, surrogates: int = 199) -> dict[str, np.ndarray]:
    """Each of `UNIT_QUANTITIES` by block [block], of a network with token-mixing weights."""
    table = token_mixing(model, surrogates=surrogates).summary()
    columns = ("mean_frequency", "mean_spread_px", "fraction_paired")
    return {
        name: table[column].to_numpy(float)
        for name, column in zip(UNIT_QUANTITIES, columns, strict=True)
    }


def block_representations(model: Model, images: ImageSource) -> Representations:
    """Mean-pooled outputs of all blocks."""
    return extract(model, images, layers="blocks")


def probe_accuracy(fit: Representations, test: Representations) -> np.ndarray:
    """Accuracy [layer] of a ridge probe on every layer."""
    return linear_probe(fit, test).accuracy


def pairwise_cka(networks: Sequence[Representations]) -> np.ndarray:
    """Unbiased linear CKA [network, network, layer] of the same layer in every pair of networks, 1
    on the diagonal."""
    count, layers = len(networks), len(networks[0].layers)
    values = np.ones((count, count, layers))
    for i in range(count):
        for j in range(i):
            matrix = compare(networks[i], networks[j], permutations=0, resamples=0)
            values[i, j] = values[j, i] = matrix.values.diagonal()
    return values
