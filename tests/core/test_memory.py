"""Memory plans: how many items a budget holds, slices that cover all, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from mixer_probe.core import memory
from mixer_probe.core.errors import MeasureError, StoreError
from mixer_probe.core.memory import SmallTensors, at_once, check_fits, of_device, room, slices


def _machine_of(pages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with pages of 4 KiB."""
    monkeypatch.setattr("os.sysconf", lambda name: 2**12 if name == "SC_PAGE_SIZE" else pages)


def test_a_budget_holds_whole_items() -> None:
    assert [at_once(each, 100) for each in (1, 10, 33, 50, 51, 100)] == [100, 10, 3, 2, 1, 1]
    # 64 MiB of float64 numbers.
    assert at_once(8) == 8_388_608


def test_an_item_beyond_the_budget_comes_alone_or_as_many_as_are_worth_a_step() -> None:
    assert at_once(101, 100) == 1
    assert at_once(101, 100, least=64) == 64
    assert at_once(101, 100, least=0) == 0
    assert at_once(8, -1) == 1
    assert list(slices(3, at_once(101, 100))) == [slice(0, 1), slice(1, 2), slice(2, 3)]


def test_items_of_no_size_do_not_divide_by_zero() -> None:
    assert at_once(0, 100) == 100


@pytest.mark.parametrize(
    ("n", "size", "lengths"),
    [(0, 3, []), (2, 3, [2]), (6, 3, [3, 3]), (7, 3, [3, 3, 1]), (3, 1, [1, 1, 1])],
)
def test_slices_cover_every_item_once_in_order(n: int, size: int, lengths: list[int]) -> None:
    parts = list(slices(n, size))
    assert [part.stop - part.start for part in parts] == lengths
    assert [i for part in parts for i in range(n)[part]] == list(range(n))


def test_a_gpu_takes_larger_steps_than_a_cache() -> None:
    assert of_device(torch.device("cpu")) == 2 * 2**20
    assert of_device(torch.device("cuda", 1)) == 512 * 2**20


def test_budgets_ascend() -> None:
    budgets = [memory.CACHE, memory.WORKING, memory.LARGE, memory.RESIDENT, memory.MOST]
    assert budgets == sorted(set(budgets))


def test_there_is_room_in_four_fifths_of_the_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine_of(2**20, monkeypatch)
    assert room() == room(2**32) == pytest.approx(3.2 * 2**30)
    assert room(1000) == 1000


def test_a_system_that_does_not_tell_has_room_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.sysconf")
    assert room() == math.inf
    check_fits(2**60, "all", "nothing", StoreError)


def test_a_refusal_says_how_much_is_missing_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    _machine_of(2**20, monkeypatch)
    check_fits(3 * 2**30, "layers", "take fewer", StoreError)
    with pytest.raises(
        StoreError, match=r"^layers take 3\.5 GiB and do not fit into 3\.2 GiB: take fewer$"
    ):
        check_fits(7 * 2**29, "layers", "take fewer", StoreError)
    with pytest.raises(MeasureError, match=r"^layers take 3\.5 GiB and do not fit into 2 GiB: "):
        check_fits(7 * 2**29, "layers", "take fewer", MeasureError, most=2**31)


def test_small_tensors_share_blocks_and_keep_their_values() -> None:
    together = SmallTensors(torch.float32, 10)
    shapes = (2, 3), (), (0, 4), (8,)
    given = [torch.arange(math.prod(s), dtype=torch.float32).reshape(s) for s in shapes]
    found = [together(one) for one in given]
    for one, own in zip(found, given, strict=True):
        assert torch.equal(one, own)
        assert one.untyped_storage().data_ptr() != own.untyped_storage().data_ptr()
    # 6 + 1 + 0 numbers fit into one block, and 8 more do not.
    blocks = [one.untyped_storage().data_ptr() for one in found]
    assert blocks[0] == blocks[1]
    assert blocks[0] != blocks[3]


def test_other_things_stay_where_they_are() -> None:
    together = SmallTensors(torch.float32, 10)
    for one in (torch.zeros(11), torch.zeros(3, dtype=torch.float64), None, "text"):
        assert together(one) is one
