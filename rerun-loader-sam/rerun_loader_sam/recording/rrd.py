"""Several RRD streams as one.

Each `BinaryStream.read()` returns a whole stream: header, messages, end, and from 0.33 or so a footer that lists
the messages. Viewers read such streams one after the other; readers of files do not. So what is sent keeps the
first header and all messages. It ends where the pipe ends: at an end mark a viewer hangs up, and we would take
that for its being closed. The framing (`RRF2`) has been the same since 0.23:
https://github.com/rerun-io/rerun/tree/main/crates/store/re_log_encoding
"""

import struct

_MAGIC = b"RRF2"
_HEADER_BYTES = 12
_MESSAGE_HEAD = struct.Struct("<QQ")  # kind, length of what follows
_END = 0
_LARGEST_KIND = 15


class RrdJoiner:
    """Joins streams of one SDK. A framing that it does not know is passed on as it is."""

    def __init__(self) -> None:
        self._has_begun = False

    def add(self, stream: bytes) -> bytes:
        """What of a whole `stream` continues those before it."""
        end = _end_of_messages(stream)
        if end is None:
            return stream
        start = _HEADER_BYTES if self._has_begun else 0
        self._has_begun = True
        return stream[start:end]


def _end_of_messages(stream: bytes) -> int | None:
    """Where the last message of `stream` ends, or None where the framing is not understood."""
    if not stream.startswith(_MAGIC):
        return None
    position = _HEADER_BYTES
    while position + _MESSAGE_HEAD.size <= len(stream):
        kind, length = _MESSAGE_HEAD.unpack_from(stream, position)
        if kind == _END:
            return position
        position += _MESSAGE_HEAD.size + length
        if kind > _LARGEST_KIND:
            return None
    return position if position == len(stream) else None
