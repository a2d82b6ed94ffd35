"""Runs in an object store: an S3 server of this machine takes them and gives them back."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mixer_probe.capture.units as units
from mixer_probe.capture import extract, open_run
from mixer_probe.channels import ChannelMoments
from mixer_probe.core.errors import StoreError
from mixer_probe.core.places import Place
from mixer_probe.models import Model
from tests.capture.test_integrity import numbers
from tests.capture.test_store import Source
from tests.networks import CASES

OPTIONS: dict[str, Any] = {"layers": "blocks", "reduce": "none", "batch_size": 2}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    found = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    found.start()
    host, port = found.get_host_and_port()
    yield f"http://{host}:{port}"
    found.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import s3fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setattr(units, "LEAST", 4)
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"bucket-{time.monotonic_ns()}"
    s3fs.S3FileSystem().mkdir(name)
    yield f"s3://{name}"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def model() -> Model:
    return CASES["dinov2-registers"].model()


def test_a_run_goes_there_and_comes_back(model: Model, bucket: str, tmp_path: Path) -> None:
    out, here = f"{bucket}/runs/vit", tmp_path / "run"
    readings = [ChannelMoments() for _ in range(3)]
    also = [[m.reading(model, model.select("blocks"))] for m in readings]
    expected = numbers(extract(model, Source(11), **OPTIONS, out=here, also=also[0]))
    assert numbers(extract(model, Source(11), **OPTIONS, out=out, also=also[1])) == expected
    assert numbers(open_run(out)) == expected
    np.testing.assert_array_equal(
        open_run(out).rows("blocks.1", slice(3, 9)), open_run(here)["blocks.1"][3:9]
    )
    # The same files with the same bytes as in a folder.
    place, local = Place(out), Place(here)
    assert place.sizes() == local.sizes()
    assert all(place.read(name) == local.read(name) for name in local.sizes())
    # A finished run is returned, with what was added up on the way.
    source = Source(11)
    assert numbers(extract(model, source, **OPTIONS, out=out, also=also[2])) == expected
    assert source.given == 0
    assert [m.n for m in readings] == [11, 11, 11]


def test_an_interrupted_one_goes_on(model: Model, bucket: str) -> None:
    out, source = f"{bucket}/run", Source(11)
    source.fails_at, source.error = 7, KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        extract(model, source, **OPTIONS, out=out)
    with pytest.raises(StoreError, match=r"unfinished \(6 of 11 images\); run the same"):
        open_run(out)
    with pytest.raises(StoreError, match="holds another unfinished run"):
        extract(model, Source(12), **OPTIONS, out=out)
    rest = Source(11)
    found = extract(model, rest, **OPTIONS, out=out)
    assert rest.starts == [6]
    assert numbers(found) == numbers(extract(model, Source(11), **OPTIONS))
    left = {name for name in Place(out).sizes("units") if not name.endswith(".json")}
    assert not left


def test_a_second_writer_is_refused_and_a_dead_one_is_not_waited_for(
    model: Model, bucket: str
) -> None:
    out = f"{bucket}/run"
    holder = {"key": "other", "host": "elsewhere", "pid": 7, "time": time.time()}
    Place(out).write("units/writer.lease", json.dumps(holder).encode())
    with pytest.raises(
        StoreError,
        match=(
            rf"^{out} is being written by process 7 on elsewhere; wait for it or give another --out"
        ),
    ):
        extract(model, Source(3), **OPTIONS, out=out)
    holder |= {"host": socket.gethostname(), "pid": 2**22 + 1}
    Place(out).write("units/writer.lease", json.dumps(holder).encode())
    assert len(extract(model, Source(3), **OPTIONS, out=out).ids) == 3


def test_a_flipped_byte_and_a_lost_object_are_named_and_repaired(model: Model, bucket: str) -> None:
    out = f"{bucket}/run"
    expected = numbers(extract(model, Source(11), **OPTIONS, out=out))
    place, name = Place(out), "blocks.1/c/1/0/0"
    content = bytearray(place.read(name))
    content[5] ^= 4
    place.write(name, bytes(content))
    with pytest.raises(StoreError, match=rf"damaged \({name}, of unit 1: .*verify=True"):
        _ = open_run(out)["blocks.1"]
    place.remove(["prefix/blocks.0/c/2/0/0"])
    with pytest.raises(StoreError, match=r"1 files are missing, first prefix/blocks.0/c/2/0/0"):
        open_run(out)
    source = Source(11)
    assert numbers(extract(model, source, **OPTIONS, out=out, verify=True)) == expected
    assert source.given == 4  # two batches of each of two units


def test_places_that_cannot_be_opened(model: Model, bucket: str) -> None:
    with pytest.raises(StoreError, match="no run at"):
        open_run(f"{bucket}/nothing")
    with pytest.raises(StoreError, match=r"cannot open nonsense://x/run: .*nonsense"):
        extract(model, Source(3), out="nonsense://x/run")
    with pytest.raises(StoreError, match=r"could not write to s3://no-such-bucket-here/run \("):
        extract(model, Source(3), out="s3://no-such-bucket-here/run")


def test_any_file_system_of_fsspec_will_do(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "LEAST", 4)
    found = extract(model, Source(5), **OPTIONS, out="memory://runs/one")
    assert numbers(found) == numbers(extract(model, Source(5), **OPTIONS))
