"""The one error type that reaches a person."""


class UserError(Exception):
    """Something that a person can act on.

    The message is one line: what happened, with which value, what was done, what to do next.
    Every entry point prints it as it is and exits with 1; nothing prints a traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def describe(error: BaseException) -> str:
    """One line on `error` for a person: a UserError's own, anything else as a fault of ours."""
    if isinstance(error, UserError):
        return str(error)
    text = " ".join(str(error).split())[:300]
    return f"internal error, {type(error).__name__}: {text}; please report it"


def first_line(error: BaseException) -> str:
    """What `error` says, without what a library adds below."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
