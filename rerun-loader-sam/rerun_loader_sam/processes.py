"""Whether a process runs. Standard library only."""

import contextlib
import os
from pathlib import Path


def is_running(pid: int) -> bool:
    """Whether there is a process `pid`; one that has ended, but was not collected by its parent, does not count."""
    try:
        os.kill(pid, 0)
    except PermissionError:  # another user's
        return True
    except (OSError, OverflowError):
        return False
    with contextlib.suppress(OSError, IndexError):
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return status.rpartition(")")[2].split()[0] != "Z"
    return True
