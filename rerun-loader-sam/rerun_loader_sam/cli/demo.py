"""`rerun-sam demo`: one photograph, from the command that a viewer runs to what a person sees."""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rerun_loader_sam.errors import UserError
from rerun_loader_sam.settings import load_settings

if TYPE_CHECKING:
    _Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_parser(subparsers: "_Subparsers") -> None:
    """Add `demo` to the commands."""
    parser = subparsers.add_parser(
        "demo",
        help="segment a photograph and show the result",
        description="Segment a photograph: in a viewer window where there is a display, else into demo.rrd and "
        "demo.png in the current folder.",
    )
    parser.add_argument("image", nargs="?", type=Path, help="a photograph; the shipped one unless given")
    parser.add_argument("--files", action="store_true", help="write the files even where there is a display")


def run(arguments: argparse.Namespace) -> int:
    """Run `rerun-sam demo`; returns the exit code."""
    image: Path = arguments.image or _shipped_photograph()
    if _has_display() and not arguments.files and _show(image):
        return 0
    _write(image)
    return 0


def _shipped_photograph() -> Path:
    package = Path(__file__).parents[1]
    for folder in (package / "examples", package.parents[1] / "examples"):
        if (folder / "coffee.jpg").is_file():
            return folder / "coffee.jpg"
    raise UserError("the shipped photograph is missing, though it belongs to this package; name one of yours")


def _has_display() -> bool:
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _beside_python(name: str) -> str:
    """The command `name` of this environment, else of PATH."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise UserError(f"there is no command {name!r} beside {sys.executable} nor on PATH; install it again")
    return found


def _show(image: Path) -> bool:
    """What `rerun-loader-sam IMAGE | rerun -` does until the window is closed; whether there was a window."""
    viewer = shutil.which("rerun") or _beside_python("rerun")
    loader = subprocess.Popen([_beside_python("rerun-loader-sam"), str(image)], stdout=subprocess.PIPE)
    print(f"{image} opens in {viewer}; close its window to end", flush=True)
    code = subprocess.run([viewer, "-"], stdin=loader.stdout, check=False).returncode
    if loader.stdout:
        loader.stdout.close()  # so that the loader ends with the viewer
    loader.wait()
    if code:
        print(f"the viewer ended with exit code {code}; writing files instead", file=sys.stderr)
    return code == 0


def _write(image: Path) -> None:
    # Everything that takes seconds to import is imported here.
    from rerun_loader_sam.job import Job
    from rerun_loader_sam.picture import draw_masks
    from rerun_loader_sam.protocol import Request
    from rerun_loader_sam.segmenter import RememberingSegmenter

    settings = load_settings()
    segmenter = RememberingSegmenter(settings)
    recording, picture = Path("demo.rrd"), Path("demo.png")
    Job(Request(image), settings, segmenter, recording, lambda text, level: print(f"{level}: {text}")).run()
    if segmenter.rgb is not None:
        draw_masks(segmenter.rgb, segmenter.masks).save(picture)
    print(f"{recording.resolve()}: the recording; open it with: rerun {recording}")
    print(f"{picture.resolve()}: a picture of it")
