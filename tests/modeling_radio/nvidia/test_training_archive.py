"""Archives that are damaged or of other kinds: refused in one line that names the file."""

import shutil
import zipfile

import pytest
import torch

from modeling_radio.nvidia.training_archive import open_archive


CASE = "c_radio_v4_tiny"


@pytest.fixture
def training_path(reference):
    return reference / CASE / "checkpoint.pth.tar"


def encrypted(content):
    """The flag of encryption, in the pickle's entry of the directory."""
    place = content.index(b"PK\x01\x02") + 8
    return content[:place] + b"\x01" + content[place + 1 :]


def misspelt(content):
    """A name that is no UTF-8 and says that it is."""
    place = content.index(b"PK\x01\x02")
    return content[: place + 9] + b"\x08" + content[place + 10 : place + 46] + b"\xff" + content[place + 47 :]


def of_several_disks(content):
    """A locator of the directory's end that says so, as `zipfile` reads it while it only looks for an archive."""
    return content[:-22] + b"PK\x06\x07" + bytes(12) + (2).to_bytes(4, "little") + content[-22:]


@pytest.mark.parametrize("damage", [encrypted, misspelt, of_several_disks])
def test_damaged_directories_are_refused_by_name(damage, training_path, tmp_path):
    path = tmp_path / "damaged.pth.tar"
    path.write_bytes(damage(training_path.read_bytes()))
    with pytest.raises(ValueError, match=r"damaged\.pth\.tar' is damaged or no PyTorch file: ") as error:
        open_archive(path)
    assert type(error.value) is ValueError


def test_one_bit_of_a_weight_is_noticed(training_path, tmp_path):
    """`torch.load` compares none of the checksums that the archive has."""
    path = tmp_path / "flipped.pth.tar"
    shutil.copy(training_path, path)
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        content = archive.read(largest)
    whole = path.read_bytes()
    place = whole.index(content) + len(content) // 2
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(ValueError, match=rf"flipped\.pth\.tar' is damaged .*'{largest.filename}'"):
        open_archive(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_only_an_uncompressed_archive_is_read(method, training_path, tmp_path):
    """A compressed one, mapped into memory as it is, would give noise."""
    path = tmp_path / "repacked.pth.tar"
    with zipfile.ZipFile(training_path) as old, zipfile.ZipFile(path, "w", method) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    if method != zipfile.ZIP_STORED:
        with pytest.raises(ValueError, match=r"repacked\.pth\.tar' .* records are compressed"):
            open_archive(path)
        return
    packed, original = open_archive(path), open_archive(training_path)
    assert all(torch.equal(tensor, packed["state_dict"][key]) for key, tensor in original["state_dict"].items())


def test_the_format_before_zip_is_refused(tmp_path):
    path = tmp_path / "old.pth.tar"
    torch.save({"state_dict": {"weight": torch.ones(777)}}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"old\.pth\.tar' is damaged or no PyTorch file: .* save it with torch\.save"):
        open_archive(path)
