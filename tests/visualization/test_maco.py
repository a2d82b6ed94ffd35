"""MACO: the spectrum of natural images, and that nothing but phases ever changes."""

import numpy as np
import pytest
import torch

from mixer_probe.core.errors import ImagesError
from mixer_probe.visualization import MacoImages, Spectrum, colour_basis, natural_spectrum


def photographs(n: int, size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.rand(
        n, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def full_magnitude(spectrum: Spectrum) -> np.ndarray:
    """The magnitude [3, h, w] of all frequencies, of which the opposite ones are equal."""
    h, w = spectrum.size
    half = spectrum.magnitude.numpy()
    whole = np.zeros((3, h, w))
    for row in range(h):
        for column in range(w):
            whole[:, row, column] = (
                half[:, row, column] if column <= w // 2 else half[:, -row % h, w - column]
            )
    return whole


def test_the_spectrum_is_the_mean_of_magnitudes() -> None:
    images = photographs(7, (5, 6))
    found = natural_spectrum(images.split(3))
    components = np.einsum(
        "ij,bjhw->bihw", np.linalg.inv(colour_basis(torch.float64).numpy()), images.numpy()
    )
    expected = np.abs(np.fft.rfft2(components) / np.sqrt(30)).mean(0)
    expected[:, 0, 0] = 0
    np.testing.assert_allclose(found.magnitude, expected, rtol=1e-12)
    np.testing.assert_allclose(found.mean, images.mean((0, 2, 3)), rtol=1e-12)
    assert (found.n, found.size) == (7, (5, 6))
    with pytest.raises(ImagesError, match="there are none"):
        natural_spectrum([])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(6, 8), (5, 7), (7, 6), (6, 5)])
def test_the_magnitude_is_kept_at_every_step(size: tuple[int, int], dtype: torch.dtype) -> None:
    spectrum = natural_spectrum([photographs(4, size)])
    images = MacoImages(spectrum, torch.zeros((), dtype=dtype))
    expected = full_magnitude(spectrum)
    kernel = torch.randn(
        3, *size, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    ).to(dtype)
    parameters = images.start([torch.Generator().manual_seed(s) for s in (0, 1)]).requires_grad_()
    optimiser = torch.optim.Adam([parameters], lr=0.3, maximize=True)
    values = []
    for _ in range(30):
        components = images.components(parameters)
        magnitude = np.abs(np.fft.fft2(components.detach().double().numpy(), norm="ortho"))
        np.testing.assert_allclose(
            magnitude,
            np.broadcast_to(expected, magnitude.shape),
            atol=1e-5 if dtype is torch.float32 else 1e-12,
        )
        value = (components * kernel).sum((1, 2, 3))
        values.append(value.detach().numpy())
        parameters.grad = torch.autograd.grad(value.sum(), parameters)[0]
        optimiser.step()
    # Phases alone can do something about the unit, and each image starts elsewhere.
    assert np.all(values[-1] > values[0])
    assert values[0][0] != values[0][1]


def test_the_best_phases_of_a_linear_unit_are_those_of_its_filter() -> None:
    # The sum over frequencies of magnitude times that of the filter, by Parseval, where the phases
    # agree.
    size = (6, 6)
    spectrum = natural_spectrum([photographs(4, size)])
    images = MacoImages(spectrum, torch.zeros((), dtype=torch.float64))
    kernel = torch.randn(3, *size, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    phases = torch.from_numpy(np.angle(np.fft.rfft2(kernel.numpy())))
    # In the columns that hold opposite frequencies the parameter is half the phase.
    phases[..., [0, 3]] /= 2
    value = float((images.components(phases[None]) * kernel).sum())
    free = np.abs(np.fft.fft2(kernel.numpy(), norm="ortho"))
    alone = np.zeros((6, 6), dtype=bool)
    alone[np.ix_([0, 3], [0, 3])] = True
    signed = np.fft.fft2(kernel.numpy(), norm="ortho").real
    expected = (full_magnitude(spectrum) * np.where(alone, signed, free)).sum()
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    # Gradient ascent gets there.
    parameters = images.start([torch.Generator().manual_seed(0)]).requires_grad_()
    optimiser = torch.optim.Adam([parameters], lr=0.1, maximize=True)
    for _ in range(300):
        optimiser.zero_grad()
        (images.components(parameters) * kernel).sum().backward()
        optimiser.step()
    reached = (images.components(parameters) * kernel).sum().item()
    assert 0.99 * expected < reached < expected + 1e-9


def test_images_are_the_mean_colour_and_the_components() -> None:
    spectrum = natural_spectrum([0.5 + 0.01 * photographs(4, (8, 8))])
    images = MacoImages(spectrum, torch.zeros((), dtype=torch.float64))
    parameters = images.start([torch.Generator().manual_seed(0)])
    made = images.images(parameters)
    # So faint that nothing is clipped.
    np.testing.assert_allclose(made.mean((0, 2, 3)), spectrum.mean, rtol=1e-12)
    undone = torch.einsum(
        "ij,bjhw->bihw",
        torch.linalg.inv(colour_basis(torch.float64)),
        made - spectrum.mean[:, None, None],
    )
    torch.testing.assert_close(undone, images.components(parameters))
