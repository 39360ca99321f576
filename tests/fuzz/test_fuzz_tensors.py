"""Weights whose header someone wrote by hand, under a manifest that vouches for them: what loads is what the header
says, read by an independent reader; everything else is refused."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sfumato
from sfumato.engine.tensors import read_tensors
from tests.fuzz.bounds import Bounds
from tests.fuzz.hostile import examples, mutated, sign, values

DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
NAMES = [
    *DTYPES,
    "BF16",
    "U16",
    "U32",
    "U64",
    "C64",
    "F8_E4M3",
    "F8_E5M2",
    "F8_E8M0",
    "F4",
    "F6_E2M3",
    "f32",
    "PICKLE",
    "",
]


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def joined(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def oracle(content: bytes) -> dict[str, np.ndarray]:
    """The tensors that a file holds, as the format's page says: nothing of safetensors' code."""
    header, data = split(content)
    header.pop("__metadata__", None)
    out = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        out[name] = np.frombuffer(data[start:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return out


def same(found: dict[str, torch.Tensor], content: bytes) -> bool:
    wanted = oracle(content)
    return found.keys() == wanted.keys() and all(
        t.numpy().tobytes() == wanted[name].tobytes() and tuple(t.shape) == wanted[name].shape
        for name, t in found.items()
    )


@pytest.fixture
def ways(trained: Path, tmp_path: Path, bounds: Bounds) -> Callable[[bytes], None]:
    """`ways(bytes)`: inspect the file, and load it as a run's model."""
    home = tmp_path / "shared"
    shutil.copytree(trained / "final", home)
    file = home / "model.safetensors"

    def go(content: bytes) -> None:
        file.write_bytes(content)
        sign(home)
        code, *_ = bounds.command("inspect", file)
        found = bounds.call("read", lambda: read_tensors(file))
        assert (code == 0) == (found is not None)
        recipe = bounds.call("load", lambda: sfumato.load(home, verify=True))
        if recipe is not None:
            assert found is not None and same(found, content)
            state = recipe.state_dict()
            assert all(torch.equal(state[name], t.to(state[name].dtype)) for name, t in found.items())
        del found, recipe

    return go


def generated(draw: Callable[..., Any], content: bytes) -> bytes:
    """A header with entries replaced, swapped, moved, or with bytes changed."""
    header, data = split(content)
    kind = draw(st.sampled_from(["tree"] * 4 + ["entry"] * 4 + ["bytes"] * 2 + ["length", "data", "any"]))
    if kind == "tree":
        return joined(draw(mutated(header)), data)
    if kind == "entry":
        name = draw(st.sampled_from(sorted(header)))
        number = draw(st.sampled_from([-1, 1, 4, 8, -4, 2**31, 2**62, 2**63, 2**64 - 1, -(2**63)]))
        field = draw(st.sampled_from(["dtype", "shape", "data_offsets", "both", "twin"]))
        entry = header[name]
        if field == "dtype":
            entry["dtype"] = draw(st.sampled_from(NAMES))
        elif field == "twin":
            header[name] = dict(header[draw(st.sampled_from(sorted(header)))])
        elif field == "both":
            entry["shape"], entry["data_offsets"] = [number], [0, number]
        else:
            at = draw(st.integers(0, max(0, len(entry[field]) - 1)))
            entry[field][at : at + 1] = draw(
                st.sampled_from([[number], [entry[field][at] + number], [], [number, number]])
            )
        return joined(header, data)
    if kind == "bytes":
        text = bytearray(json.dumps(header).encode())
        for _ in range(draw(st.integers(1, 3))):
            at = draw(st.integers(0, len(text) - 1))
            text[at : at + draw(st.integers(0, 2))] = draw(
                st.binary(max_size=2) | st.sampled_from([b'"', b"{", b"]", b",", b"0", b"9" * 30])
            )
        return joined(bytes(text), data)
    if kind == "length":
        size = draw(st.sampled_from([0, 1, 7, 8, 100, len(content), len(content) + 1, 10**8, 2**31, 2**63, 2**64 - 1]))
        return struct.pack("<Q", size) + content[8:]
    if kind == "data":
        return joined(header, data[: draw(st.integers(0, len(data)))] + draw(st.binary(max_size=9)))
    return joined(draw(values.map(lambda v: json.dumps(v).encode()) | st.binary(max_size=40)), data)


