"""The one error type that is meant for people."""


class UserError(Exception):
    """Something the user can put right: its message is one line that says what, where and what to do.

    Commands print the message without a traceback and end with exit code 2.
    """
