"""The loader's command line: from arguments, for a path that is ours, to an exit code."""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rerun_loader_sam import __version__
from rerun_loader_sam.claims import claim
from rerun_loader_sam.errors import describe
from rerun_loader_sam.loader import ERROR, NOT_MINE, USAGE, say
from rerun_loader_sam.output import RrdFile, RrdPipe
from rerun_loader_sam.protocol import Request, add_protocol_arguments, request_from
from rerun_loader_sam.settings import Settings, load_settings
from rerun_loader_sam.worker.client import WorkerError, can_open, hand_over, segment_order


class CommandLine(NamedTuple):
    """What a loader's arguments ask for."""

    request: Request
    save: Path | None
    ignored: str
    """A line on arguments that nobody knows; empty where there are none, or a viewer passed them."""


def run(arguments: Sequence[str]) -> int:
    """Run the loader with a command line and return its exit code: 0, 1 an error, 2 wrong usage, 66 not ours."""
    command = parse(arguments)
    if command.save is None and os.isatty(1):
        say("RRD is not for a terminal: pipe it on with `| rerun -`, or write it with --save out.rrd")
        return USAGE
    if command.save is not None and _is_same_file(command.save, command.request.path):
        say(f"{command.save} is the image itself; nothing was saved, give --save another name")
        return USAGE
    try:
        settings = load_settings()
        if settings.worker and can_open(str(command.request.path)):
            try:
                return _run_in_worker(arguments, command)
            except WorkerError:  # what it does can be done here
                pass
    except Exception as error:
        say(describe(error))
        return ERROR
    return _run_here(command, settings)


def _is_same_file(path: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):  # one of them is not there
        return path.samefile(other)
    return False


def parse(arguments: Sequence[str]) -> CommandLine:
    """What `arguments` ask for. Raises SystemExit, after a line on standard error, for wrong ones."""
    parser = _parser()
    parsed, unknown = parser.parse_known_args(arguments)
    try:
        request = request_from(parsed)
    except ValueError as error:
        parser.error(str(error))
    # A viewer of the future may pass what it likes; a person wants to hear of a slip.
    ignored = f"ignored: {' '.join(unknown)}" if unknown and request.recording_id is None else ""
    return CommandLine(request, Path(parsed.save) if parsed.save else None, ignored)


def _run_in_worker(arguments: Sequence[str], command: CommandLine) -> int:
    from rerun_loader_sam.worker.start import start_worker

    if command.save is None:
        code = hand_over(segment_order(list(arguments)), start_worker)
    else:
        output = RrdFile(command.save)
        try:
            code = hand_over(segment_order(list(arguments), str(output.part.absolute())), start_worker)
            if code == 0:
                output.finish()
        finally:
            output.abort()
    if code is None:
        raise WorkerError("the worker did not understand the command line")
    return code


def _run_here(command: CommandLine, settings: Settings) -> int:
    request = command.request
    left_out: frozenset[str] = frozenset()
    error_fd = 2
    if command.ignored:
        say(command.ignored)
    try:
        if request.recording_id is not None:
            claimed = claim(Path(sys.argv[0]).name, request.path, request.recording_id)
            if claimed is None:
                return NOT_MINE
            left_out = claimed
        output = RrdFile(command.save) if command.save else RrdPipe()
        error_fd = output.error_fd
        try:
            _segment(request, settings, output, left_out)
            output.finish()
        except BaseException:
            output.abort()
            raise
    except Exception as error:
        say(describe(error), error_fd)
        return ERROR
    return 0


def _segment(request: Request, settings: Settings, output: RrdFile | RrdPipe, left_out: frozenset[str]) -> None:
    # Rerun takes a good part of a second to import, and torch, inside, seconds.
    os.environ.pop("RERUN", None)  # it would switch logging off
    from rerun_loader_sam.job import Job
    from rerun_loader_sam.results import ResultCache
    from rerun_loader_sam.segmenter import Segmenter
    from rerun_loader_sam.turns import machine_turn

    is_watched = os.isatty(output.error_fd)

    def report(text: str, level: str) -> None:
        if is_watched:
            say(text, output.error_fd, level)

    target = output.part if isinstance(output, RrdFile) else output.write
    segmenter = Segmenter(settings, machine_turn)
    results = ResultCache(settings) if settings.cache_mib else None
    Job(request, settings, segmenter, target, report, results=results).run(left_out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Segment an image, or the images of a folder, with Segment Anything, and write the image, "
        "its masks and boxes as a Rerun recording (RRD) to standard output.",
        epilog="Rerun viewers run this by themselves. By hand: rerun-loader-sam photo.jpg | rerun -   or   "
        "rerun-loader-sam photo.jpg --save out.rrd",
        allow_abbrev=False,
    )
    parser.add_argument("path", help="an image, or a folder of images; - reads an image from standard input")
    parser.add_argument("--save", metavar="FILE", help="write the recording to this file instead")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    add_protocol_arguments(parser)
    return parser
