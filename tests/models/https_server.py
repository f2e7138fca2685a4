"""A real HTTPS server on the loopback, which misbehaves as it is told to, and a proxy in front of it."""

import contextlib
import dataclasses
import http.server
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

import trustme

NAME_BEHIND_PROXY = "checkpoints.invalid"
"""In the server's certificate, and in no name server (RFC 6761)."""


@dataclasses.dataclass(frozen=True)
class Reply:
    """How to answer one request."""

    status: int = 200
    location: str = ""
    etag: str = '"v1"'
    last_modified: str = ""
    cut_after: int | None = None
    """Close the connection after so many bytes of the body."""
    ignores_range: bool = False
    content: bytes | None = None
    """Instead of the file's."""
    length: int | None = None
    """Claimed in Content-Length instead of the body's."""
    has_length: bool = True
    wrong_range: bool = False
    at_byte: tuple[int, Callable[[], object]] | None = None
    """Called when so many bytes of the body have gone out."""


@dataclasses.dataclass(frozen=True)
class SeenRequest:
    path: str
    headers: dict[str, str]


class HttpsServer:
    """Serves `files`; `replies` of a path are used up one by one, the last one stays."""

    def __init__(self, authority: trustme.CA | None) -> None:
        self.files: dict[str, bytes] = {}
        self.replies: dict[str, list[Reply]] = {}
        self.requests: list[SeenRequest] = []
        self._httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.port: int = self._httpd.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        if authority:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert("127.0.0.1", NAME_BEHIND_PROXY).configure_cert(context)
            self._httpd.socket = context.wrap_socket(self._httpd.socket, server_side=True)
            self.url = f"https://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._httpd.serve_forever, args=(0.05,))
        self._thread.start()

    def next_reply(self, path: str) -> Reply:
        replies = self.replies.get(path) or [Reply()]
        return replies.pop(0) if len(replies) > 1 else replies[0]

    def close(self) -> None:
        self._httpd.shutdown()
        self._thread.join()
        self._httpd.server_close()


def _handler(server: HttpsServer) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 60

        def do_GET(self) -> None:  # the base class looks for this name
            server.requests.append(SeenRequest(self.path, dict(self.headers)))
            reply = server.next_reply(self.path)
            with contextlib.suppress(OSError):  # clients are killed in some tests
                self._answer(reply)
            self.close_connection = True

        def _answer(self, reply: Reply) -> None:
            content = server.files.get(self.path, b"") if reply.content is None else reply.content
            status, start = reply.status, 0
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if_range = self.headers.get("If-Range", reply.etag or reply.last_modified)
            is_same = if_range == (reply.etag or reply.last_modified)
            if status == 200 and self.path not in server.files and reply.content is None:
                status, content = 404, b"no such file"
            if status == 200 and asked and is_same and not reply.ignores_range:
                status, start = 206, int(asked[1])
                if start >= len(content):
                    status = 416
            body = content[start:] if status in (200, 206) else b"an error page"
            self.send_response(status)
            if reply.location:
                self.send_header("Location", reply.location)
            if reply.etag:
                self.send_header("ETag", reply.etag)
            if reply.last_modified:
                self.send_header("Last-Modified", reply.last_modified)
            if status == 206:
                told = start + 1 if reply.wrong_range else start
                self.send_header("Content-Range", f"bytes {told}-{len(content) - 1}/{len(content)}")
            if reply.has_length:
                self.send_header("Content-Length", str(len(body) if reply.length is None else reply.length))
            self.end_headers()
            if reply.at_byte:
                position, action = reply.at_byte
                self.wfile.write(body[:position])
                self.wfile.flush()
                action()
                body = body[position:]
            self.wfile.write(body if reply.cut_after is None else body[: reply.cut_after])

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


class ConnectProxy:
    """An HTTP proxy that knows one name, and leads it to `port` of the loopback."""

    def __init__(self, name: str, port: int) -> None:
        self.connects: list[str] = []
        self._name, self._port = name, port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            with client:
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    received = client.recv(4096)
                    if not received:
                        return  # close() says good-bye by connecting
                    head += received
                self.connects.append(head.split(b"\r\n")[0].decode())
                if f"CONNECT {self._name}:" not in self.connects[-1]:
                    client.sendall(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
                    continue
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                with socket.create_connection(("127.0.0.1", self._port)) as upstream:
                    back = threading.Thread(target=_pump, args=(upstream, client))
                    back.start()
                    _pump(client, upstream)
                    back.join()

    def close(self) -> None:
        socket.create_connection(self._listener.getsockname()).close()
        self._thread.join()
        self._listener.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def serving(authority: trustme.CA | None) -> Iterator[HttpsServer]:
    server = HttpsServer(authority)
    try:
        yield server
    finally:
        server.close()
