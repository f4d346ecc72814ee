"""Archives that lie: refused in one line, before they fill the memory or give noise."""

import copy
import multiprocessing
import re
import resource
import shutil
import stat
import struct
import time
import zipfile
from argparse import Namespace

import pytest
import torch

from modeling_radio.nvidia.training_archive import MAX_DEPTH, MAX_PICKLE_BYTES, MAX_RECORDS, open_archive


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
def test_damaged_directories_are_refused_by_name(damage, reference, tmp_path):
    path = tmp_path / "damaged.pth.tar"
    path.write_bytes(damage((reference / "c_radio_v4_tiny" / "checkpoint.pth.tar").read_bytes()))
    with pytest.raises(ValueError, match=r"damaged\.pth\.tar' is damaged or no PyTorch file: ") as error:
        open_archive(path)
    assert type(error.value) is ValueError


PICKLES = {
    "four gigabytes": (
        b"c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x01\x85R.",
        r"asks for `__builtin__\.bytearray`",
    ),
    "repeated text": (
        b"c_codecs\nencode\nq\x00X"
        + struct.pack("<I", 2**20)
        + bytes(2**20)
        + b"q\x01"
        + 2**14 * b"h\x00h\x01\x85R"
        + b".",
        r"asks for `_codecs\.encode`",
    ),
    "values": (b"](" + MAX_PICKLE_BYTES * b"]" + b"e.", "must hold one data.pkl of at most 4,194,304 bytes"),
    "nothing": (b"", "must hold one data.pkl of at most 4,194,304 bytes, got .*'archive/data.pkl', 0"),
    "a lying length": (b"X\xff\xff\xff\x7fabc.", "is damaged or no PyTorch file"),
}


def open_and_measure(path, results):
    """Run in a process of its own: send the error, the seconds, and the bytes by which memory's peak grew."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        open_archive(path)
    except ValueError as error:
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        results.put((str(error), time.process_time() - start, grown * 1024))


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_that_would_fill_the_memory_is_refused_before(name, tmp_path):
    content, message = PICKLES[name]
    path = tmp_path / "bomb.pth.tar"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" * bool(content) + content)
        archive.writestr("archive/version", "3\n")
    results = multiprocessing.get_context("fork").SimpleQueue()
    process = multiprocessing.get_context("fork").Process(target=open_and_measure, args=(path, results))
    process.start()
    process.join(60)
    error, seconds, num_bytes = results.get()
    assert re.search(message, error)
    assert seconds < 2
    assert num_bytes < 64 << 20


def test_one_bit_of_a_weight_is_noticed(reference, tmp_path):
    """`torch.load` compares none of the checksums that the archive has."""
    path = tmp_path / "flipped.pth.tar"
    shutil.copy(reference / "c_radio_v4_tiny" / "checkpoint.pth.tar", path)
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        content = archive.read(largest)
    whole = path.read_bytes()
    place = whole.index(content) + len(content) // 2
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(ValueError, match=rf"flipped\.pth\.tar' is damaged: '{largest.filename}'"):
        open_archive(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_only_an_uncompressed_archive_is_read(method, repacked, reference):
    path = repacked(lambda archive, name, content: archive.writestr(name, content, method))
    if method != zipfile.ZIP_STORED:
        with pytest.raises(ValueError, match=r"repacked\.pth\.tar' must be stored without compression"):
            open_archive(path)
        return
    packed, original = open_archive(path), open_archive(reference / "c_radio_v4_tiny" / "checkpoint.pth.tar")
    assert all(torch.equal(tensor, packed["state_dict"][key]) for key, tensor in original["state_dict"].items())


def endless():
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize("value", [nested(12), nested(MAX_DEPTH + 1), endless()], ids=["wide", "deep", "in itself"])
def test_containers_without_end_are_refused(value, tmp_path):
    path = tmp_path / "nested.pth.tar"
    torch.save({"args": Namespace(value=value)}, path)
    assert path.stat().st_size < 10_000
    with pytest.raises(ValueError, match=r"nested\.pth\.tar' must hold at most"):
        open_archive(path)


def add_many(archive):
    for number in range(MAX_RECORDS):
        archive.writestr(f"checkpoint.pth/data/more{number}", b"")


def add_long_names(archive):
    for number in range(2 * MAX_RECORDS // 10):
        archive.writestr(f"checkpoint.pth/data/{number:03000}", b"")


def add_overlapping(archive):
    """Records that claim more than the file has, of which a small file can name very many."""
    for number, entry in enumerate(archive.filelist * 3):
        again = copy.copy(entry)
        again.filename += f".{number}"
        archive.filelist.append(again)
    archive._didModify = True


def add_link(archive):
    link = zipfile.ZipInfo("checkpoint.pth/data/link")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    archive.writestr(link, "/etc/passwd")


def add_again(archive):
    archive.writestr("checkpoint.pth/data/0", bytes(archive.getinfo("checkpoint.pth/data/0").file_size))


def add_second_pickle(archive):
    archive.writestr("other/data.pkl", archive.read("checkpoint.pth/data.pkl"))


ADDITIONS = {
    add_many: "records, of at most 20,000",
    add_long_names: "of more than 20,000 records",
    add_overlapping: "claim [0-9,]+ bytes",
    add_link: "without links",
    add_again: "each record once",
    add_second_pickle: r"one data\.pkl",
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("addition", ADDITIONS)
def test_records_that_torch_does_not_write_are_refused(addition, repacked):
    path = repacked(lambda archive, name, content: archive.writestr(name, content))
    with zipfile.ZipFile(path, "a") as archive:
        addition(archive)
    with pytest.raises(ValueError, match=ADDITIONS[addition]):
        open_archive(path)


def test_the_format_before_zip_is_refused_whatever_it_claims(tmp_path):
    """Its tensors' memory would be taken by what the pickle claims."""
    path = tmp_path / "old.pth.tar"
    torch.save({"state_dict": {"weight": torch.ones(777)}}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"M\x09\x03", b"\x8a\x05" + (1 << 36).to_bytes(5, "little")))
    with pytest.raises(ValueError, match=r"torch\.save writes a zip archive"):
        open_archive(path)
