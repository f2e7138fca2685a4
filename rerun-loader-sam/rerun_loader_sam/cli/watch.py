"""`rerun-sam watch`: follows every viewer of this user."""

import argparse

from rerun_loader_sam.errors import UserError


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "watch",
        help="segment what viewers of 0.41 or later open, whoever started them",
        description="Attaches to the Rerun viewers (0.41 or later) of this user, those that run and those that start "
        "later, and segments every image opened in them: masks appear over the image. Runs until it is stopped; "
        "`rerun-sam service install` starts it at login.",
    )
    parser.add_argument(
        "--port", type=int, action="append", default=[], help="follow only the viewer on this port; may be repeated"
    )


def run(arguments: argparse.Namespace) -> int:
    """Watch until stopped."""
    from importlib.metadata import version

    from rerun_loader_sam.follow.announcements import can_ask_viewers
    from rerun_loader_sam.follow.say import say
    from rerun_loader_sam.follow.watching import Watch

    sdk_version = version("rerun-sdk")
    if not can_ask_viewers(sdk_version):
        raise UserError(
            f"rerun-sdk {sdk_version} is installed here, and asking a viewer what it opened came with 0.41; "
            "nothing is watched. Install rerun-sdk 0.41 or later into this environment, or start viewers with "
            "`rerun-sam view`"
        )
    watch = Watch(frozenset(arguments.port))
    say(f"watching for viewers with rerun-sdk {sdk_version}; Ctrl-C stops it")
    watch.run()
    return 0
