"""Our models under peft, bitsandbytes and transformers' Trainer, without our own commands."""

import copy

import pytest
import torch
from peft import (
    IA3Config,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    VeraConfig,
    get_peft_model,
    prepare_model_for_kbit_training,
)
from task_models import EVERY_MODEL, THREE_MODELS, build, images, tensors_of, tiny_config
from torch.nn.parallel import scatter_gather
from torch.utils.data import Dataset
from transformers import BitsAndBytesConfig, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import is_bitsandbytes_available

from modeling_radio import RadioForImageClassification, RadioForSemanticSegmentation, RadioModel


pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # Users and peft say `gradient_checkpointing`, which transformers is renaming.
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
]

BLOCKS = r".*\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])"
METHODS = {
    "all-linear": LoraConfig(r=2, target_modules="all-linear"),
    "list": LoraConfig(r=2, target_modules=["qkv", "fc1"], task_type="FEATURE_EXTRACTION"),
    "regex": LoraConfig(r=2, target_modules=BLOCKS),
    "DoRA": LoraConfig(r=2, target_modules=BLOCKS, use_dora=True),
    "VeRA": VeraConfig(r=2, target_modules=["qkv"]),
    "LoHa": LoHaConfig(r=2, target_modules=["qkv", "fc1"]),
    "IA3": IA3Config(target_modules=["qkv", "fc2"], feedforward_modules=["fc2"]),
    "OFT": OFTConfig(target_modules=["qkv"], oft_block_size=8, r=0),
}


def first_tensor(output):
    return tensors_of(output)[0]


def take_a_step(model, pixel_values):
    """Train what is trainable by one large step, all of which must have a gradient."""
    model.train()
    first_tensor(model(pixel_values=pixel_values)).float().square().mean().backward()
    trainable = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert trainable
    assert any(weight.grad.abs().max() > 0 for weight in trainable.values())
    torch.optim.SGD(trainable.values(), lr=1.0).step()
    model.eval()


@pytest.mark.parametrize(
    ("name", "method"),
    [*(("backbone with adaptors", method) for method in METHODS), ("classifier", "all-linear"), ("classifier", "DoRA")],
)
def test_methods_of_peft_train_save_open_and_merge(name, method, tmp_path):
    model_class, _ = EVERY_MODEL[name]
    build(name).save_pretrained(tmp_path / "base")
    model = get_peft_model(model_class.from_pretrained(tmp_path / "base"), copy.deepcopy(METHODS[method]))
    pixel_values = images(1)
    before = first_tensor(model.eval()(pixel_values=pixel_values))
    take_a_step(model, pixel_values)
    with torch.no_grad():
        trained = first_tensor(model(pixel_values=pixel_values))
        assert not torch.equal(trained, before)
        model.save_pretrained(tmp_path / "adapter")
        opened = PeftModel.from_pretrained(model_class.from_pretrained(tmp_path / "base"), tmp_path / "adapter").eval()
        torch.testing.assert_close(first_tensor(opened(pixel_values=pixel_values)), trained)
        merged = opened.merge_and_unload()
        torch.testing.assert_close(first_tensor(merged(pixel_values=pixel_values)), trained, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(not is_bitsandbytes_available(), reason="needs bitsandbytes")
@pytest.mark.parametrize("model_class", [RadioModel, RadioForSemanticSegmentation])
def test_adapters_train_on_four_bits(model_class, tmp_path):
    model_class(tiny_config(hidden_size=64)).save_pretrained(tmp_path)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    quantized = model_class.from_pretrained(tmp_path, quantization_config=config)
    layers = {type(module).__name__ for name, module in quantized.named_modules() if name.endswith("attn.qkv")}
    assert layers == {"Linear4bit"}
    model = get_peft_model(prepare_model_for_kbit_training(quantized), LoraConfig(r=2, target_modules=BLOCKS))
    pixel_values = images(1)
    before = first_tensor(model.eval()(pixel_values))
    take_a_step(model, pixel_values)
    assert not torch.equal(first_tensor(model(pixel_values)), before)


@pytest.mark.parametrize("name", THREE_MODELS)
def test_outputs_of_several_devices_are_gathered(name, monkeypatch):
    """`DataParallel` joins what each device returned, by the type of the output; without devices by concatenation."""
    monkeypatch.setattr(scatter_gather.Gather, "apply", lambda _device, _dim, *parts: torch.cat(parts))
    model, batch = build(name), images(4)
    with torch.no_grad():
        parts = [model(batch[:2]), model(batch[2:])]
        gathered = scatter_gather.gather(parts, "cpu")
        alone = model(batch)
    assert type(gathered) is type(alone)
    for joined, whole in zip(tensors_of(gathered), tensors_of(alone), strict=True):
        torch.testing.assert_close(joined, whole, atol=1e-5, rtol=1e-4)


class Colors(Dataset):
    """Images of which the brighter ones are class 1."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        noise = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(index)) / 2
        return {"pixel_values": noise + index % 2 / 2, "labels": index % 2}


def trainer(folder, output, **options):
    torch.manual_seed(0)
    arguments = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=2,
        per_device_eval_batch_size=8,
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
        **options,
    )
    model = RadioForImageClassification.from_pretrained(folder, num_labels=2)
    return Trainer(model=model, args=arguments, train_dataset=Colors(), eval_dataset=Colors())


def test_trainer_saves_resumes_and_keeps_the_best(tmp_path):
    RadioModel(tiny_config(num_hidden_layers=2, num_labels=2)).save_pretrained(tmp_path / "base")
    options = {
        "num_train_epochs": 2,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "gradient_checkpointing": True,
    }
    whole = trainer(tmp_path / "base", tmp_path / "whole", **options)
    whole.train()
    losses = [entry["eval_loss"] for entry in whole.state.log_history if "eval_loss" in entry]
    assert losses[1] < losses[0]
    assert whole.state.best_model_checkpoint == get_last_checkpoint(str(tmp_path / "whole"))
    assert whole.predict(Colors()).predictions.shape == (8, 2)
    whole.save_model(str(tmp_path / "final"))
    first = tmp_path / "whole" / "checkpoint-4"
    resumed = trainer(tmp_path / "base", tmp_path / "whole", **options)
    resumed.train(resume_from_checkpoint=str(first))
    final = RadioForImageClassification.from_pretrained(tmp_path / "final")
    for (key, weight), again in zip(final.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        torch.testing.assert_close(again, weight, msg=key)
    assert RadioForImageClassification.from_pretrained(first).config.num_labels == 2
