import pytest

from core.packages import Package, read_packages


ENTRY = """
thing:
  ecosystem: pypi
  version: "1.0"
  sha256: "a000000000000000000000000000000000000000000000000000000000000000"
  archive_bytes: 1_000
  unpacked_bytes: 2_000
  license: MIT
  purpose: tests
  keep: ["*.png"]
"""


def test_pinned_packages_are_read_with_their_types(tmp_path):
    path = tmp_path / "packages.yaml"
    path.write_text(ENTRY)
    assert read_packages(path) == {
        "thing": Package("pypi", "thing", "1.0", "a" + "0" * 63, 1000, 2000, "MIT", "tests", ("*.png",))
    }


@pytest.mark.parametrize(
    ("before", "after", "field"),
    [
        ('version: "1.0"', "version: 1.0", "version"),
        ("license: MIT", "licence: MIT", "licence"),
        ("ecosystem: pypi", "ecosystem: conda", "ecosystem"),
        ('keep: ["*.png"]', 'keep: "*.png"', "keep"),
        ("archive_bytes: 1_000", "archive_bytes: 1 kB", "archive_bytes"),
        ('"a000', '"A000', "sha256"),
        ('"a000', '"a00', "sha256"),
        ("  sha256: ", "  md5: ", "sha256"),
    ],
)
def test_wrong_fields_of_pinned_packages_are_refused(tmp_path, before, after, field):
    assert before in ENTRY
    path = tmp_path / "packages.yaml"
    path.write_text(ENTRY.replace(before, after))
    with pytest.raises(ValueError, match=field):
        read_packages(path)
