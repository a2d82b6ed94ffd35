"""The border of the command line: one sentence for whatever is typed, and none of it a
traceback."""

from __future__ import annotations

import errno
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from base64 import b64encode
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer_probe import cli
from mixer_probe.core.text import csv_text, visible
from tests.test_cli import Run


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(monkeypatch, capsys)


TINY = ["--limit", "8", "--device", "cpu"]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["inspect", ""], "the name of a model is empty"),
        (["inspect", "x" * 300], "at most 255 characters, not 300"),
        (["inspect", "a\x1b[31mb"], r"without control characters, not 'a\x1b[31mb'"),
        (
            ["inspect", "zoo:mixer-s0", "--device", "meta"],
            "the device 'meta' holds shapes and no numbers",
        ),
        (["inspect", "zoo:mixer-s0", "--device", ""], "no device ''"),
        (
            ["compare", "zoo:mixer-s0", "zoo:vit-s0", "--grid", "²"],
            "--grid is a number of rows and columns",
        ),
        (
            ["compare", "zoo:mixer-s0", "zoo:vit-s0", "--grid", "9" * 5000],
            "--grid is a number of rows and columns",
        ),
        (["probe", "zoo:mixer-s0", "--shots", "١²"], "--shots is a list of positive numbers"),
        (["probe", "zoo:mixer-s0", "--method", "rigde"], "unknown --method 'rigde'; known: ridge"),
        (["report", "zoo:mixer-s0", "--out", ""], "the name of the folder is empty"),
        (["extract", "zoo:mixer-s0", "--out", " "], "the name of the folder is empty"),
        (["probe", "zoo:mixer-s0", "--out", ""], "the name of the folder is empty"),
        (["report", "zoo:mixer-s0", "--seed", "-1"], "'--seed'"),
        (["report", "zoo:mixer-s0", "--limit", "nan"], "'--limit'"),
        (["report", "zoo:mixer-s0", "--data", ""], "give . for this folder"),
        (["report", "zoo:mixer-s0", "--data", "x" * 300], "no folder and no known data set"),
        (["app", "--port", "99999"], "'--port'"),
        (["app", "--port", "0"], "'--port'"),
        (["app", "x" * 300], "the system refused"),
    ],
)
def test_what_is_refused_is_said_in_a_sentence(run: Run, arguments: list[str], said: str) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert said in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["report", "probe", "channels"])
def test_layers_of_all_networks_are_known_before_any_work(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("worked")

    monkeypatch.setattr("mixer_probe.study.run_study", work)
    monkeypatch.setattr("mixer_probe.study.Study.add", work)
    for layers in ("nope", "blocks.0,nope", "blocks.0"):
        code, _, err = run(command, "zoo:mixer-s0", "zoo:resnet-s0", "--layers", layers, *TINY)
        assert (code, "Traceback" in err) == (2, False)
        assert ("nope" if "nope" in layers else "blocks.0") in err


@pytest.mark.parametrize(
    "error, code, said",
    [
        (
            TypeError("a\nb"),
            70,
            "this is a bug in mixer_probe, please report it: TypeError: a b (MIXER_PROBE_DEBUG=1 "
            "shows",
        ),
        (ZeroDivisionError(), 70, "ZeroDivisionError: without a message"),
        (RecursionError("deep"), 70, "RecursionError: deep"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/x"),
            2,
            "the system refused for out/x: No space left on device",
        ),
        (MemoryError(), 2, "out of memory"),
        (BrokenPipeError(), 1, ""),
        (KeyboardInterrupt(), 130, "ended by SIGINT"),
    ],
)
def test_the_last_handler(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    def fails() -> None:
        raise error

    monkeypatch.setattr(cli, "app", fails)
    found, _, err = run()
    assert (found, said in err) == (code, True)
    assert len(err.splitlines()) == bool(said)
    if code == 70:
        monkeypatch.setenv(cli.DEBUG, "1")
        with pytest.raises(type(error)):
            run()


def test_names_steer_no_terminal_and_no_table() -> None:
    assert visible("a\x1b[31m\u202eb\x85\ud83d") == r"a\x1b[31m\u202eb\x85\ud83d"
    assert visible("Größe ½\n\t漢字 🙂") == "Größe ½\n\t漢字 🙂"
    names = [
        "=1+1",
        "+cmd",
        "@x",
        "-rm",
        "-0.5",
        "+3e-5",
        "-12 %",
        "plain",
        "a\u202eb",
        "-",
        "+",
        "--",
    ]
    frame = pd.DataFrame(
        {"name": names, "=value": [-1.5, -2, 0, 1, 2, 3, 4, 5, float("nan"), 6, 7, 8]}
    )
    assert csv_text(frame).splitlines() == [
        "name,'=value",
        "'=1+1,-1.5",
        "'+cmd,-2.0",
        "'@x,0.0",
        "'-rm,1.0",
        "-0.5,2.0",
        "+3e-5,3.0",
        "-12 %,4.0",
        "plain,5.0",
        r"a\u202eb,",
        "-,6.0",
        "+,7.0",
        "'--,8.0",
    ]
    assert list(frame["name"]) == names


def test_an_ascii_and_a_closed_output_and_a_backend_that_is_none(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "MPLBACKEND": "nonsense"}
    script = (
        "from mixer_probe import cli\ndef app():\n    {}\n    cli.console.print('3 × 3')\ncli.app "
        "= app\ncli.main()"
    )
    drawn = [sys.executable, "-c", script.format("import matplotlib.figure")]
    plain = subprocess.run(drawn, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (plain.returncode, plain.stdout, plain.stderr) == (0, "3 \\xd7 3\n", "")
    shut = [sys.executable, "-c", script.format("pass")]
    closed = subprocess.run(
        shut, env=environment, capture_output=True, preexec_fn=lambda: os.close(1)
    )
    assert (closed.returncode, closed.stderr) == (0, b"")


WORDS = st.one_of(
    st.sampled_from(
        [
            "zoo:mixer-s0",
            "--limit",
            "--seed",
            "--grid",
            "--layers",
            "--out",
            "--data",
            "--what",
            "--json",
        ]
    ),
    st.sampled_from(
        [
            "",
            "-1",
            "nan",
            "²",
            "0",
            "9" * 400,
            "../..",
            "/dev/null",
            "a,b,,",
            "blocks",
            "x" * 300,
            "=1",
            "[red]",
        ]
    ),
    st.text(max_size=20).filter(lambda text: "\0" not in text),
)
COMMANDS = st.sampled_from(
    [
        "models",
        "inspect",
        "compare",
        "probe",
        "weights",
        "channels",
        "attribute",
        "render",
        "diff",
        "nothing",
    ]
)
tried = {"lines": 0}


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(COMMANDS, st.lists(WORDS, max_size=4))
def test_no_command_line_is_a_traceback(command: str, words: list[str]) -> None:
    """Models are never named by themselves here, so that nothing is worked at: what is refused is
    refused in a sentence."""
    tried["lines"] += 1
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as place:
        patch.chdir(place)
        # This one first: it is looked up in the other, whose own would else be the refusal for
        # ever.
        patch.setattr("mixer_probe.load_model", refuse)
        patch.setattr("mixer_probe.models.load_model", refuse)
        patch.setattr(sys, "argv", ["mixer-probe", command, *words])
        try:
            cli.main()
            code: object = 0
        except SystemExit as stop:
            code = stop.code
    assert code in (0, 1, 2, None), (command, words)


def refuse(*_: object, **__: object) -> None:
    from mixer_probe.core.errors import ModelError

    raise ModelError("not here")


def test_the_number_of_lines_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f" {tried['lines']} command lines,", end="")


# -- the server ------------------------------------------------------------------------------------


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def upgrade(port: int, host: str, origin: str) -> int:
    """The status that a request for the connection of a page is answered with."""
    key = b64encode(bytes(16)).decode()
    lines = [
        "GET /_stcore/stream HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
    ]
    lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", f"Origin: {origin}"]
    with socket.create_connection(("127.0.0.1", port), timeout=20) as stream:
        stream.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        return int(stream.recv(100).split()[1])


def answer(port: int, path: str, method: str = "GET", **headers: str) -> int:
    """The status of a plain request with these headers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with closing(connection):
        connection.request(method, path, body=b"x" if method == "PUT" else None, headers=headers)
        return connection.getresponse().status


# Of every kind: the page, its code, health, settings, media, uploads, components, and what is
# nowhere.
ROUTES = (
    ("GET", "/"),
    ("GET", "/Channels"),
    ("GET", "/_stcore/health"),
    ("GET", "/_stcore/host-config"),
    ("GET", "/media/0123.png"),
    ("PUT", "/_stcore/upload_file/session/file"),
    ("DELETE", "/_stcore/upload_file/session/file"),
    ("OPTIONS", "/_stcore/upload_file/session/file"),
    ("GET", "/component/some.part/index.html"),
    ("GET", "/app/static/x"),
    ("POST", "/nowhere"),
)
OTHERS = (
    "evil.example",
    "evil.example:{port}",
    "localhost.evil.example:{port}",
    "localhost@evil.example",
    "localhost/",
    "",
    "[",
)


def check_routes(port: int) -> None:
    """Every route answers this machine, and refuses any other name and any page of another
    origin."""
    own = f"localhost:{port}"
    for method, path in ROUTES:
        for host in OTHERS:
            # An HTTP server may refuse what is no Host at all before any application sees it.
            assert answer(port, path, method, Host=host.format(port=port)) in (400, 403), (
                method,
                path,
                host,
            )
        for origin in ("http://evil.example", "null", "http://localhost:1"):
            assert answer(port, path, method, Host=own, Origin=origin) == 403, (
                method,
                path,
                origin,
            )
    for host in (own, f"127.0.0.1:{port}", f"[::1]:{port}", "LOCALHOST"):
        assert answer(port, "/", Host=host) == 200, host
        assert answer(port, "/_stcore/health", Host=host, Origin=f"http://{host.lower()}") == 200, (
            host
        )


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_the_app_listens_to_this_machine_alone_and_ends_when_told(tmp_path: Path) -> None:
    (tmp_path / ".streamlit").mkdir()
    (tmp_path / ".streamlit" / "config.toml").write_text(
        '[server]\naddress = "0.0.0.0"\nenableCORS = false\nenableXsrfProtection = false\n'
        'allowedHosts = ["*"]\ncorsAllowedOrigins = ["http://evil.example"]\nheadless = true\n'
    )
    port = free_port()
    command = [
        sys.executable,
        "-c",
        "from mixer_probe import cli; cli.main()",
        "app",
        "--port",
        str(port),
    ]
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    try:
        for _ in range(600):
            assert server.poll() is None, (tmp_path / "log").read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2).close()
                break
            except OSError:
                time.sleep(0.1)
        own = f"http://localhost:{port}"
        assert upgrade(port, f"localhost:{port}", own) == 101
        assert upgrade(port, f"127.0.0.1:{port}", f"http://127.0.0.1:{port}") == 101
        evil = "http://evil.example"
        for host, origin in (
            (f"evil.example:{port}", own),
            (f"localhost:{port}", evil),
            ("evil.example", evil),
        ):
            assert upgrade(port, host, origin) == 403, (host, origin)
        check_routes(port)
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    finally:
        server.kill()
        server.wait()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=2)


def test_layers_of_a_comparison_are_known_before_any_extraction(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of both networks, and of a stored run that stands behind a network."""
    kept = str(tmp_path / "run.zarr")
    assert run("extract", "zoo:mixer-s0", "--layers", "blocks.0", "--out", kept, *TINY)[0] == 0

    def work(*_: object, **__: object) -> None:
        raise AssertionError("worked")

    monkeypatch.setattr("mixer_probe.extract", work)
    for arguments, said in (
        (("zoo:mixer-s0", "zoo:resnet-s0", "--layers", "blocks.0"), "no layer 'blocks.0'"),
        (("zoo:resnet-s0", "zoo:mixer-s0", "--layers", "blocks.0,nope"), "no layer"),
        (("zoo:mixer-s0", kept, "--layers", "blocks.7"), "no layer 'blocks.7' in this run"),
        (("zoo:mixer-s0", kept, "--reduce", "none"), "holds positions reduced by 'mean'"),
    ):
        code, _, err = run("compare", *arguments, *TINY)
        assert (code, "Traceback" in err) == (2, False)
        assert said in err


def test_the_layer_of_grad_cam_is_known_before_any_map(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("worked")

    monkeypatch.setattr("mixer_probe.study.Study.add", work)
    options = ("--method", "gradcam", "--layer", "blocks.0", *TINY)
    code, _, err = run("attribute", "zoo:mixer-s0", "zoo:resnet-s0", *options)
    assert (code, "Traceback" in err) == (2, False)
    assert "blocks.0" in err
