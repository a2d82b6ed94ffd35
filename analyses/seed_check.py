"""Which similarity finds the same layer again in another seed? The sanity check of Kornblith et al.
2019 on the bundled networks.

    python analyses/seed_check.py --out runs/seed_check

Each family is there with two seeds. For every block of one, the closest block of the other should
be the one at the same place. Three ways to treat positions: their mean (all measures), their means
over the cells of a 4×4 grid, and all of them (CKA alone: 32,768 features a block take minutes a
measure). The measures that fit a regression or a rotation of each side need fewer features than
images, so they are asked about the mean only. A second table says why the mean may hide a block: of
what a block adds to the one before, the fraction of the variance over images that the mean over
positions keeps. Prints both tables; --out DIR gets results.json, results.csv, kept_by_mean.csv and
report.html. Takes about a quarter of an hour on one core.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pandas as pd
from rich.console import Console

import mixer_probe as mp
from mixer_probe.similarity.identification import LayerIdentification, layer_identification

FAMILIES = ("mixer", "vit", "resnet")
SEEDS = ("s0", "s1")
# The coarsest grid of the bundled networks, that of the last stage of the ResNet.
GRID = 4
ON_GRID = (
    "cka",
    "cka_rbf",
    "procrustes",
    "rsa",
    "rsa_euclidean",
    "mutual_knn",
    "jaccard",
    "distance_correlation",
)
ON_ALL = ("cka", "cka_rbf")


def main() -> None:
    """Check every family, print the table, and write it where asked to."""
    options = _options()
    images = mp.load_images(options.data, limit=options.limit)
    results: list[LayerIdentification] = []
    kept: list[pd.DataFrame] = []
    for family in options.models:
        results += check_family(family, images, options.device, kept)
    table = pd.concat([r.to_frame().assign(grid=_grid(r)) for r in results], ignore_index=True)
    for frame in (table, pd.concat(kept)):
        Console(width=200).print(frame.round(3).to_string(index=False))
    if options.out:
        write(results, table, options.out, vars(options))
        pd.concat(kept).to_csv(options.out / "kept_by_mean.csv", index=False)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models",
        nargs="+",
        choices=FAMILIES,
        default=FAMILIES,
        help="families of the bundled networks",
    )
    parser.add_argument("--data", default="demo", help="images, as load_images takes them")
    parser.add_argument("--limit", type=int, help="at most so many images")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps")
    parser.add_argument(
        "--out", type=Path, help="folder for results.json, results.csv and report.html"
    )
    return parser.parse_args()


def check_family(
    family: str, images: mp.Images, device: str, kept: list[pd.DataFrame]
) -> Iterator[LayerIdentification]:
    """The two seeds of a family, by the mean over positions, on a grid, and with all positions;
    adds to `kept`."""
    networks = [mp.load_model(f"zoo:{family}-{seed}", device=device) for seed in SEEDS]
    a, b = (mp.extract(network, images, reduce="mean") for network in networks)
    yield layer_identification(a, b)
    a, b = (mp.extract(network, images, reduce="none") for network in networks)
    kept += [kept_by_mean(run) for run in (a, b)]
    yield layer_identification(a, b, ON_GRID, grid=GRID)
    yield layer_identification(a, b, ON_ALL)


def kept_by_mean(run: mp.Representations) -> pd.DataFrame:
    """Of what each block adds to the one before, the fraction of the variance over images that the
    mean over positions keeps."""
    rows = []
    for before, after in pairwise(run.names()):
        if run[before].shape == run[after].shape:
            added = run[after] - run[before]
            fraction = (
                added.shape[1] * added.mean(axis=1).var(axis=0).sum() / added.var(axis=0).sum()
            )
            rows.append({"model": run.model.name, "block": after, "kept_by_mean": float(fraction)})
    return pd.DataFrame(rows)


def _grid(result: LayerIdentification) -> str:
    return "×".join(map(str, result.grid or ()))


def write(
    results: Sequence[LayerIdentification],
    table: pd.DataFrame,
    folder: Path,
    options: dict[str, object],
) -> None:
    """results.json, results.csv and report.html."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {key: str(value) for key, value in options.items()} | {
        "command": shlex.join(["python", *sys.argv])
    }
    mp.save_results(results, folder / "results.json", settings)
    table.to_csv(folder / "results.csv", index=False)
    mp.write_report(
        results,
        folder / "report.html",
        title="Layer identification across seeds",
        settings=settings,
    )


if __name__ == "__main__":
    main()
