"""Everything with weights behind `RadioModel` and the task models, and the one way of an image through it."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .adaptors_radio import RadioAdaptor
from .batches_radio import ImageBatch, batch_of_call
from .configuration_radio import RadioConfig
from .embeddings_radio import RadioInputConditioner
from .encoder_radio import RadioVisionTransformer
from .inputs_radio import check_merging, split_draws, warn_of_pixel_range
from .messages_radio import check_choice
from .normalizers_radio import RadioFeatureNormalizer, RadioIntermediateNormalizer
from .outputs_radio import NetworkPass, to_map
from .requested_outputs_radio import StatesWanted, check_attentions, gather_states, join_runs, wanted_states
from .resolution_radio import Resolution
from .window_choice_radio import WindowSize, resolve_window


if TYPE_CHECKING:
    from .radio1d_radio import TokensWanted

# Where weights stand in a model's state.
BLOCKS = "radio_model.model.blocks"
ADAPTORS = "radio_model.adaptors"
PATCH_GENERATOR = "radio_model.model.patch_generator"
POSITIONS = f"{PATCH_GENERATOR}.pos_embed"
PREFIX_TOKENS = f"{PATCH_GENERATOR}.cls_token.token"
DECODER_PREFIX = "radio_model.model.decoder.prefix_tokens"
FILLERS = "radio_model.model.decoder.filler_tokens"
SUMMARY_TOKENS = "radio_model.summary_idxs"


class RadioNetwork(nn.Module):
    """Conditioner, transformer, adaptors and normalizers.

    `RadioModel` and the task models all hold one as `radio_model`, so that their backbone weights have equal keys.
    """

    _warned_of_pixel_range = False

    def __init__(self, config: RadioConfig, use_adaptors: bool = True) -> None:
        super().__init__()
        self.config = config
        self.input_conditioner = RadioInputConditioner(config)
        self.model: Any = self.build_trunk(config)
        self.adaptors = nn.ModuleDict()
        for adaptor in config.adaptor_configs if use_adaptors else []:
            self.adaptors[adaptor.name] = RadioAdaptor(config, adaptor)
        self.feature_normalizer = RadioFeatureNormalizer(config) if config.use_feature_normalizer else None
        self.inter_feature_normalizer = (
            RadioIntermediateNormalizer(config) if config.num_intermediate_normalizers else None
        )
        self.register_buffer("summary_idxs", torch.tensor(config.summary_idxs, dtype=torch.long))

    def forward(  # noqa: PLR0913
        self,
        pixel_values: Tensor | None,
        image_grid_hw: Tensor | None = None,
        window_size: WindowSize = None,
        keep: Collection[int] = (),
        output_hidden_states: StatesWanted = None,
        output_attentions: bool | None = None,
        draws: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        num_tokens: "TokensWanted" = None,
        decode: bool = True,
        full_length: bool = False,
    ) -> NetworkPass:
        """Run the transformer; `read_out` makes features of what it returns.

        `keep` lists 0-based blocks whose output is wanted; no other is held longer than the next block needs it. With
        `full_length` RADIO1D's encoder runs alone, and keeps all tokens until the last block. All other arguments and
        all errors are those of `RadioModel.forward`.
        """
        config = self.config
        check_merging(config, num_tokens, decode=decode, is_packed=image_grid_hw is not None)
        places = wanted_states(output_hidden_states, config)
        with_attentions = config.output_attentions if output_attentions is None else output_attentions
        batch = batch_of_call(pixel_values, image_grid_hw, pixel_values_videos, config)
        draws = batch.draw(self.training) if draws is None else draws
        position_draws, path_draws = split_draws(draws, config, batch.num_images)
        if batch.pack is None and not self._warned_of_pixel_range:
            self._warned_of_pixel_range = warn_of_pixel_range(batch.pixels)
        window = resolve_window(config, window_size, batch.grid)
        if with_attentions:
            check_attentions(config, batch.pack is not None)

        embedded = batch.embed(self, position_draws)
        layout = self.plan(batch, window, embedded, num_tokens=num_tokens, decode=decode, full_length=full_length)
        keep = {*keep, *(place - 1 for place in places or () if place)}
        draws_of_paths = batch.spread(path_draws)
        tokens, kept, runs, *encoded = self.model(embedded, layout, keep, draws_of_paths, bool(with_attentions))
        outputs = [embedded, *map(kept.get, range(len(runs)))]
        states = None if places is None else gather_states(places, outputs, batch.pack)
        weights = tuple(join_runs(each, tokens.shape[0]) for each in runs) if with_attentions else None
        passed = NetworkPass(tokens, embedded, kept, states, weights, batch.grid, batch.pack, batch.num_clips)
        return passed._replace(encoded=encoded[0], is_decoded=decode) if encoded else passed

    @property
    def input_embeddings(self) -> nn.Module:
        """What reads pixels: the patch projection."""
        return self.model.patch_generator.embedder

    def replace_input_embeddings(self, value: nn.Module) -> None:
        """Put another module in its place."""
        self.model.patch_generator.embedder = value

    def build_trunk(self, config: RadioConfig) -> nn.Module:
        """Return what stands between conditioner and adaptors."""
        return RadioVisionTransformer(config)

    def plan(self, batch: ImageBatch, window: int | None, embedded: Tensor, **elastic: Any) -> Any:
        """Return what the trunk is told of a batch: who attends to whom, and of RADIO1D how many tokens there are."""
        return batch.layout(window, embedded.device)

    def adaptor(self, name: str) -> RadioAdaptor:
        """Return an adaptor; the `ValueError` of an unknown name lists all and suggests the nearest."""
        if name not in self.adaptors:  # torch 2.6 cannot compile the list of them
            check_choice("adaptor_names", name, list(self.adaptors))
        return self.adaptors[name]  # pyrefly: ignore[bad-return]

    def summarize(self, tokens: Tensor) -> Tensor:
        """Concatenate the class tokens that make up the summary, `(batch, num_summaries * hidden)`."""
        parts = [tokens[:, index] for index in self.config.summary_idxs or []]
        return torch.cat(parts, dim=1) if parts else tokens[:, 0, :0]

    def patch_features(self, tokens: Tensor) -> Tensor:
        """Return the patch tokens, `(batch, rows * cols, hidden)`."""
        return tokens[:, self.config.num_prefix_tokens :]

    def block_map(self, tokens: Tensor, grid: Resolution, block: int) -> Tensor:
        """Return the patch tokens behind a 0-based block as a map, `(batch, hidden, rows, cols)`.

        Args:
            tokens: Of the whole sequence.
            grid: Rows and columns of patches of the images.
            block: -1 is the patch embedding.
        """
        return to_map(self.patch_features(tokens), grid)
