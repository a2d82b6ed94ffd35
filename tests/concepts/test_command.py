"""`mixer-probe concepts`: what it writes, and one line with exit code 2 for what cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mixer_probe.concepts import ConceptAtoms, ConceptMatches, ConceptSharing
from mixer_probe.core.result import load_results
from tests.test_cli import Run, run

__all__ = ["run"]
SMALL = (
    *("--limit", "30", "--atoms", "16", "--active", "4", "--epochs", "2", "--factors", "3"),
    *("--profiled", "2", "--device", "cpu"),
)


def test_concepts_writes_every_condition(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "concepts"
    networks = ("zoo:mixer", "zoo:vit", "--other", "zoo:mixer-s1,zoo:vit-s1", "--seeds", "1")
    code, printed, err = run("concepts", *networks, *SMALL, "--out", str(out))
    assert code == 0, err
    every = load_results(out)
    results = [r for r in every if isinstance(r, ConceptSharing)]
    (atoms,) = (r for r in every if isinstance(r, ConceptAtoms))
    assert len(atoms.index) == 2
    matches = [r for r in every if isinstance(r, ConceptMatches)]
    assert [(r.kind_a, r.kind_b) for r in matches] == [("NMF", "NMF")] + [("NMF", "dictionary")] * 2
    assert {len(r.correlation) for r in matches} == {3}
    conditions = [r.condition for r in results]
    assert conditions == ["networks", "shuffled images", "untrained", "two seeds", "two seeds"]
    first, shuffled, untrained, mixer, _ = results
    assert first.layers == ("blocks.3", "blocks.3")
    assert (first.grid, first.n, first.atoms, first.active) == ((16, 16), 30, 16, 4)
    assert first.fit_images.fingerprint != first.images.fingerprint
    assert [m.trained for m in untrained.models] == [False, False]
    assert [m.name for m in mixer.models] == ["zoo:mixer-s0", "zoo:mixer-s1"]
    # Of other images less can be read, even after two epochs.
    assert shuffled.r2[0, 1, 0] < first.r2[0, 1, 0]
    assert "mixer-s0 and vit-s0 share" in printed
    assert {"report.html", "shared-concepts.csv"} <= {p.name for p in out.iterdir()}
    frame = first.to_frame()
    assert list(frame["r2"]) == list(first.r2[..., 0].ravel())
    assert np.isfinite(first.energies).all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("zoo:mixer",), "at least two networks"),
        (("zoo:mixer", "zoo:vit", "--layer", "blocks.99"), "no layer 'blocks.99'"),
        (("zoo:mixer", "zoo:vit", "--layer", "a,b,c"), "3 names for 2 networks"),
        (("zoo:mixer", "zoo:vit", "--other", "zoo:mixer-s1"), "1 networks for 2"),
        (("zoo:mixer", "zoo:vit", "--depth", "0"), "above 0 and at most 1, not 0"),
        (("zoo:mixer", "zoo:vit", "--atoms", "9999"), "9999 atoms are more than the 7680 pos"),
        (("zoo:mixer", "zoo:vit", "--layer", "head"), "form no grid"),
    ],
)
def test_what_cannot_be_is_one_line(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    code, _, err = run("concepts", *SMALL, *arguments, "--out", str(tmp_path / "c"))
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert said in err
    assert not (tmp_path / "c" / "report.html").exists()
