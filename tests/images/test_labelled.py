import multiprocessing
import os
import pickle
import signal
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mixer_probe.capture import TensorImages, extract
from mixer_probe.core.errors import ImagesError
from mixer_probe.core.threads import use_decoders
from mixer_probe.images import from_arrays, load_images, model_transform
from mixer_probe.probing.targets import AlteredImages
from tests.networks import CASES

UNIT = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def numbered_images(n, labels=None, size=4):
    """Image i is filled with the value i."""
    return from_arrays([np.full((size, size, 3), i, np.uint8) for i in range(n)], labels)


def values(images):
    return [image.getpixel((0, 0))[0] for image in images]


@pytest.fixture(scope="module")
def transform():
    return model_transform((3, 4, 4), *UNIT)


def test_a_sequence_of_rgb_images():
    images = numbered_images(3)
    assert (len(images), images[1].mode, values(images)) == (3, "RGB", [0, 1, 2])
    assert values([images[-1], images[np.int64(0)]]) == [2, 0]
    with pytest.raises(IndexError):
        images[3]


def test_an_image_handed_out_is_a_copy():
    images = numbered_images(1)
    images[0].putpixel((0, 0), (9, 9, 9))
    assert values(images) == [0]


def test_subset_by_indices_mask_and_nothing():
    images = numbered_images(4, [0, 1, 0, 1])
    assert values(images.subset([3, 0])) == [3, 0]
    assert images.subset([3, 0]).ids == ("3", "0")
    assert images.subset([3, 0]).labels.tolist() == [1, 0]
    assert values(images.subset(np.array([False, True, True, False]))) == [1, 2]
    assert values(images.subset([3, 0, 2]).subset([2, 0])) == [2, 3]
    assert len(images.subset([])) == 0
    with pytest.raises(IndexError):
        images.subset([4])


def test_record_tells_what_the_images_are():
    images = load_images("demo", limit=20, seed=3)
    record = images.record
    assert (record.name, record.split, record.n, record.classes) == ("demo", "test", 20, 10)
    assert (record.limit, record.seed, record.skipped, record.credit) == (20, 3, 0, images.credit)


def test_the_hash_depends_on_pixels_labels_and_order_alone():
    plain = numbered_images(3, [0, 1, 1])
    assert (
        plain.record.fingerprint
        == replace(
            numbered_images(3, [0, 1, 1]), ids=("x", "y", "z"), name="other"
        ).record.fingerprint
    )
    assert plain.record.fingerprint != numbered_images(3, [0, 1, 1], size=8).record.fingerprint
    relabelled, unlabelled = numbered_images(3, [0, 1, 0]), numbered_images(3)
    others = [plain.subset([1, 0, 2]), plain.subset([0, 1]), relabelled, unlabelled]
    assert len({images.record.fingerprint for images in (plain, *others)}) == 5


@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=60),
    limit=st.integers(1, 70),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_sample_is_as_even_as_the_classes_allow_and_keeps_the_order(labels, limit, seed):
    images = numbered_images(len(labels), labels, size=1)
    drawn = images.sample(limit, seed)
    assert len(drawn) == min(limit, len(labels))
    assert values(drawn) == sorted(set(values(drawn)))
    have, got = Counter(labels), Counter(drawn.labels.tolist())
    unfinished = [got[c] for c in have if got[c] < have[c]]
    # No class may lag by two behind another while it has images left.
    assert not unfinished or max(got.values()) - min(unfinished) <= 1


def test_sample_is_seeded_and_nested():
    images = numbered_images(100, [i % 7 for i in range(100)])
    assert images.sample(20, 1).ids == images.sample(20, 1).ids
    assert images.sample(20, 1).ids != images.sample(20, 2).ids
    assert set(images.sample(20, 1).ids) < set(images.sample(41, 1).ids)
    assert images.sample(None).ids == images.sample(100).ids == images.ids


def test_sample_draws_every_image_equally_often():
    # 2 of 8 images, one of each class: each image has probability 1/4.
    images = numbered_images(8, [0, 0, 0, 0, 1, 1, 1, 1], size=1)
    drawn = Counter(name for seed in range(800) for name in images.sample(2, seed).ids)
    # 200 expected, standard deviation 12.2; five of them.
    assert all(abs(drawn[name] - 200) < 61 for name in images.ids)


def test_sample_without_labels_and_limits_that_leave_nothing():
    assert len(numbered_images(10).sample(4)) == 4
    with pytest.raises(ImagesError, match="limit is a whole number, 1 or more, not 0"):
        numbered_images(3).sample(0)
    with pytest.raises(ImagesError, match=r"limit .* not -1"):
        load_images("demo", limit=-1)


def test_require_labels_names_the_purpose():
    assert numbered_images(2, [1, 0]).require_labels("a probe").tolist() == [1, 0]
    with pytest.raises(
        ImagesError, match=r"the images \(arrays\) have no labels: a probe needs them"
    ):
        numbered_images(2).require_labels("a probe")


def test_as_many_labels_as_images():
    with pytest.raises(ImagesError, match="2 ids and 3 labels for 2 images"):
        numbered_images(2, [0, 1, 2])
    with pytest.raises(ImagesError, match="uint8"):
        from_arrays(np.zeros((2, 4, 4, 3)))


def test_batches_are_in_order_and_the_last_is_smaller(transform):
    batches = list(numbered_images(7).batches(transform, 3))
    assert [tuple(batch.shape) for batch in batches] == [(3, 3, 4, 4), (3, 3, 4, 4), (1, 3, 4, 4)]
    assert {batch.dtype for batch in batches} == {torch.float32}
    assert torch.cat(batches)[:, 0, 0, 0].mul(255).round().int().tolist() == list(range(7))


