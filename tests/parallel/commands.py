"""Runs every command that passes images through networks with 1, 2 and 3 processes, and compares
results and stores. Run by test_ranks.py."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import mixer_probe.capture.units as units
from mixer_probe.catalog import ROOMS
from mixer_probe.cli import main as command_line
from mixer_probe.cli.options import PassOptions
from tests.helpers.forked import run_ranks
from tests.parallel.generations import digest

IMAGES = "--data demo --limit 30 --batch-size 3"
# Without baselines, which are passed through like the networks; the study is that of a few
# analyses.
COMMANDS = {
    "extract": "zoo:mixer-s0 --reduce none --layers blocks.0,blocks.7",
    "compare": "zoo:mixer-s0 zoo:resnet-s0 --layers blocks --permutations 0 --resamples 0",
    "probe": "zoo:mixer-s0 --no-baselines",
    "channels": "zoo:mixer-s0 --what statistics,selectivity --permutations 20",
    "report": "zoo:mixer-s0 zoo:vit-s0 --no-baselines --permutations 20 --resamples 0",
}
STUDY = {"probing": ["accuracy"], "channels": ["statistics"], "similarity": ["similarity"]}


def run(command: str, out: Path) -> None:
    """One process of a command."""
    units.LEAST = 8
    settings = PassOptions.settings

    def few(self: PassOptions, **choices: Any) -> Any:
        found = settings(self, **choices)
        wanted = {room.name: STUDY.get(room.name, []) for room in ROOMS}
        return replace(found, analyses=wanted) if command == "report" else found

    PassOptions.settings = few  # type: ignore[method-assign]
    given = f"{command} {COMMANDS[command]} {IMAGES} --out {out}"
    sys.argv = ["mixer-probe", *given.split()]
    command_line()


def main(folder: Path) -> None:
    """The same results, and the same bytes in every store."""
    for command in COMMANDS:
        expected: tuple[Any, dict[str, str]] | None = None
        for world in (1, 2, 3):
            out = folder / command / str(world)
            codes = run_ranks(world, lambda c=command, out=out: run(c, out))
            assert codes == [0] * world, (command, world, codes)
            file = out / "results.json"
            results = json.loads(file.read_text())["results"] if file.is_file() else None
            stored = digest(out if results is None else out / "runs")
            if expected is None:
                expected = results, stored
            assert results == expected[0], (command, world)
            # A single process keeps in memory what fits there.
            odd = [name for name in stored if stored[name] != expected[1].get(name)]
            assert not (odd and expected[1]), (command, world, odd)
            expected = results, stored
        print(f"{command}: results and {len(stored)} files are equal")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
