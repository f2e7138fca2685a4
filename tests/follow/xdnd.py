"""Drop files onto an X11 window as a file manager does (XDND version 5).

usage: xdnd.py WINDOW_TITLE FILE...        (needs python-xlib and DISPLAY)
exit:  0 the window took the drop, 1 it did not within 20 s, 2 no such window
"""

import sys
import time
from pathlib import Path
from urllib.parse import quote

from Xlib import X, display, protocol

XDND_VERSION = 5
TIMEOUT_S = 20


def find_window(d, window, title):
    """The first window below `window` that accepts drops and whose title contains `title`."""
    try:
        name = window.get_full_text_property(d.intern_atom("_NET_WM_NAME")) or window.get_wm_name()
        aware = window.get_full_property(d.intern_atom("XdndAware"), X.AnyPropertyType)
        if name and title in str(name) and aware:
            return window
        children = window.query_tree().children
    except Exception:  # a window may vanish while we look at it
        return None
    return next((w for w in (find_window(d, child, title) for child in children) if w), None)


def drop(title, files):
    d = display.Display()
    root = d.screen().root
    target = find_window(d, root, title)
    if target is None:
        return 2
    selection, uri_list = d.intern_atom("XdndSelection"), d.intern_atom("text/uri-list")
    source = root.create_window(0, 0, 1, 1, 0, d.screen().root_depth)
    source.set_selection_owner(selection, X.CurrentTime)

    def send(message, data):
        event = protocol.event.ClientMessage(window=target, client_type=d.intern_atom(message), data=(32, data))
        target.send_event(event, event_mask=0)
        d.flush()

    size, offset = target.get_geometry(), target.translate_coords(root, 0, 0)
    x, y = size.width // 2 - offset.x, size.height // 2 - offset.y
    send("XdndEnter", [source.id, XDND_VERSION << 24, uri_list, 0, 0])
    send("XdndPosition", [source.id, 0, (x << 16) | y, X.CurrentTime, d.intern_atom("XdndActionCopy")])

    payload = "".join(f"file://{quote(str(Path(f).absolute()))}\r\n" for f in files).encode()
    dropped, deadline = False, time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        while d.pending_events():
            event = d.next_event()
            if event.type == X.SelectionRequest:  # the target asks for the file list
                event.requestor.change_property(event.property, uri_list, 8, payload)
                answer = protocol.event.SelectionNotify(
                    time=event.time,
                    requestor=event.requestor,
                    selection=event.selection,
                    target=event.target,
                    property=event.property,
                )
                event.requestor.send_event(answer)
                d.flush()
            elif event.type == X.ClientMessage:
                name = d.get_atom_name(event.client_type)
                if name == "XdndStatus" and not dropped:
                    dropped = True
                    send("XdndDrop", [source.id, 0, X.CurrentTime, 0, 0])
                elif name == "XdndFinished":
                    return 0
        time.sleep(0.01)
    return 1


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(drop(sys.argv[1], sys.argv[2:]))
