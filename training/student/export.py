"""From a trained student to a folder that `AutoModel` opens, with feature normalizers if the recipe wants them."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from core.files import write_folder
from core.ranks import copy_from_first_rank
from model_cards.heritage import Heritage
from modeling_radio import RadioConfig, RadioModel
from modeling_radio.adaptors_radio import RadioAdaptor
from modeling_radio.image_processing_radio import RadioImageProcessor
from modeling_radio.layers_radio import RadioFeatureNormalizer, RadioIntermediateNormalizer
from training.recipe import RecipeError
from training.recipe_sections import ExportRecipe
from training.student.packing import pack_groups
from training.student.regularizers import fold_spectral_scales
from training.targets.phi_s import AffineMap, FeatureStandardizer, PhiS


class FinalNormalizer(NamedTuple):
    """Of the backbone's dense features: `matrix @ (features - mean)`, float64.

    Attributes:
        mean: `(hidden,)`.
        matrix: `(hidden, hidden)`, a rotation times a scale.
    """

    mean: Tensor
    matrix: Tensor


class BlockNormalizers(NamedTuple):
    """Of the blocks' outputs: `scale * rotation @ (features - mean)`, float64.

    Attributes:
        scales: `(blocks,)`.
        means: `(blocks, hidden)`.
        rotation: `(blocks, hidden, hidden)`, or `(hidden, hidden)` for all.
    """

    scales: Tensor
    means: Tensor
    rotation: Tensor


class Normalizers(NamedTuple):
    """What was fitted; None for what was not asked for."""

    final: FinalNormalizer | None
    blocks: BlockNormalizers | None


def check_normalizers(recipe: ExportRecipe, config: RadioConfig) -> None:
    """Refuse, before anything is trained, normalizers that could not be added to a student.

    Raises:
        RecipeError: If it has some already, merges tokens, or has a dense head that cannot undo the final one.
    """
    for name in ("downscale_levels", "eradio"):
        if recipe.has_normalizers and getattr(config, name):
            raise RecipeError(
                f"`export` must be without normalizers with `student.config.{name}`, where features change their width "
                f"on the way, got {getattr(config, name)}."
            )
    if recipe.feature_normalizer:
        if config.use_feature_normalizer:
            raise RecipeError("`export.feature_normalizer` must be false with `student.config.use_feature_normalizer`.")
        unable = [adaptor.name for adaptor in config.adaptor_configs if adaptor.feature_head == "attention"]
        if unable:
            raise RecipeError(
                f"`export.feature_normalizer` must be false with dense heads of attention, which cannot undo it, got "
                f"those of {unable}. Set their `adaptor.feature_head` to 'mlp'."
            )
    if recipe.intermediate_normalizers != "none" and config.num_intermediate_normalizers:
        raise RecipeError(
            "`export.intermediate_normalizers` must be 'none' with `student.config.num_intermediate_normalizers`, got "
            f"{recipe.intermediate_normalizers!r}."
        )


@torch.no_grad()
def fit_normalizers(network: RadioModel, batches: Iterable[Sequence[Tensor]], recipe: ExportRecipe) -> Normalizers:
    """Fit normalizers to a student's features; all ranks take part and get the same.

    Nothing but moments is kept, in float64, summed over ranks: how images are shared among them changes nothing.

    Args:
        network: The student as it will be exported, sharded or not; it is left as it was.
        batches: This rank's images in [0, 1], for each forward pass the groups of one size.
        recipe: Which ones.

    Raises:
        ValueError: If no image was given, or features are not finite.
    """
    config, was_training = network.config, network.training
    final = [PhiS(config.hidden_size)] if recipe.feature_normalizer else []
    num_blocks = config.num_hidden_layers if recipe.intermediate_normalizers != "none" else 0
    blocks = [PhiS(config.hidden_size) for _ in range(num_blocks)]
    network.eval()
    for groups in batches:
        features, states = _patch_tokens(network, groups, num_blocks)
        for standardizer, tokens in zip(final + blocks, [features] * len(final) + states, strict=True):
            standardizer.to(tokens.device).update(tokens.T[None, :, :, None])
    network.train(was_training)
    for standardizer in final + blocks:
        standardizer.to(next(network.parameters()).device)  # of a rank without images too
        standardizer.end_step()
        standardizer.refit()
    return Normalizers(
        FinalNormalizer(final[0].mean.cpu(), final[0].matrix.cpu()) if final else None,
        _of_blocks(blocks, is_shared=recipe.intermediate_normalizers == "shared") if blocks else None,
    )


def _patch_tokens(network: RadioModel, groups: Sequence[Tensor], num_blocks: int) -> tuple[Tensor, list[Tensor]]:
    """Return the patches' final features and outputs of the first blocks, `(tokens, hidden)` each."""
    inputs, num_prefix = pack_groups(groups, network.config.patch_size), network.config.num_prefix_tokens
    output = network(
        **inputs,
        window_size="global",
        adaptor_names=[],
        output_hidden_states=list(range(1, num_blocks + 1)) or None,
        return_dict=True,
    )
    states = list(output.hidden_states[1:]) if num_blocks else []
    if "image_grid_hw" not in inputs:
        return output.features.flatten(0, 1), [state[:, num_prefix:].flatten(0, 1) for state in states]
    lengths = [num_prefix + rows * cols for rows, cols in inputs["image_grid_hw"].tolist()]
    return output.features, [torch.cat([image[num_prefix:] for image in state.split(lengths)]) for state in states]


