"""Two processes extract a run; again and again one is killed at a random moment and all start anew.
Prints the number of images that were there after each time. Run by test_ranks.py."""

from __future__ import annotations

import hashlib
import random
import sys
import time
from pathlib import Path

import mixer_probe.capture.units as units
from mixer_probe.capture import extract
from mixer_probe.channels import ChannelMoments
from tests.capture.test_store import Source
from tests.helpers.forked import run_ranks
from tests.networks import CASES

N, KILLS = 358, 20


class Slow(Source):
    """Images that take their time."""

    def batches(self, *arguments: object, **options: object) -> object:  # type: ignore[override]
        for batch in super().batches(*arguments, **options):  # type: ignore[arg-type]
            time.sleep(0.004)
            yield batch


def work(out: Path, source: Source) -> None:
    model = CASES["mixer"].model()
    reading = ChannelMoments().reading(model, model.select("blocks"))
    extract(model, source, "blocks", reduce="none", batch_size=2, out=out, also=[reading])


def digest(folder: Path) -> dict[str, str]:
    """Hash of every file, by name."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def main(folder: Path) -> None:
    """Kill, restart, compare with runs that nobody disturbed."""
    units.LEAST = 4
    rng, done = random.Random(0), [0]

    def units_done() -> int:
        return len(list((folder / "killed" / "units").glob("[0-9]*.json")))

    def moment(new: int, seconds: float) -> None:
        deadline = time.monotonic() + 30
        while units_done() < done[-1] + new and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(seconds)

    for kill in range(KILLS):
        # Before the first unit, or after one or two more, somewhere in the next.
        new = rng.choice([0, 1, 1, 2])
        seconds = rng.uniform(0, 0.02 if new else 0.5)
        run_ranks(
            2,
            lambda: work(folder / "killed", Slow(N)),
            lambda new=new, seconds=seconds: moment(new, seconds),
            kill % 2,
        )
        done.append(units_done())
    assert run_ranks(2, lambda: work(folder / "killed", Source(N))) == [0, 0]
    for world in (1, 2, 3):
        out = folder / str(world)
        assert run_ranks(world, lambda out=out: work(out, Source(N))) == [0] * world
    expected = digest(folder / "1")
    for name in ("2", "3", "killed"):
        found = digest(folder / name)
        odd = [k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k)]
        assert not odd, (name, odd)
    print(f"units after each kill: {done[1:]}; {len(expected)} files are equal")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
