import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from mixer_probe.core.errors import ImagesError
from mixer_probe.images import from_arrays, load_images, model_transform

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("size", [(32, 32), (20, 48)])
@pytest.mark.parametrize("crop_mode", ["center", "border", "squash"])
def test_an_image_of_the_input_size_is_not_resampled(size, crop_mode):
    pixels = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    transform = model_transform((3, *size), MEAN, STD, "bicubic", 1.0, crop_mode)
    got = transform(Image.fromarray(pixels))
    expected = (pixels.astype(np.float64) / 255 - MEAN) / STD
    assert got.dtype == torch.float32
    assert tuple(got.shape) == (3, *size)
    assert np.abs(got.numpy().transpose(1, 2, 0) - expected).max() < 1e-6
    back = np.rint((got.numpy().transpose(1, 2, 0) * STD + MEAN) * 255).astype(np.uint8)
    assert np.array_equal(back, pixels)


def test_demo_pixels_come_through_to_the_network():
    images = load_images("demo", limit=10)
    batch = next(images.batches(model_transform((3, 32, 32), (0, 0, 0), (1, 1, 1)), 10))
    expected = np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2)
    assert np.array_equal((batch * 255).round().to(torch.uint8).numpy(), expected)


def test_resize_of_the_shorter_side_then_centre_crop():
    photo = load_images("photos")[0].crop((0, 0, 290, 250))
    got = model_transform((3, 224, 224), MEAN, STD, "bicubic", 0.9)(photo)
    # 224 / 0.9 = 248 for the shorter side, 290 * 248 / 250 = 287 for the other.
    scaled = photo.resize((287, 248), Image.Resampling.BICUBIC)
    cut = np.asarray(scaled.crop((32, 12, 32 + 224, 12 + 224)))
    expected = (cut / 255 - MEAN) / STD
    assert np.abs(got.numpy().transpose(1, 2, 0) - expected).max() < 1e-5


def test_images_of_several_sizes_make_one_batch():
    sizes = ((9, 40), (40, 9), (16, 16))
    images = from_arrays([RNG.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes])
    batch = next(images.batches(model_transform((3, 16, 16), MEAN, STD), 3))
    assert tuple(batch.shape) == (3, 3, 16, 16)


def test_pickles():
    transform = model_transform((3, 16, 16), MEAN, STD, "bilinear", 0.9)
    image = Image.fromarray(RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    assert torch.equal(pickle.loads(pickle.dumps(transform))(image), transform(image))


@pytest.mark.parametrize(
    "arguments,message",
    [
        (((1, 32, 32), MEAN, STD), r"mean is one finite number per channel, such as \(0\.5,\)"),
        (((32, 32), MEAN, STD), r"input_size is \(channels, height, width\)"),
        (((3, 32, 32), MEAN, STD, "bicubc"), "unknown interpolation 'bicubc'; closest: bicubic"),
        (((3, 32, 32), MEAN, STD, "bicubic", 0.0), "crop_pct must be above 0"),
        (
            ((3, 32, 32), MEAN, STD, "bicubic", 1.0, "centre"),
            "unknown crop mode 'centre'; closest: center",
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ImagesError, match=message):
        model_transform(*arguments)
