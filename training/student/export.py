"""Export of a trained student to a folder that `AutoModel` opens, with feature normalizers if the recipe wants them."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.adaptors_radio import RadioAdaptor
from modeling_radio.core.files import write_folder
from modeling_radio.core.ranks import copy_from_first_rank
from modeling_radio.data.arrays import AS_ARRAYS
from modeling_radio.data.settings import RGB
from modeling_radio.image_processing_radio import RadioImageProcessor
from modeling_radio.layers_radio import RadioFeatureNormalizer, RadioIntermediateNormalizer
from modeling_radio.model_cards.lineage import Lineage
from modeling_radio.nvidia.tensors import fold_layer_scale
from modeling_radio.training.recipes.recipe import RecipeError
from modeling_radio.training.recipes.sections import ExportRecipe
from modeling_radio.training.student.packing import pack_groups
from modeling_radio.training.student.refits import unstandardize_heads
from modeling_radio.training.student.regularizers import fold_spectral_scales
from modeling_radio.training.targets.phi_s import AffineMap, FeatureStandardizer, PhiS


class Normalizers(NamedTuple):
    """States of the fitted normalizer modules, in float64; None for what the recipe does not want.

    Attributes:
        final: `tx @ (features - mean)` of the backbone's dense features: `mean` `(hidden,)`, and `tx`
            `(hidden, hidden)`, a rotation times a scale.
        blocks: `alpha * rotation @ (features - mean)` of the blocks' outputs: `alphas` `(blocks,)`, `means`
            `(blocks, hidden)`, and `rotation` `(blocks, hidden, hidden)` or, for all blocks, `(hidden, hidden)`.
    """

    final: dict[str, Tensor] | None
    blocks: dict[str, Tensor] | None


def check_export_settings(recipe: ExportRecipe, config: RadioConfig) -> None:
    """Refuse changes that a student could not be exported with, before anything is trained.

    Raises:
        RecipeError: If it has normalizers already, merges tokens, has a dense head that cannot undo the final one, or
            no LayerScale to fold.
    """
    if recipe.fold_layer_scale and (not config.use_layer_scale or config.num_mergings or config.navit):
        raise RecipeError(
            "`export.fold_layer_scale` must be false unless `student.config.use_layer_scale` is true, and "
            "`student.config.downscale_levels` and `student.config.navit` are null, got "
            f"{config.use_layer_scale}, {config.downscale_levels} and {config.navit}."
        )
    for name in ("downscale_levels", "eradio", "wrapped"):
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

    Only moments are kept, in float64, summed over ranks: the split of images among them changes nothing.

    Args:
        network: The student as it will be exported, sharded or not; it is not changed.
        batches: This rank's images in [0, 1], for each forward pass the groups of one size.
        recipe: The normalizers to fit.

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
        {"mean": final[0].mean.cpu(), "tx": final[0].matrix.cpu()} if final else None,
        _of_blocks(blocks, is_shared=recipe.intermediate_normalizers == "shared") if blocks else None,
    )


def _patch_tokens(network: RadioModel, groups: Sequence[Tensor], num_blocks: int) -> tuple[Tensor, list[Tensor]]:
    """Return the patches' final features and the outputs of the first blocks, `(tokens, hidden)` each."""
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


def _of_blocks(blocks: Sequence[PhiS], *, is_shared: bool) -> dict[str, Tensor]:
    alphas = torch.tensor([1 / block.scale for block in blocks], dtype=torch.float64)
    means = torch.stack([block.mean for block in blocks]).cpu()
    if is_shared:
        covariance = torch.stack([block.covariance / block.scale**2 for block in blocks]).mean(0)
        rotation, _ = blocks[0].solve(covariance)  # a rotation: the mean variance is 1, so that its scale is, too
        rotation = copy_from_first_rank(rotation.contiguous()).cpu()
    else:
        rotation = torch.stack([block.matrix * block.scale for block in blocks]).cpu()
    return {"alphas": alphas, "means": means, "rotation": rotation}


