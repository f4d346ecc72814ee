"""Every Python block on opening and using models runs, alone, on tiny random models and a Hub of our own.

Blocks that don't import this repository's packages run as a stranger's do, without them; the others with them.
"""

import re

import pytest
from documentation import ROOT, Block, blocks
from elsewhere import OURS


PAGES = (
    "README.md",
    *(
        f"docs/how-to/{name}.md"
        for name in (
            "open",
            "variants",
            "task_models",
            "texts",
            "libraries",
            "python",
            "faster",
            "onnx",
            "convert",
            "questions",
        )
    ),
)
BLOCKS = [block for block in blocks("python", "py") if block.page in PAGES]

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


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=block.place, marks=() if block.page == "README.md" else pytest.mark.tour)
        for block in BLOCKS
    ],
)
def test_blocks_run(block, world, elsewhere):
    folder = world.folder / OTHER_FOLDERS.get(block.page, "")
    done = elsewhere.run(program(block, world.hub.endpoint), folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert world.hub.unknown == []


def test_a_block_that_fails_is_told(world, elsewhere):
    for text, error in (("import modeling_radio.nothing", "nothing"), ("nothing()", "NameError")):
        done = elsewhere.run(program(Block("README.md", 1, "python", text), world.hub.endpoint), world.folder)
        assert done.returncode == 1
        assert error in done.stderr
