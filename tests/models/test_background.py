"""The fetch that nobody waits for: one process, on its own, not again and again."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from checkpoint_files import ServedFile, background_processes, leftovers
from https_server import HttpsServer, Reply

from rerun_loader_sam.models import background, store
from rerun_loader_sam.models.background import RETRY_AFTER_S, fetch_state, start_fetch
from rerun_loader_sam.models.lock import is_being_fetched
from rerun_loader_sam.models.registry import OFFICIAL, RemoteEntry, from_mirror

START = """
import sys
from rerun_loader_sam.models.background import start_fetch
from rerun_loader_sam.models.registry import OFFICIAL, from_mirror
print(start_fetch(from_mirror(OFFICIAL["vit_b"], sys.argv[1])))
"""


@pytest.fixture
def vit_b(server: HttpsServer) -> RemoteEntry:
    """The official entry, on our server: what comes from there can be no right checkpoint."""
    return from_mirror(OFFICIAL["vit_b"], server.url)


class Held:
    """A reply that claims the official size, sends 2 MB, and waits."""

    def __init__(self, server: HttpsServer, entry: RemoteEntry) -> None:
        self.is_under_way, self._may_go_on = threading.Event(), threading.Event()
        reply = Reply(content=bytes(4_000_000), length=entry.size_bytes, at_byte=(2_000_000, self._hold))
        server.replies[f"/{entry.file}"] = [reply, Reply(status=404)]

    def _hold(self) -> None:
        self.is_under_way.set()
        self._may_go_on.wait(60)

    def release(self) -> None:
        self._may_go_on.set()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_many_at_once_start_one_process(server: HttpsServer, vit_b: RemoteEntry, home: Path) -> None:
    held = Held(server, vit_b)
    with ThreadPoolExecutor(8) as pool:
        lines = list(pool.map(lambda _: start_fetch(vit_b), range(24)))
    assert held.is_under_way.wait(60)
    others = [subprocess.Popen([sys.executable, "-c", START, server.url], stdout=subprocess.PIPE) for _ in range(3)]
    lines += [process.communicate(timeout=60)[0].decode() for process in others]
    assert all("is being fetched in the background" in line for line in lines)
    assert len(background_processes(home)) == 1
    assert len(server.requests) == 1
    held.release()
    wait_until(lambda: not background_processes(home))


def test_the_state_can_be_read_meanwhile_and_afterwards(server: HttpsServer, vit_b: RemoteEntry, home: Path) -> None:
    assert fetch_state(vit_b) == background.FetchState(0, vit_b.size_bytes, False, None)
    held = Held(server, vit_b)
    start_fetch(vit_b)
    assert held.is_under_way.wait(60)
    wait_until(lambda: fetch_state(vit_b).bytes_done > 1_000_000)
    assert fetch_state(vit_b).is_running
    assert fetch_state(vit_b).last_error is None
    held.release()
    wait_until(lambda: not background_processes(home))
    state = fetch_state(vit_b)
    assert not state.is_running
    assert state.last_error is not None
    assert "HTTP 404" in state.last_error
    assert 1_000_000 < state.bytes_done <= 4_000_000
    assert "HTTP 404" in background.log_path(vit_b).read_text()


def test_a_failure_is_not_repeated_at_once(server: HttpsServer, vit_b: RemoteEntry, home: Path) -> None:
    start_fetch(vit_b)
    wait_until(lambda: fetch_state(vit_b).last_error is not None and not background_processes(home))
    for _ in range(3):
        line = start_fetch(vit_b)
        assert "HTTP 404" in line
        assert "\n" not in line
        assert "10 min from now" in line
    assert background_processes(home) == []
    assert len(server.requests) == 1


def backdate(entry: RemoteEntry, by_s: float) -> None:
    path = store.checkpoints_dir() / f"{entry.file}.attempt.json"
    content = json.loads(path.read_text())
    content["time_s"] -= by_s
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("by_s", [RETRY_AFTER_S + 1, -3600])
def test_a_failure_is_repeated_later(server: HttpsServer, vit_b: RemoteEntry, home: Path, by_s: float) -> None:
    start_fetch(vit_b)
    wait_until(lambda: fetch_state(vit_b).last_error is not None and not background_processes(home))
    backdate(vit_b, by_s)  # a negative one: the clock was set back
    assert "is being fetched" in start_fetch(vit_b)
    wait_until(lambda: len(server.requests) == 2)


def test_a_process_that_was_killed_is_said(server: HttpsServer, vit_b: RemoteEntry, home: Path) -> None:
    held = Held(server, vit_b)
    start_fetch(vit_b)
    assert held.is_under_way.wait(60)
    (pid,) = background_processes(home)
    os.kill(pid, 9)
    wait_until(lambda: not is_being_fetched(vit_b))  # the kernel takes a moment to free the lock
    held.release()
    backdate(vit_b, 60)
    line = start_fetch(vit_b)
    assert "ended early" in line
    assert "rerun-sam models fetch vit_b" in line
    assert not is_being_fetched(vit_b)


def test_it_keeps_no_output_of_its_caller_open(server: HttpsServer, vit_b: RemoteEntry, home: Path) -> None:
    held = Held(server, vit_b)
    inherited, other_end = os.pipe()
    os.set_inheritable(other_end, True)
    caller = subprocess.Popen(
        [sys.executable, "-c", START, server.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        close_fds=False,
    )
    os.close(other_end)
    out, _ = caller.communicate(timeout=60)  # ends when nobody has the output open any more
    assert out.decode().startswith("vit_b (375 MB) is being fetched in the background")
    with os.fdopen(inherited, "rb") as pipe:
        assert pipe.read() == b""
    assert held.is_under_way.wait(60)
    (pid,) = background_processes(home)
    assert os.getsid(pid) == pid
    assert Path(f"/proc/{pid}/cwd").readlink() == store.checkpoints_dir()
    held.release()


def test_success_forgets_the_failures_before(served: ServedFile) -> None:
    served.reply(Reply(status=404), Reply())
    assert background.run(served.entry) == 1
    assert fetch_state(served.entry).last_error is not None
    assert background.run(served.entry) == 0
    assert fetch_state(served.entry) == background.FetchState(3_000_000, 3_000_000, False, None)
    assert leftovers() == ["sha256.json", "tiny.pth"]


def test_plain_http_is_refused_there_too(server: HttpsServer, home: Path) -> None:
    entry = from_mirror(OFFICIAL["vit_b"], "http://plain.invalid")
    start_fetch(entry)
    wait_until(lambda: fetch_state(entry).last_error is not None and not background_processes(home))
    assert "HTTPS only" in start_fetch(entry)


def test_a_cache_that_cannot_be_written_is_said(
    vit_b: RemoteEntry, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file"))
    line = start_fetch(vit_b)
    assert "cannot be fetched in the background" in line
    assert str(home / "file") in line
