"""Folders of models and adapters with anything in their JSON files: opened, or refused as commands end in one line.

What is opened is asked too. No file outside is followed and nothing is fetched: the suite is offline.
"""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import changed
from PIL import Image
from task_models import tiny_config
from tiny_folders import save_radio, save_words

from modeling_radio import RadioForImageClassification, RadioImageProcessor
from modeling_radio.core.command_line import USER_ERRORS
from modeling_radio.core.opening import Opened, open_model
from modeling_radio.tuning.adapters import add_adapter, open_adapter, save_adapter
from modeling_radio.tuning.settings import FinetuneSettings


pytestmark = [pytest.mark.fuzz, pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]
FEWER = settings(max_examples=max(settings.default.max_examples // 10, 10))
FOREIGN = (
    *("quantization_config", "attn_implementation", "_attn_implementation", "_experts_implementation", "dtype"),
    *("auto_map", "custom_pipelines", "text_tower", "architectures", "transformers_weights", "_name_or_path"),
    *("base_model_tp_plan", "id2label", "label2id", "torch_dtype", "sub_configs", "model_type", "output_attentions"),
)
"""Fields that transformers, not we, makes something of."""
WORDS = (
    *("", "x", "a\nb", "../x", "/etc/passwd", "org/kernel", "evil--evil.Model", "os.system", "auto", "float16", "int8"),
    *(
        "eager",
        "flash_attention_2",
        "paged|x",
        "torchao",
        "bitsandbytes",
        "gptq",
        "RadioModel",
        "RadioForDepthEstimation",
    ),
    *("<script>", "\x1b[2J", "\ud800", "a" * 5000, "http://127.0.0.1:9/x", "true", "bert", "radio"),
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 9)
    | st.sampled_from([2**31, 10**12, 10**400, 0.5, float("nan"), float("inf"), 1e-300])
    | st.sampled_from(WORDS)
)
KEYS = st.sampled_from(["quant_method", "load_in_8bit", "_type", "AutoModel", "default", "model_type", "0", "x"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=2), max_leaves=4
)
CHANGES = st.lists(st.tuples(st.integers(0, 10_000), VALUES | st.just(...)), max_size=2)
ADDED = st.dictionaries(st.sampled_from(FOREIGN), VALUES, max_size=2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A backbone, a model with texts, and an adapter beside its base."""
    root = tmp_path_factory.mktemp("fuzz")
    made = {"radio": save_radio(root / "radio"), "words": save_words(root / "words"), "adapter": root / "adapter"}
    config = tiny_config(num_labels=2)
    RadioForImageClassification(config).save_pretrained(root / "base")
    task_settings = FinetuneSettings(checkpoint="x", task="image-classification", data="x", output="x", lora_rank=2)
    adapted = add_adapter(RadioForImageClassification.from_pretrained(root / "base"), task_settings)
    save_adapter(adapted, RadioImageProcessor.from_model_config(config), made["adapter"], str(root / "base"))
    return made


def copy_with(folder: Path, place: Path, file: str, changes: list, added: dict[str, Any]) -> Path:
    """Copy a folder, one of its JSON files changed."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder, place)
    values = {**changed(json.loads((folder / file).read_text()), changes), **added}
    (place / file).write_text(json.dumps(values))
    return place


def opened_or_refused(opened: Callable[[], Any]) -> Any:
    """Return what opens, or nothing where an error says why it does not that every command ends with in one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return opened()
        except USER_ERRORS:
            return None
        except ImportError as error:
            if error.name is not None:  # else transformers asks for a package, such as flash attention's
                raise
            return None


def ask(opened: Opened) -> None:
    """Give an opened model a picture."""
    picture = Image.fromarray(np.full((32, 32, 3), 99, dtype=np.uint8))
    size = {"height": 32, "width": 32}
    pixels = opened.processor(picture, size=size, return_tensors="pt").pixel_values.to(opened.model.dtype)
    opened.backbone(pixels, adaptor_names=[])


@FEWER
@given(changes=CHANGES, added=ADDED, name=st.sampled_from(["radio", "words"]))
def test_any_configuration_of_a_folder(changes, added, name, folders, tmp_path):
    folder = copy_with(folders[name], tmp_path / "model", "config.json", changes, added)
    opened_or_refused(lambda: open_model(folder, dtype=None, as_backbone=True))
    opened = opened_or_refused(lambda: open_model(str(folder)))
    if opened is not None:
        opened_or_refused(lambda: ask(opened))


@FEWER
@given(
    changes=CHANGES,
    added=ADDED,
    place=st.sampled_from(
        [("radio", "preprocessor_config.json"), ("words", "tokenizer_config.json"), ("words", "tokenizer.json")]
    ),
)
def test_any_settings_of_processor_and_tokenizer(changes, added, place, folders, tmp_path):
    name, file = place
    folder = copy_with(folders[name], tmp_path / "model", file, changes, added)
    opened = opened_or_refused(lambda: open_model(str(folder)))
    if opened is not None:
        opened_or_refused(lambda: ask(opened))


@FEWER
@given(changes=CHANGES, added=ADDED, file=st.sampled_from(["adapter_config.json", "config.json"]))
def test_any_adapter(changes, added, file, folders, tmp_path):
    folder = copy_with(folders["adapter"], tmp_path / "adapter", file, changes, added)
    opened_or_refused(lambda: open_model(str(folder)))
    opened_or_refused(lambda: RadioForImageClassification.from_pretrained(folder))
    base = RadioForImageClassification.from_pretrained(folders["adapter"].parent / "base")
    opened_or_refused(lambda: open_adapter(base, folder))
