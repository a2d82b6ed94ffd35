"""What the app costs: seconds to the first picture and to a second visit of each page, memory after
ten rounds through all pages.

A server of its own with an empty cache, the bundled networks and images, and a real Chromium.
"First visit" is from the click in the menu until the page is at rest, everything calculated;
"second visit" the same in a second round. "First picture" is from opening the page Token mixing in
a server that has shown another page (so that its imports are done) until an image is on the screen.
Memory is that of the server's process, after a garbage collection of its own making by idling for
some seconds.

    python tests/benchmarks/bench_app.py [--rounds 10] [--json FILE]

Needs Chromium (MIXER_PROBE_CHROMIUM, or chromium on the path) and Playwright.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.browser.conftest import ROOT, find_chromium, free_port, stop, wait_for_health

if TYPE_CHECKING:
    from playwright.sync_api import Page

PAGES = (
    "Token mixing",
    "Stem and kernels",
    "Mixing",
    "Similarity",
    "Probes",
    "Channels",
    "Image",
    "Analyses",
    "Report",
    "Home",
)
FIRST_PICTURE, SECOND_VISIT, GROWTH = 10.0, 1.0, 100.0
WAIT = 600_000
# The page is at rest when its script has ended and nothing is grey or turning, for a moment.
MOMENT = 300
AT_REST = f"""() => {{
  const idle = document.querySelector('.stApp')?.dataset.testScriptState === 'notRunning'
    && !document.querySelector(
      '[data-stale=true], [data-testid=stSpinner], [data-testid=stProgress]');
  window.restingSince = idle ? window.restingSince ?? performance.now() : undefined;
  return idle && performance.now() - window.restingSince > {MOMENT};
}}"""


def main() -> None:
    """Measure, print, write."""
    arguments = parse()
    with tempfile.TemporaryDirectory() as cache:
        found = measured(Path(cache), arguments.rounds)
    found = {
        "device": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "streamlit": streamlit.__version__,
    } | found
    print(table(found))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def measured(cache: Path, rounds: int) -> dict[str, Any]:
    """All figures."""
    port, began = free_port(), time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "streamlit",
        "run",
        str(ROOT / "app" / "Home.py"),
        "--server.port",
        str(port),
    ]
    options = ["--server.headless", "true", "--server.fileWatcherType", "none"]
    environment = {**os.environ, "MIXER_PROBE_CACHE": str(cache)}
    silent = subprocess.DEVNULL
    server = subprocess.Popen(
        [*command, *options], cwd=ROOT, env=environment, stdout=silent, stderr=silent
    )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for_health(address, server)
        with sync_playwright() as api:
            browser = api.chromium.launch(
                executable_path=find_chromium(), args=["--no-sandbox", "--disable-gpu"]
            )
            figures = in_browser(
                browser.new_page(viewport={"width": 1280, "height": 900}),
                address,
                server.pid,
                rounds,
                began,
            )
            browser.close()
        return figures
    finally:
        stop(server)


def in_browser(page: Page, address: str, pid: int, rounds: int, began: float) -> dict[str, Any]:
    """What one person sees and waits for."""
    page.goto(f"{address}/")
    rest(page)
    home = time.perf_counter() - began
    start = time.perf_counter()
    page.goto(f"{address}/Token_mixing")
    page.locator(
        "[data-testid=stMain] :is([data-testid=stImage] img, canvas, [data-testid=stVegaLiteChart] "
        "svg)"
    ).first.wait_for(timeout=WAIT)
    picture = time.perf_counter() - start
    rest(page)
    visits: dict[str, list[float]] = {name: [] for name in PAGES}
    memory = []
    for _ in range(rounds + 1):
        for name in PAGES:
            visits[name].append(visit(page, name))
        time.sleep(3)
        memory.append(resident(pid))
        print(
            f"  {memory[-1]:.0f} MB, {[round(times[-1], 2) for times in visits.values()]}",
            file=sys.stderr,
            flush=True,
        )
    return {
        "process start to Home": home,
        "first picture": picture,
        "first visit": {name: times[0] for name, times in visits.items()},
        "second visit": {name: times[1] for name, times in visits.items()},
        "memory after each round, MB": memory,
    }


def visit(page: Page, name: str) -> float:
    """Click in the menu and wait until the page is at rest; seconds, without the moment that it has
    to last."""
    start = time.perf_counter()
    # After the icon, whose name is text too; "Mixing" is not "Token mixing".
    link = re.compile(rf"(^|\s){name}$")
    page.get_by_test_id("stSidebarNav").get_by_role("link", name=link).first.click()
    title = "Networks and images" if name == "Home" else name
    page.get_by_test_id("stMain").get_by_role("heading", name=title, exact=True).wait_for(
        timeout=WAIT
    )
    rest(page)
    return time.perf_counter() - start - MOMENT / 1000


def rest(page: Page) -> None:
    """Wait until the page is at rest."""
    page.evaluate("window.restingSince = undefined")
    page.wait_for_function(AT_REST, timeout=WAIT)


def resident(pid: int) -> float:
    """Memory of a process, in MB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return (
        int(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024
    )


def table(found: dict[str, Any]) -> str:
    """The figures as text, with the targets."""
    memory = found["memory after each round, MB"]
    lines = [
        f"{found['device']}, {found['cores']} cores, streamlit {found['streamlit']}",
        f"process start to Home, everything shown: {found['process start to Home']:.1f} s",
        f"first picture: {found['first picture']:.1f} s (target {FIRST_PICTURE:g})",
        f"{'page':<20}{'first visit, s':>16}{'second visit, s':>18}",
    ]
    lines += [
        f"{name:<20}{found['first visit'][name]:>16.1f}{found['second visit'][name]:>18.2f}"
        for name in PAGES
    ]
    slowest = max(found["second visit"].values())
    lines += [
        f"slowest second visit: {slowest:.2f} s (target {SECOND_VISIT:g})",
        f"memory: {memory[0]:.0f} MB after the first round, {memory[-1]:.0f} MB after "
        f"{len(memory) - 1} more: {memory[-1] - memory[0]:+.0f} MB (target {GROWTH:g})",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
