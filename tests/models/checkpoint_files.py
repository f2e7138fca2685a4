"""Files that tests of the models need: on the server, in the cache, and what is left of them."""

import dataclasses
import hashlib
import random
from pathlib import Path

from https_server import HttpsServer, Reply

from rerun_loader_sam.models import store
from rerun_loader_sam.models.registry import OFFICIAL, RemoteEntry


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
