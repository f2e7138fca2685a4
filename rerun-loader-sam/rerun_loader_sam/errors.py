"""The one error type that reaches a person."""


class UserError(Exception):
    """Something that a person can act on.

    The message is one line: what happened, with which value, what was done, what to do next.
    Every entry point prints it as it is and exits with 1; nothing prints a traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
