"""What is said, drawn and tabled of every type of result, against golden files.

`tests/golden` holds for each type a small saved result, its table (CSV), and the sections of the
report with the data of their figures (text). `--update-golden` reads the saved results and writes
what is said of them; a type without a saved result gets one from `MADE` of test_saved_results.
Delete a saved result to make it anew."""

from __future__ import annotations

from typing import Any

import pytest

from mixer_probe.core.result import load_results, save_results
from mixer_probe.report.views import all_views
from tests.helpers.golden import GOLDEN, check, frame_text, section_text


def stored(kind: type[Any], update: bool) -> tuple[Any, ...]:
    file = GOLDEN / f"{kind.__name__}.json"
    if update and not file.exists():
        from tests.report.test_saved_results import made

        GOLDEN.mkdir(exist_ok=True)
        save_results(made(kind), file)
    return load_results(file)


@pytest.mark.parametrize("kind", all_views(), ids=lambda kind: kind.__name__)
def test_every_type_is_tabled_told_and_drawn_as_before(
    kind: type[Any], update_golden: bool
) -> None:
    results = stored(kind, update_golden)
    check(f"{kind.__name__}.csv", "\n".join(map(frame_text, results)), update_golden)
    lines = (
        line
        for section in all_views()[kind].sections(results)
        for line in (*section_text(section), "")
    )
    check(f"{kind.__name__}.txt", "\n".join(lines), update_golden)
