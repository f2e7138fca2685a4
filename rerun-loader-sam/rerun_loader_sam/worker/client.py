"""The loader's side: hands a command line to the worker and passes on what comes back.

Standard library only, and little of it: for most images this is all that a loader does.
"""

import os
import select
import socket
import stat
import sys

from rerun_loader_sam.loader import BROKEN_PIPE, ERROR, INTERRUPTED, cut_short, say
from rerun_loader_sam.network import network_variables
from rerun_loader_sam.worker.address import identity, socket_path
from rerun_loader_sam.worker.wire import (
    PREFIX_BYTES,
    WireError,
    encode_header,
    is_of_this_user,
    parse_header,
    parse_prefix,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_CHUNK_BYTES = 1 << 18
_ATTEMPTS = 20  # each loader of other settings that comes at the same instant costs one
_ANSWER_TIMEOUT_S = 60.0  # far more than a busy machine needs; whoever waits longer waits for a stopped process


class WorkerError(Exception):
    """The worker cannot be asked; the loader has to do the work itself."""


def is_supported() -> bool:
    """Whether this system has what loader and worker need to talk to each other."""
    return hasattr(socket, "AF_UNIX") and hasattr(select, "poll")


def can_open(path: str) -> bool:
    """Whether a worker can be asked for `path`: not if that means something else to another process, `/dev/stdin`."""
    return is_supported() and not path.startswith(("/dev/", "/proc/"))


def connect() -> socket.socket | None:
    """A connection to the worker of this user, if there is one."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(socket_path())
        if is_of_this_user(sock):
            return sock
    except OSError:  # none was ever there, or it has ended
        pass
    sock.close()
    return None


def segment_order(arguments: list[str], part: str | None = None) -> dict[str, object]:
    """What the worker is told: everything that this process knows and the worker cannot.

    part: the file, as an absolute path, that the worker is to write instead of sending RRD bytes.
    """
    return {
        "do": "segment",
        "identity": identity(),
        "arguments": arguments,
        "program": os.path.basename(sys.argv[0]),
        "cwd": _cwd(),
        "environ": {
            **{name: value for name, value in os.environ.items() if name.startswith("RERUN_SAM_")},
            **network_variables(os.environ),
        },
        "pid": os.getpid(),
        "parent_pid": os.getppid(),
        "is_watched": os.isatty(2),
        "part": part,
    }


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return os.sep


def hand_over(order: dict[str, object], start: "Callable[[], socket.socket] | None" = None) -> int | None:
    """Let the worker do it; returns the loader's exit code.

    start: called where no worker runs; returns a connection to a new one, or raises WorkerError.
    Returns None where the command line has to be looked at here, or no worker runs and `start` is None.
    """
    try:
        frame = encode_header(order)
    except WireError as error:
        if start is None:
            return None
        raise WorkerError(str(error)) from error
    try:
        for _ in range(_ATTEMPTS):
            sock = connect() or (start() if start else None)
            if sock is None:
                return None
            with sock:
                try:
                    return _Relay(sock, is_watching_output=order["part"] is None).run(frame)
                except _Left:
                    continue
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)
    if start is None:
        return None
    raise WorkerError(f"{_ATTEMPTS} workers left before they took the work")


class _Left(Exception):  # noqa: N818  # no error: the worker that leaves makes room for the right one
    """The worker left before it took the work; another can be asked."""


class _Yours(Exception):  # noqa: N818  # no error either
    """The worker leaves this command line to the loader."""


class _Silent(Exception):  # noqa: N818
    """The worker is there, but does not answer."""


class _Relay:
    """One conversation with the worker."""

    def __init__(self, sock: socket.socket, is_watching_output: bool) -> None:
        self._sock = sock
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._is_taken = False
        # No event is asked for: hang-ups and errors are told anyway. A file never has them.
        if is_watching_output and _is_pipe(1):
            self._poll.register(1, 0)

    def run(self, order: bytes) -> int | None:
        """Send the order and pass on what comes, to the end. Returns None where the work is the loader's."""
        try:
            self._sock.sendall(order)
            while True:
                header_bytes, payload_bytes = parse_prefix(self._receive(PREFIX_BYTES))
                header = parse_header(self._receive(header_bytes))
                kind = header.get("is")
                if kind == "end":
                    return _ended(header)
                self._act(kind, header)
                self._pass_on(payload_bytes)
        except _Yours:
            return None
        except _Silent:
            say(
                f"the background worker has not answered for {_ANSWER_TIMEOUT_S:.0f} s; nothing was segmented, "
                "`rerun-sam worker stop` ends it"
            )
            return ERROR
        except (OSError, EOFError, WireError) as error:
            if not self._is_taken:
                raise _Left from error
            say(
                "the background worker ended before it was done; what came so far is shown, open the file again "
                "for the rest"
            )
            return ERROR

    def _act(self, kind: object, header: dict[str, object]) -> None:
        if kind == "leaving":
            raise _Left
        if kind == "yours":
            raise _Yours
        if kind == "taken":
            self._is_taken = True
        elif kind == "log":
            say(str(header.get("text")), level=str(header.get("level")))

    def _receive(self, count: int) -> bytes:
        content = bytearray(count)
        view = memoryview(content)
        while view:
            self._wait()
            received = self._sock.recv_into(view)
            if not received:
                raise EOFError
            view = view[received:]
        return bytes(content)

    def _pass_on(self, count: int) -> None:
        """Write the next `count` bytes to standard output as they come."""
        while count:
            self._wait()
            content = self._sock.recv(min(count, _CHUNK_BYTES))
            if not content:
                raise EOFError
            count -= len(content)
            try:
                while content:
                    content = content[os.write(1, content) :]
            except BrokenPipeError:
                os._exit(BROKEN_PIPE)
            except OSError as error:  # not the worker's, which is what it would be taken for
                say(cut_short(error))
                os._exit(ERROR)

    def _wait(self) -> None:
        """Until something has come; ends the process where nobody reads what it writes."""
        events = dict(self._poll.poll(None if self._is_taken else _ANSWER_TIMEOUT_S * 1000))
        if events.get(1, 0) & (select.POLLERR | select.POLLHUP):
            os._exit(BROKEN_PIPE)
        if not events:
            raise _Silent


def _ended(header: dict[str, object]) -> int:
    if header.get("message"):
        say(str(header["message"]))
    code = header.get("exit_code")
    return code if isinstance(code, int) else ERROR


def _is_pipe(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
