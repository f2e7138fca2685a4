"""Fetching a checkpoint without anybody waiting for it, in a process of its own.

`python -m rerun_loader_sam.models.background NAME URL` is that process.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from rerun_loader_sam.errors import UserError
from rerun_loader_sam.models import store
from rerun_loader_sam.models.download import fetch, said_by_tenths
from rerun_loader_sam.models.lock import is_being_fetched, try_lock
from rerun_loader_sam.models.registry import OFFICIAL, RemoteEntry
from rerun_loader_sam.network import with_network_of

RETRY_AFTER_S = 600.0
"""An attempt that failed is not repeated before: someone offline opens many images in that time."""

_STARTING_S = 20.0  # what Python may take, on a busy machine, until it holds the lock


@dataclasses.dataclass(frozen=True)
class FetchState:
    """How far a checkpoint has come."""

    bytes_done: int
    bytes_total: int
    is_running: bool
    last_error: str | None
    """One line, if the last attempt in the background failed."""


@dataclasses.dataclass(frozen=True)
class _Attempt:
    """The last time that a background process was started, or failed."""

    time_s: float
    """Seconds since the epoch: it is compared across processes and restarts."""
    error: str | None


def start_fetch(entry: RemoteEntry, environ: Mapping[str, str] | None = None) -> str:
    """Fetch `entry`, an official model, in the background, and return at once with a line on it for a person.

    Only one process fetches, however many ask at the same time, and none within `RETRY_AFTER_S` of an attempt
    that failed. It inherits neither output nor terminal: it outlives the caller, and a viewer that waits for
    the caller's output to end does not wait for it. Its own output is in the file `log_path(entry)`. Proxies and
    certificates are those of `environ`, which is os.environ unless given.
    """
    size = f"{entry.size_bytes / 1e6:.0f} MB"
    try:
        store.make_checkpoints_dir()
        with try_lock(entry, "start") as is_ours:
            if not is_ours or is_being_fetched(entry):
                return _running_line(entry)
            age_s, attempt = _last_attempt(entry)
            if attempt is not None and age_s < RETRY_AFTER_S:
                if attempt.error is None and age_s < _STARTING_S:
                    return _running_line(entry)
                again = f"tried again {_minutes(RETRY_AFTER_S - age_s)} from now at the earliest"
                what = attempt.error or (
                    f"{entry.name} was not fetched: its process ended early; "
                    f"`rerun-sam models fetch {entry.name}` fetches it"
                )
                return f"{what} ({_minutes(age_s)} ago, {again})"
            _save_attempt(entry, None)
            _spawn(entry, os.environ if environ is None else environ)
    except (UserError, OSError) as error:
        return f"{entry.name} cannot be fetched in the background: {error}"
    return f"{entry.name} ({size}) is being fetched in the background, for the next image"


def fetch_state(entry: RemoteEntry) -> FetchState:
    """How far `entry` has come, without reading the checkpoint itself."""
    state = store.checkpoint_state(entry)
    done = state.bytes_done if state.kind in ("verified", "unverified", "partial") else 0
    _, attempt = _last_attempt(entry)
    return FetchState(done, entry.size_bytes, is_being_fetched(entry), attempt.error if attempt else None)


def log_path(entry: RemoteEntry) -> Path:
    """The output of the last background process for `entry`."""
    return store.checkpoints_dir() / f"{entry.file}.log"


def run(entry: RemoteEntry) -> int:
    """Fetch `entry` here and now, remembering a failure for `start_fetch`; the process's exit code."""
    try:
        path = fetch(entry, said_by_tenths(entry, _log), _log)
    except UserError as error:
        _log(str(error))
        _save_attempt(entry, str(error))
        return 1
    except Exception as error:
        _save_attempt(entry, f"{entry.name} was not fetched: {error!r}; please report it, with {log_path(entry)}")
        raise  # into the log
    _log(f"{entry.name}: {path}")
    _attempt_path(entry).unlink(missing_ok=True)
    return 0


def _spawn(entry: RemoteEntry, environ: Mapping[str, str]) -> None:
    command = [sys.executable, "-P", "-m", "rerun_loader_sam.models.background", entry.name, entry.url]
    with log_path(entry).open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=with_network_of(os.environ, environ),
            start_new_session=True,  # Ctrl-C in the caller's terminal is not for it
            cwd=store.checkpoints_dir(),  # the caller's folder may be on a disk that is to be unmounted
        )
    # Collects it when it ends, in a caller that lives that long; one that ends first leaves it to init.
    threading.Thread(target=process.wait, name=f"fetch {entry.name}", daemon=True).start()


def _running_line(entry: RemoteEntry) -> str:
    state = fetch_state(entry)
    percent = 100 * state.bytes_done // state.bytes_total
    return f"{entry.name} is being fetched in the background ({percent} % so far)"


def _attempt_path(entry: RemoteEntry) -> Path:
    return store.checkpoints_dir() / f"{entry.file}.attempt.json"


def _last_attempt(entry: RemoteEntry) -> tuple[float, _Attempt | None]:
    """The last attempt and its age in seconds. One from the future, as the clock has it, does not count."""
    try:
        content = json.loads(_attempt_path(entry).read_text(encoding="utf-8"))
        attempt = _Attempt(float(content["time_s"]), None if content["error"] is None else str(content["error"]))
    except (OSError, ValueError, TypeError, KeyError):
        return 0.0, None
    age_s = time.time() - attempt.time_s
    return (age_s, attempt) if age_s >= 0 else (0.0, None)


def _save_attempt(entry: RemoteEntry, error: str | None) -> None:
    attempt = _Attempt(time.time(), error)
    with contextlib.suppress(OSError):
        store.write_atomically(_attempt_path(entry), json.dumps(dataclasses.asdict(attempt)))


def _log(line: str) -> None:
    sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
    sys.stderr.flush()


def main(arguments: list[str]) -> int:
    """Fetch the official model that the first argument names from the URL that is the second one."""
    name, url = arguments
    return run(dataclasses.replace(OFFICIAL[name], url=url))


def _minutes(seconds: float) -> str:
    return f"{max(1, round(seconds / 60))} min"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
