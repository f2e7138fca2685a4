"""`rerun-sam view`: opens a viewer and follows it."""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from rerun_loader_sam.errors import UserError
from rerun_loader_sam.follow.command_line import opens_window

OVERRIDE = "RERUN_CLI_PATH"  # of Rerun: the program that the `rerun` command of a Python environment runs


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "view",
        help="open the viewer and segment every image that is opened in it",
        description="Opens the `rerun` viewer that is on PATH with all arguments that follow, and segments every "
        "image that is opened in it, by command line, drop or dialog, until it is closed.",
        usage="rerun-sam view [IMAGE...] [viewer arguments]",
        add_help=False,
        prefix_chars="\0",  # flags are the viewer's
    )
    parser.add_argument("arguments", nargs="*", help="for the viewer")


def run(arguments: argparse.Namespace) -> int:
    """Open the viewer; returns its exit code."""
    environ = {name: value for name, value in os.environ.items() if name != OVERRIDE}
    return view(_viewer_on_path(environ), arguments.arguments, environ)


def main_as_viewer() -> None:
    """Run as what RERUN_CLI_PATH names: in the place of the viewer of the `rerun` command that was typed."""
    environ = {name: value for name, value in os.environ.items() if name != OVERRIDE}
    try:
        sys.exit(view(_viewer_of_parent() or _viewer_on_path(environ), sys.argv[1:], environ))
    except UserError as error:
        print(f"rerun-sam: {error}", file=sys.stderr)
        sys.exit(1)


def view(viewer: str, arguments: list[str], environ: Mapping[str, str]) -> int:
    """Run `viewer`, and follow it where it opens a window; returns its exit code."""
    if not opens_window(arguments):
        return subprocess.call([viewer, *arguments], env=dict(environ))
    # What the session needs waits until here: `rerun --version` is not to pay for it.
    from rerun_loader_sam.follow.session import ViewSession

    return ViewSession([viewer, *arguments], environ).run()


def _viewer_on_path(environ: Mapping[str, str]) -> str:
    viewer = shutil.which("rerun", path=environ.get("PATH"))
    if viewer is None:
        raise UserError("there is no `rerun` on PATH; nothing was opened, install it with `pip install rerun-sdk`")
    return viewer


def _viewer_of_parent() -> str | None:
    """The `rerun` script that runs this process: it would run its own viewer but for RERUN_CLI_PATH."""
    import psutil

    try:
        command = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return None
    for word in command[:3]:
        if Path(word).name == "rerun" and Path(word).is_file() and os.access(word, os.X_OK):
            return word
    return None
