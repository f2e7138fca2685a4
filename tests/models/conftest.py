"""A user of their own for every test: empty folders, a private certificate authority, a real HTTPS server."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from checkpoint_files import ServedFile, background_processes, serve
from https_server import HttpsServer, serving


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


@pytest.fixture
def server(authority: trustme.CA) -> Iterator[HttpsServer]:
    with serving(authority) as started:
        yield started


@pytest.fixture
def served(server: HttpsServer) -> ServedFile:
    return serve(server, 3_000_000)


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
