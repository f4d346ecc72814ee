"""Nemotron's vision-language models: the RADIO that is their vision tower, and their projector.

Their tensors have NVIDIA's names below `vision_model.`, or those of transformers' native RADIO; `config.json` has the
training arguments in `vision_config.args`, or native's fields in `vision_config`. LayerScale is folded or not, and then
has one of four names.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modeling_radio.checks_radio import read_json
from modeling_radio.configuration_radio import RadioConfig
from modeling_radio.modeling_radio import BLOCKS, PATCH_GENERATOR, PREFIX_TOKENS, RadioModel
from modeling_radio.projector import RadioProjector, merge_size_of

from .arguments import check_arguments, check_hub_config
from .source import NvidiaCheckpoint
from .stored_tensors import INDEX, WEIGHTS, StoredTensor, check_there, index_of, indexed_files, stored_tensors
from .tensors import check_finite, check_kinds, has_layer_scale, to_one_dtype
from .translation import Translated, build, translate


SMALL_FILES = ("config.json", INDEX, "preprocessor_config.json")
"""Files that tell which others hold the tower."""
_TRUNK = "radio_model.model."
_CONDITIONER = {name: f"radio_model.input_conditioner.{name}" for name in ("norm_mean", "norm_std")}
# Names below `vision_model.`, of transformers' native RADIO before and since 5.17 and of SGLang, and ours.
_NATIVE = (
    (r"^radio_model\.hf_model\.", ""),
    (r"^embeddings\.patch_projection\.", f"{PATCH_GENERATOR}.embedder."),
    (r"^embeddings\.video_patch_projection\.", f"{PATCH_GENERATOR}.video_embedder."),
    (r"^embeddings\.position_embedding$", f"{PATCH_GENERATOR}.pos_embed"),
    (r"^embeddings\.cls_register_token$", PREFIX_TOKENS),
    (r"^encoder\.layer\.", f"{BLOCKS}."),
    (r"^(input_conditioner\.|summary_idxs$)", r"radio_model.\1"),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    # LayerScale: bare, by the two names of its parameter, and as transformers saves it.
    (r"\.(?:ls|layer_scale)([12])(?:\.(?:gamma|grandma|lambda1))?$", r".ls\1.grandma"),
)
_THIRD = re.compile(r"\.attention\.(?:attention\.)?(?:(query|q_proj)|(key|k_proj)|(value|v_proj))\.")
_TOWER, _FINAL_NORM = "vision_model.", re.compile(r"(?:vision_projector\.)?vision_final_layernorm\.(weight|bias)")
_PROJECTOR = {
    "mlp1.0.weight": r"(?:vision_projector\.)?mlp1\.(?:0|norm)\.weight|multi_modal_projector\.layer_norm\.weight",
    "mlp1.1.weight": r"(?:vision_projector\.)?mlp1\.(?:1|linear1)\.weight|multi_modal_projector\.linear_1\.weight",
    "mlp1.3.weight": r"(?:vision_projector\.)?mlp1\.(?:3|linear2)\.weight|multi_modal_projector\.linear_2\.weight",
}
_OF_PROJECTOR = re.compile(r"(?:vision_projector\.)?mlp1\.|multi_modal_projector\.")


class Place(NamedTuple):
    """Place of a stored tensor in our model.

    Attributes:
        key: Our key.
        third: Number of the third of our tensor that it is, 0 to 2, for queries, keys and values that are stored
            apart; None for all of it.
    """

    key: str
    third: int | None = None


def place_of(name: str) -> Place | None:
    """Return where a tensor of a Nemotron lies in our model; None if it is not the tower's."""
    if norm := _FINAL_NORM.fullmatch(name.removeprefix(_TOWER)):
        return Place(f"{_TRUNK}norm.{norm[1]}")
    if not name.startswith(_TOWER):
        return None
    key = name.removeprefix(_TOWER)
    for pattern, ours in _NATIVE:
        key = re.sub(pattern, ours, key)
    third = _THIRD.search(key)
    if third is None:
        return Place(key)
    return Place(_THIRD.sub(".attn.qkv.", key), next(i for i in range(3) if third[i + 1]))


