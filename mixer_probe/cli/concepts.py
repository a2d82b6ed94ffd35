"""`concepts`: which features networks share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixer_probe.cli.options import (
    AsJson,
    ImageOptions,
    ModelNames,
    ModelOptions,
    Out,
    command,
    parts,
    without_weights,
)
from mixer_probe.cli.output import finish
from mixer_probe.core.errors import MeasureError


@command("concepts zoo:mixer-s0 zoo:vit-s0 --other zoo:mixer-s1,zoo:vit-s1 --atoms 256")
def concepts(
    names: ModelNames,
    layer: Annotated[
        str | None,
        typer.Option(help="The layer of every network, with commas; one name stands for all."),
    ] = None,
    depth: Annotated[
        float, typer.Option(help="Relative depth of the blocks, where no --layer is given.")
    ] = 0.5,
    atoms: Annotated[int, typer.Option(min=1, help="Atoms of the dictionary.")] = 128,
    active: Annotated[int, typer.Option(min=1, help="Atoms that are active at a position.")] = 8,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the activations.")] = 10,
    profiled: Annotated[
        int, typer.Option(min=0, help="Atoms that are shown and removed, for images with labels.")
    ] = 24,
    seeds: Annotated[int, typer.Option(min=1, help="Dictionaries with seeds of their own.")] = 2,
    factors: Annotated[
        int, typer.Option(min=0, help="Concepts by non-negative matrix factorisation; 0: none.")
    ] = 32,
    other: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL,...",
            help="For every network one of its architecture trained with another seed.",
        ),
    ] = None,
    controls: Annotated[
        bool,
        typer.Option(help="Also learn dictionaries of shuffled images and untrained networks."),
    ] = True,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per forward pass.")] = 64,
    source: ImageOptions = ImageOptions(),
    models: ModelOptions = ModelOptions(),
    out: Out = Path("concepts"),
    as_json: AsJson = False,
) -> None:
    """One sparse dictionary of several networks: how much of each the others' codes explain, which
    atoms are active in both, and which are of one network alone.

    The dictionary is learned on the training images of a data set that has them, else on half of
    the images, and measured on the others. Writes figures as SVG and PNG, the numbers as CSV,
    results.json and report.html."""
    from mixer_probe.capture.analysis_inputs import halves
    from mixer_probe.concepts import DictionaryRecipe, layer_at, shared_concepts
    from mixer_probe.concepts.concept_study import CONTROLS

    given = parts(layer) if layer else []
    if len(given) not in (0, 1, len(names)):
        raise MeasureError(
            f"--layer has {len(given)} names for {len(names)} networks: give one for all, or one "
            "each"
        )
    chosen = given * len(names) if len(given) == 1 else given
    loaders = models.loaders(names)
    others = models.loaders(parts(other)) if other else []
    if others and len(others) != len(names):
        raise MeasureError(
            f"--other has {len(others)} networks for {len(names)}: give one for each"
        )
    # What a network lacks is an error before any of them runs.
    for name, model in zip(chosen, without_weights(loaders)):
        model.layer(name)
    test, fit = source.train_and_test()
    if fit is None:
        first, second = halves(test.labels, test.name, test.class_names, source.seed, len(test))
        fit, test = test.subset(first), test.subset(second)
    networks = [load() for load in loaders]
    results = shared_concepts(
        networks,
        fit,
        test,
        chosen or [layer_at(network, depth) for network in networks],
        DictionaryRecipe(atoms, active, epochs, seed=source.seed),
        others=[load() for load in others],
        controls=CONTROLS if controls else ("two seeds",),
        seeds=seeds,
        factors=factors,
        profiled=profiled,
        batch_size=batch_size,
        device=str(networks[0].device),
    )
    finish(results, out, "Shared concepts", as_json)
