"""What is kept: nothing is made twice, networks stay while somebody looks at them, an error or a
stop leaves nothing behind."""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from mixer_probe_app import store
from mixer_probe_app.store import CachedResult
from streamlit.testing.v1 import AppTest

import mixer_probe as mp
from mixer_probe.core.errors import MeasureError, MixerProbeWarning
from mixer_probe.core.progress import task
from mixer_probe.models import Model
from tests.app.conftest import APP, Open

VIT, CNN = "test_vit?untrained", "test_resnet?untrained"


def counting(function: Callable[..., Any], calls: list[Any]) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args[0])
        return function(*args, **kwargs)

    return counted


def test_networks_and_results_are_made_once(
    open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    st.cache_resource.clear()
    loads: list[Any] = []
    runs: list[Any] = []
    monkeypatch.setattr(mp, "load_model", counting(mp.load_model, loads))
    monkeypatch.setattr(mp, "extract", counting(mp.extract, runs))
    page = open_page("pages/Similarity.py", [VIT, CNN], n="100")
    assert not page.exception
    assert (loads, len(runs)) == (["test_vit", "test_resnet"], 2)
    # Another person, another page.
    other = open_page("pages/Stem.py", [VIT, CNN])
    assert not other.exception
    assert len(loads) == 2
    assert not page.run().exception
    assert (len(loads), len(runs)) == (2, 2)


def test_results_are_there_after_a_restart(
    open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    st.cache_resource.clear()
    assert not open_page("pages/Similarity.py", [VIT, CNN], n="100").exception
    # What a new process knows: nothing but the disk.
    st.cache_resource.clear()
    compared: list[Any] = []
    monkeypatch.setattr(mp, "compare", counting(mp.compare, compared))
    page = open_page("pages/Similarity.py", [VIT, CNN], n="100")
    assert not page.exception
    assert not page.error
    assert compared == []


def test_a_network_left_is_let_go(open_page: Open) -> None:
    st.cache_resource.clear()
    gc.collect()
    before = alive()
    page = open_page("pages/Stem.py", [VIT])
    for name in ("test_vit2", "test_vit3", "test_convnext", "test_convnext2", "test_efficientnet"):
        page.query_params["model"] = [f"{name}?untrained"]
        assert not page.run().exception
        gc.collect()
        assert len(alive() - before) == 1
    assert len(store.networks()) == 1


def test_two_people_hold_their_own_networks_and_no_more(open_page: Open) -> None:
    st.cache_resource.clear()
    gc.collect()
    first, second = open_page("pages/Stem.py", [VIT]), open_page("pages/Stem.py", [CNN])
    names = lambda: {name for name, _device in store.networks()}  # noqa: E731
    assert names() == {VIT, CNN}
    second.query_params["model"] = [VIT]
    assert not second.run().exception
    gc.collect()
    assert names() == {VIT}
    # The session of the first ends.
    del first
    gc.collect()
    assert names() == {VIT}
    del second
    gc.collect()
    assert names() == set()


def alive() -> set[int]:
    return {id(thing) for thing in gc.get_objects() if type(thing) is Model}


def test_a_failure_is_remembered_until_tried_again(
    open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    st.cache_resource.clear()
    tries: list[Any] = []
    monkeypatch.setattr(mp, "load_model", counting(mp.load_model, tries))
    page = open_page("Home.py", ["no_such_network"])
    page.run()
    assert (len(page.error), len(tries)) == (1, 1)
    next(button for button in page.button if "Retry" in button.label).click().run()
    assert len(tries) == 2


def test_what_was_not_used_for_longest_leaves_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(store._SIZES, "two at most", 2)
    slots = store.slots("two at most")
    for name in "ab":
        slots(name).result = CachedResult(name, ())
    assert slots("a").result == CachedResult("a", ())
    slots("c").result = CachedResult("c", ())
    assert [slots(name).result is None for name in "acb"] == [False, False, True]


def script(tmp_path: Path, body: str) -> AppTest:
    """A page of a few lines, to see what `made` does around a calculation."""
    file = tmp_path / "page.py"
    file.write_text(f"import sys\nsys.path.append({str(APP)!r})\n{body}")
    return AppTest.from_file(str(file), default_timeout=60)


def test_warnings_come_back_with_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def make() -> int:
        made.append(1)
        warnings.warn("3 of 4 values are *odd*", MixerProbeWarning, stacklevel=2)
        return 7

    monkeypatch.setattr(store, "make_for_test", make, raising=False)
    page = script(
        tmp_path,
        f"from mixer_probe_app import store\nassert store.cached('test', {str(tmp_path)!r}, "
        "'Working', store.make_for_test) == 7",
    )
    for _ in range(2):
        page.run()
        assert not page.exception
        assert [warning.value for warning in page.warning] == ["3 of 4 values are \\*odd\\*"]
    assert len(made) == 1


def test_an_error_is_not_kept_and_frees_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Any] = [MeasureError("too *few* images"), 7]

    def make() -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return int(answer)

    monkeypatch.setattr(store, "make_for_test", make, raising=False)
    page = script(
        tmp_path,
        "import streamlit as st\nfrom mixer_probe_app import store\nfrom mixer_probe_app.messages "
        f"import guarded\nwith guarded():\n    st.write(store.cached('test', {str(tmp_path)!r}, "
        "'Working', store.make_for_test))\nst.write('the rest')",
    ).run()
    assert page.error[0].value == "too \\*few\\* images"
    assert page.markdown[-1].value == "the rest"
    assert not page.run().error
    assert page.markdown[0].value == "`7`"


def test_two_sessions_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_work: list[int] = []
    most: list[int] = []

    def make() -> int:
        at_work.append(1)
        with task("steps", 20) as advance:
            for _ in range(20):
                most.append(len(at_work))
                threading.Event().wait(0.01)
                advance(1)
        at_work.pop()
        return 7

    monkeypatch.setattr(store, "make_for_test", make, raising=False)
    pages = [
        script(
            tmp_path,
            f"from mixer_probe_app import store\nstore.cached('test', ({str(tmp_path)!r}, {i}), "
            "'W', store.make_for_test)",
        )
        for i in range(2)
    ]
    # One file would be run by both; each needs its own.
    threads = [threading.Thread(target=page.run) for page in pages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert not any(page.exception for page in pages)


def test_a_stop_ends_the_calculation_and_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    def make() -> int:
        with task("steps", 1000) as advance:
            for i in range(1000):
                steps.append(i)
                threading.Event().wait(0.01)
                advance(1)
        return 7

    monkeypatch.setattr(store, "make_for_test", make, raising=False)
    key = repr(str(tmp_path))
    page = script(
        tmp_path,
        "import streamlit as st\nfrom mixer_probe_app import store\nfrom mixer_probe_app.messages "
        f"import guarded\nwith guarded():\n    st.write(store.cached('test', {key}, 'Working', "
        "store.make_for_test))\nst.write('the rest')",
    )
    thread = threading.Thread(target=page.run)
    thread.start()
    while len(steps) < 5:
        threading.Event().wait(0.01)
    jobs = store.worker("work")._jobs
    jobs[("test", str(tmp_path))].stopped.set()
    thread.join(20)
    assert not thread.is_alive()
    assert not page.exception
    assert page.info[0].value == "This calculation was stopped."
    assert page.markdown[-1].value == "the rest"
    assert len(steps) < 1000
    assert not jobs


def test_what_nobody_waits_for_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_PATIENCE", 0.05)
    steps: list[int] = []

    def work() -> int:
        with task("steps", 1000) as advance:
            for i in range(1000):
                steps.append(i)
                threading.Event().wait(0.01)
                advance(1)
        return 7

    job = store.worker("work").join("nobody", work)
    with pytest.raises(store.Stopped):
        job.future.result(timeout=20)
    assert 0 < len(steps) < 1000


def test_a_page_that_begins_anew_finds_its_calculation(monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    calls: list[int] = []

    def work() -> int:
        calls.append(1)
        go.wait(20)
        return 7

    first = store.worker("work").join("again", work)
    second = store.worker("work").join("again", work)
    assert first is second
    go.set()
    assert first.future.result(timeout=20).value == 7
    assert len(calls) == 1


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")],
)
def test_full_memory_is_a_message_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def make() -> int:
        raise error

    monkeypatch.setattr(store, "make_for_test", make, raising=False)
    page = script(
        tmp_path,
        "import streamlit as st\nfrom mixer_probe_app import store\nfrom mixer_probe_app.messages "
        f"import guarded\nwith guarded():\n    store.cached('test', {str(tmp_path)!r}, 'Working', "
        "store.make_for_test)\nst.write('the rest')",
    ).run()
    assert not page.exception
    assert "Out of memory" in page.error[0].value
    assert "fewer images" in page.error[0].value
    assert page.markdown[-1].value == "the rest"


def test_a_result_is_handed_over_when_its_job_is_gone() -> None:
    """Who is told of a result asks for the same again at once, and gets a new job: the one that has
    ended is off the table."""
    worker = store.Worker("draw")
    seen: list[tuple[bool, bool]] = []
    asked = threading.Event()
    again: list[store.Job] = []
    go = threading.Event()

    def told(future: object) -> None:
        # In the worker's own thread, inside of the hand-over.
        seen.append(("key" in worker._jobs, worker._lock.locked()))
        again.append(worker.join("key", lambda: 2))
        asked.set()

    def work() -> int:
        assert go.wait(20)
        return 1

    first = worker.join("key", work)
    first.future.add_done_callback(told)
    assert worker.join("key", work) is first
    go.set()
    assert asked.wait(20)
    assert seen == [(False, False)]
    assert again[0] is not first
    assert first.future.result(timeout=20).value == 1
    assert again[0].future.result(timeout=20).value == 2


def test_a_failure_is_handed_over_when_its_job_is_gone() -> None:
    worker = store.Worker("draw")
    seen: list[bool] = []
    go = threading.Event()

    def fails() -> int:
        assert go.wait(20)
        raise MemoryError

    job = worker.join("key", fails)
    job.future.add_done_callback(lambda _: seen.append("key" in worker._jobs))
    go.set()
    with pytest.raises(MemoryError):
        job.future.result(timeout=20)
    # The callbacks of a future run before or after its waiters wake: the next job of the one thread
    # comes behind them.
    worker.join("next", lambda: 3).future.result(timeout=20)
    assert seen == [False]
