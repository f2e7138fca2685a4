"""One HTTPS connection that brings bytes of a file, from where an earlier one stopped."""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rerun_loader_sam import __version__
from rerun_loader_sam.models.store import file_size, write_atomically

if TYPE_CHECKING:
    import requests

_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 10.0, 30.0
_CHUNK_BYTES = 1 << 16  # the most that a cut connection costs


class TransferInterruptedError(Exception):
    """It stopped for a reason that may pass; what has arrived is kept."""


class TransferRefusedError(Exception):
    """It stopped for a reason that another attempt will meet again."""


@dataclasses.dataclass(frozen=True)
class Partial:
    """The file that collects the bytes of a download, and what the server called that version of the file."""

    path: Path

    @property
    def _validator_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    def size(self) -> int:
        """Bytes that have arrived."""
        return file_size(self.path)

    def drop(self) -> None:
        """Forget everything that has arrived. Raises OSError."""
        self.path.unlink(missing_ok=True)
        self._validator_path.unlink(missing_ok=True)

    def renamed(self, target: Path) -> None:
        """Put the file in the place of `target`, whatever was there. Raises OSError."""
        self.path.replace(target)
        with contextlib.suppress(OSError):  # the name outlasts a power cut only with its folder written
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        self._validator_path.unlink(missing_ok=True)

    def validator(self, url: str) -> str | None:
        """For If-Range: where `url` has another version by now, the server sends the whole file."""
        try:
            saved = json.loads(self._validator_path.read_text(encoding="utf-8"))
            return str(saved["validator"]) if saved["url"] == url else None
        except (OSError, ValueError, TypeError, KeyError):
            return None  # resumed without: the SHA256 decides in the end

    def save_validator(self, url: str, headers: "requests.structures.CaseInsensitiveDict[str]") -> None:
        """Remember which version of the file at `url` a response with `headers` brings. Raises OSError."""
        etag = headers.get("ETag", "")
        # RFC 9110, 13.1.5: a weak entity tag is no validator for a range
        validator = headers.get("Last-Modified") if not etag or etag.startswith("W/") else etag
        write_atomically(self._validator_path, json.dumps({"url": url, "validator": validator} if validator else {}))


def https_session() -> "requests.Session":
    """A session that speaks HTTPS and nothing else, with the proxies and certificates of the environment."""
    import requests

    session = requests.Session()
    # Without this adapter a redirect to plain HTTP, wherever in the chain, fails before anything is sent.
    del session.adapters["http://"]
    session.max_redirects = 5
    bundle = os.environ.get("SSL_CERT_FILE")
    if bundle and Path(bundle).is_file():
        session.verify = bundle  # REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE, which requests knows, go before it
    return session


def transfer(
    session: "requests.Session",
    url: str,
    size_bytes: int,
    partial: Partial,
    progress: Callable[[int, int], None],
) -> bool:
    """Get what `partial` lacks of the file at `url`; whether the whole file came over this one connection.

    `progress` is called with the bytes there are and `size_bytes`.
    Raises TransferInterruptedError, TransferRefusedError, or OSError where `partial` cannot be written.
    """
    import requests

    offset = partial.size()
    if offset > size_bytes:
        partial.drop()
        offset = 0
    progress(offset, size_bytes)
    if offset == size_bytes:
        return False
    try:
        with _request(session, url, partial) as response:
            start = _start(response, offset, size_bytes, partial)
            partial.save_validator(url, response.headers)
            _receive(response, start, size_bytes, partial, progress)
    except requests.RequestException as error:
        raise _meaning(error) from error
    if partial.size() < size_bytes:
        raise TransferInterruptedError("the connection was closed before the end")
    return start == 0


def _request(session: "requests.Session", url: str, partial: Partial) -> "requests.Response":
    import requests

    # identity: ranges and sizes are to be those of the file, not of a compressed form of it
    headers = {"Accept-Encoding": "identity", "User-Agent": f"rerun-loader-sam/{__version__}"}
    if offset := partial.size():
        headers["Range"] = f"bytes={offset}-"
        if validator := partial.validator(url):
            headers["If-Range"] = validator
    try:
        return session.get(url, headers=headers, stream=True, timeout=(_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S))
    except requests.RequestException:
        raise
    except OSError as error:
        raise TransferRefusedError(str(error)) from error  # the certificate file of the environment is not there


def _start(response: "requests.Response", offset: int, size_bytes: int, partial: Partial) -> int:
    """Where in the file the body belongs. Raises where it is of no use."""
    status = response.status_code
    if status == 416:
        partial.drop()
        raise TransferInterruptedError("the server has no such part (HTTP 416)")
    if status in (408, 429) or status >= 500:
        raise TransferInterruptedError(f"the server answered HTTP {status} {response.reason}")
    if status not in (200, 206):
        raise TransferRefusedError(f"the server answered HTTP {status} {response.reason}")
    start, total = 0, response.headers.get("Content-Length", "")
    if status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not match or int(match[1]) != offset:
            partial.drop()
            raise TransferInterruptedError("the server sent another part than it was asked for")
        start, total = offset, match[2]
    if total.isdecimal() and int(total) != size_bytes:
        raise TransferRefusedError(f"the file there has {total} bytes, expected {size_bytes}")
    return start


def _receive(
    response: "requests.Response",
    start: int,
    size_bytes: int,
    partial: Partial,
    progress: Callable[[int, int], None],
) -> None:
    size = start
    with partial.path.open("ab" if start else "wb") as file:
        for chunk in response.iter_content(_CHUNK_BYTES):
            size += len(chunk)
            if size > size_bytes:
                break
            file.write(chunk)
            progress(size, size_bytes)
        file.flush()
        os.fsync(file.fileno())  # the rename must not reach the disk before the bytes
    if size > size_bytes:
        partial.drop()
        raise TransferRefusedError(f"the file there is larger than the expected {size_bytes} bytes")


def _meaning(error: "requests.RequestException") -> TransferInterruptedError | TransferRefusedError:
    """Whether another attempt may help after `error`."""
    import requests

    reason = _innermost(error)
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return TransferRefusedError(
            f"the server's certificate is not trusted ({reason}); behind a proxy "
            "with a certificate of its own, name that in REQUESTS_CA_BUNDLE"
        )
    if isinstance(error, requests.exceptions.InvalidSchema) and "SOCKS" not in reason:
        return TransferRefusedError(f"it redirects to something that is not HTTPS, refused ({reason})")
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return TransferInterruptedError("the connection was cut")
    passing = (requests.ConnectionError, requests.Timeout)
    return TransferInterruptedError(reason) if isinstance(error, passing) else TransferRefusedError(reason)


def _innermost(error: BaseException) -> str:
    """The text of the error that caused `error`, without the layers of the HTTP library around it."""
    reason = getattr(error, "reason", None)
    inner = reason if isinstance(reason, Exception) else next(iter(error.args[-1:]), None)
    if isinstance(inner, Exception):
        text = _innermost(inner)
        return f"{error.args[0]}: {text}" if isinstance(error.args[0], str) and inner is not reason else text
    return re.sub(r"^\w+\(.*?\): ", "", str(error)).rstrip(".") or type(error).__name__
