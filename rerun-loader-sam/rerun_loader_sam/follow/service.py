"""`rerun-sam watch` as a service of this user: a systemd user unit, on macOS a launchd agent."""

import os
import plistlib
import subprocess
import sys
from pathlib import Path

from rerun_loader_sam.errors import UserError
from rerun_loader_sam.follow.watching import check_sdk

UNIT = "rerun-sam-watch.service"
LABEL = "rerun-loader-sam.watch"


def command_path(name: str) -> Path:
    """A command of this environment, in full."""
    return Path(sys.executable).parent / name


def service_file() -> Path:
    """Where the service is, or would be, described. Raises UserError where this system has no such services."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "LaunchAgents" / f"{LABEL}.plist"
    if sys.platform == "linux":
        config = os.environ.get("XDG_CONFIG_HOME", "")
        base = Path(config) if Path(config).is_absolute() else Path.home() / ".config"
        return base / "systemd" / "user" / UNIT
    raise UserError("services are known for Linux and macOS only; start `rerun-sam watch` at login by other means")


def install_service() -> list[str]:
    """Describe the service, and start it now and at every login. Returns lines for a person; raises UserError."""
    check_sdk("no service was installed")
    program = command_path("rerun-sam")
    if not program.is_file():
        raise UserError(f"{program} is not there; no service was installed, install the package again")
    path = service_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_launchd_agent(program) if sys.platform == "darwin" else _systemd_unit(program))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; no service was installed") from error
    lines = [f"wrote {path}"]
    if sys.platform == "darwin":
        _run("launchctl", "bootout", f"gui/{os.getuid()}/{LABEL}")  # one that runs already is to start anew
        commands = [("launchctl", "bootstrap", f"gui/{os.getuid()}", str(path))]
    else:
        systemctl = ("systemctl", "--user")
        commands = [(*systemctl, "daemon-reload"), (*systemctl, "enable", UNIT), (*systemctl, "restart", UNIT)]
    for command in commands:
        failure = _run(*command)
        if failure:
            return [
                *lines,
                f"it could not be started now ({failure}); after you have logged in, run `rerun-sam service install` "
                "again, or start `rerun-sam watch` by hand",
            ]
    return [*lines, "started `rerun-sam watch`, now and at every login"]


def remove_service() -> list[str]:
    """Stop the service and remove it. Returns lines for a person."""
    path = service_file()
    if not path.exists():
        return ["no service was installed"]
    if sys.platform == "darwin":
        _run("launchctl", "bootout", f"gui/{os.getuid()}/{LABEL}")
        path.unlink()
    else:
        _run("systemctl", "--user", "disable", "--now", UNIT)
        path.unlink()
        _run("systemctl", "--user", "daemon-reload")
    return [f"stopped the service and removed {path}"]


def _systemd_unit(program: Path) -> bytes:
    quoted = str(program).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return (
        "[Unit]\n"
        "Description=Segment Anything over the images that Rerun viewers open\n"
        "\n"
        "[Service]\n"
        f'ExecStart="{quoted}" watch\n'
        "Restart=on-failure\n"
        "RestartSec=5\n"
        "\n"
        "[Install]\n"
        "WantedBy=default.target\n"
    ).encode()


def _launchd_agent(program: Path) -> bytes:
    return plistlib.dumps(
        {
            "Label": LABEL,
            "ProgramArguments": [str(program), "watch"],
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ProcessType": "Background",
        }
    )


def _run(*command: str) -> str:
    """Run a command; returns what it said where it failed, else nothing."""
    try:
        outcome = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        return f"{command[0]}: {(error.strerror or str(error)).lower()}"
    if outcome.returncode == 0:
        return ""
    return " ".join(outcome.stderr.split()) or f"{' '.join(command)} ended with {outcome.returncode}"
