"""Lines for a person. Standard library only."""

import contextlib
import os


def say(text: str) -> None:
    """Write one line to standard error, whole, in an encoding that cannot fail; nobody need be listening."""
    with contextlib.suppress(OSError):
        os.write(2, f"rerun-sam: {text}\n".encode("utf-8", "surrogateescape"))
