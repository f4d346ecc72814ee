"""An adapter's whole way: tuned, published, opened by name elsewhere, merged; its answers stay the same."""

import pytest
import torch
from local_hub import TOKEN, VISIT, hub_in_place
from PIL import Image
from tiny_tuning import run_settings
from tuning_fixtures import save_image

from modeling_radio import RadioConfig, RadioForImageClassification, RadioModel
from modeling_radio.image_processing_radio import RadioImageProcessor
from modeling_radio.model_cards.build import write_card
from modeling_radio.model_cards.licenses import License
from modeling_radio.publishing.publish import main as publish
from modeling_radio.tuning.adapters import open_adapter
from modeling_radio.tuning.run import FinetuningRun


pytestmark = [
    pytest.mark.tour,
    pytest.mark.usefixtures("one_thread", "own_datasets_cache", "one_figure_image"),
    # peft asks a model for `is_gradient_checkpointing`, which transformers is renaming.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]

LICENSE = License("apache-2.0")
SIZE = (32, 48)

OPEN_BY_NAME = """
import torch
from peft import PeftModel
from peft.functional import set_adapter
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, pipeline

Auto, trusted, pixels = AutoModelForImageClassification, {"trust_remote_code": True}, torch.load("pixels.pt")
answers = {}

def answer(name, model):
    with torch.no_grad():
        answers[name] = model.eval()(pixels).logits

model = Auto.from_pretrained("org/pets", **trusted)
assert model.config.id2label == {0: "cat", 1: "dog"}, model.config.id2label
answer("by name", model)
answer("windowed", Auto.from_pretrained("org/pets", vitdet_window_size=2, **trusted))
answer("by its class", type(model).from_pretrained("org/pets"))
classify = pipeline("image-classification", model="org/pets", trust_remote_code=True)
answer("pipeline", classify.model)
assert [found["label"] in ("cat", "dog") for found in classify(Image.open("photo.png"))] == [True, True]

model.load_adapter("org/zoo", "zoo")
for name in ("zoo", "default", "zoo"):
    set_adapter(model, name)
    answer(f"switched to {name}", model)

config = AutoConfig.from_pretrained("org/pets", **trusted)
base = Auto.from_pretrained("org/base", config=config, **trusted)
merged = PeftModel.from_pretrained(base, "org/pets").merge_and_unload()
answer("merged", merged)
merged.save_pretrained("merged")
AutoImageProcessor.from_pretrained("org/pets", **trusted).save_pretrained("merged")
torch.save(answers, "answers.pt")
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder of a tiny backbone with a processor and a card."""
    folder = tmp_path_factory.mktemp("journey") / "base"
    torch.manual_seed(0)
    config = RadioConfig.from_preset("radio-test", preferred_resolution=list(SIZE))
    RadioModel(config).save_pretrained(folder)
    RadioImageProcessor.from_model_config(config).save_pretrained(folder)
    write_card(folder, license=LICENSE)
    return folder


@pytest.fixture
def hub(monkeypatch):
    with hub_in_place(monkeypatch, TOKEN) as server:
        yield server


def tune(base, data, output):
    settings = run_settings(base, data, output, tune="lora", learning_rate=0.05, head_learning_rate=0.05)
    FinetuningRun(settings).run()
    write_card(output / "final", license=LICENSE)
    return output / "final"


def local_answer(base, adapter, pixels, **options):
    model = RadioForImageClassification.from_pretrained(base, config=RadioConfig.from_pretrained(adapter))
    with torch.no_grad():
        return open_adapter(model, adapter).eval()(pixels, **options).logits


def test_tuned_published_opened_by_name_switched_and_merged(base, hub, elsewhere, tmp_path, monkeypatch):
    adapters = {}
    for first_seed, name, classes in ((0, "pets", ("cat", "dog")), (50, "zoo", ("lion", "zebra"))):
        for number in range(6):
            save_image(tmp_path / name / classes[number % 2] / f"{number}.png", first_seed + number)
        adapters[name] = tune(base, tmp_path / name, tmp_path / f"run-{name}")
    pixels = torch.rand(2, 3, *SIZE)
    pets, zoo = (local_answer(base, adapter, pixels) for adapter in adapters.values())
    windowed = local_answer(base, adapters["pets"], pixels, window_size=2)
    assert min((pets - zoo).abs().max(), (pets - windowed).abs().max()) > 1e-3  # else nothing below could fail

    with monkeypatch.context() as patch:
        patch.setattr("subprocess.run", elsewhere.run_command)  # publishing opens each folder in a process
        assert publish([str(base), "org/base"]) == 0
        for name, adapter in adapters.items():
            assert publish([str(adapter), f"org/{name}", "--base", "org/base"]) == 0
    torch.save(pixels, tmp_path / "pixels.pt")
    Image.new("RGB", (60, 40), "teal").save(tmp_path / "photo.png")
    begin = VISIT.format(endpoint=hub.endpoint, home=str(tmp_path / "home"), token=TOKEN)
    done = elsewhere.run(begin + OPEN_BY_NAME, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert hub.unknown == []

    answers = torch.load(tmp_path / "answers.pt")
    expected = {"windowed": windowed, "switched to zoo": zoo}
    for name, found in answers.items():
        torch.testing.assert_close(found, expected.get(name, pets), atol=1e-5, rtol=0, msg=name)
    assert len(answers) == 7
