"""Whatever comes over its socket, the worker serves the next file."""

import contextlib
import itertools
import json
import os
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from processes import PATIENCE_S, held, least, status, wait_until

from rerun_loader_sam.sniff import iter_images
from rerun_loader_sam.worker.address import socket_path
from rerun_loader_sam.worker.client import connect, segment_order
from rerun_loader_sam.worker.wire import MAX_HEADER_BYTES, PREFIX_BYTES, encode_header, parse_header, parse_prefix

TEXT = st.text(max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
KEYS = ("identity", "arguments", "program", "cwd", "environ", "pid", "parent_pid", "is_watched")
FLAGS = st.sampled_from(
    [
        "--recording-id",
        "--application-id",
        "--opened-recording-id",
        "--static",
        "--time",
        "--sequence",
        "--help",
        "t=1",
    ]
)


def framed(text: bytes, header_bytes: int | None = None, payload_bytes: int = 0, magic: bytes = b"RSW1") -> bytes:
    """A frame with any lengths, right or wrong."""
    length = len(text) if header_bytes is None else header_bytes
    return magic + length.to_bytes(4, "big") + payload_bytes.to_bytes(8, "big") + text


LENGTHS = st.integers(0, 2**32 - 1) | st.integers(0, 64) | st.sampled_from([MAX_HEADER_BYTES, MAX_HEADER_BYTES + 1])
FRAMES = st.one_of(
    st.binary(max_size=200),
    st.builds(
        framed, st.binary(max_size=200), LENGTHS, st.integers(0, 2**64 - 1), st.sampled_from([b"RSW1", b"RSW2"])
    ),
    st.builds(lambda value: framed(json.dumps(value).encode()), JSON),
    st.builds(lambda value: framed(json.dumps({"do": value}).encode()), JSON.filter(lambda value: value != "stop")),
    st.builds(lambda count: framed(b"[" * count), st.sampled_from([1000, MAX_HEADER_BYTES])),
    st.just(encode_header({"do": "status"})),
)


@st.composite
def orders(draw: st.DrawFn) -> dict[str, Any]:
    """What is laid over a right order: keys of other types and values, arguments that nobody passes.

    Not an `identity` or `environ` that is right, but another's: the worker makes room for those, as it should.
    """
    changed: dict[str, Any] = {
        key: draw(JSON.filter(lambda value: not isinstance(value, dict)))
        for key in draw(st.sets(st.sampled_from(KEYS)))
    }
    if draw(st.booleans()):
        paths = st.sampled_from(["/dev/zero", "/dev/null", "nothing.jpg"]) | TEXT
        changed["arguments"] = draw(st.lists(paths | FLAGS | TEXT, max_size=5))
    return changed


@st.composite
def conversations(draw: st.DrawFn) -> list[bytes]:
    """What is sent, piece by piece: frames one after the other, in any order, cut anywhere."""
    content = b"".join(draw(st.lists(FRAMES, min_size=1, max_size=3)))
    cuts = sorted(draw(st.lists(st.integers(0, len(content)), max_size=3)))
    end = draw(st.integers(0, len(content)) | st.just(len(content)))
    edges = [0, *(cut for cut in cuts if cut < end), end]
    return [content[start:stop] for start, stop in itertools.pairwise(edges)]


def talk(pieces: list[bytes], pause_s: float, ending: str) -> None:
    """Say it all to the worker, and end the connection in one of several ways."""
    sock = connect()
    assert sock is not None, "no worker is there"
    with sock, contextlib.suppress(ConnectionError):  # it may have heard enough
        sock.settimeout(PATIENCE_S)
        for piece in pieces:
            sock.sendall(piece)
            time.sleep(pause_s)
        if ending == "half":
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1 << 16):
                pass
        elif ending == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def serve(photo: Path) -> None:
    """Let the worker do a file, in this process; it was done before, so that this takes no time."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(socket_path())
        sock.sendall(encode_header(segment_order([str(photo)])))
        file = sock.makefile("rb")
        kinds = []
        while not kinds or kinds[-1] != "end":
            header_bytes, payload_bytes = parse_prefix(file.read(PREFIX_BYTES))
            header = parse_header(file.read(header_bytes))
            file.read(payload_bytes)
            kinds.append(header["is"])
        assert header["exit_code"] == 0, header
        assert "rrd" in kinds


@pytest.mark.usefixtures("user", "worker")
@pytest.mark.parametrize("examples", [60, pytest.param(3000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_any_message_harms_nobody(examples: int, photos: list[Path]) -> None:
    pid = int(str(status()["pid"]))
    serve(photos[0])
    outcomes = {"served": 0}

    @given(
        conversations() | orders(),
        st.sampled_from([0.0, 0.0, 0.0, 0.02]),
        st.sampled_from(["half", "reset", "close"]),
    )
    @hypothesis_settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def say(message: list[bytes] | dict[str, Any], pause_s: float, ending: str) -> None:
        if isinstance(message, dict):
            message = [encode_header(segment_order([str(photos[0])]) | message)]
        talk(message, pause_s, ending)
        serve(photos[0])
        outcomes["served"] += 1

    fewest_held = least(lambda: len(held(pid)))
    say()
    assert status()["pid"] == pid
    assert outcomes["served"] >= examples
    # Those that were never ended are given up after some seconds.
    wait_until(lambda: len(held(pid)) <= fewest_held, lambda: "\n".join(held(pid)))
    assert status()["running"] == []


@pytest.mark.usefixtures("user", "worker")
def test_folders_are_looked_through_while_somebody_waits() -> None:
    everything = os.sep
    sock = connect()
    assert sock is not None
    with sock:
        sock.sendall(encode_header(segment_order([everything])))
        wait_until(lambda: status()["running"] == [everything])
    looked_through, enough = threading.Event(), threading.Event()

    def look_up() -> None:
        if enough.is_set():
            raise InterruptedError

    def look_through() -> None:
        with contextlib.suppress(InterruptedError):
            iter_images(everything, look_up)
            looked_through.set()

    other = threading.Thread(target=look_through)
    other.start()
    try:
        wait_until(lambda: status()["running"] == [])
        assert not looked_through.is_set()
    finally:
        enough.set()
        other.join()
