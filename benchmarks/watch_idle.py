"""What `rerun-sam watch` costs while nothing is opened: without a viewer, and with one, beside that viewer.

python benchmarks/watch_idle.py [--seconds 60]        prints a table, then JSON
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

FOLDERS = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR")
SETTLING_S = 20  # a viewer loads fonts, pipelines and its list of examples first


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="how long to measure each state")
    seconds: float = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as home:
        environ = os.environ | dict.fromkeys(
            ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR"), home
        )
        programs = Path(sys.executable).parent
        watch = subprocess.Popen([programs / "rerun-sam", "watch"], env=environ)
        viewer = None
        try:
            time.sleep(3)
            states = {"no viewer": {"watch": _measured([watch.pid], seconds)["watch"]}}
            with socket.socket() as sock:
                sock.bind(("127.0.0.1", 0))
                port = str(sock.getsockname()[1])
            viewer = subprocess.Popen(
                [programs / "rerun", "--headless", "--port", port], env=environ, stderr=subprocess.DEVNULL
            )
            time.sleep(SETTLING_S)
            states["one idle viewer"] = _measured([watch.pid, viewer.pid], seconds)
        finally:
            if viewer is not None:
                for child in psutil.Process(viewer.pid).children(recursive=True):
                    child.terminate()
                viewer.terminate()
                viewer.wait()
            watch.terminate()
            watch.wait()
    print(f"{'':18}{'':26}{'CPU, % of a core':>18}{'memory, MB':>12}{'of it private':>15}")
    for state, processes in states.items():
        for name, cost in processes.items():
            print(f"{state:18}{name:26}{cost['cpu_percent']:18.2f}{cost['pss_mb']:12.0f}{cost['private_mb']:15.0f}")
    print(json.dumps({"seconds": seconds, "states": states}))


def _measured(pids: list[int], seconds: float) -> dict[str, dict[str, float]]:
    """CPU share over `seconds`, and memory at their end, of these processes and their children, by their names."""
    processes = [process for pid in pids for process in [psutil.Process(pid), *psutil.Process(pid).children(True)]]
    before = {process: _cpu_s(process) for process in processes}
    time.sleep(seconds)
    found = {}
    for process in processes:
        memory = process.memory_full_info()
        found[_name(process)] = {
            "cpu_percent": 100 * (_cpu_s(process) - before[process]) / seconds,
            "pss_mb": memory.pss / 1e6,  # what it shares with others counts for its part
            "private_mb": memory.uss / 1e6,
        }
    return found


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _name(process: psutil.Process) -> str:
    command = " ".join(process.cmdline())
    for part, name in (("follow.attach", "watch, its follower"), ("rerun-sam", "watch"), ("rerun_cli", "viewer")):
        if part in command:
            return name
    return "viewer's Python script"


if __name__ == "__main__":
    main()
