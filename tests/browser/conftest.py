"""A real Chromium, a real report, and the app in a server of its own. Without Chromium or
Playwright the tests are skipped."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str | None:
    """MIXER_PROBE_CHROMIUM, or the first of the usual names on the path."""
    named = os.environ.get("MIXER_PROBE_CHROMIUM")
    return named or next((found for name in _NAMES if (found := shutil.which(name))), None)


@pytest.fixture(scope="package")
def chromium() -> Iterator[object]:
    """The browser, for all tests here."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed: pip install playwright"
    )
    executable = find_chromium()
    if executable is None:
        pytest.skip(
            "no Chromium here: apt-get install chromium, or set MIXER_PROBE_CHROMIUM to its path"
        )
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


Serve = Callable[..., str]


@pytest.fixture(scope="package")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Start Streamlit on a script of the app, with folders that it may open, and give its address;
    all are stopped at the end."""
    running: list[subprocess.Popen[bytes]] = []
    environment = {**os.environ, "MIXER_PROBE_CACHE": str(tmp_path_factory.mktemp("cache"))}

    def start(script: Path, *folders: Path) -> str:
        port = free_port()
        command = [
            sys.executable,
            "-m",
            "streamlit",
            "run",
            str(script),
            "--server.port",
            str(port),
        ]
        # Without a proxy for localhost, and without telemetry, as the app's own settings say.
        quiet = ["--server.headless", "true", "--server.fileWatcherType", "none"]
        quiet += ["--", *map(str, folders)]
        silent = subprocess.DEVNULL
        server = subprocess.Popen(
            [*command, *quiet], cwd=ROOT, env=environment, stdout=silent, stderr=silent
        )
        running.append(server)
        address = f"http://127.0.0.1:{port}"
        wait_for_health(address, server)
        return address

    try:
        yield start
    finally:
        for server in running:
            stop(server)


@pytest.fixture(scope="package")
def app(serve: Serve) -> str:
    """The address of the app, one server for all tests here that need none of their own."""
    return serve(ROOT / "app" / "served.py")


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_for_health(address: str, server: subprocess.Popen[bytes], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert server.poll() is None, "Streamlit ended before it was ready"
        try:
            with urllib.request.urlopen(f"{address}/_stcore/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"Streamlit was not ready after {seconds:.0f} s")


def stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
