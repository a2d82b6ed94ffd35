"""Probes streamed over images are those of stored representations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mixer_probe as mp
from mixer_probe.capture.stream import TensorImages
from mixer_probe.core.errors import ImagesError, LayerError, MeasureError, NonFiniteWarning
from mixer_probe.core.result import ImagesRecord
from mixer_probe.probing import default_l2, linear_probe, ridge_path, stream_probe, streaming
from tests.tiny import tiny_models


class Labelled(TensorImages):
    """Finished inputs with labels."""

    def __init__(self, tensor: torch.Tensor, labels: np.ndarray | None, split: str) -> None:
        super().__init__(tensor)
        self.labels = labels
        self.class_names = ("red", "green", "blue")
        self.ids = tuple(f"{split}-{i}" for i in range(len(tensor)))

    @property
    def record(self) -> ImagesRecord:
        return ImagesRecord("colours", "", len(self), 3, "0" * 64)


def colours(n: int, split: str) -> Labelled:
    random = np.random.default_rng(len(split))
    y = np.arange(n) % 3
    pixels = random.normal(size=(n, 3, 32, 32))
    pixels[np.arange(n), y] += 0.3
    return Labelled(torch.from_numpy(pixels).float(), y, split)


@pytest.mark.parametrize("index", range(3))
def test_streamed_probes_are_those_of_stored_features(index, monkeypatch):
    monkeypatch.setattr(streaming, "ROWS", 50)
    model = tiny_models()[index]
    train, test = colours(150, "train"), colours(90, "test")
    streamed = stream_probe(model, train, test, batch_size=16)
    stored = linear_probe(*(mp.extract(model, images, batch_size=16) for images in (train, test)))
    for name in ("path_left_out", "path_test", "predicted", "labels"):
        np.testing.assert_array_equal(getattr(streamed, name), getattr(stored, name), err_msg=name)
    assert streamed.to_frame().equals(stored.to_frame())
    assert (streamed.images_train, streamed.images_test) == (train.record, test.record)
    assert streamed.low.max() > streamed.chance


def test_streams_leave_out_a_stratified_sample(monkeypatch):
    monkeypatch.setattr(streaming, "ROWS", 50)
    model, train, test = tiny_models()[0], colours(150, "train"), colours(90, "test")
    streamed = stream_probe(
        model, train, test, left_out=60, batch_size=16, untrained=model.untrained()
    )
    features = mp.extract(model, train, batch_size=16)
    for name, found in zip(features, streamed.path_left_out, strict=True):
        path = ridge_path(features[name], train.labels, default_l2(150), left_out=60)
        np.testing.assert_array_equal(found, path.left_out_accuracy())
    assert streamed.untrained.model == model.untrained().record


def test_streams_that_cannot_be_probed():
    model = tiny_models()[0]
    train, test = colours(30, "train"), colours(30, "test")
    with pytest.raises(ImagesError, match=r"train images \(colours\) have no labels"):
        stream_probe(model, Labelled(train._tensor, None, "train"), test)
    with pytest.raises(ImagesError, match="30 test images are also in train"):
        stream_probe(model, train, train)
    two = Labelled(train._tensor, np.arange(30) % 2, "train")
    with pytest.raises(ImagesError, match="do not have: 'blue'"):
        stream_probe(model, two, test)
    with pytest.raises(MeasureError, match="unknown reduce 'none'; known: mean, prefix"):
        stream_probe(model, train, test, reduce="none")
    with pytest.raises(LayerError, match=r"'blocks.0' of tiny-mixer has no prefix token"):
        stream_probe(model, train, test, reduce="prefix")


def test_streamed_layers_that_are_not_finite_are_nan_and_named():
    model = tiny_models()[0]
    with torch.no_grad():
        model.layer("blocks.1")
        model.module.blocks[1].mlp_channels.fc2.bias[0] = torch.inf
    with pytest.warns(NonFiniteWarning, match=r"layer 'blocks.1'"):
        result = stream_probe(model, colours(30, "train"), colours(30, "test"))
    assert np.isnan(result.accuracy).tolist() == [False, True]
    assert (result.predicted[1] == -1).all()
    assert result.p == (16, 16)
