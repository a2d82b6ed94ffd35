"""Channel pages hold what the analyses they are made of say."""

import numpy as np
import pytest
from timm.models.mlp_mixer import MlpMixer

import mixer_probe as mp
from mixer_probe.channels import ChannelPage, channel_pages
from mixer_probe.results import from_dict, to_dict
from tests.networks import as_model, noise, randomised


@pytest.fixture(scope="module")
def mixer() -> mp.Model:
    return as_model(randomised(MlpMixer(img_size=32, patch_size=8, embed_dim=16, num_blocks=2)), name="mixer")


def test_a_page_is_made_of_the_results(mixer: mp.Model) -> None:
    images = mp.load_images("demo", limit=60)
    other = as_model(randomised(MlpMixer(img_size=32, patch_size=8, embed_dim=12, num_blocks=1), seed=1), name="other")
    a, b = mp.extract(mixer, images), mp.extract(other, images)
    statistics = mp.channel_statistics(mixer, images)
    selectivity = mp.class_selectivity(a, permutations=19)
    partners = [mp.channel_partners(a, b, "blocks.1", "blocks.0", permutations=19)]
    wanted = {"blocks.0": 3, "blocks.1": [5, 2]}
    pages = channel_pages(mixer, images, wanted, k=4, statistics=statistics, selectivity=selectivity, partners=partners)
    assert [(p.layer.name, p.channel) for p in pages] == [("blocks.0", 3), ("blocks.1", 2), ("blocks.1", 5)]
    page = pages[2]
    top = mp.top_images(mixer, images, "blocks.1", 5, k=4)
    np.testing.assert_array_equal(page.top.values, top.values[0])
    np.testing.assert_array_equal(page.top.boxes, top.boxes[0] / 32)
    np.testing.assert_allclose(page.top.maps.max((1, 2)), page.top.values, rtol=1e-5)
    np.testing.assert_allclose(page.lowest.maps.min((1, 2)), page.lowest.values, rtol=1e-5)
    assert page.statistics["kurtosis"] == statistics.kurtosis[1][5]
    assert page.statistics["cluster_size"] == (statistics.cluster[1] == statistics.cluster[1][5]).sum()
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