def _of_blocks(blocks: Sequence[PhiS], *, is_shared: bool) -> BlockNormalizers:
    scales = torch.tensor([1 / block.scale for block in blocks], dtype=torch.float64)
    means = torch.stack([block.mean for block in blocks]).cpu()
    if not is_shared:
        return BlockNormalizers(scales, means, torch.stack([block.matrix * block.scale for block in blocks]).cpu())
    covariance = torch.stack([block.covariance / block.scale**2 for block in blocks]).mean(0)
    rotation, _ = blocks[0].solve(covariance)  # whose mean variance is 1, so that there is nothing to scale
    return BlockNormalizers(scales, means, copy_from_first_rank(rotation.contiguous()).cpu())


@torch.no_grad()
def add_normalizers(model: RadioModel, normalizers: Normalizers) -> None:
    """Give a model on the CPU its normalizers in place. Its adaptors answer as before, as they undo the final one."""
    network, config = model.radio_model, model.config
    if normalizers.final is not None:
        mean, matrix = normalizers.final
        inverse = torch.linalg.inv(matrix)
        for adaptor in network.adaptors.values():
            _follow(adaptor, AffineMap(inverse, mean))
        config.use_feature_normalizer = True
        network.feature_normalizer = RadioFeatureNormalizer(config)
        network.feature_normalizer.load_state_dict({"mean": mean, "tx": matrix})
    if normalizers.blocks is not None:
        scales, means, rotation = normalizers.blocks
        config.intermediate_rotation_per_layer = rotation.ndim == 3
        config.num_intermediate_normalizers = len(scales)
        network.inter_feature_normalizer = RadioIntermediateNormalizer(config)
        network.inter_feature_normalizer.load_state_dict({"alphas": scales, "means": means, "rotation": rotation})


@torch.no_grad()
def remove_normalizers(model: RadioModel) -> None:
    """Take a model's normalizers away in place; its adaptors answer as before.

    Raises:
        RecipeError: If a dense head of attention reads what the final one gives.
    """
    network, config = model.radio_model, model.config
    final = network.feature_normalizer
    if final is not None:
        matrix, mean = final.tx.double(), final.mean.double()
        for name, adaptor in network.adaptors.items():
            if adaptor.feat_mlp is not None and adaptor.first_dense_linear is None:
                raise RecipeError(
                    f"`student.config.use_feature_normalizer` must be true to start from this checkpoint: its dense "
                    f"head {name!r} reads normalized features, and cannot do without."
                )
            _follow(adaptor, AffineMap(matrix, -matrix @ mean))
        network.feature_normalizer, config.use_feature_normalizer = None, False
    if network.inter_feature_normalizer is not None:
        network.inter_feature_normalizer = None
        config.num_intermediate_normalizers, config.intermediate_rotation_per_layer = 0, False


def _follow(adaptor: RadioAdaptor, change: AffineMap) -> None:
    """Let a dense head read `matrix @ features + offset` where it gets `features`."""
    linear: nn.Linear | None = adaptor.first_dense_linear
    if linear is None:
        return
    weight = linear.weight.double()
    linear.bias.copy_(linear.bias.double() + weight @ change.offset)
    linear.weight.copy_(weight @ change.matrix)


def export_student(
    model: RadioModel,
    standardizers: Mapping[str, FeatureStandardizer],
    path: Path,
    normalizers: Normalizers | None = None,
    heritage: Heritage | None = None,
) -> None:
    """Write model and processor: plain weights, and adaptors that answer in their teachers' own spaces.

    Args:
        model: The student or its moving average; it is not changed.
        standardizers: By adaptor name; the inverse is folded into the dense head's last layer.
        path: Folder to write, replaced as a whole if it exists.
        normalizers: Of the model's features, which it has from then on; its adaptors answer as without.
        heritage: What it learned from, for its card; None writes nothing of it.

    Raises:
        WriteError: If it cannot be written; an older folder is intact.
    """
    exported = copy.deepcopy(model).cpu().eval().requires_grad_(True)
    fold_spectral_scales(exported)
    for name, standardizer in standardizers.items():
        standardizer.fold_inverse_into_linear(exported.radio_model.adaptor(name).last_dense_linear)
    if normalizers is not None:
        add_normalizers(exported, normalizers)
    processor = RadioImageProcessor.from_model_config(exported.config)

    def write(folder: Path) -> None:
        exported.save_pretrained(folder)
        processor.save_pretrained(folder)
        if heritage is not None:
            heritage.save(folder)

    with torch.no_grad():
        write_folder(path, write)
