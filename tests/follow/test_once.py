"""An image belongs to one follower, whoever dies."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rerun_loader_sam.follow.once import claim_image

pytestmark = pytest.mark.usefixtures("user")

HOLDER = """
import sys, time
from rerun_loader_sam.follow.once import claim_image
claim = claim_image("Recording:a:b", "/photo.jpg")
print(claim is not None, flush=True)
if sys.argv[1] == "done":
    claim.release(is_done=True)
else:
    time.sleep(600)
"""


def test_one_of_many_processes_gets_it() -> None:
    holders = [subprocess.Popen([sys.executable, "-c", HOLDER, "hold"], stdout=subprocess.PIPE) for _ in range(8)]
    answers = [holder.stdout.readline() for holder in holders if holder.stdout]
    assert sorted(answers) == [b"False\n"] * 7 + [b"True\n"]
    assert claim_image("Recording:a:b", "/photo.jpg") is None
    other = claim_image("Recording:a:b", "/other.jpg")
    assert other is not None
    other.release(is_done=False)
    for holder in holders:
        holder.kill()
        holder.communicate()
    again = claim_image("Recording:a:b", "/photo.jpg")
    assert again is not None, "the claim of a process that died is free"
    again.release(is_done=True)
    assert claim_image("Recording:a:b", "/photo.jpg") is None


def test_what_is_done_stays_done() -> None:
    subprocess.run([sys.executable, "-c", HOLDER, "done"], stdout=subprocess.DEVNULL, check=True)
    assert claim_image("Recording:a:b", "/photo.jpg") is None


def test_old_claims_are_removed(user: Path) -> None:
    claim = claim_image("Recording:a:b", "/photo.jpg")
    assert claim is not None
    claim.release(is_done=True)
    (file,) = (user / "cache" / "rerun-loader-sam" / "followed").iterdir()
    long_ago = time.time() - 30 * 24 * 3600
    os.utime(file, (long_ago, long_ago))
    other = claim_image("Recording:a:c", "/photo.jpg")
    assert other is not None
    other.release(is_done=True)
    assert not file.exists()
