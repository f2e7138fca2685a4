"""`rerun-sam models`: list, fetch, verify and remove checkpoints."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rerun_loader_sam.errors import UserError
from rerun_loader_sam.models import store
from rerun_loader_sam.models.choose import choose_model
from rerun_loader_sam.models.download import Progress, Say, fetch, remove, said_by_tenths
from rerun_loader_sam.models.registry import (
    ENTRIES,
    OFFICIAL,
    ModelEntry,
    RemoteEntry,
    checkpoint_generator_parameters,
    from_mirror,
    known_entry,
)
from rerun_loader_sam.settings import Settings, load_settings

if TYPE_CHECKING:
    from argparse import ArgumentParser, _SubParsersAction


def add_parser(subparsers: "_SubParsersAction[ArgumentParser]") -> None:
    """Add the command `models` to `rerun-sam`."""
    parser = subparsers.add_parser(
        "models", help="list, fetch, verify and remove models", description="Segment Anything's checkpoints."
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    names = ", ".join(OFFICIAL)
    actions.add_parser("list", help="which models there are, which are on this machine, which one is used")
    action = actions.add_parser("fetch", help="download checkpoints into your cache")
    action.add_argument("names", nargs="*", metavar="NAME", help=f"{names} (vit_b if none is given)")
    action = actions.add_parser("verify", help="read checkpoints and compare their SHA256")
    action.add_argument("names", nargs="*", metavar="NAME", help=f"{names} (all on this machine if none is given)")
    action = actions.add_parser("remove", help="remove checkpoints from your cache")
    action.add_argument("names", nargs="+", metavar="NAME", help=names)


def run(arguments: argparse.Namespace) -> int:
    """Do what `rerun-sam models` was asked for; the exit code: 0, or 1 where a checkpoint is wrong or missing.

    Raises UserError.
    """
    if arguments.action == "list":
        return _list(load_settings())
    entries = [known_entry(name) for name in arguments.names]
    if arguments.action == "fetch":
        return _fetch(entries or [OFFICIAL["vit_b"]], load_settings())
    if arguments.action == "verify":
        return _verify(entries)
    return _remove(entries)


def _list(settings: Settings) -> int:
    used, code = _used_now(settings)
    rows = [("NAME", "SIZE", "STATE", "PATH")]
    for entry in ENTRIES.values():
        state = store.checkpoint_state(entry)
        total = entry.size_bytes if isinstance(entry, RemoteEntry) else state.bytes_done
        kind: str = state.kind
        if kind == "partial":
            kind = f"partial, {100 * state.bytes_done // total} %"
        rows.append((entry.name, _mb(total), kind, "" if kind == "missing" else str(state.path)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for name, size, kind, path in rows:
        print(f"{name:{widths[0]}}  {size:>{widths[1]}}  {kind:{widths[2]}}  {path}".rstrip())
    print(f"\n{used}")
    return code


def _used_now(settings: Settings) -> tuple[str, int]:
    """A line that says which model is used, and the exit code."""
    try:
        if settings.device != "auto":
            chosen = choose_model(settings, settings.device)
            return f"Used now: {chosen.name} ({chosen.reason})", 0
        # Asking which device there is takes an import of torch, seconds; mostly it makes no difference.
        chosen, on_cuda = choose_model(settings, "cpu"), choose_model(settings, "cuda")
    except UserError as error:
        return f"Used now: none, {error}", 1
    if chosen.name == on_cuda.name:
        why = chosen.reason.removesuffix(" for cpu")
        return f"Used now: {chosen.name} ({why})", 0
    return f"Used now: {on_cuda.name} where there is a CUDA device, else {chosen.name}", 0


def _fetch(entries: Sequence[ModelEntry], settings: Settings) -> int:
    for entry in entries:
        if not isinstance(entry, RemoteEntry):
            print(f"{entry.name} is part of this package: nothing to fetch")
            continue
        try:
            with _shown(entry) as (progress, say):
                path = fetch(from_mirror(entry, settings.checkpoint_url), progress, say)
        except KeyboardInterrupt:
            kept = _mb(store.file_size(store.partial_path(entry)))
            _say(f"interrupted; {kept} are kept, `rerun-sam models fetch {entry.name}` goes on there")
            raise
        print(f"{entry.name} is at {path}")
    return 0


def _verify(entries: Sequence[ModelEntry]) -> int:
    code = 0
    for entry in entries or ENTRIES.values():
        paths = store.present_files(entry)
        if not paths and entries:
            print(f"{entry.name} is not on this machine; `rerun-sam models fetch {entry.name}` fetches it")
            code = 1
        for path in paths:
            if fault := _fault(entry, path):
                own = path == store.checkpoint_path(entry)
                then = f"`rerun-sam models fetch {entry.name}` replaces it" if own else "it is not used"
                print(f"{entry.name} is WRONG: {path} {fault}; {then}")
                code = 1
            else:
                print(f"{entry.name} is right: {path}")
    return code


def _fault(entry: ModelEntry, path: Path) -> str:
    """What is wrong with the file of `entry` at `path`, read from beginning to end; empty if nothing is."""
    if not isinstance(entry, RemoteEntry):
        try:
            checkpoint_generator_parameters(path)
        except UserError as error:
            return f"cannot be used ({error})"
        return ""
    size = store.file_size(path)
    if size != entry.size_bytes:
        return f"has {size} bytes, expected {entry.size_bytes}"
    try:
        digest = store.compute_sha256(path)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    return "" if digest == entry.sha256 else f"has the SHA256 {digest}, expected {entry.sha256}"


def _remove(entries: Sequence[ModelEntry]) -> int:
    for entry in entries:
        if not isinstance(entry, RemoteEntry):
            raise UserError(f"{entry.name} is part of this package and stays with it; nothing was removed")
    for entry in entries:
        if isinstance(entry, RemoteEntry):
            freed = remove(entry)
            print(f"{entry.name} removed, {_mb(freed)} freed" if freed else f"{entry.name} was not in your cache")
            for path in store.present_files(entry):
                print(f"another program's copy of {entry.name} stays, and is used: {path}")
    return 0


@contextmanager
def _shown(entry: RemoteEntry) -> Iterator[tuple[Progress, Say]]:
    """A bar on a terminal, with lines above it; elsewhere, as in a log, a line for each tenth."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(
            desc=entry.name, total=entry.size_bytes, unit="B", unit_scale=True, dynamic_ncols=True, leave=False
        ) as bar:

            def draw(done_bytes: int, total_bytes: int) -> None:
                if not bar.n:
                    bar.n = bar.initial = done_bytes  # what an earlier run brought says nothing of the speed
                bar.update(done_bytes - bar.n)

            yield draw, lambda line: tqdm.write(line, file=sys.stderr)
        return

    yield said_by_tenths(entry, _say), _say


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"
