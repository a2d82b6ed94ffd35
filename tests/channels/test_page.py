"""Channel pages hold what the analyses they are made of say."""

import numpy as np
import pytest
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import BasicBlock, ResNet

import mixer_probe as mp
from mixer_probe.channels import ChannelPage, channel_pages
from mixer_probe.core.errors import MeasureError
from mixer_probe.core.result import from_dict, to_dict
from tests.networks import as_model, noise, randomised, settled


@pytest.fixture(scope="module")
def mixer() -> mp.Model:
    return as_model(
        randomised(MlpMixer(img_size=32, patch_size=8, embed_dim=16, num_blocks=2)), name="mixer"
    )


def test_a_page_is_made_of_the_results(mixer: mp.Model) -> None:
    images = mp.load_images("demo", limit=60)
    other = as_model(
        randomised(MlpMixer(img_size=32, patch_size=8, embed_dim=12, num_blocks=1), seed=1),
        name="other",
    )
    a, b = mp.extract(mixer, images), mp.extract(other, images)
    statistics = mp.channel_statistics(mixer, images)
    selectivity = mp.class_selectivity(a, permutations=19)
    partners = [mp.channel_partners(a, b, "blocks.1", "blocks.0", permutations=19)]
    wanted = {"blocks.0": 3, "blocks.1": [5, 2]}
    pages = channel_pages(
        mixer,
        images,
        wanted,
        k=4,
        statistics=statistics,
        selectivity=selectivity,
        partners=partners,
    )
    assert [(p.layer.name, p.channel) for p in pages] == [
        ("blocks.0", 3),
        ("blocks.1", 2),
        ("blocks.1", 5),
    ]
    page = pages[2]
    top = mp.top_images(mixer, images, "blocks.1", 5, k=4)
    np.testing.assert_array_equal(page.top.values, top.values[0])
    np.testing.assert_array_equal(page.top.boxes, top.boxes[0] / 32)
    np.testing.assert_allclose(page.top.maps.max((1, 2)), page.top.values, rtol=1e-5)
    np.testing.assert_allclose(page.lowest.maps.min((1, 2)), page.lowest.values, rtol=1e-5)
    assert page.statistics["kurtosis"] == statistics.kurtosis[1][5]
    assert (
        page.statistics["cluster_size"] == (statistics.cluster[1] == statistics.cluster[1][5]).sum()
    )
    np.testing.assert_array_equal(page.auroc, selectivity.auroc[1][5])
    r = np.corrcoef(a["blocks.1"][:, 5].astype(float), b["blocks.0"].astype(float).T)[0, 1:]
    best = int(np.abs(r).argmax())
    assert page.partners[0][:3] == ("other", "blocks.0", best)
    assert page.partners[0][3] == pytest.approx(r[best])
    assert pages[0].partners == ()
    assert len(page.to_frame()) == 8


def test_a_page_of_pictures_alone_saves_and_loads(mixer: mp.Model) -> None:
    (page,) = channel_pages(mixer, noise(5), {"blocks.0": 1}, k=2, pixels=16, by="mean")
    assert page.top.pictures.shape == (2, 16, 16, 3)
    assert page.statistics == {}
    assert len(page.auroc) == 0
    again = from_dict(to_dict(page))
    assert isinstance(again, ChannelPage)
    np.testing.assert_array_equal(again.top.pictures, page.top.pictures)
    assert again.by == "mean"


def test_layers_that_the_results_do_not_hold_leave_their_parts_empty(mixer: mp.Model) -> None:
    images = mp.load_images("demo", limit=20)
    statistics = mp.channel_statistics(mixer, images, "blocks.0")
    (page,) = channel_pages(mixer, images, {"blocks.1": 0}, k=1, statistics=statistics)
    assert page.statistics == {}


def test_pages_from_a_run_are_those_of_a_pass(mixer: mp.Model) -> None:
    images = mp.load_images("demo", limit=40)
    wanted = {"blocks.1": [5, 2], "blocks.0": 3, "stem": 0}
    reps = mp.extract(mixer, images, ["stem", "blocks"])
    a, b = (channel_pages(mixer, images, wanted, k=4, by="mean", reps=r) for r in (None, reps))
    for one, other in zip(a, b, strict=True):
        assert (one.layer, one.channel, one.n, one.by) == (
            other.layer,
            other.channel,
            other.n,
            other.by,
        )
        for x, y in ((one.top, other.top), (one.lowest, other.lowest)):
            np.testing.assert_array_equal(x.ids, y.ids)
            np.testing.assert_allclose(x.values, y.values, rtol=1e-5)
            np.testing.assert_array_equal(x.boxes, y.boxes)
            np.testing.assert_array_equal(x.pictures, y.pictures)
            assert x.classes == y.classes
    means = reps["blocks.0"][:, 3]
    np.testing.assert_array_equal(
        b[2].top.ids, np.array(images.ids)[np.argsort(-means, kind="stable")[:4]]
    )


def test_a_run_that_does_not_fit_is_refused(mixer: mp.Model) -> None:
    images = mp.load_images("demo", limit=12)
    for reps, message in (
        (mp.extract(mixer, mp.load_images("demo", split="train", limit=12)), "of other images"),
        (mp.extract(mixer.untrained(), images), "of another network"),
        (mp.extract(mixer, images, reduce="none"), "no means over positions"),
    ):
        with pytest.raises(MeasureError, match=message):
            channel_pages(mixer, images, {"blocks.0": 0}, by="mean", reps=reps)


def test_boxes_are_the_cells_of_the_peaks_and_classes_those_of_the_images(mixer: mp.Model) -> None:
    images = mp.load_images("demo", limit=30)
    (page,) = channel_pages(mixer, images, {"blocks.1": 7}, k=3)
    for lowest, exhibit in ((False, page.top), (True, page.lowest)):
        found = mp.top_images(mixer, images, "blocks.1", 7, k=3, lowest=lowest)
        np.testing.assert_array_equal(exhibit.boxes, found.boxes[0] / 32)
        assert exhibit.classes == tuple(
            images.class_names[images.labels[i]] for i in found.index[0]
        )


def test_a_peak_that_cells_share_has_no_cell() -> None:
    network = randomised(ResNet(BasicBlock, [1, 1, 1, 1], channels=(8, 8, 8, 8), stem_width=8))
    model = as_model(settled(network, noise(8)), name="resnet")
    pages = channel_pages(model, noise(6), {"layer1.0": list(range(8))}, k=6)
    # A ReLU leaves many zeros.
    shared = np.concatenate([(p.lowest.maps == 0).sum((1, 2)) > 1 for p in pages])
    boxes = np.concatenate([p.lowest.boxes for p in pages])
    assert shared.any()
    assert (boxes[shared] == [0, 0, 1, 1]).all()
    assert all(
        (p.top.boxes[:, 2] - p.top.boxes[:, 0] < 1).all() for p in pages if (p.top.values > 0).all()
    )
