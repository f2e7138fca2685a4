"""Fetches an entry in a process of its own: URL, size, SHA256, and a limit of the file size (0: none)."""

import resource
import sys

from rerun_loader_sam.errors import UserError
from rerun_loader_sam.models.download import fetch
from rerun_loader_sam.models.registry import RemoteEntry


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def main() -> int:
    url, size_bytes, sha256, limit_bytes = sys.argv[1:]
    if int(limit_bytes):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit_bytes), int(limit_bytes)))
    entry = RemoteEntry("tiny", "tiny.pth", "Apache-2.0", "a test's", url, int(size_bytes), sha256)
    try:
        path = fetch(entry, say=_say, retry_delays_s=(0.1,))
    except UserError as error:
        _say(str(error))
        return 1
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
