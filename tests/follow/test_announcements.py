"""What the lines of a viewer's log say, and what that means for entity paths."""

import os
from pathlib import Path

import pytest
import rerun as rr
from hypothesis import given
from hypothesis import strategies as st

from rerun_loader_sam.follow.announcements import (
    OpenedFile,
    calls_loaders_for_images,
    can_ask_viewers,
    entity_parts,
    listening_port,
    opened_path,
    other_viewer_url,
    unescaped_parts,
)
from rerun_loader_sam.follow.command_line import opens_window
from rerun_loader_sam.follow.viewer import StoreName

# As 0.24.1, 0.36.2 and 0.41.0 wrote them.
OLD = '[2026-11-22T14:13:51Z INFO  re_data_loader::load_file] Loading "coffee.jpg"…'
NEW = (
    "\x1b[2m2026-11-22T13:44:29.058159Z\x1b[0m \x1b[32m INFO\x1b[0m \x1b[2mre_importer::import_file\x1b[0m"
    '\x1b[2m:\x1b[0m Loading "/home/me/coffee.jpg"…'
)
LISTENING = (
    "\x1b[32m INFO\x1b[0m \x1b[2mre_grpc_server\x1b[0m\x1b[2m:\x1b[0m Listening for gRPC connections on "
    "0.0.0.0:9912. Connect by running `rerun --connect rerun+http://127.0.0.1:9912/proxy` \x1b[3mgui"
)
STREAMING = (
    "\x1b[32m INFO\x1b[0m Another viewer is already running, streaming data to it. Use --port auto to force a new "
    "viewer. \x1b[3muri\x1b[0m\x1b[2m=\x1b[0mrerun+http://127.0.0.1:9915/proxy"
)


def test_lines_of_real_viewers() -> None:
    assert opened_path(OLD) == Path("coffee.jpg")
    assert opened_path(NEW) == Path("/home/me/coffee.jpg")
    assert listening_port(LISTENING) == 9912
    assert other_viewer_url(STREAMING) == "rerun+http://127.0.0.1:9915/proxy"
    for line in (LISTENING, STREAMING, "", "Loading the model"):
        assert opened_path(line) is None
    assert listening_port(NEW) is None
    assert other_viewer_url(LISTENING) is None


def rust_debug(text: str) -> str:
    """`text` as Rust's debug format has it, of what tests need."""
    plain = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r", "\0": "\\0"}
    return "".join(
        plain.get(c) or (c if c.isprintable() and not "\ud800" <= c <= "\udfff" else f"\\u{{{ord(c):x}}}")
        for c in text
    )


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: "/" not in text))
def test_any_name_survives_the_log(name: str) -> None:
    assert opened_path(f'Loading "/folder/{rust_debug(name)}.png"…') == Path(f"/folder/{name}.png")


def test_bytes_that_are_no_text_survive_the_log() -> None:
    path = opened_path(r'Loading "/folder/\xFF.png"…')
    assert path is not None
    assert os.fsencode(path) == b"/folder/\xff.png"


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("/a/b c.jpg", ["a", "b c.jpg"]),
        ("rel.jpg", ["rel.jpg"]),
        ("./dir/../rel.jpg", ["rel.jpg"]),
        ("../x/rel.jpg", ["x", "rel.jpg"]),
    ],
)
def test_entity_parts(path: str, parts: list[str]) -> None:
    assert entity_parts(Path(path)) == parts


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=4))
def test_entity_paths_are_read_as_rerun_writes_them(parts: list[str]) -> None:
    assert unescaped_parts(rr.new_entity_path(parts)) == parts


def test_store_names() -> None:
    assert StoreName("Recording:coffee:rec_1").application_id == "coffee"
    assert StoreName("Recording:coffee:rec_1").recording_id == "rec_1"
    assert StoreName(r"Recording:a\:b:rec_1").application_id == "a:b"


def test_only_what_the_viewer_reads_itself(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    for name, expected in (
        ("a.jpg", True), ("A.JPEG", True), ("gone.png", True), ("a.jfif", False), ("a", False),
        ("a.txt", False), ("a.rrd", False), ("folder.png", False),
    ):  # fmt: skip
        assert OpenedFile(Path(name), tmp_path).is_for_us() == expected


def test_versions() -> None:
    assert calls_loaders_for_images("0.24.1")
    assert not calls_loaders_for_images("0.25.0")
    assert not can_ask_viewers("0.40.0")
    assert can_ask_viewers("0.41.0-alpha.1")
    assert can_ask_viewers("1.0.0")


def test_command_lines() -> None:
    assert opens_window([])
    assert opens_window(["photo.jpg", "--port", "9876"])
    assert not opens_window(["rrd", "print", "a.rrd"])
    assert not opens_window(["a.rrd", "--save=b.rrd"])
    assert not opens_window(["--version"])
