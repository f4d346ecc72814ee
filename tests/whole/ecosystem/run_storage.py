"""An S3 on this machine (moto): distil and extract, by workers that die, by Daft, for Lance; publish from it.

Usage: run_storage.py FOLDER

`make consumers` runs it, with moto, s3fs, Daft, Ray and Lance from PyPI beside the environment of this repository.
"""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path


REPOSITORY = Path(__file__).parents[3]
sys.path[:0] = [str(REPOSITORY / "tests" / "support" / part) for part in ("models", "distillation", "servers")]
os.environ |= {"HF_HUB_OFFLINE": "1", "AWS_DEFAULT_REGION": "us-east-1", "OMP_NUM_THREADS": "1"}
os.environ |= {"AWS_ACCESS_KEY_ID": "anybody", "AWS_SECRET_ACCESS_KEY": "anything"}  # moto asks for some
os.environ["AWS_ALLOW_HTTP"] = "true"  # for Lance

import numpy as np  # noqa: E402
import pyarrow  # noqa: E402
import pytest  # noqa: E402
import s3fs  # noqa: E402
from moto.server import ThreadedMotoServer  # noqa: E402
from PIL import Image  # noqa: E402
from pyarrow.parquet import read_table  # noqa: E402


NUM_SHARDS, NUM_IMAGES = 8, 40
SHARDS = f"s3://bucket/shards/{{00000..{NUM_SHARDS - 1:05d}}}.tar"


