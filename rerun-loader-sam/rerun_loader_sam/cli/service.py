"""`rerun-sam service`: `rerun-sam watch` at every login, and the viewer of the `rerun` command."""

import argparse
import shlex
from typing import TYPE_CHECKING

from rerun_loader_sam.cli.view import OVERRIDE
from rerun_loader_sam.follow.service import command_path, install_service, remove_service

if TYPE_CHECKING:
    _Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

VIEWER_COMMAND = "rerun-sam-viewer"


def add_parser(subparsers: "_Subparsers") -> None:
    """Add `service` to the commands."""
    parser = subparsers.add_parser(
        "service",
        help="start `rerun-sam watch` at every login",
        description="Installs or removes `rerun-sam watch` as a service of this user: a systemd user unit, on macOS "
        "a launchd agent.",
    )
    commands = parser.add_subparsers(dest="service_command", metavar="COMMAND", required=True)
    commands.add_parser("install", help="install and start it")
    commands.add_parser("remove", help="stop and remove it")
    commands.add_parser("shell-line", help="print what makes a plain `rerun` followed without the service")


def run(arguments: argparse.Namespace) -> int:
    """Run `rerun-sam service`; returns the exit code."""
    if arguments.service_command == "shell-line":
        print(shell_line())
        return 0
    lines = install_service() if arguments.service_command == "install" else remove_service()
    print("\n".join(lines))
    if arguments.service_command == "install":
        print(f"without the service, this line in your shell's profile does it for a plain `rerun`: {shell_line()}")
    return 0


def shell_line() -> str:
    """The line for a shell's profile that puts our viewer in the place of the one that `rerun` would run."""
    return f"export {OVERRIDE}={shlex.quote(str(command_path(VIEWER_COMMAND)))}"
