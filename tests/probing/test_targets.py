"""Targets beyond the class: pictures whose properties are known, tables of one's own, planted and
absent targets."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

import mixer_probe as mp
from mixer_probe.core.errors import (
    ImagesError,
    MeasureError,
    NonFiniteWarning,
    UndefinedProbeWarning,
)
from mixer_probe.core.result import from_dict, to_dict
from mixer_probe.images.distortions import LowPass, distort
from mixer_probe.images.labelled import from_arrays
from mixer_probe.probing.target_probe import r_squared_interval, target_probe
from mixer_probe.probing.targets import (
    PROPERTIES,
    Target,
    binned,
    image_targets,
    planted_images,
    shifted_images,
    targets_from_csv,
)
from tests.networks import CASES


def picture(colour=(0.0, 0.0, 0.0), size=(8, 8)) -> np.ndarray:
    return np.broadcast_to(np.array(colour, dtype=np.float64), (*size, 3)).copy()


def measured(name: str, pixels: np.ndarray) -> float:
    return PROPERTIES[name].measure(pixels)


def test_brightness_and_contrast_by_hand():
    assert measured("brightness", picture((1, 1, 1))) == pytest.approx(1)
    assert measured("brightness", picture((1, 0, 0))) == pytest.approx(0.299)
    half = picture()
    half[:, :4] = 1
    assert measured("brightness", half) == pytest.approx(0.5)
    assert measured("contrast", half) == pytest.approx(0.5)
    assert measured("contrast", picture((0.3, 0.2, 0.9))) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("degrees", [0, 60, 90, 120, 200, 240, 359])
def test_hue_and_saturation_of_one_colour(degrees):
    pixels = picture(colorsys.hsv_to_rgb(degrees / 360, 0.5, 0.8))
    # The chroma vector's angle is the hue of HSV at multiples of 60 degrees, and within 1.2 degrees
    # between.
    assert abs((measured("hue", pixels) - degrees + 180) % 360 - 180) < 1.2
    assert measured("saturation", pixels) == pytest.approx(0.5)
    assert measured("saturation", picture()) == 0


def test_hue_is_a_mean_of_directions():
    # Half red and half a green of the same chroma: half way round, at 60 degrees; red and cyan
    # cancel.
    pixels = picture((1, 0, 0))
    pixels[:4] = (0, 1, 0)
    assert measured("hue", pixels) == pytest.approx(60)
    pixels[:4] = (0, 1, 1)
    assert np.isnan(measured("hue", pixels))
    assert np.isnan(measured("hue", picture((0.4, 0.4, 0.4))))


def test_frequency_of_waves():
    columns = np.arange(32)
    wave = 0.5 + 0.4 * np.sin(2 * np.pi * 4 * columns / 32)
    assert measured(
        "frequency", np.broadcast_to(wave[None, :, None], (32, 32, 3))
    ) == pytest.approx(4 / 32)
    assert measured(
        "high_frequency", np.broadcast_to(wave[None, :, None], (32, 32, 3))
    ) == pytest.approx(0)
    # Along the diagonal, 3 and 4 cycles make 5; with a wave of 12 at half the amplitude, a fifth of
    # the power.
    both = (
        0.5
        + 0.2 * np.sin(2 * np.pi * (3 * columns[:, None] + 4 * columns) / 32)
        + 0.1 * np.sin(2 * np.pi * 12 * columns / 32)
    )
    pixels = np.repeat(both[:, :, None], 3, axis=2)
    assert measured("frequency", pixels) == pytest.approx((4 * 5 + 12) / 5 / 32)
    assert measured("high_frequency", pixels) == pytest.approx(0.2)
    assert np.isnan(measured("frequency", picture((0.3, 0.2, 0.9))))


def test_targets_of_images():
    images = from_arrays(np.stack([np.full((4, 4, 3), v, np.uint8) for v in (0, 51, 255)]))
    bright, grey = image_targets(images, ["brightness", "hue"])
    np.testing.assert_allclose(bright.values, [0, 0.2, 1])
    assert np.isnan(grey.values).all()
    assert bright.of(images.ids[::-1]).values.tolist() == bright.values[::-1].tolist()
    assert len(image_targets(images)) == len(PROPERTIES)
    with pytest.raises(ImagesError, match="no value for 1 of 2 images, the first is 'x'"):
        bright.of([images.ids[0], "x"])
    with pytest.raises(
        MeasureError, match=r"'brightnes' is no property of images; closest: brightness"
    ):
        image_targets(images, ["brightnes"])


def test_bins():
    angles = Target("hue", "angle", tuple("abcde"), np.array([350.0, 10, 50, 180, np.nan]))
    found = binned(angles, 4)
    np.testing.assert_array_equal(found.values, [0, 0, 1, 2, np.nan])
    assert found.classes == ("0°", "90°", "180°", "270°")
    numbers = Target("x", "regression", tuple("abcd"), np.array([4.0, 1, 3, 2]))
    np.testing.assert_array_equal(binned(numbers, 2).values, [1, 0, 1, 0])
    np.testing.assert_array_equal(binned(numbers, edges=[1.5, 3.5]).values, [2, 0, 1, 1])
    with pytest.raises(MeasureError, match="cannot be cut"):
        binned(found, 3)


@pytest.fixture
def folder(tmp_path):
    from PIL import Image

    for name in ("cat/a.png", "cat/b.png", "dog/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    return mp.load_images(tmp_path)


@pytest.mark.parametrize(
    "names", [("cat/a.png", "cat/b.png", "dog/c.png"), ("a.png", "b.png", "c.png"), ("a", "b", "c")]
)
def test_a_table_is_matched_by_id_or_name(folder, tmp_path, names):
    table = tmp_path / "t.csv"
    rows = [
        f"{name},{age},{'sun' if age > 2 else 'rain'}"
        for name, age in zip(names, (3, 1.5, 2), strict=True)
    ]
    table.write_text("\n".join(["file,age,sky", rows[2], rows[0], "other,9,fog", rows[1]]))
    age = targets_from_csv(table, folder, "age")
    assert (age.kind, age.values.tolist()) == ("regression", [3, 1.5, 2])
    sky = targets_from_csv(table, folder, "sky")
    assert (sky.kind, sky.classes, sky.values.tolist()) == (
        "classification",
        ("rain", "sun"),
        [1, 0, 0],
    )
    asked = targets_from_csv(table, folder, "age", kind="classification")
    assert asked.classes == ("1.5", "2.0", "3.0")


def test_ids_keep_their_zeros(tmp_path):
    images = from_arrays(np.zeros((2, 4, 4, 3), np.uint8), ids=["0012", "0007"])
    (tmp_path / "t.csv").write_text("image,age\n0007,3\n0012,5\n")
    assert targets_from_csv(tmp_path / "t.csv", images, "age").values.tolist() == [5, 3]


def test_tables_that_do_not_fit(folder, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("id,age,sky\ncat/a.png,1,sun\ncat/b.png,,rain\n")
    with pytest.raises(ImagesError, match=r"no row for 1 of 3 images, the first is 'dog/c\.png'"):
        targets_from_csv(table, folder, "age")
    with pytest.raises(ImagesError, match="no column 'agee'; closest: age"):
        targets_from_csv(table, folder, "agee")
    with pytest.raises(ImagesError, match="no column 'idd'; closest: id"):
        targets_from_csv(table, folder, "age", id_column="idd")
    table.write_text("id,age,sky\ncat/a.png,1,sun\ncat/b.png,,rain\ndog/c.png,2,sun\n")
    with pytest.raises(
        ImagesError, match=r"'age' of .* is empty for 1 images, the first is 'cat/b\.png'"
    ):
        targets_from_csv(table, folder, "age")
    with pytest.raises(MeasureError, match="holds text such as 'sun'"):
        targets_from_csv(table, folder, "sky", kind="regression")
    table.write_text("id,age\ncat/a.png,1\ncat/b.png,2\ndog/c.png,2\ncat/a.png,3\n")
    with pytest.raises(ImagesError, match=r"several rows for image 'cat/a\.png'"):
        targets_from_csv(table, folder, "age")
    with pytest.raises(ImagesError, match="cannot read the table"):
        targets_from_csv(tmp_path / "none.csv", folder, "age")


def test_shifts_move_the_content_and_mirror_the_border():
    ramp = torch.arange(64.0).expand(1, 3, 64, 64).repeat(5, 1, 1, 1)
    moved = shifted_images(ramp, seed=1)
    (batch,) = moved.batches(lambda x: x, 8)
    right = dict(zip((t.name for t in moved.targets), moved.targets, strict=True))["shift right"]
    for image, fraction in zip(batch, right.values, strict=True):
        k = round(fraction * 64)
        expected = np.pad(np.arange(64.0), 16, mode="symmetric")[16 - k : 80 - k]
        np.testing.assert_array_equal(image[0, 0], expected)
    assert np.abs(right.values).max() <= 0.25
    parts = torch.cat(list(moved.batches(lambda x: x, 2)))
    np.testing.assert_array_equal(parts, batch)
    assert moved.record.fingerprint != mp.load_images("demo").record.fingerprint
    with pytest.raises(MeasureError, match=r"most=0\.7"):
        shifted_images(ramp, most=0.7)


def test_squares_are_planted_where_the_target_says():
    planted = planted_images(torch.zeros(4, 3, 40, 40), fraction=0.25, value=1.0)
    (batch,) = planted.batches(lambda x: x, 4)
    right, down = (target.values for target in planted.targets)
    for i, image in enumerate(batch):
        rows, columns = np.nonzero(image[0].numpy())
        assert len(rows) == 100
        assert (rows.mean() + 0.5) / 40 == pytest.approx(down[i], abs=0.5 / 40)
        assert (columns.mean() + 0.5) / 40 == pytest.approx(right[i], abs=0.5 / 40)
    with pytest.raises(MeasureError, match="fraction=1"):
        planted_images(torch.zeros(4, 3, 8, 8), fraction=1)


def sides(make_reps, make, target, n=(120, 90)):
    """Representations and targets for train and test: `target(random, n)` gives values,
    `make(random, values)` features."""
    reps, targets = [], []
    for size, split, seed in zip(n, ("train", "test"), (0, 1), strict=True):
        random = np.random.default_rng(seed)
        values = target(random, size)
        reps.append(make_reps(make(random, values), None, split))
        targets.append(values)
    return reps, targets


def regression(reps, values, name="x", kind="regression", classes=()):
    return [
        Target(name, kind, r.ids, np.asarray(v, dtype=float), classes)
        for r, v in zip(reps, values, strict=True)
    ]


def test_a_linear_target_is_read_and_an_absent_one_is_not(make_reps):
    def make(random, values):
        return {
            "given": np.column_stack([values, random.normal(size=len(values))]),
            "noise": random.normal(size=(len(values), 4)),
        }

    reps, values = sides(make_reps, make, lambda random, n: random.normal(size=n))
    result = target_probe(*reps, *regression(reps, values))
    assert result.score[0, 0] > 0.9999
    assert result.error[0, 0] < 0.01
    assert abs(result.score[1, 0]) < 0.1
    assert result.low[1, 0] < 0.02
    assert result.metrics == ("R2",)


def test_regression_is_the_best_ridge_of_scikit_learn(make_reps):
    mixing = np.random.default_rng(5).normal(size=6)

    def make(random, values):
        return {"layer": values[:, None] * mixing + random.normal(size=(len(values), 6)) + 3}

    reps, values = sides(make_reps, make, lambda random, n: random.normal(size=n), n=(40, 30))
    path = [0.1, 1.0, 10.0, 100.0]
    result = target_probe(*reps, *regression(reps, values), l2=path)
    X, new = reps[0]["layer"], reps[1]["layer"]
    Z, new = (X - X.mean(0)) / X.std(0), (new - X.mean(0)) / X.std(0)
    left_out = []
    for l2 in path:
        others = [np.delete(np.arange(40), i) for i in range(40)]
        read = [
            Ridge(alpha=l2).fit(Z[o], values[0][o]).predict(Z[[i]])[0] for i, o in enumerate(others)
        ]
        left_out.append(r2_score(values[0], read))
    best = int(np.argmax(left_out))
    assert result.l2[0, 0] == path[best]
    assert result.left_out[0, 0] == pytest.approx(left_out[best])
    read = Ridge(alpha=path[best]).fit(Z, values[0]).predict(new)
    assert result.score[0, 0] == pytest.approx(r2_score(values[1], read))
    assert result.error[0, 0] == pytest.approx(np.abs(read - values[1]).mean())
    assert result.low[0, 0] < result.score[0, 0] < result.high[0, 0]


def test_the_interval_of_r2_covers():
    # y = s + e with variances 1 and 1/3: predicting s has R^2 = 3/4.
    random, inside = np.random.default_rng(6), 0
    for _ in range(200):
        s = random.normal(size=(150, 1))
        low, high = r_squared_interval(s + random.normal(size=(150, 1)) / 3**0.5, s)
        inside += low <= 0.75 <= high
    assert 0.90 <= inside / 200 <= 0.98


def test_angles_are_read_round_the_circle(make_reps):
    def make(random, values):
        radians = np.radians(values)
        return {"circle": np.column_stack([np.sin(radians), np.cos(radians)])}

    reps, values = sides(make_reps, make, lambda random, n: random.uniform(0, 360, n))
    result = target_probe(*reps, *regression(reps, values, kind="angle"))
    assert result.score[0, 0] > 0.9999
    assert result.error[0, 0] < 0.1


def test_classes_are_matched_by_name(make_reps):
    reps, values = sides(
        make_reps,
        lambda random, v: {"hot": np.eye(3)[v]},
        lambda random, n: random.integers(0, 3, n),
    )
    train = Target(
        "sky", "classification", reps[0].ids, values[0].astype(float), ("fog", "rain", "sun")
    )
    test = Target(
        "sky", "classification", reps[1].ids, (2 - values[1]).astype(float), ("sun", "rain", "fog")
    )
    result = target_probe(*reps, train, test)
    assert result.score[0, 0] == 1
    assert result.metrics == ("accuracy",)
    assert result.chance[0] == pytest.approx(np.bincount(values[1]).max() / 90)
    with pytest.raises(
        ImagesError, match=r"the test images for target 'sky' have 1 class .* do not have: 'snow'"
    ):
        target_probe(
            *reps, train, Target("sky", "classification", reps[1].ids, np.zeros(90), ("snow",))
        )
    with pytest.raises(
        ImagesError, match="all the train images for target 'sky' are of class 'fog'"
    ):
        target_probe(
            *reps, Target("sky", "classification", reps[0].ids, np.zeros(120), ("fog",)), test
        )


def test_undefined_values_layers_and_targets(make_reps):
    def make(random, values):
        return {
            "good": values[:, None] + 0 * random.normal(size=(len(values), 1)),
            "bad": np.full((len(values), 1), np.inf),
        }

    reps, values = sides(make_reps, make, lambda random, n: random.normal(size=n))
    gaps = [v.copy() for v in values]
    gaps[0][:5] = np.nan
    with (
        pytest.warns(NonFiniteWarning, match="layer 'bad'"),
        pytest.warns(UndefinedProbeWarning, match="'x' is not defined for 5"),
    ):
        result = target_probe(*reps, *regression(reps, gaps))
    assert result.n_train.tolist() == [115]
    assert result.score[0, 0] > 0.99
    assert np.isnan(result.score[1, 0])
    assert from_dict(to_dict(result)).to_frame().equals(result.to_frame())
    del reps[0].features["bad"], reps[1].features["bad"]
    for side in reps:
        side.layers = side.layers[:1]
    with pytest.warns(UndefinedProbeWarning, match="same for all images"):
        result = target_probe(*reps, *regression(reps, [np.ones(120), np.ones(90)]))
    assert np.isnan(result.score).all()
    with pytest.raises(MeasureError, match=r"same targets, got x \(regression\) and y"):
        target_probe(*reps, regression(reps, values)[0], regression(reps, values, "y")[1])
    with pytest.raises(MeasureError, match="3 are needed"):
        target_probe(*reps, *regression(reps, [np.full(120, np.nan), values[1]]))


def test_brightness_is_in_the_pixels():
    from mixer_probe.probing.baselines import pixel_baseline

    sets = [mp.load_images("demo", split=split, limit=200) for split in ("train", "test")]
    targets = [image_targets(images, ["brightness"]) for images in sets]
    result = target_probe(*pixel_baseline(*sets, size=8), *targets)
    # Luma is linear in pixels, and averaging 4 x 4 pixels keeps the mean.
    assert result.score[0, 0] > 0.99


def test_a_target_belongs_to_the_pictures_that_it_was_measured_on() -> None:
    model = CASES["mixer"].model()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    one, other = from_arrays(pixels), from_arrays(255 - pixels)
    assert one.ids == other.ids
    reps = mp.extract(model, one)
    fit, hold = reps.take(range(12)), reps.take(range(12, 24))
    for wrong in (image_targets(other, ["brightness"]), shifted_images(one).targets):
        with pytest.raises(
            MeasureError,
            match="was measured on other images than those of the run: 12 of 12 differ",
        ):
            target_probe(fit, hold, wrong, wrong)
    (right,) = image_targets(one, ["brightness"])
    blurred = mp.extract(model, distort(one, LowPass(0.1)))
    for run in (reps, blurred):
        assert right.of_run(run.take([5, 3])).values.tolist() == right.values[[5, 3]].tolist()
    shifted = shifted_images(one)
    assert shifted.targets[0].of_run(mp.extract(model, shifted)).keys == shifted.keys
    with pytest.raises(MeasureError, match="other images"):
        shifted.targets[0].of_run(mp.extract(model, shifted_images(one, seed=1)))


def test_every_setting_of_a_change_tells_the_images() -> None:
    images = mp.load_images("demo", limit=4)
    changed = [
        planted_images(images, **o) for o in ({}, {"fraction": 0.5}, {"value": 1.0}, {"seed": 1})
    ]
    changed += [shifted_images(images, **o) for o in ({}, {"most": 0.5}, {"seed": 1})]
    assert len({c.record.fingerprint for c in changed}) == 7
