"""`rerun-sam watch`: follows every viewer of this user."""

import argparse


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
    from rerun_loader_sam.follow.say import say
    from rerun_loader_sam.follow.watching import Watch, check_sdk

    sdk_version = check_sdk("nothing is watched")
    watch = Watch(frozenset(arguments.port))
    say(f"watching for viewers with rerun-sdk {sdk_version}; Ctrl-C stops it")
    watch.run()
    return 0
