"""`rerun-sam`: one module for each command, imported when the parser is made; what is heavy waits for `run`."""

import argparse
import sys
from collections.abc import Sequence

from rerun_loader_sam import __version__
from rerun_loader_sam.cli import demo, doctor, models, service, view, watch, worker
from rerun_loader_sam.errors import describe
from rerun_loader_sam.loader import INTERRUPTED

COMMANDS = {
    "view": view,
    "watch": watch,
    "service": service,
    "doctor": doctor,
    "demo": demo,
    "models": models,
    "worker": worker,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run as a command; ends the process with 0, 1 after an error, 2 for wrong usage, 130 when interrupted."""
    parser = argparse.ArgumentParser(
        prog="rerun-sam", description="Segment Anything in the Rerun viewer.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS.values():
        command.add_parser(subparsers)
    parsed = parser.parse_args(arguments)
    try:
        code = COMMANDS[parsed.command].run(parsed)
    except Exception as error:
        print(f"rerun-sam: {describe(error)}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = INTERRUPTED
    sys.exit(code)


if __name__ == "__main__":
    main()
