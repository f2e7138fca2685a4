"""`rerun-loader-sam` and `rerun-importer-sam`: what a viewer runs for every opened file.

At the top only what costs next to nothing is imported: most files are not ours, and then all this does is decline.
"""

import os
import sys

from rerun_loader_sam.sniff import OTHER, is_pipe_or_device, kind_of

NOT_MINE = 66  # of the protocol: a loader that does not know this kind of file
ERROR = 1
USAGE = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count
BROKEN_PIPE = 141  # 128 + SIGPIPE

_FOR_COMMAND = ("-h", "--help", "--version")  # and --save: flags that a viewer never passes

# A path may hold line feeds, and what a terminal obeys.
_CONTROL = dict.fromkeys((*range(32), *range(127, 160)), "?")


def main() -> None:
    """Run as a command; ends the process with the exit code that the protocol asks for."""
    arguments = sys.argv[1:]
    if "-" in arguments:
        from rerun_loader_sam.piped import run_piped

        sys.exit(run_piped(arguments))
    if arguments and not arguments[0].startswith("-"):
        try:
            kind = kind_of(arguments[0])
        except OSError as error:
            say(f"{arguments[0]}: {(error.strerror or str(error)).lower()}; nothing was segmented")
            sys.exit(ERROR)
        if kind == OTHER:
            if sys.stderr is not None and sys.stderr.isatty():
                say(f"{arguments[0]} {_why_not_ours(arguments[0])}; left alone")
            sys.exit(NOT_MINE)
        if _is_for_worker(arguments):
            from rerun_loader_sam.worker.client import can_open, hand_over, segment_order

            code = hand_over(segment_order(arguments)) if can_open(arguments[0]) else None
            if code is not None:
                sys.exit(code)

    from rerun_loader_sam.command import run

    sys.exit(run(arguments))


def _why_not_ours(path: str) -> str:
    if is_pipe_or_device(path):
        return "is a pipe or a device (pipe an image into `rerun-loader-sam -` instead)"
    return "is no image and no folder that holds one"


def _is_for_worker(arguments: "list[str]") -> bool:
    """Whether a worker that runs already can do it without a look at settings and arguments here."""
    is_plain = not any(argument.startswith("--save") or argument in _FOR_COMMAND for argument in arguments)
    return is_plain and "RERUN_SAM_WORKER" not in os.environ and not os.isatty(1)


def say(text: str, fd: int = 2, level: str = "INFO") -> None:
    """Write one line to a person, in an encoding that cannot fail, past whatever sys.stderr may be."""
    if level != "INFO":
        text = f"{level}: {text}"
    line = f"rerun-loader-sam: {text.translate(_CONTROL)}\n"
    try:
        os.write(fd, line.encode("utf-8", "surrogateescape"))
    except OSError:  # nobody listens
        return


def cut_short(error: OSError) -> str:
    """One line on a recording that cannot be written to its end."""
    return f"cannot write the recording: {(error.strerror or str(error)).lower()}; it ends early"


if __name__ == "__main__":
    main()
