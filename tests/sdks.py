"""Other versions of the Rerun SDK, and the viewers in them, beside the one that is installed."""

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

NATIVE = "0.24.1"  # the last viewer that calls loaders for images
NEWEST = "0.41.0"
LOADERS = ("rerun-loader-sam", "rerun-importer-sam")
# Viewers up to 0.25 wait for the loaders of a folder in a pool of as many threads as the machine has cores, less two:
# with one thread they wait for themselves now and then, whatever the loaders.
COMPUTE_THREADS = ("--threads", "8")


@dataclasses.dataclass(frozen=True)
class Sdk:
    """One version: its viewer, and what makes a process use its SDK."""

    version: str
    folder: Path

    @property
    def viewer(self) -> Path:
        """The `rerun` program itself, without the Python script around it."""
        (program,) = [file for file in self.folder.rglob("rerun_cli/rerun") if file.is_file()]
        return program

    def environment(self) -> dict[str, str]:
        """The variables of this process, with which a Python imports this SDK."""
        return os.environ | {"PYTHONPATH": os.pathsep.join((str(self.folder), str(self.folder / "rerun_sdk")))}


def install_sdk(parent: Path, version: str) -> Sdk:
    """Install the SDK's wheel alone below `parent`, unless it is there; skips the test where that fails."""
    folder = parent / version
    if not folder.exists():
        # Only a complete folder gets the name: an interrupted run leaves nothing that looks installed.
        part = Path(tempfile.mkdtemp(dir=parent))
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(part)]
        outcome = subprocess.run([*command, f"rerun-sdk=={version}"], capture_output=True, text=True, check=False)
        if outcome.returncode:
            shutil.rmtree(part)
            pytest.skip(f"rerun-sdk {version} cannot be installed here: {outcome.stderr.strip()[-200:]}")
        part.rename(folder)
    return Sdk(version, folder)
