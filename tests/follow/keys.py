"""Keys that are pressed on an X11 window as on a keyboard, by the XTEST extension."""

from xdnd import find_window
from Xlib import XK, X, display
from Xlib.ext import xtest


def press_control_and(letter: str, display_name: str, title: str) -> None:
    """Press Ctrl and a letter on the window whose title contains `title`. Raises LookupError where there is none."""
    d = display.Display(display_name)
    try:
        window = find_window(d, d.screen().root, title)
        if window is None:
            raise LookupError(f"no window on {display_name} is called {title!r}")
        # There is no window manager that would give it the keyboard.
        window.set_input_focus(X.RevertToParent, X.CurrentTime)
        keys = [d.keysym_to_keycode(XK.string_to_keysym(name)) for name in ("Control_L", letter)]
        for kind, key in [(X.KeyPress, key) for key in keys] + [(X.KeyRelease, key) for key in reversed(keys)]:
            xtest.fake_input(d, kind, key)
            d.sync()
    finally:
        d.close()