def bombs(content: bytes) -> Iterator[tuple[str, bytes]]:
    """What nothing may read."""
    header, data = split(content)
    first, *rest = sorted(header, key=lambda name: header[name]["data_offsets"][0])
    end = len(data)

    def changed(name: str, **entry: Any) -> bytes:
        return joined({**header, name: {**header[name], **entry}}, data)

    yield "nothing", b""
    yield "a length alone", struct.pack("<Q", 100)
    yield "100 MB claimed", struct.pack("<Q", 100_000_000) + content[8:]
    yield "100 MB of spaces", joined(json.dumps(header).encode() + b" " * 99_900_000, data)
    yield (
        "12 MB of entries",
        joined({f"{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(200_000)}, b""),
    )
    yield "12 MB of metadata", joined({"__metadata__": {f"{i}": "x" for i in range(900_000)}}, b"")
    yield "nested", joined(b'{"a":' * 5000 + b"1" + b"}" * 5000, data)
    yield "no UTF-8", joined(json.dumps(header).encode().replace(b"weight", b"we\xffght"), data)
    yield "a hole", changed(rest[0], data_offsets=[n + 4 for n in header[rest[0]]["data_offsets"]])
    yield "an overlap", changed(rest[0], data_offsets=header[first]["data_offsets"], shape=header[first]["shape"])
    yield "beyond the end", changed(rest[-1], data_offsets=[end, end + 4], shape=[1])
    yield "backwards", changed(first, data_offsets=header[first]["data_offsets"][::-1])
    yield "2^63 numbers", changed(first, shape=[2**63], data_offsets=[0, 2**63])
    yield "a product beyond 2^64", changed(first, shape=[2**32, 2**32, 2**32])
    yield "an empty product beyond 2^64", changed(first, shape=[0, 2**62, 2**62], data_offsets=[0, 0])
    yield "a negative shape", changed(first, shape=[-1])
    yield "two million axes", changed(first, shape=[1] * 2_000_000)
    yield "too long", content + b"\0" * 64
    yield "too short", content[:-1]


def test_bombs(trained: Path, ways: Callable[[bytes], None], bounds: Bounds) -> None:
    content = (trained / "final" / "model.safetensors").read_bytes()
    ways(content)
    assert bounds.worked == 3
    for name, bomb in bombs(content):
        ways(bomb)
        assert bounds.worked == 3, name


def largest() -> Iterator[dict[str, Any]]:
    """8 MB of the smallest entries, texts and axes."""
    yield {f"{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(125_000)}
    yield {"__metadata__": {f"{i}": "x" for i in range(550_000)}}
    yield {"a": {"dtype": "F32", "shape": [0] * 2_700_000, "data_offsets": [0, 0]}}


@pytest.mark.slow
def test_the_largest_headers_that_are_read(ways: Callable[[bytes], None], bounds: Bounds) -> None:
    for content in map(joined, largest(), [b""] * 3):
        ways(content)
    assert bounds.worked >= 4  # shown and read, and not the run's


def test_whole_files_that_do_not_fit(trained: Path, ways: Callable[[bytes], None], bounds: Bounds) -> None:
    """A correct file with other numbers or shapes than the model's is shown, and not loaded."""
    header, data = split((trained / "final" / "model.safetensors").read_bytes())
    name = max(header, key=lambda n: len(header[n]["shape"]))
    shape, (start, end) = header[name]["shape"], header[name]["data_offsets"]
    for entry in (
        {"dtype": "I32"},
        {"dtype": "U32"},
        {"dtype": "F16", "shape": [*shape, 2]},
        {"dtype": "F8_E4M3", "shape": [*shape, 4]},
        {"dtype": "C64", "shape": [(end - start) // 8]},
        {"shape": [*shape[::-1], 1]},
        {"shape": [1] * 60 + shape},
    ):
        before = bounds.refused
        ways(joined({**header, name: {**header[name], **entry}}, data))
        assert bounds.refused > before, entry


@examples(60)
@given(data=st.data())
def test_spoiled_headers(trained: Path, ways: Callable[[bytes], None], data: st.DataObject) -> None:
    ways(generated(data.draw, (trained / "final" / "model.safetensors").read_bytes()))


@pytest.mark.slow
@examples(2000)
@given(data=st.data())
def test_spoiled_headers_at_length(trained: Path, ways: Callable[[bytes], None], data: st.DataObject) -> None:
    ways(generated(data.draw, (trained / "final" / "model.safetensors").read_bytes()))


def spoil(spoiled: Callable[[], Path], bounds: Bounds, data: st.DataObject) -> None:
    """One file of every checkpoint, and a resume that has to do without."""
    run = spoiled()
    shutil.rmtree(run / "final")
    folder = next((run / "checkpoints").glob("step_*"))
    name = data.draw(st.sampled_from(["model", "ema", "optim"]))
    file = folder / f"{name}.safetensors"
    file.write_bytes(generated(data.draw, file.read_bytes()))
    sign(folder)
    print(bounds.command("train", "--resume", run, "--steps", 3, "--sample-every", 0, "--quiet"))


@examples(6)
@given(data=st.data())
def test_resuming_from_spoiled_headers(spoiled: Callable[[], Path], bounds: Bounds, data: st.DataObject) -> None:
    spoil(spoiled, bounds, data)


@pytest.mark.slow
@examples(300)
@given(data=st.data())
def test_resuming_from_spoiled_headers_at_length(
    spoiled: Callable[[], Path], bounds: Bounds, data: st.DataObject
) -> None:
    spoil(spoiled, bounds, data)
