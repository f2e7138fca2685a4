"""The command line of `rerun`: whether it is for us. Standard library only."""

from collections.abc import Sequence

_SUBCOMMANDS = (
    "analytics", "auth", "download", "dump-puffin", "help", "man", "mcap", "reset", "rrd", "server", "viewer-mcp",
)  # fmt: skip
_NO_WINDOW = ("-h", "--help", "--version", "--save", "--serve", "--serve-web", "--serve-grpc", "--web-viewer")


def opens_window(arguments: Sequence[str]) -> bool:
    """Whether `rerun` opens a window with these arguments, or sends files to one that is open."""
    if arguments and arguments[0] in _SUBCOMMANDS:
        return False
    return not any(argument.partition("=")[0] in _NO_WINDOW for argument in arguments)
