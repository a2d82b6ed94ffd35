"""The Fourier parametrisation against torch's FFT and its closed forms."""

import numpy as np
import pytest
import torch

import mixer_probe as mp
from mixer_probe.visualization import FourierImages, amplitude, colour_basis, frequencies

SIZES = [(6, 8), (5, 7), (8, 5), (7, 4)]
LIKE = torch.zeros((), dtype=torch.float64)


def drawn(images: FourierImages, n: int = 2) -> torch.Tensor:
    return 100 * images.start([torch.Generator().manual_seed(s) for s in range(n)])


def matrix(images: FourierImages) -> torch.Tensor:
    """The parametrisation as a matrix [coefficients, 3, h, w], by what it makes of every unit
    vector."""
    shape = images.start([torch.Generator()]).shape[1:]
    basis = torch.eye(int(np.prod(shape)), dtype=torch.float64).reshape(-1, *shape)
    return images.linear(basis)


@pytest.mark.parametrize("size", SIZES)
def test_every_image_has_coefficients(size: tuple[int, int]) -> None:
    images = FourierImages(size, LIKE)
    values = torch.randn(
        2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    torch.testing.assert_close(
        images.linear(images.parameters_of(values)), values, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("size", SIZES)
def test_coefficients_are_the_spectrum_over_the_amplitude(size: tuple[int, int]) -> None:
    images = FourierImages(size, LIKE)
    parameters = drawn(images)
    values = images.linear(parameters).numpy()
    # Independent of the class: colours undone by solving, numpy's FFT, frequencies written out.
    components = (
        np.linalg.solve(colour_basis(torch.float64).numpy(), values.reshape(2, 3, -1)).reshape(
            values.shape
        )
        * 4
    )
    spectrum = np.fft.rfft2(components, norm="ortho")
    for row in range(size[0]):
        for column in range(1, (size[1] - 1) // 2 + 1):
            up = min(row, size[0] - row) / size[0]
            scale = 1 / max(np.hypot(up, column / size[1]), 1 / max(size))
            expected = torch.view_as_complex(parameters)[..., row, column].numpy() * scale
            np.testing.assert_allclose(spectrum[..., row, column], expected, rtol=1e-10)


@pytest.mark.parametrize("size", SIZES)
def test_power_of_random_coefficients_is_exact_at_every_frequency(size: tuple[int, int]) -> None:
    made = matrix(FourierImages(size, LIKE)).numpy()
    components = (
        np.einsum("ij,bjhw->bihw", np.linalg.inv(colour_basis(torch.float64).numpy()), made) * 4
    )
    # Coefficients are independent with variance 1: powers are the sum over unit vectors, without
    # any sampling.
    power = (np.abs(np.fft.fft2(components, norm="ortho")) ** 2).sum(0)
    rows, columns = np.meshgrid(np.fft.fftfreq(size[0]), np.fft.fftfreq(size[1]), indexing="ij")
    expected = 2 / np.maximum(np.hypot(rows, columns), 1 / max(size)) ** 2
    np.testing.assert_allclose(power, np.broadcast_to(expected, power.shape), rtol=1e-10)


def test_colours_of_random_images_covary_as_the_basis_says() -> None:
    made = matrix(FourierImages((6, 8), LIKE))
    covariance = torch.einsum("bihw,bjhw->ij", made, made)
    basis = colour_basis(torch.float64)
    torch.testing.assert_close(
        covariance / covariance.trace(), basis @ basis.T / (basis @ basis.T).trace()
    )


def test_the_gradient_of_a_linear_unit_is_its_filter_through_the_squared_amplitude() -> None:
    size = (6, 8)
    images = FourierImages(size, LIKE)
    kernel = torch.randn(3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parameters = drawn(images, 1).requires_grad_()
    (gradient,) = torch.autograd.grad((images.linear(parameters) * kernel).sum(), parameters)
    step = images.linear(gradient)[0].numpy()
    basis = colour_basis(torch.float64).numpy() / 4
    rows, columns = np.meshgrid(np.fft.fftfreq(size[0]), np.fft.fftfreq(size[1]), indexing="ij")
    power = 2 / np.maximum(np.hypot(rows, columns), 1 / 8) ** 2
    coloured = np.einsum("ij,jhw->ihw", basis @ basis.T, kernel.numpy())
    np.testing.assert_allclose(
        step, np.fft.ifft2(power * np.fft.fft2(coloured)).real, rtol=1e-10, atol=1e-12
    )


def test_the_ascent_of_a_linear_unit_finds_its_filter_where_frequencies_count_alike() -> None:
    # Without preconditioning by frequency, a step is the filter itself in colours decorrelated and
    # correlated again.
    images = FourierImages((8, 8), LIKE, decay=0.0)
    pattern = torch.randn(8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    kernel = pattern.expand(3, 8, 8)
    parameters = images.start([torch.Generator().manual_seed(0)]).requires_grad_()
    values = []
    for _ in range(20):
        value = (images.linear(parameters) * kernel).sum()
        values.append(value.item())
        (gradient,) = torch.autograd.grad(value, parameters)
        parameters = (parameters + 0.05 * gradient).detach().requires_grad_()
    made = images.linear(parameters).detach()[0]
    assert torch.cosine_similarity(made.flatten(), kernel.flatten(), 0) > 0.99
    assert np.all(np.diff(values) > 0)


def test_amplitude_and_frequencies() -> None:
    np.testing.assert_allclose(frequencies((4, 4))[:, 1], np.hypot([0, 0.25, 0.5, 0.25], 0.25))
    assert amplitude((8, 32))[0, 0] == 32
    np.testing.assert_allclose(amplitude((8, 32))[0, 4], 8)
    np.testing.assert_allclose(amplitude((8, 32), decay=2.0)[4, 0], 4)


def test_the_colours_are_orthogonal_axes_of_those_of_photographs() -> None:
    basis = colour_basis(torch.float64).numpy()
    lengths = np.linalg.norm(basis, axis=0)
    np.testing.assert_allclose(lengths.max(), 1)
    cosines = (basis / lengths).T @ (basis / lengths)
    # Published with two digits, of which the shortest column has one.
    np.testing.assert_allclose(cosines, np.eye(3), atol=0.12)
    photos = np.concatenate(
        [np.asarray(i.resize((32, 32))).reshape(-1, 3) for i in mp.load_images("photos")]
    )
    covariance, model = np.cov(photos.T / 255.0), basis @ basis.T
    assert (covariance * model).sum() / np.linalg.norm(covariance) / np.linalg.norm(model) > 0.97
