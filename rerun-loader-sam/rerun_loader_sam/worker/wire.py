"""Frames on the worker's socket: a JSON object each, and bytes that may follow it.

A frame is the magic bytes, the length of the JSON text (4 bytes), the number of bytes after it (8 bytes), the
text, the bytes; lengths are big-endian. This layout stays as it is, so that workers and loaders of different
versions understand each other enough to part. Keys that are not known are passed over.

Standard library only, and little of it: the loader's start imports this.
"""

import json
import os
import socket
import sys

MAGIC = b"RSW1"
PREFIX_BYTES = 16
MAX_HEADER_BYTES = 1 << 20
_MAX_PAYLOAD_BYTES = 1 << 40


class WireError(Exception):
    """What came is no frame, or what is to be sent would be none."""


def encode_header(header: dict[str, object], payload_bytes: int = 0) -> bytes:
    """The frame up to its payload. Raises WireError where it is too long."""
    text = json.dumps(header).encode("ascii")
    if len(text) > MAX_HEADER_BYTES:
        raise WireError(f"a header of {len(text)} bytes")
    return MAGIC + len(text).to_bytes(4, "big") + payload_bytes.to_bytes(8, "big") + text


def parse_prefix(prefix: bytes) -> tuple[int, int]:
    """The lengths of header and payload that a frame's first PREFIX_BYTES tell. Raises WireError."""
    header_bytes, payload_bytes = int.from_bytes(prefix[4:8], "big"), int.from_bytes(prefix[8:16], "big")
    if prefix[:4] != MAGIC or header_bytes > MAX_HEADER_BYTES or payload_bytes > _MAX_PAYLOAD_BYTES:
        raise WireError("this is no frame")
    return header_bytes, payload_bytes


def parse_header(text: bytes) -> dict[str, object]:
    """The JSON object of a frame. Raises WireError."""
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WireError(f"the header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise WireError("the header is no JSON object")
    return header


def is_of_this_user(sock: socket.socket) -> bool:
    """Whether the process at the other end belongs to this user, as the kernel tells."""
    if sys.platform == "linux":
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)  # pid, uid, gid
        uid = int.from_bytes(credentials[4:8], sys.byteorder)
    else:
        # LOCAL_PEERCRED of macOS and the BSDs: struct xucred, a version and then the user id.
        credentials = sock.getsockopt(0, 1, 76)
        uid = int.from_bytes(credentials[4:8], sys.byteorder)
    return uid == os.getuid()