def write_shards(storage: s3fs.S3FileSystem) -> None:
    """Upload shards as img2dataset writes them: .jpg, .txt and .json of each sample, and a table beside each shard."""
    rng = np.random.default_rng(0)
    for shard in range(NUM_SHARDS):
        archived = io.BytesIO()
        with tarfile.open(fileobj=archived, mode="w") as archive:
            for number in range(NUM_IMAGES):
                picture = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(picture, "jpeg")
                key = f"{shard:05d}{number:04d}"
                facts = json.dumps({"key": key, "status": "success"}).encode()
                for field, content in (("jpg", picture.getvalue()), ("txt", b"noise"), ("json", facts)):
                    member = tarfile.TarInfo(f"{key}.{field}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        storage.pipe_file(f"bucket/shards/{shard:05d}.tar", archived.getvalue())
        storage.pipe_file(f"bucket/shards/{shard:05d}.parquet", b"")


def radio(*words: str, **variables: str) -> subprocess.Popen[str]:
    """Start the command."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, *sys.path)))} | variables
    return subprocess.Popen(
        [sys.executable, "-m", "modeling_radio", *words], env=environment, text=True, stdout=subprocess.PIPE
    )


def finished(process: subprocess.Popen[str]) -> str:
    """Return what a command printed."""
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    return text


def extract(root: Path, storage: s3fs.S3FileSystem) -> None:
    """Extract by three workers, one of them killed, one late; compare with one worker and a local folder."""
    command = [
        "extract",
        str(root / "model"),
        "--data",
        SHARDS,
        "--streaming",
        "--batch-size",
        "4",
        "--num-workers",
        "0",
    ]
    finished(radio("card", str(root / "model"), "--license", "cc-by-4.0"))
    to_s3 = [*command, "--output", "s3://bucket/features"]
    killed = radio(*to_s3)
    while not storage.exists("bucket/features/data") or len(storage.ls("bucket/features/data", refresh=True)) < 1:
        assert killed.poll() is None, "it has ended"
        time.sleep(0.02)
    early = radio(*to_s3)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    late = radio(*to_s3)
    for process in (early, late, radio(*command, "--output", str(root / "alone"))):
        sys.stdout.write(finished(process))
    names = sorted(path.name for path in (root / "alone" / "data").iterdir())
    storage.invalidate_cache()
    assert sorted(path.rpartition("/")[2] for path in storage.ls("bucket/features/data")) == names
    for name in names:
        assert storage.cat_file(f"bucket/features/data/{name}") == (root / "alone" / "data" / name).read_bytes(), name
    ids = [each for name in names for each in read_table(root / "alone" / "data" / name)["id"].to_pylist()]
    assert len(set(ids)) == len(ids) == NUM_SHARDS * NUM_IMAGES
    assert not storage.exists("bucket/features/.work/claims")
    query = root / "query.png"
    Image.new("RGB", (64, 64), "red").save(query)
    found = finished(radio("search", "s3://bucket/features", str(query), "--checkpoint", str(root / "model")))
    assert "00000" in found
    sys.stdout.write("ok   extract and search\n")


def publish(storage: s3fs.S3FileSystem) -> None:
    """Publish the features from there on a Hub of this machine, which knows git-lfs."""
    from local_hub import TOKEN, local_hub

    with local_hub() as hub:
        hub.large = (".parquet",)
        asked = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        sys.stdout.write(finished(radio("publish", "s3://bucket/features", "org/features", **asked)))
        repository = hub.repositories["datasets/org/features"]
        files = repository.commits[repository.tags["v1"]]
    storage.invalidate_cache()
    names = {path.removeprefix("bucket/features/") for path in storage.find("bucket/features")}
    assert files.keys() - {".gitattributes"} == names, names
    for name in names - {"README.md"}:
        assert files[name] == storage.cat_file(f"bucket/features/{name}"), name
    assert len(hub.stored) == NUM_SHARDS
    sys.stdout.write("ok   publish\n")


def extract_on_daft(root: Path, storage: s3fs.S3FileSystem) -> None:
    """Extract by two workers of Daft, here and on Ray: the files are those of one worker."""
    for runner in ("native", "ray"):
        to_s3 = ["--data", SHARDS, "--streaming", "--batch-size", "4", "--output", f"s3://bucket/{runner}"]
        command = ["extract", str(root / "model"), *to_s3, "--engine", "daft", "--engine-workers", "2"]
        sys.stdout.write(finished(radio(*command, DAFT_RUNNER=runner, RAY_USAGE_STATS_ENABLED="0")))
        for path in sorted((root / "alone" / "data").iterdir()):
            assert storage.cat_file(f"bucket/{runner}/data/{path.name}") == path.read_bytes(), path.name
        sys.stdout.write(f"ok   extract on Daft, {runner}\n")


def extract_for_lance(root: Path, storage: s3fs.S3FileSystem) -> None:
    """Extract to a folder and to S3: Lance has the rows of the Parquet files, once."""
    import lance

    command = ["extract", str(root / "model"), "--data", SHARDS, "--streaming", "--num-workers", "0"]
    for output in (str(root / "lance"), "s3://bucket/lance"):
        for _ in range(2):
            sys.stdout.write(finished(radio(*command, "--output", output, "--format", "lance")))
        rows = lance.dataset(f"{output}/lance/train.lance")
        assert rows.version == 1, "the second command wrote rows again"
        assert rows.to_table().equals(read_table(root / "lance" / "data").replace_schema_metadata(rows.schema.metadata))
    sys.stdout.write("ok   extract for Lance\n")


def search_in_lance() -> None:
    """Search vectors on S3 by the index of Lance: it finds 95 % of the 10 nearest, and always the first."""
    import lance

    from modeling_radio.extraction.lance_data import write_lance
    from modeling_radio.extraction.nearest import nearest
    from modeling_radio.extraction.shards import Shard, write_shard
    from modeling_radio.extraction.store import Store

    store, rng, per_file = Store("s3://bucket/vectors"), np.random.default_rng(0), 3000
    directions = rng.normal(size=(24, 384))
    shards = [Shard("train", start, start + per_file, f"data/{start}.parquet") for start in range(0, 12000, per_file)]
    for shard in shards:
        noise = 0.3 * rng.normal(size=(per_file, 384))
        vectors = (rng.normal(size=(per_file, 24)) @ directions + noise).astype(np.float16)
        column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.ravel()), 384)
        write_shard(store, shard.path, [pyarrow.table({"a/summary": column})])
    queries = (rng.normal(size=(8, 24)) @ directions).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    exact = [nearest(store, shards, "a/summary", query, 10) for query in queries]
    write_lance(store, shards, ["a/summary"])
    assert [index.name for index in lance.dataset("s3://bucket/vectors/lance/train.lance").describe_indices()] == [
        "a/summary"
    ]
    shares = []
    for query, expected in zip(queries, exact, strict=True):
        found = nearest(store, shards, "a/summary", query, 10)
        assert found[0][1:] == expected[0][1:]
        np.testing.assert_allclose(found[0][0], expected[0][0], atol=1e-5)
        shares.append(len({each[1:] for each in found} & {each[1:] for each in expected}) / 10)
    assert np.mean(shares) >= 0.95
    sys.stdout.write(f"ok   search in Lance, {np.mean(shares):.3f} of the 10 nearest\n")


def distil(root: Path) -> None:
    """Distil from the shards, stop, go on: the weights are those of an undisturbed run."""
    import tiny_distillation as tiny

    with pytest.MonkeyPatch.context() as patch:
        tiny.install_tiny_world(patch)
        recipe = root / "recipe.yaml"
        recipe.write_text(tiny.RECIPE)
        streamed = ["data={num_images: null, streaming: true, shuffle_buffer: 6, num_workers: 0}"]
        for source in (SHARDS, "s3://bucket/shards"):
            name = str(root / ("whole" if source == SHARDS else "folder"))
            tiny.distil(str(recipe), name, *streamed, f"data.source='{source}'")
        tiny.distil(str(recipe), str(root / "parts"), *streamed, f"data.source='{SHARDS}'", stop_at=5)
        tiny.distil(str(recipe), str(root / "parts"), *streamed, f"data.source='{SHARDS}'")
        tiny.assert_same_tensors(tiny.last_state(str(root / "whole")), tiny.last_state(str(root / "parts")))
        tiny.assert_same_tensors(tiny.last_state(str(root / "whole")), tiny.last_state(str(root / "folder")))
    sys.stdout.write("ok   distil\n")


if __name__ == "__main__":
    root = Path(sys.argv[1]).resolve()
    root.mkdir(parents=True)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    os.environ["AWS_ENDPOINT_URL"] = "http://{}:{}".format(*server.get_host_and_port())
    storage = s3fs.S3FileSystem()
    storage.mkdir("bucket")
    from tiny_folders import save_radio

    save_radio(root / "model")
    write_shards(storage)
    extract(root, storage)
    publish(storage)
    extract_on_daft(root, storage)
    extract_for_lance(root, storage)
    search_in_lance()
    distil(root)
    server.stop()