def is_nemotron_config(values: Mapping[str, Any]) -> bool:
    """Return whether a parsed `config.json` is that of a language model with a RADIO and a projector."""
    vision = values.get("vision_config")
    if not isinstance(vision, dict):
        return False
    return isinstance(vision.get("args"), dict) or (
        vision.get("model_type") == RadioConfig.model_type and "projector_hidden_size" in values
    )


def is_nemotron(folder: str | Path) -> bool:
    """Return whether a folder has the `config.json` of such a model."""
    path = Path(folder, "config.json")
    return path.is_file() and is_nemotron_config(read_json(path))


def check_nemotron(folder: str | Path, argument: str) -> None:
    """Refuse a folder without such a `config.json`.

    Raises:
        ValueError: If it is none; the message names the argument.
    """
    if not is_nemotron(folder):
        raise ValueError(
            f"`{argument}` must be the folder of a Nemotron with a RADIO, whose config.json has a `vision_config`, got "
            f"{str(folder)!r}."
        )


def files_of_tower(folder: str | Path, *, with_projector: bool = False) -> list[str]:
    """Return the names of the weight files that hold tensors of the tower, and of the projector if it is wanted.

    Args:
        folder: A folder with the index, or with one file of weights; the files themselves need not be there.
        with_projector: Whether those of the projector count.

    Raises:
        ValueError: If the index is damaged, names no such tensor, or lies beside one file of all weights.
    """
    index = index_of(folder)
    if index is None:
        return [WEIGHTS]
    indexed_files(index)  # which checks it
    names = {
        file
        for name, file in read_json(index)["weight_map"].items()
        if place_of(name) or (with_projector and _OF_PROJECTOR.match(name))
    }
    if not names:
        raise ValueError(f"{str(index)!r} names no tensors below `{_TOWER}`: this is no model with a RADIO.")
    return sorted(names)


