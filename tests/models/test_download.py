"""Downloads against a real HTTPS server: whatever it does, the checkpoint in place is a right one or none."""

import contextlib
import dataclasses
import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import trustme
from checkpoint_files import ServedFile, leftovers, serve
from https_server import NAME_BEHIND_PROXY, ConnectProxy, HttpsServer, Reply, serving

from rerun_loader_sam.errors import UserError
from rerun_loader_sam.models import store
from rerun_loader_sam.models.download import fetch, remove
from rerun_loader_sam.models.registry import RemoteEntry

FETCH_ENTRY = Path(__file__).with_name("fetch_entry.py")
QUICK = (0.01, 0.01)
CHUNK_BYTES = 1 << 16
"""What a cut connection may cost."""


def start_fetch_process(entry: RemoteEntry, limit_bytes: int = 0) -> subprocess.Popen[str]:
    arguments = [entry.url, str(entry.size_bytes), entry.sha256, str(limit_bytes)]
    return subprocess.Popen(
        [sys.executable, str(FETCH_ENTRY), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def resumed_after(asked: str | None, sent_bytes: int) -> bool:
    """Whether a request asked for what follows the first `sent_bytes` of the file, but for a chunk."""
    start = int(str(asked).removeprefix("bytes=").removesuffix("-"))
    return sent_bytes - CHUNK_BYTES < start <= sent_bytes


def failure(entry: RemoteEntry) -> str:
    with pytest.raises(UserError) as caught:
        fetch(entry, retry_delays_s=QUICK)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_download_is_complete_and_leaves_nothing_else(served: ServedFile) -> None:
    seen: list[tuple[int, int]] = []
    path = fetch(served.entry, lambda done, total: seen.append((done, total)))
    assert path == store.checkpoint_path(served.entry)
    assert path.read_bytes() == served.content
    assert path.stat().st_mode & 0o077 == 0 or path.parent.stat().st_mode & 0o077 == 0
    assert leftovers() == ["sha256.json", "tiny.pth"]
    assert seen[0] == (0, 3_000_000)
    assert seen[-1] == (3_000_000, 3_000_000)
    assert seen == sorted(seen)


def test_what_is_there_is_not_fetched_again(served: ServedFile) -> None:
    path = fetch(served.entry)
    assert fetch(served.entry) == path
    assert len(served.server.requests) == 1


def test_a_copy_of_torch_hub_is_taken(served: ServedFile) -> None:
    copy = store.torch_hub_path(served.entry)
    copy.parent.mkdir(parents=True)
    copy.write_bytes(served.content)
    assert fetch(served.entry) == copy
    assert served.server.requests == []


def test_a_cut_connection_is_resumed(served: ServedFile) -> None:
    served.reply(Reply(cut_after=1_000_000), Reply(cut_after=1_500_000), Reply())
    lines: list[str] = []
    assert fetch(served.entry, say=lines.append, retry_delays_s=QUICK).read_bytes() == served.content
    first, second, third = served.ranges
    assert first is None
    assert resumed_after(second, 1_000_000)
    assert resumed_after(third, 2_500_000) or resumed_after(third, 2_500_000 - CHUNK_BYTES)
    assert [request.headers.get("If-Range") for request in served.server.requests] == [None, '"v1"', '"v1"']
    assert len(lines) == 2
    assert all("trying again" in line for line in lines)


def test_an_interrupted_download_goes_on_at_the_next_call(served: ServedFile) -> None:
    served.reply(Reply(cut_after=1_000_000), Reply(status=503), Reply(status=503), Reply())
    message = failure(served.entry)
    assert f"{store.file_size(store.partial_path(served.entry)) / 1e6:.1f} MB of 3.0 MB are kept" in message
    assert "rerun-sam models fetch tiny" in message
    assert not store.checkpoint_path(served.entry).exists()
    assert fetch(served.entry).read_bytes() == served.content
    assert resumed_after(served.ranges[-1], 1_000_000)


def test_a_killed_download_goes_on_in_another_process(served: ServedFile) -> None:
    is_under_way, may_go_on = threading.Event(), threading.Event()

    def hold() -> None:
        is_under_way.set()
        may_go_on.wait(60)

    served.reply(Reply(at_byte=(2_000_000, hold)), Reply())
    process = start_fetch_process(served.entry)
    assert is_under_way.wait(60)
    partial = store.partial_path(served.entry)
    while store.file_size(partial) < 1_000_000:
        assert process.poll() is None
        threading.Event().wait(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    may_go_on.set()
    kept = store.file_size(partial)
    assert fetch(served.entry).read_bytes() == served.content
    assert served.ranges == [None, f"bytes={kept}-"]


def test_a_changed_file_is_fetched_from_the_beginning(served: ServedFile) -> None:
    served.reply(Reply(cut_after=1_000_000, etag='"old"'), Reply(etag='"new"'))
    assert fetch(served.entry, retry_delays_s=QUICK).read_bytes() == served.content
    assert served.server.requests[1].headers["If-Range"] == '"old"'


def test_a_weak_entity_tag_is_no_validator(served: ServedFile) -> None:
    date = "Wed, 05 Apr 2023 12:00:00 GMT"
    served.reply(
        Reply(cut_after=1_000_000, etag='W/"v1"', last_modified=date),
        Reply(etag="", last_modified=date),
    )
    assert fetch(served.entry, retry_delays_s=QUICK).read_bytes() == served.content
    assert served.server.requests[1].headers["If-Range"] == date


def test_pieces_of_two_versions_are_started_over(served: ServedFile) -> None:
    other = bytes(len(served.content))
    served.reply(Reply(cut_after=1_000_000, content=other, etag=""), Reply(etag=""))
    lines: list[str] = []
    assert fetch(served.entry, say=lines.append, retry_delays_s=QUICK).read_bytes() == served.content
    first, second, third = served.ranges
    assert (first, third) == (None, None)
    assert resumed_after(second, 1_000_000)
    assert "wrong SHA256" in lines[-1]


def test_a_server_that_ignores_ranges(served: ServedFile) -> None:
    served.reply(Reply(cut_after=1_000_000), Reply(ignores_range=True))
    assert fetch(served.entry, retry_delays_s=QUICK).read_bytes() == served.content


def test_a_server_that_sends_another_range(served: ServedFile) -> None:
    served.reply(Reply(cut_after=1_000_000), Reply(wrong_range=True), Reply())
    assert fetch(served.entry, retry_delays_s=QUICK).read_bytes() == served.content
    first, second, third = served.ranges
    assert (first, third) == (None, None)
    assert resumed_after(second, 1_000_000)


def test_a_server_without_lengths(served: ServedFile) -> None:
    served.reply(Reply(has_length=False, cut_after=1_000_000), Reply(has_length=False))
    assert fetch(served.entry, retry_delays_s=QUICK).read_bytes() == served.content


@pytest.mark.parametrize("size_bytes", [3_000_000, 4_000_000])
def test_a_partial_that_is_as_long_or_longer(served: ServedFile, size_bytes: int) -> None:
    store.make_checkpoints_dir()
    store.partial_path(served.entry).write_bytes(bytes(size_bytes))
    assert fetch(served.entry, retry_delays_s=QUICK).read_bytes() == served.content
    assert served.ranges == [None]


def test_a_complete_partial_needs_no_network(served: ServedFile) -> None:
    store.make_checkpoints_dir()
    store.partial_path(served.entry).write_bytes(served.content)
    assert fetch(served.entry).read_bytes() == served.content
    assert served.server.requests == []


def test_a_wrong_sha256_leaves_nothing(served: ServedFile) -> None:
    wrong = dataclasses.replace(served.entry, sha256="0" * 64)
    message = failure(wrong)
    assert served.entry.sha256 in message
    assert "0" * 64 in message
    assert leftovers() == []


@pytest.mark.parametrize("difference", [-1, 1])
def test_a_wrong_size_is_refused_before_the_body(served: ServedFile, difference: int) -> None:
    message = failure(dataclasses.replace(served.entry, size_bytes=3_000_000 + difference))
    assert "3000000 bytes, expected" in message
    assert len(served.server.requests) == 1
    assert leftovers() == []


def test_a_wrong_size_without_a_length(served: ServedFile) -> None:
    served.reply(Reply(has_length=False))
    assert "larger than" in failure(dataclasses.replace(served.entry, size_bytes=2_000_000))
    assert leftovers() == []


def test_a_wrong_size_of_the_whole_does_not_cost_what_is_kept(served: ServedFile) -> None:
    served.reply(Reply(cut_after=1_000_000), Reply(status=503), Reply(status=503), Reply(content=b"gone", etag="x"))
    failure(served.entry)
    kept = store.file_size(store.partial_path(served.entry))
    assert kept > 0
    assert "has 4 bytes, expected 3000000" in failure(served.entry)
    assert store.file_size(store.partial_path(served.entry)) == kept


def test_a_damaged_checkpoint_stays_until_a_right_one_is_there(served: ServedFile) -> None:
    path = fetch(served.entry)
    path.write_bytes(bytes(3_000_000))
    assert store.find_checkpoint(served.entry) is None
    served.reply(Reply(status=500))
    failure(served.entry)
    assert path.read_bytes() == bytes(3_000_000)
    served.reply(Reply())
    assert fetch(served.entry).read_bytes() == served.content


@pytest.mark.parametrize(("status", "attempts"), [(403, 1), (404, 1), (410, 1), (429, 3), (500, 3), (503, 3)])
def test_server_errors(served: ServedFile, status: int, attempts: int) -> None:
    served.reply(Reply(status=status))
    message = failure(served.entry)
    assert f"HTTP {status}" in message
    assert served.entry.url in message
    assert len(served.server.requests) == attempts
    assert leftovers() == []


def test_a_redirect_by_https_is_followed(served: ServedFile) -> None:
    served.server.replies["/from"] = [Reply(status=302, location=served.entry.url)]
    moved = dataclasses.replace(served.entry, url=f"{served.server.url}/from")
    assert fetch(moved).read_bytes() == served.content


def test_a_redirect_to_plain_http_is_refused(served: ServedFile) -> None:
    with serving(None) as plain:
        plain.files["/tiny.pth"] = served.content
        served.reply(Reply(status=302, location=f"{plain.url}/tiny.pth"))
        message = failure(served.entry)
        assert "HTTPS" in message
        assert plain.url in message
        assert plain.requests == []
    assert len(served.server.requests) == 1
    assert leftovers() == []


def test_an_endless_redirect_ends(served: ServedFile) -> None:
    served.reply(Reply(status=302, location="/tiny.pth"))
    assert "redirect" in failure(served.entry)


def test_plain_http_is_refused(served: ServedFile) -> None:
    with serving(None) as plain:
        message = failure(dataclasses.replace(served.entry, url=f"{plain.url}/tiny.pth"))
        assert plain.requests == []
    assert "HTTPS only" in message


def test_an_untrusted_certificate_is_refused_at_once(served: ServedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Path(os.environ["HOME"]) / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other))
    message = failure(served.entry)
    assert "certificate" in message
    assert "REQUESTS_CA_BUNDLE" in message
    assert "attempts" not in message
    assert served.server.requests == []


def test_a_missing_certificate_file_is_named(served: ServedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/authority.pem")
    assert "/nowhere/authority.pem" in failure(served.entry)


def test_ssl_cert_file_is_honoured(served: ServedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", os.environ["REQUESTS_CA_BUNDLE"])
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    assert fetch(served.entry).read_bytes() == served.content


def test_a_proxy_is_honoured(served: ServedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = dataclasses.replace(served.entry, url=f"https://{NAME_BEHIND_PROXY}/tiny.pth")
    proxy = ConnectProxy(NAME_BEHIND_PROXY, served.server.port)
    try:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        assert fetch(hidden).read_bytes() == served.content
        (line,) = proxy.connects
        assert line.startswith(f"CONNECT {NAME_BEHIND_PROXY}:443 ")
    finally:
        proxy.close()


def test_a_dead_proxy_is_said(served: ServedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    assert "proxy" in failure(served.entry).lower()
    assert served.server.requests == []


@pytest.mark.parametrize("url", ["https://127.0.0.1:1/tiny.pth", f"https://{NAME_BEHIND_PROXY}/tiny.pth"])
def test_offline(served: ServedFile, url: str) -> None:
    message = failure(dataclasses.replace(served.entry, url=url))
    assert "3 attempts" in message
    assert "HTTPSConnectionPool" not in message
    assert leftovers() == []


def test_two_processes_at_once_fetch_once(server: HttpsServer) -> None:
    served = serve(server, 3_000_000)
    both_run = threading.Event()
    served.reply(Reply(at_byte=(1_000_000, lambda: both_run.wait(60))))
    processes = [start_fetch_process(served.entry) for _ in range(2)]
    # the second one says that it waits; only then does the first get the rest
    streams = [process.stderr for process in processes]
    readers = []
    lines: list[str] = []

    def read(index: int) -> None:
        stream = streams[index]
        assert stream is not None
        for line in stream:
            lines.append(line)
            both_run.set()

    for index in range(2):
        readers.append(threading.Thread(target=read, args=(index,)))
        readers[-1].start()
    outputs = []
    for process in processes:
        assert process.stdout is not None
        outputs.append(process.stdout.read().strip())
        assert process.wait() == 0
        process.stdout.close()
    for reader, stream in zip(readers, streams, strict=True):
        reader.join()
        assert stream is not None
        stream.close()
    assert len(lines) == 1
    assert "another process" in lines[0]
    assert outputs == [str(store.checkpoint_path(served.entry))] * 2
    assert Path(outputs[0]).read_bytes() == served.content
    assert len(server.requests) == 1
    assert leftovers() == ["sha256.json", "tiny.pth"]


def test_a_file_size_limit_is_a_full_disk(served: ServedFile) -> None:
    process = start_fetch_process(served.entry, limit_bytes=1_000_000)
    out, err = process.communicate()
    assert process.returncode == 1
    assert out == ""
    assert len(err.splitlines()) == 1
    assert os.strerror(errno.EFBIG) in err
    assert leftovers() == []


def test_a_disk_too_small_is_not_begun(small_disk: Path, server: HttpsServer) -> None:
    served = serve(server, 40_000_000)
    message = failure(served.entry)
    assert "are free" in message
    assert "make room" in message
    assert server.requests == []
    assert leftovers() == []


def test_a_disk_that_fills_meanwhile_gets_its_room_back(small_disk: Path, server: HttpsServer) -> None:
    served = serve(server, 20_000_000)
    filler = small_disk / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(1 << 16)):
                pass

    served.reply(Reply(at_byte=(5_000_000, fill)), Reply())
    with pytest.raises(UserError, match="no room for") as caught:
        fetch(served.entry)
    assert "\n" not in str(caught.value)
    assert [name for name in leftovers() if name.startswith("tiny.pth.partial")] == []
    assert not store.checkpoint_path(served.entry).exists()
    filler.unlink()
    assert fetch(served.entry).read_bytes() == served.content


def test_remove_frees_everything_of_one_entry(server: HttpsServer) -> None:
    kept, gone = serve(server, 1_000_000, "kept"), serve(server, 2_000_000, "gone")
    fetch(kept.entry)
    fetch(gone.entry)
    store.partial_path(gone.entry).write_bytes(bytes(1000))
    assert remove(gone.entry) == 2_001_000
    assert remove(gone.entry) == 0
    assert leftovers() == ["kept.pth", "sha256.json"]
    assert store.checkpoint_state(kept.entry).kind == "verified"


def test_remove_does_not_take_a_file_from_a_running_download(served: ServedFile) -> None:
    is_under_way, may_go_on = threading.Event(), threading.Event()

    def hold() -> None:
        is_under_way.set()
        may_go_on.wait(60)

    served.reply(Reply(at_byte=(1_000_000, hold)))
    process = start_fetch_process(served.entry)
    assert is_under_way.wait(60)
    try:
        with pytest.raises(UserError, match="is being fetched by another process"):
            remove(served.entry)
    finally:
        may_go_on.set()
    out, _ = process.communicate()
    assert Path(out.strip()).read_bytes() == served.content


def test_nothing_to_remove_makes_no_folder(served: ServedFile) -> None:
    assert remove(served.entry) == 0
    assert not store.checkpoints_dir().exists()


def test_a_folder_that_cannot_be_used_is_named(served: ServedFile, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = Path(os.environ["HOME"]) / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert str(blocked) in failure(served.entry)
