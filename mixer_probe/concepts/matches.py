"""A second, cheaper way to concepts, non-negative matrix factorisation, and how far the concepts of
two networks, or of the two ways, are the same."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import MiniBatchNMF
from sklearn.exceptions import ConvergenceWarning

from mixer_probe.concepts.dictionary import Dictionary, check_parts
from mixer_probe.concepts.grid_activations import GridActivations
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.finding import Number
from mixer_probe.core.frame import Frame
from mixer_probe.core.result import ImagesRecord, ModelRecord, Result
from mixer_probe.core.validate import checked
from mixer_probe.stats.nulls import permutation_p, upper_quantile

# Positions of a batch, and batches that the factorisation sees.
_BATCH, _STEPS = 1024, 1000


@dataclass(frozen=True)
class ConceptMatches(Result):
    """Concepts of two networks, or two kinds of concepts of one, matched one to one.

    `correlation` [concept], decreasing, is that of the activity of the two concepts of a pair over
    the positions of all images; `pairs` [concept, 2] are their numbers. The matching has the
    largest sum of correlations (Kuhn 1955). `null` [draw, concept] are the same for images of the
    second side in a random order, matched anew. `kind_a` and `kind_b` are "NMF" or "dictionary"."""

    title: ClassVar[str] = "Matched concepts"
    frame: ClassVar[Frame] = Frame(
        "concept",
        "model_a=model_a.name layer_a kind_a model_b=model_b.name layer_b kind_b rank=concept "
        "correlation threshold n",
    )

    model_a: ModelRecord
    model_b: ModelRecord
    layer_a: str
    layer_b: str
    kind_a: str
    kind_b: str
    images: ImagesRecord
    correlation: Annotated[np.ndarray, "concept"]
    pairs: Annotated[np.ndarray, "concept", 2]
    null: Annotated[np.ndarray, "draw", "concept"]

    @property
    def n(self) -> int:
        """Images."""
        return self.images.n

    @property
    def threshold(self) -> float:
        """The largest correlation of a pair is above this in at most 5 % of random orders."""
        return float(upper_quantile(self.null.max(1)))

    @property
    def shared(self) -> int:
        """Pairs with a correlation above the `threshold`."""
        return int((self.correlation > self.threshold).sum())

    @property
    def mean(self) -> Number:
        """The mean correlation of matched concepts, with its mean under the null."""
        return Number(
            "mean correlation",
            float(self.correlation.mean()),
            null=float(self.null.mean()),
            n=self.n,
        )

    @property
    def p(self) -> float:
        """p-value of the mean correlation."""
        return float(permutation_p(self.correlation.mean(), self.null.mean(1)))


@checked(MeasureError)
def nmf_activity(
    fit: GridActivations, test: GridActivations, concepts: int = 32, seed: int = 0
) -> np.ndarray:
    """The activity [image, cell, concept] of concepts on `test`, whose directions were learned on
    `fit` by non-negative matrix factorisation (CRAFT: Fel et al. 2023).

    Activations of residual streams have both signs: the positive and the negative part of a
    channel are two features. Raises MeasureError as `check_parts`, and for more concepts than
    features."""
    check_parts([fit])
    check_parts([test])
    width = 2 * fit.layer.channels
    if concepts > width:
        raise MeasureError(
            f"{concepts} concepts are more than the {width} signed channels of layer "
            f"'{fit.layer.name}': take fewer"
        )
    passes = max(1, _STEPS * _BATCH // fit.values[..., 0].size)
    model = MiniBatchNMF(
        concepts, init="nndsvda", batch_size=_BATCH, max_iter=passes, random_state=seed
    )
    with warnings.catch_warnings():
        # Batches end where they end; the activities are those of the directions found.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(_signed(fit.values))
        found: np.ndarray = model.transform(_signed(test.values))
    return found.reshape(*test.values.shape[:2], concepts)


def _signed(values: np.ndarray) -> np.ndarray:
    """Positive and negative parts side by side: [position, 2 * channel] of [image, cell,
    channel]."""
    flat = values.reshape(-1, values.shape[-1])
    return np.concatenate([np.maximum(flat, 0), np.maximum(-flat, 0)], 1)


def dictionary_activity(
    dictionary: Dictionary, parts: Sequence[GridActivations], network: int
) -> np.ndarray:
    """The activity [image, cell, atom] of atoms in one network of a dictionary."""
    part = parts[network]
    shape = (*part.values.shape[:2], dictionary.atoms)
    x = part.rows(np.arange(len(part.values))).to(dictionary.means.device)
    code: np.ndarray = dictionary.code(network, dictionary.normalised(network, x)).cpu().numpy()
    return code.reshape(shape)


@checked(MeasureError)
def match_concepts(
    a: np.ndarray, b: np.ndarray, draws: int = 99, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`correlation`, `pairs` and `null` of `ConceptMatches` from activities [image, cell, concept].

    As many pairs as the side with fewer concepts has; concepts that are never active correlate
    with none. Raises MeasureError for activities at other positions, and too few draws for a 95 %
    quantile."""
    if a.shape[:2] != b.shape[:2]:
        raise MeasureError(
            f"activities at {a.shape[:2]} and {b.shape[:2]} images and cells cannot be matched: "
            "take the same images and grid"
        )
    if draws < 19:
        raise MeasureError(f"{draws} draws give no 95 % quantile: take 19 or more")
    rng = np.random.default_rng(seed)
    left, right = (_standardised(side) for side in (a, b))
    pairs, correlation = _matched(left, right)
    null = [_matched(left, right[rng.permutation(len(right))])[1] for _ in range(draws)]
    return correlation, pairs, np.array(null)


def _standardised(activity: np.ndarray) -> np.ndarray:
    x = activity - activity.mean((0, 1), keepdims=True)
    norm = np.sqrt(np.square(x).sum((0, 1), keepdims=True))
    found: np.ndarray = np.divide(x, norm, out=np.zeros(x.shape), where=norm > 0)
    return found


def _matched(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs [concept, 2] and correlations [concept], decreasing."""
    correlations = a.reshape(-1, a.shape[-1]).T @ b.reshape(-1, b.shape[-1])
    rows, columns = linear_sum_assignment(-correlations)
    values = correlations[rows, columns]
    order = np.argsort(-values, kind="stable")
    return np.stack([rows, columns], 1)[order], values[order]


def concept_matches(
    a: GridActivations,
    b: GridActivations,
    activities: tuple[np.ndarray, np.ndarray],
    kinds: tuple[str, str] = ("NMF", "NMF"),
    draws: int = 99,
    seed: int = 0,
) -> ConceptMatches:
    """`ConceptMatches` of activities of two layers on the same images. Raises as
    `match_concepts`."""
    correlation, pairs, null = match_concepts(*activities, draws=draws, seed=seed)
    return ConceptMatches(
        a.model,
        b.model,
        a.layer.name,
        b.layer.name,
        *kinds,
        a.images,
        correlation=correlation,
        pairs=pairs,
        null=null,
    )