def read_tower(
    folder: str | Path,
    label: str,
    *,
    version: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> RadioModel:
    """Return the vision tower of a Nemotron, with its video embedder, final norm and LayerScale where it has them.

    Only files that hold tensors of the tower are opened.

    Args:
        folder: Its folder.
        label: Its name in messages.
        version: Published version of the tower; None takes that of its configuration, or recognizes it.
        overrides: Fields of `RadioConfig` to set by hand.

    Returns:
        The model in evaluation mode, in the data type of the file; where its tensors have several, in float32.

    Raises:
        ValueError: If the folder is none of a Nemotron, lacks a file, or has tensors that are unknown, missing, not
            finite or of another shape than its configuration says.
    """
    check_nemotron(folder, "source")
    values = read_json(Path(folder, "config.json"))
    state, source_keys = _tower_state(folder)
    vision = values["vision_config"]
    fields = _fields_beside(values)
    for name, key in _CONDITIONER.items():
        if name in fields:
            state[key] = torch.tensor(fields[name]).view(-1, 1, 1)
        if key not in state:
            raise ValueError(f"`{name}` must be in the config.json of {label!r}, or with the tower's weights.")
        state[key] = state[key].to(state[PREFIX_TOKENS].dtype)
    overrides = {**fields, **(overrides or {})}
    if isinstance(vision.get("args"), dict):
        return build(_of_arguments(state, source_keys, vision, label, version, overrides))
    return build(_of_fields(state, source_keys, vision, overrides))


def read_projector(folder: str | Path) -> RadioProjector:
    """Return the projector of a Nemotron, in evaluation mode and in the data type of the file.

    Raises:
        ValueError: If it has none of this kind, or it is damaged.
    """
    check_nemotron(folder, "source")
    values = read_json(Path(folder, "config.json"))
    if values.get("ps_version", "v2") != "v2":
        raise ValueError(f"`ps_version` in config.json must be 'v2', got {values['ps_version']!r}.")
    merge_size = merge_size_of(values.get("downsample_ratio"))
    stored = _stored(folder, files_of_tower(folder, with_projector=True))
    places = {ours: name for ours, pattern in _PROJECTOR.items() for name in stored if re.fullmatch(pattern, name)}
    strangers = [name for name in stored if _OF_PROJECTOR.match(name) and name not in places.values()]
    if strangers or len(places) < len(_PROJECTOR):
        missing = [name for name in _PROJECTOR if name not in places]
        raise ValueError(
            f"The projector must be an RMSNorm and two linear layers without bias, {', '.join(_PROJECTOR)}: "
            f"{missing} missing, {strangers} unknown."
        )
    state = {ours: stored[name].read() for ours, name in places.items()}
    check_kinds(state)
    norm, first, last = (state[name] for name in _PROJECTOR)
    with torch.device("meta"):
        projector = RadioProjector(norm.shape[0] // merge_size**2, first.shape[0], last.shape[0], merge_size)
    projector.load_weights(to_one_dtype(state, places), str(folder))
    return projector.eval()


def _tower_state(folder: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tower's tensors under our keys, and the name of each in the file."""
    stored = _stored(folder, files_of_tower(folder))
    places = {name: place for name in stored if (place := place_of(name)) is not None}
    names: dict[str, list[str]] = {}
    for name in sorted(places, key=lambda each: (places[each].key, places[each].third or 0)):
        names.setdefault(places[name].key, []).append(name)
    if PREFIX_TOKENS not in names:
        raise ValueError(f"{str(folder)!r} holds no RADIO: it lacks {_TOWER}{PREFIX_TOKENS}.")
    state = {}
    for key, parts in names.items():
        thirds = [places[name].third for name in parts]
        if thirds not in ([None], [0, 1, 2]):
            raise ValueError(f"Tensors of {key} must be there once, or as queries, keys and values, got {parts}.")
        tensors = {name: stored[name].read() for name in parts}
        check_kinds(tensors)
        state[key] = torch.cat(list(tensors.values())) if len(parts) == 3 else tensors[parts[0]]
    return state, {key: parts[0] for key, parts in names.items()}


def _stored(folder: str | Path, files: list[str]) -> dict[str, StoredTensor]:
    check_there(folder, files)
    return stored_tensors(folder, files=files)


def _fields_beside(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that the configuration of the whole model has for its tower.

    Images are normalized as it says: engines and transformers leave the tower's own normalization out.
    """
    vision, fields = values["vision_config"], {}
    for name in _CONDITIONER:
        value = values.get(name) or vision.get(name)
        if value is not None:
            if not isinstance(value, list) or not all(isinstance(each, int | float) for each in value):
                raise ValueError(f"`{name}` in config.json must be a list of numbers, got {value!r:.100}.")
            fields[name] = value
    side = values.get("force_image_size")
    return fields if side is None or "args" in vision else {**fields, "preferred_resolution": [side, side]}


def _of_arguments(
    state: dict[str, Tensor],
    source_keys: Mapping[str, str],
    vision: Mapping[str, Any],
    label: str,
    version: str | None,
    overrides: Mapping[str, Any],
) -> Translated:
    """Return a tower that training arguments describe."""
    args = vision["args"]
    check_arguments(args, "config.json")
    beside = {name: value for name, value in vision.items() if name not in ("args", "adaptor_names")}
    check_hub_config({**beside, "args": {"mlp_version": "v2", **args}}, "config.json")
    checkpoint = NvidiaCheckpoint(label, state, args, hub_config=beside)
    translated = translate(checkpoint, version=version, overrides=overrides, folds_layer_scale=False)
    return translated._replace(source_keys=dict(source_keys))


def _of_fields(
    state: dict[str, Tensor], source_keys: Mapping[str, str], vision: Mapping[str, Any], overrides: Mapping[str, Any]
) -> Translated:
    """Return a tower that the fields of transformers' native RADIO describe."""
    state = to_one_dtype(state, source_keys)
    check_finite(state, source_keys)
    if not has_layer_scale(state) and vision.get("layerscale_value", 1.0) != 1.0:
        raise ValueError(f"`layerscale_value` must be 1 without LayerScale, got {vision['layerscale_value']}.")
    RadioConfig.check_fields(overrides)
    fields = {
        **vision,
        "use_layer_scale": has_layer_scale(state),
        "use_final_norm": f"{_TRUNK}norm.weight" in state,
        "dtype": state[PREFIX_TOKENS].dtype,
        **overrides,
    }
    config = RadioConfig.from_dict(
        {name: value for name, value in fields.items() if name in RadioConfig._known_fields()}
    )
    return Translated(config, state, dict(source_keys))
