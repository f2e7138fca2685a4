"""A user of their own for every test: empty folders, a private certificate authority, a real HTTPS server."""

import dataclasses
import hashlib
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from https_server import HttpsServer, Reply, serving

from rerun_loader_sam.models import store
from rerun_loader_sam.models.registry import OFFICIAL, RemoteEntry


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, authority: trustme.CA) -> Iterator[Path]:
    """The home folder; background processes of the test are gone afterwards."""
    for name in list(os.environ):
        is_network = name.lower() in ("https_proxy", "http_proxy", "all_proxy", "no_proxy")
        if is_network or name.startswith("RERUN_SAM_") or name in ("TORCH_HOME", "CURL_CA_BUNDLE"):
            monkeypatch.delenv(name)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "authority.pem"))
    yield folder
    for pid in background_processes(folder):
        os.kill(pid, signal.SIGKILL)


def background_processes(home: Path) -> list[int]:
    """Process ids of the background fetches of this home."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
        except OSError:
            continue
        if b"rerun_loader_sam.models.background" in command and f"HOME={home}\0".encode() in environment:
            found.append(int(folder.name))
    return found


@pytest.fixture
def server(authority: trustme.CA) -> Iterator[HttpsServer]:
    with serving(authority) as started:
        yield started


@dataclasses.dataclass(frozen=True)
class ServedFile:
    """A file on the server, and the entry that describes it."""

    server: HttpsServer
    entry: RemoteEntry
    content: bytes = dataclasses.field(repr=False)

    def reply(self, *replies: Reply) -> None:
        self.server.replies[f"/{self.entry.file}"] = list(replies)

    @property
    def ranges(self) -> list[str | None]:
        """What each request so far asked for."""
        return [request.headers.get("Range") for request in self.server.requests]


def serve(server: HttpsServer, size_bytes: int, name: str = "tiny") -> ServedFile:
    content = random.Random(size_bytes).randbytes(size_bytes)  # noqa: S311  # the same in every run
    file = f"{name}.pth"
    server.files[f"/{file}"] = content
    digest = hashlib.sha256(content).hexdigest()
    entry = RemoteEntry(name, file, "Apache-2.0", "a test's", f"{server.url}/{file}", size_bytes, digest)
    return ServedFile(server, entry, content)


@pytest.fixture
def served(server: HttpsServer) -> ServedFile:
    return serve(server, 3_000_000)


def put_official(name: str, folder: Path | None = None) -> Path:
    """A file that counts as the verified official checkpoint: its size (sparse), its SHA256 on record."""
    entry = OFFICIAL[name]
    path = store.make_checkpoints_dir() / entry.file if folder is None else folder / entry.file
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(entry.size_bytes)
    store.remember_sha256(path, entry.sha256)
    return path


def leftovers() -> list[str]:
    """Files in the checkpoint folder, without the locks."""
    return sorted(path.name for path in store.checkpoints_dir().iterdir() if path.suffix != ".lock")


@pytest.fixture
def small_disk(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A disk of 100 MB of its own as the cache folder: 64 of them are what a download leaves free."""
    folder = home / "small-disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(folder)]
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk takes root")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
