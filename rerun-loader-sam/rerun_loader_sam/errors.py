"""The one error type that reaches a person."""


class UserError(Exception):
    """Something that a person can act on.

    The message is one line: what happened, with which value, what was done, what to do next.
    Every entry point prints it as it is and exits with 1; nothing prints a traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


# What Python, torch on a CPU, and torch on other devices say; each a RuntimeError.
_SHORTAGES = ("can't start new thread", "can't allocate memory", "out of memory")


def describe(error: BaseException) -> str:
    """One line on `error` for a person: a UserError's own, a shortage of memory as such, else as a fault of ours."""
    if isinstance(error, UserError):
        return str(error)
    text = " ".join(str(error).split())[:300]
    if isinstance(error, MemoryError) or any(shortage in text for shortage in _SHORTAGES):
        return (
            f"this machine is short of memory or of threads ({text or type(error).__name__}); "
            "stopped here; close something, or take a smaller model, and try again"
        )
    return f"internal error, {type(error).__name__}: {text}; please report it"


def first_line(error: BaseException) -> str:
    """What `error` says, without what a library adds below."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
