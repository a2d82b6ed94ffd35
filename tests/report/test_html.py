"""The report: one file, everything inside, every number with its n, estimator and null, nothing
that could run."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mixer_probe as mp
from mixer_probe.core.errors import StoreError
from mixer_probe.core.result import Result
from mixer_probe.core.section import Picture, Table
from mixer_probe.core.skipped import Skipped
from mixer_probe.report import make_sections, write_report
from tests.tiny import SPEC, one_of_each, tiny_models


class Page(HTMLParser):
    """Tags with attributes, and the text a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


OPTIONS: dict[str, Any] = {
    "title": "Three <networks>",
    "settings": {"command": "mixer-probe demo", "script": "import mixer_probe"},
}


@pytest.fixture(scope="module")
def html(study: list[Result], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    return write_report(one_of_each(study), path, **OPTIONS).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_everything_is_inside(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object")
        source = attributes.get("src") or attributes.get("href") or ""
        assert source == "" or source.startswith(("data:image/", "#")), source
        assert not [name for name in attributes if name.startswith("on")]


def test_every_picture_has_an_alternative_text_and_a_caption(page: Page) -> None:
    pictures = [a for tag, a in page.tags if tag == "img"]
    assert len(pictures) >= 8
    assert all(len(a["alt"] or "") > 15 for a in pictures)
    assert page.text.count("How to read it:") == len(pictures)


def test_links_lead_somewhere(page: Page) -> None:
    anchors = {a["id"] for _tag, a in page.tags if "id" in a}
    assert {a["href"] for tag, a in page.tags if tag == "a"} == {f"#{name}" for name in anchors}


def test_titles_are_escaped_and_how_to_make_it_again_is_said(page: Page) -> None:
    assert "Three <networks>" in page.text
    assert "networks" not in [tag for tag, _ in page.tags]
    assert "mixer-probe demo" in page.text
    assert "CIFAR-10" in page.text  # the credit of the images


def test_numbers_carry_n_estimator_interval_and_null(study: list[Result]) -> None:
    text = {
        s.anchor: " ".join(
            [*s.paragraphs, *(c.shows + c.reading for c in s.content if isinstance(c, Picture))]
        )
        for s in make_sections(study)
    }
    assert "n = 60" in text["similarity"]
    assert "unbiased" in text["similarity"]
    assert "20 random pairings" in text["similarity"]
    assert re.search(
        r"CKA \(linear, unbiased\) between pairs of layers is -?0\.\d+ to 0\.\d+",
        text["similarity"],
    )
    assert re.search(
        r"\d of 4 pairs are above their own null, 5 % expected by chance", text["similarity"]
    )
    assert "n = 60" in text["measures"]
    assert "95 % Wilson" in text["probes"]
    assert re.search(r"\[\d+\.\d %, \d+\.\d %\] after \S+, n = 60", text["probes"])
    assert "999 surrogates" in text["token-mixing"]
    assert "60 images" in text["channels"]


def test_measures_are_listed_with_what_they_are_and_where_they_disagree(
    study: list[Result],
) -> None:
    section = next(s for s in make_sections(study) if s.anchor == "measures")
    best, definitions = (c for c in section.content if isinstance(c, Table))
    assert len([c for c in section.content if isinstance(c, Picture)]) == 3
    assert len(best.frame) == 9
    assert list(definitions.frame["measure"]) == [
        "CKA",
        "Procrustes distance",
        "mutual k-NN (k = 10)",
    ]
    assert len(section.paragraphs) == 3
    assert all(
        "Spearman" in text and re.search(r"best match of \d of \d layers", text)
        for text in section.paragraphs
    )


def test_noise_is_not_above_chance() -> None:
    rng = np.random.default_rng(0)
    reps = [mp.extract(model, mp.load_images("demo", limit=60)) for model in tiny_models()[:2]]
    for run in reps:
        run._arrays = {name: rng.normal(size=(60, 8)) for name in run}
    section = make_sections([mp.compare(*reps)])[0]
    assert "no pair of layers is above chance" in section.paragraphs[0]
    assert "the best pair is compared with the best pair" in section.paragraphs[0]


def test_a_distance_is_read_the_other_way_round() -> None:
    reps = [mp.extract(model, mp.load_images("demo", limit=60)) for model in tiny_models()[:2]]
    matrix = mp.compare(*reps, "procrustes", permutations=999)
    section = make_sections([matrix])[0]
    i, j = np.unravel_index(matrix.values.argmin(), matrix.values.shape)
    assert (
        f"{matrix.layers_a[i].name} × {matrix.layers_b[j].name}: Procrustes distance"
        in section.paragraphs[0]
    )
    assert "5th percentile of the" in section.paragraphs[0]


def test_five_networks_are_summed_up() -> None:
    mixer, vit, cnn = tiny_models()
    images = mp.load_images("demo", limit=20)
    runs = [
        mp.extract(model, images) for model in (mixer, vit, cnn, mixer.untrained(), vit.untrained())
    ]
    matrices = [mp.compare(a, b, permutations=0, resamples=0) for a, b in combinations(runs, 2)]
    alts = [c.alt for c in make_sections(matrices)[0].content if isinstance(c, Picture)]
    assert "Heatmap and tree of the similarity of networks" in alts
    fewer = make_sections([m for m in matrices if runs[4].model not in (m.model_a, m.model_b)])[0]
    assert "Heatmap and tree of the similarity of networks" not in [
        c.alt for c in fewer.content if isinstance(c, Picture)
    ]


def test_untrained_networks_are_named_in_every_section(tmp_path: Path) -> None:
    from mixer_probe.study import StudySettings, run_study

    model = tiny_models()[0].untrained()
    results = run_study(
        [model], mp.load_images("demo", limit=40), None, StudySettings(permutations=0)
    )
    sections = make_sections(results)
    of_weights = {"anatomy", "token-mixing", "kernels", "tying", "stem", "spectra"}
    of_probes = {"probes", "few-shot", "controls", "patch-position", "skipped"}
    of_channels = {"channels", "selectivity", "channels-needed", "channel-pages"}
    assert {s.anchor for s in sections} == {
        "models",
        "similarity",
        "spatial-mixing",
        "receptive-field",
        *of_channels,
        *of_weights,
        *of_probes,
    }
    # What the modules of a network mix is not learned.
    for section in (s for s in sections if s.anchor not in ("anatomy", "skipped")):
        assert any("tiny-mixer?untrained is untrained" in w for w in section.warnings), (
            section.anchor
        )


def test_baselines_are_no_reason_to_warn(study: list[Result]) -> None:
    assert not [w for s in make_sections(study) for w in s.warnings]


def test_skipped_steps_are_told(tmp_path: Path) -> None:
    page = Page(
        write_report(
            [Skipped("linear probes", "class 'hen' has one image")], tmp_path / "r.html"
        ).read_text()
    )
    assert "linear probes: class 'hen' has one image" in page.text


def test_nothing_to_report_and_nowhere_to_write(study: list[Result], tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no result to report"):
        write_report([], tmp_path / "r.html")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot write"):
        write_report(study[:1], tmp_path / "file" / "report.html")
    assert not list(tmp_path.glob("*.tmp"))


def test_a_name_with_markup_stays_text(tmp_path: Path) -> None:
    model = mp.load_model(tiny_models()[0].module, name="<img src=x onerror=alert(1)>", **SPEC)
    page = Page(write_report([mp.stem_filters(model)], tmp_path / "r.html").read_text())
    assert not [a for _t, a in page.tags if "onerror" in a]
    assert "<img src=x onerror=alert(1)>" in page.text


def test_tables_show_missing_numbers_as_a_dash() -> None:
    import pandas as pd

    table = Table(
        "t", pd.DataFrame({"a_b": [1.23456, float("nan")], "c": ["x", "y"]}), {"a_b": "{:.2f}"}
    )
    assert table.header == ["a b", "c"]
    assert table.rows == [[("1.23", True), ("x", False)], [("–", True), ("y", False)]]
