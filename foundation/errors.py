"""The error that a command answers in one line, where no built-in one fits."""


class UserError(Exception):
    """Something that the user can mend; the message is one line that says how."""
