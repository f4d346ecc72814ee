"""What `datasets` raises becomes one line, whatever it says."""

import re
import tarfile

import pytest

from training.data.sources import in_one_line


@pytest.mark.parametrize(
    ("raised", "cause", "line"),
    [
        (ValueError("no such\n  split."), None, "it cannot be opened: no such split."),
        (OSError("it failed"), KeyError("jpg"), "it cannot be opened: it failed: 'jpg'."),
        (tarfile.ReadError(), None, "it cannot be opened: ReadError."),
    ],
)
def test_one_line_says_what_failed_and_why(raised, cause, line):
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"), in_one_line("it cannot be opened"):
        raise raised from cause


def test_a_fault_of_ours_is_none_of_the_source():
    with pytest.raises(KeyError), in_one_line("it cannot be opened"):
        raise KeyError("column")
