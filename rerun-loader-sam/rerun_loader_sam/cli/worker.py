"""`rerun-sam worker`: the background process that keeps the model in memory."""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rerun_loader_sam.worker.control import stop_worker, worker_status
from rerun_loader_sam.worker.start import log_path

if TYPE_CHECKING:
    _Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_NOT_RUNNING = 1


def add_parser(subparsers: "_Subparsers") -> None:
    """Add `worker` to the commands."""
    parser = subparsers.add_parser(
        "worker",
        help="look at or end the background worker",
        description="The first image starts a background worker, which keeps the model in memory for the next one "
        "and ends by itself when nothing comes for a while (RERUN_SAM_WORKER_IDLE_S).",
    )
    commands = parser.add_subparsers(dest="worker_command", metavar="COMMAND", required=True)
    commands.add_parser("status", help="say what it does; exit code 1 where it does not run")
    commands.add_parser("stop", help="end it at once; files that it has in hand are lost")


def run(arguments: argparse.Namespace) -> int:
    """Run `rerun-sam worker`; returns the exit code."""
    if arguments.worker_command == "stop":
        pid = stop_worker()
        print("no worker is running" if pid is None else f"stopped the worker, process {pid}")
        return 0
    status = worker_status()
    if status is None:
        print("no worker is running")
        return _NOT_RUNNING
    print("\n".join(_lines(status)))
    return 0


def _lines(status: Mapping[str, object]) -> list[str]:
    model = f"{status['model']} on {status['device']}" if status["model"] else "none yet"
    lines = [
        f"worker {status['version']}, process {status['pid']}, for {_duration(status['uptime_s'])}",
        f"model in memory: {model}",
        f"served: {status['served_count']}",
    ]
    running = status["running"]
    if isinstance(running, list) and running:
        lines.append(f"in hand: {len(running)}, of which {status['waiting_count']} wait for their turn")
        lines += [f"  {path}" for path in running]
    else:
        lines.append(f"idle for {_duration(status['idle_s'])}")
    lines.append(f"log: {log_path()}")
    return lines


def _duration(seconds: object) -> str:
    whole = int(seconds) if isinstance(seconds, int | float) else 0
    return f"{whole} s" if whole < 120 else f"{whole // 60} min"
