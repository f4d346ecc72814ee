"""Rows equal to the model's outputs, for any number of ranks and kills; and folders that are refused."""

import multiprocessing
import os
import shutil
import subprocess
import time

import numpy as np
import pytest
import torch
from datasets import load_dataset
from killing import is_killed
from safetensors.numpy import load_file
from two_forks import run_two_forks

from modeling_radio.evaluation.features import Wanted, encode_each
from modeling_radio.evaluation.models.radio import RadioFeatures
from modeling_radio.extraction import claims, run
from modeling_radio.extraction.claims import WORK, WORKERS, Claims
from modeling_radio.extraction.columns import Storage, restored
from modeling_radio.extraction.shards import MANIFEST, SUMS, begin
from modeling_radio.extraction.store import Store


NUM_IMAGES = 23


def rows_of(folder):
    """All rows by their names, each once."""
    rows = [row for part in load_dataset(str(folder)).values() for row in part]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


def answers(settings):
    """What the model says of each image, by its name."""
    model, extraction = RadioFeatures.open(settings.checkpoint), run.open_extraction(settings)
    split = extraction.splits["train"]
    pixels = [model.preprocess(split.images[number]) for number in range(len(split))]
    wanted = Wanted(dense=True, adaptors=frozenset(model.adaptor_names))
    return dict(zip(split.ids(), encode_each(model, pixels, wanted), strict=True))


def same_files(one, two):
    names = sorted(path.name for path in (one / "data").iterdir())
    assert names == sorted(path.name for path in (two / "data").iterdir())
    return all((one / "data" / name).read_bytes() == (two / "data" / name).read_bytes() for name in names)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 1e-3), ("int8", 4e-3)])
def test_rows_equal_what_the_model_says(extract, settings, tmp_path, dtype, tolerance):
    written = extract(dense=True, adaptors=["all"], vector_dtype=dtype)
    assert (written.num_rows, written.num_files, written.num_new) == (NUM_IMAGES, 5, NUM_IMAGES)
    rows, expected = rows_of(tmp_path / "out"), answers(settings())
    assert rows.keys() == expected.keys()
    grids = set()
    for name, row in rows.items():
        assert row["label"] == (0 if name.startswith("cat/") else 1)
        for column, tensor in expected[name].items():
            if column.endswith("grids"):
                continue
            stored = np.asarray(row[column])
            if column.endswith("features") and "mean" not in column:
                grid = row[column.replace("features", "grid")]
                assert grid == expected[name][column.replace("features", "grids")].tolist()
                assert stored.ndim == 1
                stored = stored.reshape(-1, tensor.shape[-1])
                grids.add(tuple(grid))
            scales = np.asarray(row[f"{column}_scale"]) if dtype == "int8" else None
            found = torch.from_numpy(restored(stored, scales))
            largest = tensor.abs().amax(-1, keepdim=True)
            assert ((found - tensor).abs() <= tolerance * largest).all(), column
    assert len(grids) == 3
    assert "teacher-b/summary" not in row


def test_two_kills_change_nothing(extract, settings, tmp_path):
    extract(output=tmp_path / "undisturbed", dense=True)
    finished = lambda: len(list((tmp_path / "out" / "data").glob("*.parquet")))  # noqa: E731
    is_writing = lambda: any((tmp_path / "out" / "data").glob(".partial-*"))  # noqa: E731
    for count in (1, 3):
        assert is_killed(lambda: extract(dense=True), lambda n=count: finished() >= n and is_writing())
        assert count <= finished() < 5
    assert is_writing()  # when it was killed
    missing = NUM_IMAGES - 5 * finished()
    assert extract(dense=True).num_new == missing
    assert same_files(tmp_path / "out", tmp_path / "undisturbed")
    assert not list((tmp_path / "out" / "data").glob(".partial-*"))
    assert len(rows_of(tmp_path / "out")) == NUM_IMAGES
    assert extract(dense=True).num_new == 0


def test_two_processes_write_the_same_and_share_the_work(extract, tmp_path):
    extract(output=tmp_path / "alone", dense=True, pca=3)

    def work():
        written = extract(dense=True, pca=3)
        assert written.num_new == NUM_IMAGES  # of both
        assert written.role == "completed"  # by the first rank
        (tmp_path / f"{torch.distributed.get_rank()}").touch()

    run_two_forks(work, tmp_path)
    assert same_files(tmp_path / "out", tmp_path / "alone")
    assert (tmp_path / "0").exists()
    assert (tmp_path / "1").exists()
    assert not (tmp_path / "out" / WORK).exists()


def test_a_worker_that_comes_late_and_one_that_dies_repeat_nothing(extract, tmp_path, monkeypatch):
    """Three commands without a meeting: the first is killed while it writes, the last begins among the others."""
    extract(output=tmp_path / "alone", dense=True)
    finished = lambda: len(list((tmp_path / "out" / "data").glob("*.parquet")))  # noqa: E731
    reduce = Storage.reduce

    def noted(*arguments):
        with (tmp_path / "encoded").open("a") as file:
            file.write("x")
        return reduce(*arguments)

    monkeypatch.setattr(Storage, "reduce", noted)
    monkeypatch.setattr(claims, "WAIT_S", 0.02)
    encoded = lambda: len((tmp_path / "encoded").read_text())  # noqa: E731
    assert is_killed(lambda: extract(dense=True), lambda: finished() >= 1 and encoded() > 5 * finished())
    assert list((tmp_path / "out" / WORK / "claims").iterdir())
    lost = encoded() - 5 * finished()  # of the file that was not written
    assert lost > 0
    fork = multiprocessing.get_context("fork")
    others = [fork.Process(target=lambda: extract(dense=True)) for _ in range(2)]
    for process in others:
        process.start()
        while finished() < 2:
            time.sleep(0.001)
    for process in others:
        process.join(60)
    assert [process.exitcode for process in others] == [0, 0]
    assert same_files(tmp_path / "out", tmp_path / "alone")
    assert encoded() == NUM_IMAGES + lost
    assert not (tmp_path / "out" / WORK).exists()