@torch.no_grad()
def add_normalizers(model: RadioModel, normalizers: Normalizers) -> None:
    """Add normalizers to a model on the CPU in place; its adaptors undo the final one, so that their outputs stay."""
    network, config = model.radio_model, model.config
    if normalizers.final is not None:
        inverse = AffineMap(torch.linalg.inv(normalizers.final["tx"]), normalizers.final["mean"])
        for adaptor in network.adaptors.values():
            _precede(adaptor, inverse)
        config.use_feature_normalizer = True
        network.feature_normalizer = RadioFeatureNormalizer(config)
        network.feature_normalizer.load_state_dict(normalizers.final)
    if normalizers.blocks is not None:
        config.intermediate_rotation_per_layer = normalizers.blocks["rotation"].ndim == 3
        config.num_intermediate_normalizers = len(normalizers.blocks["alphas"])
        network.inter_feature_normalizer = RadioIntermediateNormalizer(config)
        network.inter_feature_normalizer.load_state_dict(normalizers.blocks)


@torch.no_grad()
def remove_normalizers(model: RadioModel) -> None:
    """Remove a model's normalizers in place; the outputs of its adaptors stay.

    Raises:
        RecipeError: If a dense head of attention reads the output of the final one.
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
            _precede(adaptor, AffineMap(matrix, -matrix @ mean))
        network.feature_normalizer, config.use_feature_normalizer = None, False
    if network.inter_feature_normalizer is not None:
        network.inter_feature_normalizer = None
        config.num_intermediate_normalizers, config.intermediate_rotation_per_layer = 0, False


def _precede(adaptor: RadioAdaptor, change: AffineMap) -> None:
    """Fold a map of its input into a dense head: it then behaves as if `change` came before it."""
    linear: nn.Linear | None = adaptor.first_dense_linear
    if linear is None:
        return
    weight = linear.weight.double()
    linear.bias.copy_(linear.bias.double() + weight @ change.offset)
    linear.weight.copy_(weight @ change.matrix)


@torch.no_grad()
def fold_scales(model: RadioModel) -> None:
    """Fold the LayerScale of a model into its linear layers, in place."""
    state = fold_layer_scale(model.state_dict())
    for block in model.radio_model.model.blocks:
        block.ls1, block.ls2 = nn.Identity(), nn.Identity()
    model.load_state_dict(state)
    model.config.use_layer_scale, model.config.layerscale_value = False, 1.0


def export_student(
    model: RadioModel,
    standardizers: Mapping[str, FeatureStandardizer],
    path: Path,
    normalizers: Normalizers | None = None,
    lineage: Lineage | None = None,
    *,
    folds_layer_scale: bool = False,
) -> None:
    """Write model and processor: plain weights, and adaptors that predict features in their teachers' own spaces.

    Args:
        model: The student or its moving average; it is not changed.
        standardizers: By adaptor name; the inverse is folded into the dense head's last layer.
        path: Folder to write, replaced as a whole if it exists.
        normalizers: Normalizers to add; the outputs of adaptors stay the same.
        lineage: The models and data behind the student, for its card; None writes nothing about them.
        folds_layer_scale: Whether to fold LayerScale into the linear layers.

    Raises:
        WriteError: If it cannot be written; an older folder is intact.
    """
    exported = copy.deepcopy(model).cpu().eval().requires_grad_(True)
    fold_spectral_scales(exported)
    unstandardize_heads(exported, standardizers)
    if normalizers is not None:
        add_normalizers(exported, normalizers)
    if folds_layer_scale:
        fold_scales(exported)
    options = {} if exported.config.num_channels == len(RGB) else AS_ARRAYS
    processor = RadioImageProcessor.from_model_config(exported.config, **options)

    def write(folder: Path) -> None:
        exported.save_pretrained(folder)
        processor.save_pretrained(folder)
        if lineage is not None:
            lineage.save(folder)

    with torch.no_grad():
        write_folder(path, write)
