"""`mixer-probe mixing`: what it prints and writes, and one line with exit code 2 for what cannot
be."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixer_probe.core.result import load_results
from mixer_probe.mixing import SpatialMixing, TokenComponents
from tests.helpers.golden import check_folder
from tests.test_cli import Run, run

__all__ = ["run"]
SMALL = ("--images", "2", "--positions", "4", "--limit", "8", "--device", "cpu")


def test_mixing_writes_pictures_tables_and_results(
    run: Run, tmp_path: Path, update_golden: bool
) -> None:
    out = tmp_path / "mixing"
    arguments = (*SMALL, "--what", "jacobian,pca", "--out", str(out))
    code, printed, err = run("mixing", "zoo:mixer", *arguments)
    assert code == 0, err
    results = load_results(out)
    assert [type(r) for r in results] == [SpatialMixing] * 2 + [TokenComponents] * 2
    mixing = results[0]
    assert isinstance(mixing, SpatialMixing)
    assert (mixing.n, mixing.probes, set(mixing.positions.tolist())) == (2, 1, {4})
    files = {p.name for p in out.iterdir()}
    assert {"report.html", "spatial-mixing.csv", "mixing-distance.svg", "mixing-maps.png"} <= files
    assert "the branches that mix positions read from 0." in printed
    assert "three principal components hold " in printed
    assert printed.splitlines()[-1] == str(out / "report.html")
    check_folder("mixing", out, update_golden)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("zoo:mixer", "--what", "jacobean"), "closest: jacobian"),
        (("zoo:mixer", "--what", "attention"), "zoo:mixer"),
        (("zoo:mixer", "zoo:resnet", "--what", "attention"), "attention is that of ViTs"),
        (("zoo:mixre", "--what", "erf"), "closest: mixer-s1"),
    ],
)
def test_what_cannot_be_is_one_line(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    code, _, err = run("mixing", *SMALL, *arguments, "--out", str(tmp_path / "m"))
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert said in err
    assert not (tmp_path / "m" / "report.html").exists()