def test_other_settings_images_and_weights_are_refused(extract, pictures, checkpoint, tmp_path):
    copy = shutil.copytree(pictures, tmp_path / "pets")
    extract(data=str(copy))
    before = (tmp_path / "out" / MANIFEST).read_bytes()

    def refused(name, **values):
        with pytest.raises(ValueError, match=rf"`output` .*\({name}: \w+ -> \w+\)"):
            extract(data=str(copy), **values)

    refused(r"settings\.vector_dtype", vector_dtype="float16")
    refused(r"settings\.shard_images", shard_images=6)
    other = shutil.copytree(checkpoint, tmp_path / "model")
    model = RadioFeatures.open(other).model
    model.radio_model.blocks[0].attn.qkv.weight.data *= 2
    model.save_pretrained(other)
    refused(r"model\.weights and processor", checkpoint=other)
    os.utime(copy / "cat" / "01.png", (1, 1))
    refused(r"images\.train\.state")
    (copy / "cat" / "01.png").unlink()
    with pytest.raises(ValueError, match=r"images\.train\.number: 23 -> 22"):
        extract(data=str(copy))
    assert (tmp_path / "out" / MANIFEST).read_bytes() == before


def test_principal_components_come_back_and_pooled_features_are_means(extract, tmp_path):
    rows, errors = {}, []
    for name, values in {"out": {}, "all": {"pca": 16}, "some": {"pca": 4}, "pooled": {"pool": 2}}.items():
        extract(dense=True, output=tmp_path / name, **values)
        rows[name] = rows_of(tmp_path / name)
    for name, width in (("all", 16), ("some", 4)):
        basis = load_file(tmp_path / name / "pca.safetensors")
        difference = 0.0
        for image, row in rows[name].items():
            tokens = np.asarray(row["features"]).reshape(-1, width)
            back = tokens @ basis["features/components"] + basis["features/mean"]
            difference = max(difference, np.abs(back.ravel() - np.asarray(rows["out"][image]["features"])).max())
        errors.append(difference)
    assert errors[0] < 1e-5 < errors[1]
    for image, row in rows["pooled"].items():
        grid = rows["out"][image]["grid"]
        assert row["grid"] == [(side + 1) // 2 for side in grid]
        tokens = np.asarray(rows["out"][image]["features"]).reshape(*grid, -1)
        first = np.asarray(row["features"]).reshape(*row["grid"], -1)[0, 0]
        np.testing.assert_allclose(first, tokens[:2, :2].mean((0, 1)), atol=1e-6)


def test_broken_images_are_named_and_what_is_done_stays(extract, pictures, tmp_path):
    copy = shutil.copytree(pictures, tmp_path / "pets")
    content = (copy / "dog" / "20.png").read_bytes()
    (copy / "dog" / "20.png").write_bytes(content[:300])
    with pytest.raises(ValueError, match=r"dog/20\.png"):
        extract(data=str(copy))
    assert len(list((tmp_path / "out" / "data").glob("*.parquet"))) == 4


def test_the_output_is_no_part_of_the_data(extract, pictures, tmp_path):
    copy = shutil.copytree(pictures, tmp_path / "pets")
    with pytest.raises(ValueError, match="`output`"):
        extract(data=str(copy), output=copy / "features")
    assert not (copy / "features").exists()


def test_a_changed_file_is_refused_by_its_checksum(extract, tmp_path):
    extract()
    found = subprocess.run(["sha256sum", "--check", SUMS], cwd=tmp_path / "out", capture_output=True, text=True)
    assert (found.returncode, found.stdout.count(": OK")) == (0, 6)  # with the manifest
    assert [path.name for path in (tmp_path / "out").glob(f"{SUMS}*")] == [SUMS]
    shutil.copytree(tmp_path / "out", tmp_path / "undisturbed")
    path = tmp_path / "out" / "data" / "train-00001-of-00005.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"train-00001-of-00005\.parquet' .*SHA256SUMS"):
        extract()
    path.unlink()
    assert extract().num_new == 5
    assert same_files(tmp_path / "out", tmp_path / "undisturbed")


def test_what_a_worker_left_that_was_killed_after_the_end_goes(extract, tmp_path):
    extract()
    store, no_process = Store(tmp_path / "out"), 2**30
    dead = f"{Claims(store)._machine}.{no_process}.abc"
    store.write(f"{WORKERS}/{dead}", b"0")
    assert extract().role == "found"
    assert not (tmp_path / "out" / WORK).exists()


def test_another_extraction_is_refused_while_workers_begin(extract, settings, tmp_path):
    """Without rows a folder is begun anew, but not beneath a worker that has read the manifest."""
    given = settings()
    worker = Claims(Store(given.output))
    with worker.at_work():
        begin(worker.store, run.open_extraction(given).facts())
        with pytest.raises(ValueError, match=r"`output` .*settings\.vector_dtype"):
            extract(vector_dtype="float16")
    assert extract(vector_dtype="float16").role == "completed"
