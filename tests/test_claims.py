"""Exactly one of several loader processes works on a file, in any order and all at once."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

# A process that is called as a viewer calls a loader; its arguments show in its command line likewise.
CLAIM = """
import sys, time
from pathlib import Path
from rerun_loader_sam.claims import claim
name, path, recording_id = sys.argv[1], sys.argv[2], sys.argv[4]
answer = claim(name, Path(path), recording_id)
print("declines" if answer is None else "works " + " ".join(sorted(answer)))
"""
LOADER, IMPORTER = "rerun-loader-sam", "rerun-importer-sam"


def start(name: str, path: Path, recording_id: str = "r") -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", CLAIM, name, str(path), "--recording-id", recording_id]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def answer(process: "subprocess.Popen[str]") -> str:
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return output.strip()


def claim_now(name: str, path: Path, recording_id: str = "r") -> str:
    return answer(start(name, path, recording_id))


@pytest.mark.usefixtures("user")
class TestClaims:
    def test_the_second_name_declines(self, photo: Path) -> None:
        assert claim_now(LOADER, photo) == "works"
        assert claim_now(IMPORTER, photo) == "declines"

    def test_a_file_opened_twice_is_worked_on_twice(self, photo: Path) -> None:
        for _ in range(2):
            assert claim_now(IMPORTER, photo) == "works"
            assert claim_now(LOADER, photo) == "declines"

    def test_one_name_alone_never_declines(self, photo: Path) -> None:
        assert [claim_now(LOADER, photo) for _ in range(3)] == ["works"] * 3

    def test_recordings_and_files_are_apart(self, photo: Path) -> None:
        other = photo.with_name("other.jpg")
        other.write_bytes(photo.read_bytes())
        assert claim_now(LOADER, photo, "a") == "works"
        assert claim_now(IMPORTER, photo, "b") == "works"
        assert claim_now(IMPORTER, other, "a") == "works"

    def test_all_at_once_in_any_order(self, tmp_path: Path) -> None:
        paths = [tmp_path / f"{number}.jpg" for number in range(8)]
        calls = [(name, path) for path in paths for name in (LOADER, IMPORTER)]
        random.Random(0).shuffle(calls)  # noqa: S311
        running = [(path, start(name, path)) for name, path in calls]
        answers: dict[Path, list[str]] = {path: [] for path in paths}
        for path, process in running:
            answers[path].append(answer(process))
        assert all(sorted(pair) == ["declines", "works"] for pair in answers.values()), answers

    def test_a_folder_goes_before_its_files(self, photo: Path) -> None:
        assert claim_now(LOADER, photo.parent) == "works"
        assert claim_now(LOADER, photo) == "declines"
        assert claim_now(LOADER, photo, "another recording") == "works"

    def test_a_file_that_was_faster_is_left_out_of_its_folder(self, photo: Path) -> None:
        assert claim_now(LOADER, photo) == "works"
        assert claim_now(LOADER, photo.parent) == f"works {photo}"

    def test_a_file_declines_for_a_folder_that_is_on_its_way(self, photo: Path) -> None:
        # The folder's loader has been started, but has not come to state its claim.
        late = [sys.executable, "-c", "import sys; sys.stdin.read()", LOADER, str(photo.parent)]
        with subprocess.Popen([*late, "--recording-id", "r"], stdin=subprocess.PIPE) as folder:
            assert claim_now(LOADER, photo) == "declines"
            assert claim_now(LOADER, photo, "another recording") == "works"
            folder.kill()

    def test_claims_that_were_cut_are_forgotten(self, photo: Path, user: Path) -> None:
        assert claim_now(LOADER, photo) == "works"
        (claims,) = (user / "run" / "rerun-loader-sam" / "claims").iterdir()
        os.truncate(claims, claims.stat().st_size // 2)
        assert claim_now(IMPORTER, photo) == "works"
        assert claim_now(LOADER, photo) == "declines"

    def test_claims_that_cannot_be_written_stop_nobody(self, photo: Path) -> None:
        arguments = [sys.executable, "-c", CLAIM, LOADER, str(photo), "--recording-id", "r"]
        # No file may be written, as on a full disk.
        limited = ["/bin/sh", "-c", 'ulimit -f 0 && "$0" "$@"', *arguments]
        assert subprocess.run(limited, capture_output=True, text=True, check=True).stdout == "works \n"

    def test_claims_of_viewers_that_ended_are_removed(self, photo: Path, user: Path) -> None:
        viewer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CLAIM!r}] + sys.argv[1:])"
        arguments = [LOADER, str(photo), "--recording-id", "r"]
        subprocess.run([sys.executable, "-c", viewer, *arguments], check=True, stdout=subprocess.PIPE)
        claim_now(LOADER, photo)
        (left,) = (user / "run" / "rerun-loader-sam" / "claims").iterdir()
        assert left.name.startswith(f"{os.getpid()}-")
