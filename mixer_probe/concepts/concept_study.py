"""`shared_concepts`: all that is asked of dictionaries of several networks, with its controls."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations

import torch

from mixer_probe.capture import ImageSource, as_source
from mixer_probe.concepts.atoms import concept_atoms
from mixer_probe.concepts.dictionary import Dictionary, DictionaryRecipe
from mixer_probe.concepts.grid_activations import Cells, GridActivations, common_grid
from mixer_probe.concepts.matches import concept_matches, dictionary_activity, nmf_activity
from mixer_probe.concepts.sharing import Condition, concept_sharing, fit_dictionaries, sharing_of
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import Result
from mixer_probe.core.validate import checked
from mixer_probe.models import Model

CONTROLS: tuple[Condition, ...] = ("shuffled images", "untrained", "two seeds")
Parts = list[GridActivations]


@checked(MeasureError)
def shared_concepts(
    models: Sequence[Model],
    fit: ImageSource | torch.Tensor,
    test: ImageSource | torch.Tensor,
    layers: Sequence[str],
    recipe: DictionaryRecipe | None = None,
    *,
    grid: Cells | None = None,
    others: Sequence[Model | None] = (),
    controls: Sequence[Condition] = CONTROLS,
    factors: int = 32,
    profiled: int = 24,
    seeds: int = 2,
    batch_size: int = 64,
    device: str = "cpu",
) -> list[Result]:
    """`concept_sharing` of networks at one layer each, and of what it has to be compared with; then
    the concepts of each network by non-negative matrix factorisation, `factors` of them, matched
    between networks, and with the atoms of the first dictionary (0: none), and for images with
    labels so many `profiled` atoms of it (`concept_atoms`).

    `others` are, in the order of the networks, networks of the same architecture trained with
    another seed, or None: each pair shares as much as training allows. `grid` (rows, columns) is by
    default `common_grid`. Raises as `concept_sharing`, and MeasureError for numbers of `layers` or
    `others` that are not that of the networks."""
    for name, given in (("layers", layers), ("others", others or models)):
        if len(given) != len(models):
            raise MeasureError(f"{len(given)} {name} for {len(models)} networks: give one each")
    cells = grid or common_grid([m.layer(name) for m, name in zip(models, layers, strict=True)])

    def parts(networks: Sequence[Model], names: Sequence[str]) -> tuple[Parts, Parts]:
        of_fit, of_test = (
            [
                GridActivations.of(model, images, name, cells, batch_size)
                for model, name in zip(networks, names, strict=True)
            ]
            for images in (fit, test)
        )
        return of_fit, of_test

    recipe = recipe or DictionaryRecipe()
    run = partial(concept_sharing, recipe=recipe, seeds=seeds, device=device)
    trained = parts(models, layers)
    dictionaries = fit_dictionaries(trained[0], recipe, seeds, device=device)
    results: list[Result] = [sharing_of(dictionaries, *trained, recipe)]
    if "shuffled images" in controls:
        results.append(run(*trained, condition="shuffled images"))
    if "untrained" in controls:
        untrained = [model.untrained() for model in models]
        results.append(run(*parts(untrained, layers), condition="untrained"))
    for i, other in enumerate(others if "two seeds" in controls else ()):
        if other is not None:
            second = parts([other], [layers[i]])
            both = [[mine[i], theirs[0]] for mine, theirs in zip(trained, second, strict=True)]
            results.append(run(*both, condition="two seeds"))
    if profiled and as_source(test).labels is not None:
        found = concept_atoms(
            dictionaries[0],
            models,
            trained[1],
            as_source(test),
            most=profiled,
            batch_size=batch_size,
            seed=recipe.seed,
        )
        results.append(found)
    return results + (_factored(dictionaries[0], *trained, factors, recipe.seed) if factors else [])


def _factored(
    dictionary: Dictionary,
    fit: Sequence[GridActivations],
    test: Sequence[GridActivations],
    factors: int,
    seed: int,
) -> list[Result]:
    """NMF concepts of all pairs of networks, and of each network with its atoms."""
    nmf = [nmf_activity(*sides, factors, seed) for sides in zip(fit, test, strict=True)]
    of_pairs = [
        concept_matches(test[i], test[j], (nmf[i], nmf[j]), seed=seed)
        for i, j in combinations(range(len(test)), 2)
    ]
    of_two = [
        concept_matches(
            part,
            part,
            (nmf[i], dictionary_activity(dictionary, test, i)),
            ("NMF", "dictionary"),
            seed=seed,
        )
        for i, part in enumerate(test)
    ]
    return [*of_pairs, *of_two]
