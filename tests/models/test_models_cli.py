"""`rerun-sam models` as a person runs it: a process, its output, its exit code."""

import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest
from checkpoint_files import leftovers, put_official
from https_server import HttpsServer, Reply

from rerun_loader_sam.models import store
from rerun_loader_sam.models.lock import fetch_lock
from rerun_loader_sam.models.registry import NANO, OFFICIAL

COMMAND = [sys.executable, "-m", "rerun_loader_sam.cli.main", "models"]


def models(*arguments: str) -> tuple[int, str, str]:
    result = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=120)
    assert "Traceback" not in result.stderr
    return result.returncode, result.stdout, result.stderr


@pytest.fixture
def mirror(server: HttpsServer, monkeypatch: pytest.MonkeyPatch) -> HttpsServer:
    monkeypatch.setenv("RERUN_SAM_CHECKPOINT_URL", server.url)
    return server


def test_list_of_an_empty_cache(home: Path) -> None:
    code, out, err = models("list")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].split() == ["NAME", "SIZE", "STATE", "PATH"]
    assert [line.split()[0] for line in lines[1:5]] == ["vit_b", "vit_l", "vit_h", "nano"]
    assert "375.0 MB  missing" in lines[1]
    assert "shipped" in lines[4]
    assert str(store.checkpoint_path(NANO)) in lines[4]
    assert lines[-1].startswith("Used now: nano (nano stands in for vit_b")
    assert list(home.iterdir()) == []


def test_list_tells_the_states_apart(home: Path) -> None:
    path = put_official("vit_b")
    store.partial_path(OFFICIAL["vit_l"]).write_bytes(bytes(300_000_000))
    (store.checkpoints_dir() / OFFICIAL["vit_h"].file).write_bytes(b"short")
    code, out, _ = models("list")
    vit_b, vit_l, vit_h = out.splitlines()[1:4]
    assert code == 0
    assert vit_b.split() == ["vit_b", "375.0", "MB", "verified", str(path)]
    assert "partial, 24 %" in vit_l
    assert "damaged" in vit_h
    assert out.splitlines()[-1] == "Used now: vit_b (the best on this machine)"


