"""The error that a command shows as one line, and the secrets that no message may show."""

import errno
import re
from collections.abc import Sequence
from typing import Any


SECRET = re.compile(
    r"(\w://)[^/\s@'\"]*:[^/\s@'\"]+(?=@)"
    r"|([?&](?:[\w-]*(?:signature|token|secret|password|credential|api_?key)|sig)=)[^&\s'\"]+"
    r"|\bhf_[A-Za-z0-9]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY-----",
    re.IGNORECASE,
)
"""Matches a password, signature or token in an address with the text before it, a token of the Hub, a private key."""
KILLED_WORKER = re.compile(r"DataLoader worker \(pid.*\) (is killed|exited unexpectedly)")
"""Matches torch's error after a data worker was killed. A signal handler raises it, so it can come from any line."""
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the system's errors where a file finds no space: on the disk, in the user's share, below a limit."""


class UserError(Exception):
    """Something that the user can mend, where no built-in error fits; the message is one line that says how."""


def without_secrets(text: str) -> str:
    """Return a text with `...` in place of each `SECRET`."""
    return SECRET.sub(lambda found: f"{found[1] or found[2] or ''}...", text)


def system_error(error: BaseException | None) -> OSError | None:
    """Return the system's error among an error and its causes: `torch.save` and `datasets` raise some of their own."""
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            return error
        error = error.__cause__ or error.__context__
    return None


def first_few(items: Sequence[Any], most: int) -> str:
    """Return the first items in words, with `...` where there are more than `most`."""
    return ", ".join(map(str, items[:most])) + (", ..." if len(items) > most else "")
