"""What the report says about channels: planted channels are named, noise gives no finding, every
sentence has its n."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.mlp_mixer import MlpMixer

import mixer_probe as mp
from mixer_probe.channels import (
    ChannelPage,
    ChannelPartners,
    ChannelsNeeded,
    ClassSelectivity,
    channel_pages,
    channel_partners,
    channels_needed,
    class_selectivity,
)
from mixer_probe.channels.analyses import CLEAREST, ROOM, TAILED, chosen_channels, counterpart
from mixer_probe.channels.figures import (
    channel_catalogue,
    channel_page,
    partner_depth,
    partner_strength,
)
from mixer_probe.core.errors import ImagesError, MeasureError, UndefinedChannelsWarning
from mixer_probe.core.result import Result
from mixer_probe.core.section import Picture, Section, Table
from mixer_probe.core.skipped import Skipped
from mixer_probe.images import Images
from mixer_probe.images.labelled import from_arrays
from mixer_probe.models import Layer
from mixer_probe.report import make_sections, write_report
from mixer_probe.study import StudySettings, run_analyses, run_study
from tests.channels.test_partners import pair, reps_of
from tests.channels.test_selectivity import planted
from tests.networks import as_model, noise, randomised
from tests.report.test_figure_layout import outside, overlapping, texts_of

RED, CHANNELS = 5, 16


def only(results: list[Any]) -> Section:
    (section,) = make_sections(results)
    return section


def planted_model() -> mp.Model:
    """A Mixer of two blocks that change nothing, whose channel 5 is red minus blue and whose other
    channels see no colour."""
    network = MlpMixer(img_size=32, patch_size=8, embed_dim=CHANNELS, num_blocks=2)
    with torch.no_grad():
        for p in network.blocks.parameters():
            p.zero_()
        weight = torch.randn(CHANNELS, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        weight -= weight.mean((2, 3), keepdim=True)
        weight[RED] = torch.tensor([1.0, 0.0, -1.0])[:, None, None] / 64
        network.stem.proj.weight.copy_(weight)
        network.stem.proj.bias.zero_()
    return as_model(network, name="planted")


def coloured(n: int = 90, shuffled: bool = False) -> Images:
    """Noise that is redder in the first of three classes and bluer in the third; `shuffled` deals
    the classes out at random."""
    random = np.random.default_rng(3)
    labels = np.arange(n) % 3
    tint = np.array([[30, 0, -30], [0, 0, 0], [-30, 0, 30]])[labels]
    pixels = (random.integers(60, 190, (n, 32, 32, 3)) + tint[:, None, None]).astype(np.uint8)
    return from_arrays(
        pixels,
        random.permutation(labels) if shuffled else labels,
        class_names=("red", "grey", "blue"),
    )


def study_of(images: Images, **choices: Any) -> list[Result]:
    chosen = {"channels": ROOM.defaults, **choices.pop("analyses", {})}
    settings = StudySettings(permutations=99, statistics_images=None, page_images=4, **choices)
    return run_analyses([planted_model()], chosen, images, settings=settings, strict=False)


def test_a_planted_channel_is_named_and_its_page_shows_its_class() -> None:
    results = study_of(coloured(), analyses={"channels": ("selectivity", "pages")})
    selectivity, pages = make_sections(results)
    (sentence,) = selectivity.paragraphs
    assert (
        "2 of 32 channels (6.2 %) are significantly selective for a class: 6.2 % after blocks.0, "
        "6.2 % after" in sentence
    )
    assert "999 label permutations, n = 90" in sentence
    assert "channel 5 of blocks.0" in sentence
    (sentence,) = pages.paragraphs
    assert sentence.startswith(f"planted: 2 channels, 1 of each of 2 layers: {CLEAREST}.")
    assert (
        "2 of 2 are significantly selective for a class (corrected for the channels of 2 layers)"
        in sentence
    )
    # Which of the two colours is clearer is up to the noise.
    found = [r for r in results if isinstance(r, ChannelPage)]
    best = int(np.nanargmax(np.abs(found[0].auroc - 0.5)))
    end = "" if found[0].auroc[best] > 0.5 else ", lowest"
    assert [p.channel for p in found] == [RED, RED]
    assert (
        f"4 of 4 in blocks.0 · 5 ('{('red', 'grey', 'blue')[best]}'{end}) and 4 of 4 in blocks.1 · "
        "5" in sentence
    )
    assert sentence.endswith("n = 90.")


def test_random_labels_give_no_finding() -> None:
    selectivity, pages = make_sections(
        study_of(coloured(shuffled=True), analyses={"channels": ("selectivity", "pages")})
    )
    (sentence,) = selectivity.paragraphs
    assert sentence.startswith(
        "planted: none of 32 channels is significantly selective for a class (5 % level, max-T"
    )
    assert "999 label permutations, n = 90" in sentence
    assert "0 of 2 are significantly selective for a class" in pages.paragraphs[0]


def test_without_labels_pages_go_by_tails_and_the_rest_is_left_out() -> None:
    results = study_of(replace(coloured(), labels=None, class_names=None))
    assert {type(r).__name__ for r in results} == {"ChannelStatistics", "ChannelPage", "Skipped"}
    (skipped,) = [r for r in results if isinstance(r, Skipped)]
    assert skipped.reason.startswith(
        "the images (arrays) have no labels: the analysis needs them, so sort the images"
    )
    statistics = next(r for r in results if isinstance(r, mp.channels.ChannelStatistics))
    pages = [r for r in results if isinstance(r, ChannelPage)]
    assert [p.channel for p in pages] == [int(np.nanargmax(k)) for k in statistics.kurtosis]
    sections = {s.anchor: s for s in make_sections(results)}
    assert TAILED in sections["channel-pages"].paragraphs[0]
    assert "selective for a class" not in sections["channel-pages"].paragraphs[0]


def test_channels_are_chosen_by_strength_and_classes_take_turns() -> None:
    found = class_selectivity(planted(effect=3), permutations=19)
    strongest = int(np.argmax(found.strength[1]))
    statistics: Any = None
    chosen, rule = chosen_channels(["units"], statistics, found, 1)
    assert (chosen, rule) == ({"units": [strongest]}, CLEAREST)
    several, rule = chosen_channels(["noise", "units"], statistics, found, 3)
    assert set(several["units"]) == {4, 9, 17}
    assert several["units"][0] == strongest
    assert len(several["noise"]) == 3
    assert "then the most selective for other classes" in rule


def test_undefined_channels_come_last() -> None:
    reps = planted()
    reps.features["units"][:, [4, 9]] = 1.0
    with pytest.warns(UndefinedChannelsWarning):
        found = class_selectivity(reps, permutations=19)
    statistics: Any = None
    chosen, _ = chosen_channels(["units"], statistics, found, 60)
    assert chosen["units"][0] == 17
    assert set(chosen["units"][-2:]) == {4, 9}


def test_selectivity_stands_beside_the_twin() -> None:
    found = class_selectivity(planted())
    twin = class_selectivity(planted(seed=5, effect=0), permutations=99)
    twin = replace(twin, model=replace(twin.model, name="mixer?untrained", trained=False))
    section = only([found, twin])
    (sentence,) = section.paragraphs
    best = found.to_frame().sort_values("strength").iloc[-1]
    assert sentence.startswith(
        "mixer: 3 of 120 channels (2.5 %) are significantly selective for a class: 0.0 % after "
        "noise, 5.0 %"
    )
    # Activations of either sign: which of the two ends is "on" is not known.
    assert (
        f"the most selective of all layers, channel {best['channel']} of units, separates "
        f"'{best['class']}' (AUROC {best['auroc']:.3f}, d′ {best['dprime']:.2f}, p = 0.001)"
        in sentence
    )
    medians = [np.median(0.5 + np.abs(a - 0.5).max(1)) for a in twin.auroc]
    assert (
        "Untrained baseline: 0.0 % are selective; the AUROC of the median channel is at most "
        f"{max(medians):.3f}" in sentence
    )
    assert not section.warnings
    assert "?untrained is untrained" not in str(section.warnings)
    assert only([replace(twin, model=replace(twin.model, name="net"))]).warnings


def test_without_a_null_nothing_is_called_selective() -> None:
    (sentence,) = only([class_selectivity(planted(), permutations=0)]).paragraphs
    assert "no permutations were computed" in sentence
    assert "n = 300" in sentence
    assert "nan" not in sentence


def test_constant_channels_tell_nothing() -> None:
    reps = planted()
    for name in reps.features:
        reps.features[name] = np.zeros((300, 60))
    with pytest.warns(UndefinedChannelsWarning):
        found = class_selectivity(reps, permutations=19)
    assert only([found]).paragraphs == (
        "mixer: no channel varies over the images, so none is selective (n = 300).",
    )


def test_constant_channels_are_counted_where_others_are_not() -> None:
    reps = planted()
    reps.features["units"][:, [30, 31]] = 1.0
    with pytest.warns(UndefinedChannelsWarning):
        found = class_selectivity(reps, permutations=99)
    assert "2 channels are constant over the images or not finite." in only([found]).paragraphs[0]
    A, B = pair()
    A[:, 0] = 1
    with pytest.warns(UndefinedChannelsWarning):
        partners = channel_partners(reps_of(A), reps_of(B), "x", "x", permutations=19)
    assert (
        "of 29 channels of x (1 more are constant) have a match in x"
        in only([partners]).paragraphs[0]
    )


def test_channels_needed_are_counted() -> None:
    train, test = planted(seed=1, split="train", effect=6), planted(seed=2, effect=6)
    found = channels_needed(train, test, counts=(1, 3, 20), draws=4)
    (sentence,) = only([found]).paragraphs
    all_of_them, three, random = found.selective[1][-1], found.selective[1][1], found.random[1][1]
    assert sentence.startswith(
        "mixer, after units: the 3 most selective of 60 channels reach 90.0 % of the gain over "
        "chance"
    )
    assert f"({100 * three:.1f} % [" in sentence
    assert f"]; all channels: {100 * all_of_them:.1f} % [" in sentence
    assert (
        f"the same number of random channels reaches {100 * random.mean():.1f} % "
        f"({100 * random.min():.1f} % to" in sentence
    )
    assert sentence.endswith("in 4 draws; chance 33.3 %, ridge probe, n = 300).")


def test_channels_that_tell_nothing_are_not_counted() -> None:
    found = channels_needed(planted(seed=1, split="train"), planted(seed=2), draws=1)
    chance = replace(found, selective=tuple(np.zeros_like(s) for s in found.selective))
    (sentence,) = only([chance]).paragraphs
    assert "accuracy with all 60 channels is not above chance (0.0 % [0.0 %," in sentence


def partners(permutations: int = 19, seed: int = 0) -> ChannelPartners:
    A, B = pair(seed=seed)
    found = channel_partners(reps_of(A), reps_of(B), "x", "x", permutations=permutations)
    return replace(
        found,
        model_a=replace(found.model_a, name="one"),
        model_b=replace(found.model_b, name="two"),
    )


def test_partners_are_counted_beside_chance_and_the_twins() -> None:
    found, twin = partners(), partners(seed=1)
    twin = replace(
        twin,
        model_a=replace(twin.model_a, name="one?untrained", trained=False),
        model_b=replace(twin.model_b, name="two?untrained", trained=False),
    )
    section = only([found, twin])
    (sentence,) = section.paragraphs
    expected = (
        f"one in two: {100 * found.fraction_above:.1f} % of 30 channels of x have a match in x "
        "above the null, 5 % by chance"
    )
    assert sentence.startswith(expected)
    assert (
        f"median |r| {np.median(found.strength):.2f}, 95th percentile of the null "
        f"{np.median(found.threshold):.2f}" in sentence
    )
    assert (
        f"untrained baselines {np.median(twin.strength):.2f} (n = 200, 19 permutations)" in sentence
    )
    assert [p.name for p in section.content if isinstance(p, Picture)] == ["partners"]
    assert not section.warnings


def test_partners_without_a_null_or_without_variation() -> None:
    assert (
        "no permutations were computed (n = 200)" in only([partners(permutations=0)]).paragraphs[0]
    )
    A, B = pair()
    with pytest.warns(UndefinedChannelsWarning):
        nothing = channel_partners(reps_of(np.zeros_like(A)), reps_of(B), "x", "x", permutations=19)
    assert "no channel of x or none of x varies" in only([nothing]).paragraphs[0]


def test_counterparts_are_nearest_in_depth() -> None:
    def layer(depth: float) -> Layer:
        return Layer(f"at {depth}", "block", depth, None, 4, 0, 1)

    others = [layer(d) for d in (0.25, 0.5, 0.75, 1.0)]
    assert [counterpart(layer(d), others).depth for d in (0.1, 0.3, 0.7, 0.625, 1.0)] == [
        0.25,
        0.25,
        0.75,
        0.5,
        1.0,
    ]


@pytest.fixture(scope="module")
def two() -> list[Result]:
    """The study of two small networks with random weights, channels alone."""
    models = [
        as_model(
            randomised(MlpMixer(img_size=32, patch_size=8, embed_dim=c, num_blocks=b), seed=b),
            name=f"net{b}",
        )
        for c, b in ((16, 2), (12, 3))
    ]
    images, train = (
        mp.load_images("demo", limit=60),
        mp.load_images("demo", split="train", limit=60),
    )
    settings = StudySettings(permutations=20)
    return run_analyses(models, {"channels": ROOM.defaults}, images, train, settings)


def test_every_network_has_every_analysis_and_a_page_of_every_block(two: list[Result]) -> None:
    kinds = [type(r) for r in two]
    # Two networks and their twins.
    assert kinds.count(ClassSelectivity) == 4
    assert kinds.count(ChannelsNeeded) == 2
    assert kinds.count(ChannelPartners) == 2 * (2 + 3)
    assert kinds.count(ChannelPage) == 2 + 3
    own = {r.model_a.name for r in two if isinstance(r, ChannelPartners)}
    assert own == {"net2", "net3", "net2?untrained", "net3?untrained"}


def test_pages_have_their_partners(two: list[Result]) -> None:
    page = next(
        r
        for r in two
        if isinstance(r, ChannelPage) and r.model.name == "net2" and r.layer.name == "blocks.1"
    )
    found = next(
        r
        for r in two
        if isinstance(r, ChannelPartners)
        and (r.model_a.name, r.layer_a.name) == ("net2", "blocks.1")
    )
    assert found.layer_b.name == "blocks.2"
    assert page.partners == (
        (
            "net3",
            "blocks.2",
            found.partner[page.channel, 0],
            found.correlation[page.channel, 0],
            found.p_corrected[page.channel],
        ),
    )


def test_sections_of_a_study(two: list[Result]) -> None:
    sections = {s.anchor: s for s in make_sections(two)}
    assert list(sections) == [
        "channels",
        "selectivity",
        "channels-needed",
        "partners",
        "channel-pages",
    ]
    for anchor, section in sections.items():
        assert len(section.paragraphs) == 2, anchor
        assert all("n = 60" in text or "60 images" in text for text in section.paragraphs), (
            section.paragraphs
        )
        assert not any("nan" in text for text in section.paragraphs)
        assert any(isinstance(item, Picture) for item in section.content)
    names = [p.file_name for s in sections.values() for p in s.content if isinstance(p, Picture)]
    assert len(set(names)) == len(names)
    pages = [p for p in sections["channel-pages"].content if isinstance(p, Picture)]
    assert [p.folded for p in pages] == [False, True, True, False, True, True, True]
    assert not any(isinstance(item, Table) for item in sections["channel-pages"].content)


def test_pages_are_folded_in_the_report_and_stay_small(two: list[Result], tmp_path: Path) -> None:
    pages = [r for r in two if isinstance(r, ChannelPage) and r.model.name == "net2"]
    page = write_report(pages, tmp_path / "report.html").read_text()
    assert page.count("<details><summary>net2, blocks.") == 2
    picture = next(p for p in only(pages).content if isinstance(p, Picture) and p.folded)
    webp = base64.b64decode(picture.data.removeprefix("data:image/webp;base64,"))
    assert webp[8:12] == b"WEBP"
    assert len(webp) < 100_000


def test_a_crowd_of_networks_is_cut_to_what_fits(two: list[Result]) -> None:
    found = [
        r
        for r in two
        if isinstance(r, ChannelPartners)
        and r.layer_a.name == "blocks.0"
        and "?" not in r.model_a.name
    ]
    renamed = [
        replace(
            found[0],
            model_a=replace(found[0].model_a, name=a),
            model_b=replace(found[0].model_b, name=b),
        )
        for a in "abcd"
        for b in "abcd"
        if a != b
    ]
    section = only(renamed)
    assert len(section.paragraphs) == 12
    (picture,) = [p for p in section.content if isinstance(p, Picture)]
    assert "6 of 12 pairs of networks are drawn" in picture.shows
    assert len(partner_depth(renamed).axes) == 8
    long = [
        replace(r, model_a=replace(r.model_a, name="mixer_b16_224.goog_in21k_ft_in1k"))
        for r in renamed
    ]
    figure = partner_strength(
        [replace(r, layer_a=replace(r.layer_a, name="stages.2.blocks.26.mixer")) for r in long[:6]]
    )
    assert [text for text, box in texts_of(figure) if outside(box, figure.bbox)] == []


def test_the_largest_activation_is_told(two: list[Result]) -> None:
    found = [r for r in two if isinstance(r, mp.channels.ChannelStatistics)]
    section = only(found)
    for result, text in zip(found, section.paragraphs, strict=True):
        peaks = [ratio.max() for ratio in result.largest_ratio]
        where = result.layers[int(np.argmax(peaks))].name
        assert (
            f"the largest activation is {max(peaks):.3g} times the median of its layer, after "
            f"{where} (0 channels" in text
        )
    old = replace(found[0], median_magnitude=None, kurtosis=())
    assert only([old]).paragraphs[0].endswith("exactly zero.")


def test_a_catalogue_has_a_row_a_page(two: list[Result]) -> None:
    pages = [r for r in two if isinstance(r, ChannelPage) and r.model.name == "net3"]
    figure = channel_catalogue(pages)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    # Four images, two maps over pictures in grey, and four of the lowest.
    assert len(axes.images) == 3 * (4 + 2 * 2 + 4)
    np.testing.assert_array_equal(axes.images[0].get_array(), pages[0].top.pictures[0])
    texts = [t.get_text() for t in axes.texts]
    assert all(f"{p.layer.name} · channel {p.channel}" in texts for p in pages)


def test_texts_of_pages_with_long_names_stay_apart_and_inside(two: list[Result]) -> None:
    page = next(r for r in two if isinstance(r, ChannelPage))
    k = len(page.top.ids)
    long = "vit_base_patch16_224.augreg2_in21k_ft_in1k"
    named = replace(
        page,
        model=replace(page.model, name=long),
        layer=replace(page.layer, name="stages.2.blocks.26.token_mixer.attention"),
        class_names=tuple(f"Chesapeake Bay retriever {i}" for i in range(len(page.class_names))),
        top=replace(page.top, classes=("Chesapeake Bay retriever",) * k),
        partners=tuple(
            (f"{long}{i}", "stages.2.blocks.26.token_mixer.attention", 1023, -0.123456, 0.5)
            for i in range(8)
        ),
    )
    for figure in (channel_page(named), channel_catalogue([named] * 3)):
        texts = texts_of(figure)
        assert overlapping(texts) == []
        assert [text for text, box in texts if outside(box, figure.bbox)] == []
        assert all(axes.has_data() for axes in figure.axes)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_pictures_that_are_not_square_keep_their_shape(
    two: list[Result], shape: tuple[int, int]
) -> None:
    page = next(r for r in two if isinstance(r, ChannelPage))
    k = len(page.top.ids)
    wide = replace(page.top, pictures=np.zeros((k, *shape, 3), dtype=np.uint8))
    for draw in (channel_page, lambda p: channel_catalogue([p, p])):
        figure = draw(replace(page, top=wide, lowest=wide))
        figure.draw_without_rendering()
        left, right, bottom, top = figure.axes[0].images[0].get_extent()
        assert (bottom - top) / (right - left) == pytest.approx(shape[0] / shape[1])


def test_a_page_alone_is_open_and_says_what_it_can() -> None:
    (page,) = channel_pages(planted_model(), noise(5), {"blocks.0": RED}, k=2)
    section = only([page])
    assert section.paragraphs == ("planted: channel 5 of blocks.0. n = 5.",)
    (picture,) = section.content
    assert isinstance(picture, Picture)
    assert not picture.folded


def test_study_without_channels_has_none() -> None:
    model = as_model(randomised(MlpMixer(img_size=32, patch_size=8, embed_dim=8, num_blocks=1)))
    results = run_study(
        [model],
        coloured(30),
        None,
        StudySettings(permutations=0, analyses={"channels": (), "probing": ()}),
    )
    assert not any(r.__module__.startswith("mixer_probe.channels") for r in map(type, results))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: ROOM.check(["selectivty"]),
            MeasureError,
            "no analysis of channels 'selectivty'; closest: selectivity",
        ),
        (lambda: class_selectivity(replace_labels(planted())), ImagesError, "have no labels"),
    ],
)
def test_bad_input(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def replace_labels(reps: Any) -> Any:
    reps.labels = None
    return reps
