"""What counts as a right checkpoint, and what is remembered of it."""

import os
from pathlib import Path

import pytest
from checkpoint_files import ServedFile, leftovers, put_official

from rerun_loader_sam.models import store
from rerun_loader_sam.models.download import fetch
from rerun_loader_sam.models.registry import NANO, OFFICIAL


def put(served: ServedFile, content: bytes | None = None) -> Path:
    path = store.make_checkpoints_dir() / served.entry.file
    path.write_bytes(served.content if content is None else content)
    return path


def test_a_file_put_there_by_hand_is_read_once(served: ServedFile) -> None:
    path = put(served)
    assert store.checkpoint_state(served.entry).kind == "unverified"
    assert store.find_checkpoint(served.entry) == path
    assert store.checkpoint_state(served.entry).kind == "verified"


def test_a_change_of_the_same_size_is_noticed(served: ServedFile) -> None:
    path = fetch(served.entry)
    before = path.stat()
    path.write_bytes(bytes(served.entry.size_bytes))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a tool that restores files does
    assert store.checkpoint_state(served.entry).kind == "unverified"
    assert store.find_checkpoint(served.entry) is None
    assert store.checkpoint_state(served.entry).kind == "damaged"
    assert store.find_checkpoint(served.entry) is None


def test_a_truncated_file_is_damaged(served: ServedFile) -> None:
    put(served, served.content[:-1])
    assert store.checkpoint_state(served.entry).kind == "damaged"
    assert store.find_checkpoint(served.entry) is None


def test_a_folder_or_pipe_in_the_place_is_no_checkpoint(served: ServedFile) -> None:
    path = store.make_checkpoints_dir() / served.entry.file
    os.mkfifo(path)
    assert store.find_checkpoint(served.entry) is None
    path.unlink()
    path.mkdir()
    assert store.find_checkpoint(served.entry) is None
    assert store.checkpoint_state(served.entry).kind == "missing"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": 3}', b"\xff", b'{"a": [1, 2, "x"]}'])
def test_a_damaged_record_costs_a_computation(served: ServedFile, content: bytes) -> None:
    path = fetch(served.entry)
    (store.checkpoints_dir() / "sha256.json").write_bytes(content)
    assert store.checkpoint_state(served.entry).kind == "unverified"
    assert store.find_checkpoint(served.entry) == path
    assert store.checkpoint_state(served.entry).kind == "verified"


def test_what_a_killed_process_left_half_written_goes(tmp_path: Path) -> None:
    folder = tmp_path / "states"
    folder.mkdir()
    old, new, other = (folder / name for name in ("state.json.1.2.tmp", "state.json.3.4.tmp", "other.json.1.2.tmp"))
    for path in (old, new, other):
        path.write_text("half")
    for path in (old, other):
        os.utime(path, (1e9, 1e9))
    store.write_atomically(folder / "state.json", "whole")
    assert sorted(path.name for path in folder.iterdir()) == [other.name, "state.json", new.name]


def test_looking_writes_nothing(served: ServedFile, home: Path) -> None:
    for entry in (served.entry, *OFFICIAL.values(), NANO):
        store.checkpoint_state(entry)
        store.find_checkpoint(entry)
    assert list(home.iterdir()) == []


def test_torch_hub_is_looked_into(
    served: ServedFile, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.torch_hub_path(served.entry) == home / "cache/torch/hub/checkpoints/tiny.pth"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert store.torch_hub_path(served.entry) == home / ".cache/torch/hub/checkpoints/tiny.pth"
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    assert store.torch_hub_path(served.entry) == tmp_path / "torch/hub/checkpoints/tiny.pth"


def test_a_damaged_copy_of_torch_hub_does_not_hide_a_partial(served: ServedFile) -> None:
    copy = store.torch_hub_path(served.entry)
    copy.parent.mkdir(parents=True)
    copy.write_bytes(b"short")
    store.make_checkpoints_dir()
    store.partial_path(served.entry).write_bytes(bytes(1000))
    state = store.checkpoint_state(served.entry)
    assert (state.kind, state.bytes_done) == ("partial", 1000)


def test_an_official_checkpoint_of_the_wrong_content_is_none() -> None:
    path = put_official("vit_b")
    assert store.find_checkpoint(OFFICIAL["vit_b"]) == path
    with path.open("r+b") as file:
        file.write(b"changed")
    assert store.find_checkpoint(OFFICIAL["vit_b"]) is None
    assert leftovers() == ["sam_vit_b_01ec64.pth", "sha256.json"]
