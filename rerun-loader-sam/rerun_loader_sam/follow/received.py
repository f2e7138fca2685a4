"""Images that a second `rerun photo.jpg` streamed to an open viewer, read back from that viewer's server.

That process reads the file itself, and ends: nobody can ask it where a relative path began.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

from rerun_loader_sam.folders import ensure_private, runtime_dir
from rerun_loader_sam.follow.viewer import StoreName

_TIMEOUT_S = 20.0
_SETTLED_S = 1.0  # what the server still has comes at once; then only what is new


def received_image(
    viewer_url: str, store: StoreName, entity_path: str, name: str, *, of_programs: bool = False
) -> Path | None:
    """A copy of an image's file, alone in a folder of its own, for the caller to remove with that folder.

    None where the recording did not come from `rerun FILE`: what programs log is theirs, but for `of_programs`.
    """
    with tempfile.TemporaryDirectory(dir=ensure_private(runtime_dir())) as folder:
        rrd = Path(folder) / "received.rrd"
        _save(viewer_url, rrd)
        if not rrd.exists() or not (of_programs or _is_from_command_line(rrd, store)):
            return None
        blob = _blob(rrd, store, entity_path)
    if blob is None:
        return None
    copy = Path(tempfile.mkdtemp(dir=ensure_private(runtime_dir()))) / (Path(name).name or "image")
    copy.write_bytes(blob)
    return copy


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "rerun_cli", *arguments]


def _environ() -> dict[str, str]:
    environ = dict(os.environ)
    environ.pop("RERUN_CLI_PATH", None)  # it may lead here
    return environ


def _save(viewer_url: str, rrd: Path) -> None:
    """Write what the server of the viewer holds to `rrd`."""
    process = subprocess.Popen(
        _command(viewer_url, "--save", str(rrd), "--port", "0"),  # it would take the place of a viewer otherwise
        env=_environ(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # the command starts another: both are to be ended
    )
    try:
        deadline, size, since = time.monotonic() + _TIMEOUT_S, -1, time.monotonic()
        while time.monotonic() < deadline and process.poll() is None:
            now = rrd.stat().st_size if rrd.exists() else 0
            if now != size:
                size, since = now, time.monotonic()
            elif size > 0 and time.monotonic() - since > _SETTLED_S:
                break
            time.sleep(0.1)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        process.wait()


def _is_from_command_line(rrd: Path, store: StoreName) -> bool:
    """Whether the recording was made by `rerun FILE`, as its first message says."""
    listing = subprocess.run(
        _command("rrd", "print", str(rrd)),
        env=_environ(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    ).stdout
    pattern = re.escape(f'"{store.recording_id}"') + r"[^{}]*store_source:\s*File\s*\{\s*file_source:\s*Cli"
    return re.search(pattern, listing) is not None


def _blob(rrd: Path, store: StoreName, entity_path: str) -> bytes | None:
    """The encoded image at `entity_path`."""
    from rerun.chunk import RrdReader

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has no footer: its writer was ended
        reader = RrdReader(rrd)
        for entry in reader.recordings():
            if entry.recording_id != store.recording_id:
                continue
            for chunk in reader.stream(store=entry):
                if chunk.entity_path != entity_path:
                    continue
                batch = chunk.to_record_batch()
                if "EncodedImage:blob" in batch.schema.names:
                    rows = batch.column("EncodedImage:blob")
                    for row in rows:
                        if row.is_valid and len(row.values):
                            return bytes(row.values[0].values.to_numpy())
    return None