@pytest.mark.parametrize(
    ("device", "line"),
    [
        ("auto", "Used now: vit_h where there is a CUDA device, else vit_b"),
        ("cpu", "Used now: vit_b (the best on this machine for cpu)"),
        ("cuda", "Used now: vit_h (the best on this machine for cuda)"),
    ],
)
def test_list_says_what_the_device_decides(device: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put_official("vit_b")
    put_official("vit_h")
    monkeypatch.setenv("RERUN_SAM_DEVICE", device)
    assert models("list")[1].splitlines()[-1] == line


def test_list_with_a_wrong_setting_still_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RERUN_SAM_MODEL", "/nowhere/sam.pth")
    code, out, _ = models("list")
    assert code == 1
    assert "vit_b" in out
    assert "/nowhere/sam.pth" in out.splitlines()[-1]


def test_fetch_of_something_else_is_one_line_and_exit_1(mirror: HttpsServer) -> None:
    mirror.replies["/sam_vit_b_01ec64.pth"] = [Reply(content=b"something else")]
    code, out, err = models("fetch")
    assert (code, out) == (1, "")
    assert "the file there has 14 bytes, expected 375042383" in err.splitlines()[-1]
    assert leftovers() == []


def test_fetch_refuses_the_right_size_with_the_wrong_sha256(mirror: HttpsServer) -> None:
    entry = OFFICIAL["vit_b"]
    mirror.files[f"/{entry.file}"] = bytes(entry.size_bytes)
    code, out, err = models("fetch", "vit_b")
    lines = err.splitlines()
    assert (code, out) == (1, "")
    assert lines[0] == "vit_b: 0 % of 375.0 MB"
    assert lines[5] == "vit_b: 50 % of 375.0 MB"
    assert lines[-2] == "vit_b: 100 % of 375.0 MB"
    assert entry.sha256 in lines[-1]
    assert leftovers() == []


def test_fetch_of_what_is_there_needs_no_network(mirror: HttpsServer) -> None:
    path = put_official("vit_b")
    assert models("fetch", "vit_b", "nano") == (
        0,
        f"vit_b is at {path}\nnano is part of this package: nothing to fetch\n",
        "",
    )
    assert mirror.requests == []


def test_an_interrupted_fetch_says_what_is_kept(mirror: HttpsServer) -> None:
    entry = OFFICIAL["vit_b"]
    is_under_way, may_go_on = threading.Event(), threading.Event()

    def hold() -> None:
        is_under_way.set()
        may_go_on.wait(60)

    mirror.replies[f"/{entry.file}"] = [
        Reply(content=bytes(4_000_000), length=entry.size_bytes, at_byte=(2_000_000, hold))
    ]
    process = subprocess.Popen([*COMMAND, "fetch"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert is_under_way.wait(60)
    while store.file_size(store.partial_path(entry)) < 1_000_000:
        assert process.poll() is None
        threading.Event().wait(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    may_go_on.set()
    assert (process.returncode, out) == (130, "")
    assert re.search(r"interrupted; [12]\.\d MB are kept", err.splitlines()[-1])
    assert "Traceback" not in err


def test_fetch_draws_a_bar_on_a_terminal(mirror: HttpsServer) -> None:
    entry = OFFICIAL["vit_b"]
    mirror.replies[f"/{entry.file}"] = [
        Reply(content=bytes(150_000_000), length=entry.size_bytes),
        Reply(status=404),
    ]
    terminal, other_end = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    process = subprocess.Popen([*COMMAND, "fetch"], stdout=subprocess.PIPE, stderr=other_end, text=True)
    os.close(other_end)
    seen = b""
    try:
        while data := os.read(terminal, 65536):
            seen += data
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(terminal)
    process.communicate(timeout=60)
    assert process.returncode == 1
    lines = seen.decode().replace("\r", "\n").strip().splitlines()
    assert re.search(r"vit_b: +\d+%\|.*/375M", "\n".join(lines))
    assert "vit_b: the connection was cut; trying again in 1 s" in lines
    assert "HTTP 404" in lines[-1]


def test_verify_reads_the_file_anew() -> None:
    put_official("vit_b")  # counts as verified, and is all zeros
    code, out, _ = models("verify")
    assert code == 1
    lines = out.splitlines()
    assert lines[0].startswith("vit_b is WRONG:")
    assert "models fetch vit_b" in lines[0]
    assert lines[1] == f"nano is right: {store.checkpoint_path(NANO)}"
    assert "damaged" in models("list")[1].splitlines()[1]


def test_verify_names_a_wrong_size_and_a_copy_elsewhere() -> None:
    copy = store.torch_hub_path(OFFICIAL["vit_l"])
    copy.parent.mkdir(parents=True)
    copy.write_bytes(b"short")
    code, out, _ = models("verify", "vit_l")
    assert code == 1
    assert f"{copy} has 5 bytes, expected 1249524607; it is not used" in out


def test_verify_of_nothing() -> None:
    assert models("verify", "vit_b")[0] == 1
    assert models("verify")[:2] == (0, f"nano is right: {store.checkpoint_path(NANO)}\n")


def test_remove() -> None:
    put_official("vit_b")
    copy = put_official("vit_h", store.torch_hub_path(OFFICIAL["vit_h"]).parent)
    code, out, err = models("remove", "vit_b", "vit_l", "vit_h")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "vit_b removed, 375.0 MB freed",
        "vit_l was not in your cache",
        "vit_h was not in your cache",
        f"another program's copy of vit_h stays, and is used: {copy}",
    ]
    assert leftovers() == ["sha256.json"]


def test_remove_of_what_is_being_fetched_or_shipped_is_refused() -> None:
    path = put_official("vit_b")
    with fetch_lock(OFFICIAL["vit_b"], lambda: None):
        code, _, err = models("remove", "vit_b")
    assert code == 1
    assert "is being fetched by another process" in err
    code, _, err = models("remove", "vit_b", "nano")
    assert code == 1
    assert "part of this package" in err
    assert path.exists()


@pytest.mark.parametrize("arguments", [(), ("remove",), ("nonsense",), ("list", "vit_b")])
def test_wrong_usage_is_exit_2(arguments: tuple[str, ...]) -> None:
    code, out, err = models(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("usage: rerun-sam ")


def test_an_unknown_name_is_one_line() -> None:
    code, out, err = models("fetch", "vit_x")
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert "vit_b, vit_l, vit_h, nano" in err


def test_neither_torch_nor_rerun_is_loaded_to_list() -> None:
    program = (
        "import sys\nfrom rerun_loader_sam.cli.main import main\n"
        "try:\n    main(['models', 'list'])\n"
        "finally:\n    print({'torch', 'rerun', 'numpy', 'requests', 'tqdm'} & set(sys.modules), file=sys.stderr)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "set()"
