"""What `datasets` raises, as one line."""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Generator


@contextlib.contextmanager
def in_one_line(complaint: str) -> Generator[None]:
    """Turn what `datasets` raises, with its cause, into one line.

    Args:
        complaint: What cannot be done, such as "`data` 'shards' cannot be opened".

    Raises:
        ValueError: If `datasets`, the file system or an archive raised something.
    """
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (ValueError, OSError, OverflowError, tarfile.TarError, DatasetsError) as error:
        reasons = [str(error), *([str(error.__cause__)] if error.__cause__ else [])]
        text = " ".join(": ".join(reason for reason in reasons if reason).split()) or type(error).__name__
        raise ValueError(f"{complaint}: {text.rstrip('.')}.") from error