def test_batches_by_indices_are_made_as_they_are_asked_for(transform):
    chosen, log = [[5, 5, 0], range(6, 2, -2), np.array([3])], []
    tensor = TensorImages(torch.arange(7.0).view(7, 1, 1, 1) / 255)
    for images in (numbered_images(7), tensor, AlteredImages(tensor, lambda x, _: x, "", ())):
        for batch in images.batches(transform, (log.append("asked") or i for i in chosen)):
            log += [batch[:, 0, 0, 0].mul(255).round().int().tolist()]
        assert log == ["asked", [5, 5, 0], "asked", [6, 4], "asked", [3]]
        log.clear()
        assert list(images.batches(transform, [])) == []


def test_workers_take_few_indices_ahead_and_give_batches_in_order(transform):
    taken = []
    batches = numbered_images(40).batches(
        transform, (taken.append(i) or [i, 0] for i in range(40)), workers=2
    )
    assert next(batches)[:, 0, 0, 0].mul(255).round().int().tolist() == [0, 0]
    assert len(taken) <= 5
    assert torch.cat(list(batches))[::2, 0, 0, 0].mul(255).round().int().tolist() == [*range(1, 40)]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (0, "the size of batches is a whole number, 1 or more, not 0"),
        (True, "the size of batches is a whole number, 1 or more, not True"),
        ([[0], []], "a batch has no images: give the index of one or more"),
        ([[0, 7]], "a batch has index 7, and there are 7 images: 0 to 6"),
        ([np.array([-1])], "a batch has index -1, and there are 7 images: 0 to 6"),
    ],
)
def test_wrong_batches_are_refused(transform, batches, message):
    for images in (numbered_images(7), TensorImages(torch.zeros(7, 3, 4, 4))):
        with pytest.raises(ImagesError, match=f"^{message}$"):
            list(images.batches(transform, batches))


def test_worker_processes_give_the_same_batches(transform):
    images = load_images("demo", limit=12)
    here = list(images.batches(model_transform((3, 32, 32), *UNIT), 5, workers=0))
    there = list(images.batches(model_transform((3, 32, 32), *UNIT), 5, workers=2))
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


def test_workers_do_not_run_the_script_again(transform, tmp_path, monkeypatch):
    """As it would be without `if __name__ == "__main__"`."""
    script, main = tmp_path / "script.py", sys.modules["__main__"]
    script.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr(main, "__file__", str(script), raising=False)
    monkeypatch.setattr(main, "__spec__", None, raising=False)
    batches = numbered_images(3).batches(transform, 2, workers=1)
    assert torch.cat(list(batches))[:, 0, 0, 0].mul(255).round().int().tolist() == [0, 1, 2]
    assert not (tmp_path / "ran").exists()
    assert main.__file__ == str(script)


class Deadly:
    """A transform that ends the process in which it is."""

    def __call__(self, image):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_one_sentence(monkeypatch):
    get = "torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data.__defaults__"
    monkeypatch.setattr(get, (0.1,))  # how often torch looks
    with pytest.raises(ImagesError, match=r"^a process that decodes .* ended unexpectedly: use fe"):
        list(numbered_images(3).batches(Deadly(), 2, workers=1))


def test_a_transform_that_cannot_be_sent_needs_no_workers(monkeypatch):
    images = from_arrays(np.zeros((600, 1, 1, 3), dtype=np.uint8))

    def own(image):
        return torch.zeros(1)

    with pytest.raises(ImagesError, match=r"^the transform cannot be sent .*: use workers=0$"):
        list(images.batches(own, 300, workers=2))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert len(list(images.batches(own, 300))) == 2
    with pytest.raises(ImagesError, match="workers is a whole number, 0 or more, not -1"):
        list(images.batches(own, 300, workers=-1))


def test_representations_do_not_depend_on_workers():
    images, model = load_images("demo", limit=20), CASES["mixer"].model()
    here, there = (extract(model, images, batch_size=6, workers=workers) for workers in (0, 2))
    for name in here:
        assert np.array_equal(here[name], there[name])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_while_batching_is_one_sentence_with_the_path(tmp_path, transform, workers):
    for name in "abc":
        Image.effect_noise((64, 64), 50).save(tmp_path / f"{name}.png")
    images = load_images(tmp_path)
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:-400])
    with pytest.raises(ImagesError) as caught:
        list(images.batches(transform, 2, workers=workers))
    assert str(tmp_path / "b.png") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_batching_leaves_the_random_state_of_torch_alone(transform):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(numbered_images(3).batches(transform, 2))
    assert torch.equal(torch.rand(3), expected)


def test_auto_takes_workers_only_for_many_images_with_cuda(monkeypatch, transform):
    from mixer_probe.images import labelled

    workers: list[int] = []
    monkeypatch.setattr(
        labelled, "DataLoader", lambda *_, num_workers, **__: workers.append(num_workers) or []
    )
    monkeypatch.setattr(labelled, "available_cores", lambda: 16)
    few, many = numbered_images(100), from_arrays(np.zeros((1000, 1, 1, 3), dtype=np.uint8))
    for cuda in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        for images in (few, many):
            list(images.batches(transform, 2))
    assert workers == [0, 0, 0, 8]
    for chosen in (0, 3, None):
        use_decoders(chosen)
        list(few.batches(transform, 2))
    assert workers[4:] == [0, 3, 0]
    monkeypatch.setattr(multiprocessing.current_process(), "_config", {"daemon": True})
    list(many.batches(transform, 2, workers=4))
    assert workers[7:] == [0]


def test_images_pickle():
    images = numbered_images(3, [0, 1, 0]).sample(2, 4)
    again = pickle.loads(pickle.dumps(images))
    assert again.record == images.record
    assert values(again) == values(images)
