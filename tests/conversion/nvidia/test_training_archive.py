"""Archives that lie: refused in one line, before they fill the memory or give noise."""

import random
import zipfile
from argparse import Namespace

import pytest
import torch

from conversion.from_nvidia import convert, main
from conversion.nvidia.training_archive import MAX_DEPTH, open_archive


@pytest.fixture
def repacked(reference, tmp_path):
    """Return a function that writes a case's training file again, each record by a function of name and content."""

    def repack(write):
        source = reference / "c_radio_v4_tiny" / "checkpoint.pth.tar"
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(tmp_path / "repacked.pth.tar", "w") as new:
            for entry in old.infolist():
                write(new, entry.filename, old.read(entry))
        return tmp_path / "repacked.pth.tar"

    return repack


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compressed_archive_is_refused_and_not_read_as_noise(method, repacked, tmp_path, capsys):
    path = repacked(lambda archive, name, content: archive.writestr(name, content, method))
    assert main([str(path), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "repacked.pth.tar' must be stored without compression, as torch.save writes it, got " in error
    assert "Unpack it and pack it with `zip -0 -r`" in error
    assert not (tmp_path / "out").exists()


def test_an_archive_that_is_packed_again_without_compression_gives_the_same_weights(repacked, reference):
    packed = open_archive(repacked(lambda archive, name, content: archive.writestr(name, content)))
    original = open_archive(reference / "c_radio_v4_tiny" / "checkpoint.pth.tar")
    assert all(torch.equal(tensor, packed["state_dict"][key]) for key, tensor in original["state_dict"].items())


def test_a_bomb_of_zeros_is_refused_before_it_is_unpacked(repacked):
    def write(archive, name, content):
        with archive.open(zipfile.ZipInfo(name), "w") as record:
            record.write(content)

    path = repacked(write)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("c_radio/data/bomb", bytes(64 << 20), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 8 << 20
    with pytest.raises(ValueError, match="1 compressed records, 'c_radio/data/bomb' first"):
        open_archive(path)


def test_records_that_claim_more_than_the_file_has_are_refused(repacked):
    """As overlapping records do, of which a small file can name very many."""
    path = repacked(lambda archive, name, content: archive.writestr(name, content))
    with zipfile.ZipFile(path, "a") as archive:
        archive.filelist += archive.filelist * 3
        archive._didModify = True
    with pytest.raises(ValueError, match=r"is damaged: its records claim [0-9,]+ bytes, and it has [0-9,]+\."):
        open_archive(path)


def test_a_record_shorter_than_its_tensor_is_refused(repacked):
    """Mapped into memory, the tensor would go on into the record behind."""
    path = repacked(
        lambda archive, name, content: archive.writestr(name, content[:-4] if "/data/" in name else content)
    )
    with pytest.raises(ValueError, match="its tensors and the records that hold them differ in size"):
        open_archive(path)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value] * 9  # nine references to one list: a pickle of a few bytes, and 9 ** depth values
    return value


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("value", [nested(12), nested(MAX_DEPTH + 1)], ids=["wide", "deep"])
def test_containers_without_end_are_refused(value, zipped, tmp_path):
    path = tmp_path / "nested.pth.tar"
    torch.save({"args": Namespace(value=value)}, path, _use_new_zipfile_serialization=zipped)
    assert path.stat().st_size < 10_000
    with pytest.raises(ValueError, match=r"nested\.pth\.tar' must hold at most"):
        open_archive(path)


def test_a_container_that_holds_itself_is_refused(tmp_path):
    value = []
    value.append(value)
    torch.save({"args": Namespace(value=value)}, tmp_path / "endless.pth.tar")
    with pytest.raises(ValueError, match="must hold at most"):
        open_archive(tmp_path / "endless.pth.tar")


def test_only_our_own_errors_come_of_damaged_bytes(reference, tmp_path):
    """Bytes of the pickle and of the archive's directory, changed at random from a fixed seed."""
    source = (reference / "c_radio_v4_tiny" / "checkpoint.pth.tar").read_bytes()
    pickled, draws = source.index(b"data.pkl"), random.Random(0)
    refused = 0
    for _ in range(60):
        content = bytearray(source)
        for _ in range(draws.choice((1, 2, 5))):
            place = pickled + draws.randrange(20_000) if draws.random() < 0.8 else -1 - draws.randrange(20_000)
            content[place] = draws.randrange(256)
        (tmp_path / "damaged.pth.tar").write_bytes(content)
        try:
            convert(tmp_path / "damaged.pth.tar")
        except ValueError:
            refused += 1
    assert refused > 30
