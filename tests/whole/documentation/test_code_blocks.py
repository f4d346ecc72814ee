"""Every Python block on opening and using models runs, alone, on tiny random models and a Hub of our own.

Blocks that don't import this repository's packages run as a stranger's do, without them; the others with them.
"""

import io
import re
import shutil
import signal
import sys

import pytest
from documentation import NVIDIA_NAME, ROOT, Block, blocks, first_minute
from folders import OURS


PAGES = (
    "README.md",
    *(
        f"docs/how-to/{name}.md"
        for name in (
            "builtin",
            "open",
            "variants",
            "task_models",
            "texts",
            "sam3",
            "libraries",
            "tools",
            "batches",
            "python",
            "use",
            "own_loop",
            "faster",
            "onnx",
            "convert",
            "questions",
        )
    ),
)
ABSENT = ("daft", "fiftyone", "label_studio_ml", "pyspark", "ray")
"""Packages that are not installed here; `make consumers` runs the blocks for all but Label Studio."""
BLOCKS = [
    block
    for block in blocks("python", "py")
    if block.page in PAGES and not re.search(rf"^(from|import) ({'|'.join(ABSENT)})\b", block.text, re.MULTILINE)
]

OTHER_FOLDERS = {"docs/how-to/convert.md": "with-nvidia-outputs"}
"""Pages whose code runs in another folder of the world."""

PRELUDE = """
import sys
from huggingface_hub import constants

constants.HF_HUB_OFFLINE, constants.ENDPOINT = False, {endpoint!r}
constants.HUGGINGFACE_CO_URL_TEMPLATE = constants.ENDPOINT + "/{{repo_id}}/resolve/{{revision}}/{{filename}}"
for name in {ours!r}:
    del sys.modules[name]
sys.path[:0] = {paths!r}
"""


def program(block: Block, endpoint: str) -> str:
    """Return what runs a block, with this repository's packages where it imports them."""
    is_ours = re.search(rf"^(from|import) ({'|'.join(OURS)})\b", block.text, re.MULTILINE) is not None
    prelude = PRELUDE.format(endpoint=endpoint, ours=OURS if is_ours else (), paths=[str(ROOT)] if is_ours else [])
    return prelude + block.text


def is_first_contact(block: Block) -> bool:
    """Return whether a block is one of README's, or opens a model of NVIDIA's."""
    return block.page == "README.md" or NVIDIA_NAME.search(block.text) is not None


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=block.place, marks=() if is_first_contact(block) else pytest.mark.tour)
        for block in BLOCKS
    ],
)
def test_blocks_run(block, world, elsewhere):
    folder = world.folder / OTHER_FOLDERS.get(block.page, "")
    done = elsewhere.run(program(block, world.hub.endpoint), folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert world.hub.unknown == []


def test_the_first_minute_runs_offline(world, elsewhere):
    done = elsewhere.run(program(first_minute(), "http://127.0.0.1:9"), world.folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_contributors_step_through_training(monkeypatch, capsys, one_thread):
    (block,) = [block for block in blocks("python") if block.page == "CONTRIBUTING.md"]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "stdin", io.StringIO("tbreak Distiller.train_step\nc\nwhere\nc\n"))
    names = {}
    handler = signal.getsignal(signal.SIGINT)
    exec(compile(block.text, block.place, "exec"), names)
    signal.signal(signal.SIGINT, handler)  # the debugger leaves its own, which writes to this test's output
    assert "trainer.py" in capsys.readouterr().out.partition("train_step()")[0].splitlines()[-1]  # it stopped there
    assert [path.name for path in (names["folder"] / "run" / "checkpoints").iterdir()] == ["step_00000001"]
    shutil.rmtree(names["folder"])


def block_with(text):
    [block] = [block for block in blocks("python") if block.page == "docs/how-to/tools.md" and text in block.text]
    return block.text


LABEL_STUDIO = """
import sys, types

class LabelStudioMLBase:  # the three methods of label_studio_ml.model's that the block calls
    def get_first_tag_occurence(self, control_type, object_type):
        return "choice", "image", "photo"

    def get_local_path(self, url, task_id=None):
        return url

for name in ("label_studio_ml", "label_studio_ml.model"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["label_studio_ml.model"].LabelStudioMLBase = LabelStudioMLBase
"""
PREDICTED = """
[found] = NewModel().predict([{"id": 7, "data": {"photo": "photo.jpg"}}])
[result] = found["result"]
assert (result["from_name"], result["to_name"], result["type"]) == ("choice", "image", "choices")
assert result["value"]["choices"][0] in classify.model.config.label2id
assert 0 < found["score"] <= 1
"""
PAINTED = """
node = NODE_CLASS_MAPPINGS["RADIO features"]
folder = node.INPUT_TYPES()["required"]["folder"][1]["default"]
[picture] = getattr(node(), node.FUNCTION)(torch.rand(2, 70, 100, 3), folder)
assert picture.shape[0] == 2 and picture.shape[3] == 3
assert picture.amin() == 0 and picture.amax() == 1
"""


@pytest.mark.tour
@pytest.mark.parametrize(
    ("text", "before", "after"), [("LabelStudioMLBase", LABEL_STUDIO, PREDICTED), ("NODE_CLASS_MAPPINGS", "", PAINTED)]
)
def test_code_that_another_program_calls(world, elsewhere, text, before, after):
    code = before + block_with(text) + after
    done = elsewhere.run(program(Block("docs/how-to/tools.md", 1, "python", code), world.hub.endpoint), world.folder)
    assert done.returncode == 0, done.stderr[-3000:]
