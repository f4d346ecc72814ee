"""Everything with weights behind `RadioModel` and the task models, and the one way of an image through it."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from .adaptors_radio import RadioAdaptor, RadioFeatureNormalizer, RadioIntermediateNormalizer
from .configuration_radio import RadioConfig
from .embeddings_radio import RadioInputConditioner
from .encoder_radio import RadioVisionTransformer
from .inputs_radio import check_images, check_merging, check_pack, count_draws, split_draws, warn_of_pixel_range
from .layout_radio import AttentionLayout, ImagePack
from .messages_radio import check_choice
from .outputs_radio import GlobalTokens, to_map
from .requested_outputs_radio import StatesWanted, check_attentions, gather_states, join_runs, wanted_states
from .resolution_radio import Resolution
from .video_radio import images_of_call
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


class NetworkPass(NamedTuple):
    """One pass of images through the transformer.

    Attributes:
        tokens: Output after the final norm, `(batch, length, hidden)`; of packed images `(1, length, hidden)`.
        embedded: What the first block read, of the same shape.
        kept: By 0-based block, its output, of the same shape; the last one's before the final norm, unlike `tokens`.
        hidden_states: On request `embedded` and the output of every block, or of some with `None` in place of others;
            of packed images `(length, hidden)`, image after image in the order of the call.
        attentions: On request the weights of each block, as `join_runs` gives them.
        grid: Rows and columns of patches of each image, or of the largest one of a pack.
        pack: Order of packed images; `None` where all are of one size.
        num_clips: Clips of video, whose groups of frames are the batch; `None` of images.
        encoded: Of RADIO1D, what its encoder gave; blocks, hidden states and attentions are the encoder's too, `tokens`
            the decoder's.
        is_decoded: Whether that decoder ran; without it `tokens` are the encoder's.
    """

    tokens: Tensor
    embedded: Tensor
    kept: dict[int, Tensor]
    hidden_states: tuple[Tensor | None, ...] | None
    attentions: tuple[Tensor, ...] | None
    grid: Resolution
    pack: ImagePack | None
    num_clips: int | None = None
    encoded: GlobalTokens | None = None
    is_decoded: bool = True

    def outputs_of(self, blocks: Sequence[int], last: int) -> list[Tensor]:
        """Return the outputs of blocks that stand for one token a patch: of RADIO1D's `last` one, the decoder's."""
        kept = self.kept if self.encoded is None else {**self.kept, last: self.tokens}
        return [kept[block] for block in blocks]


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
        images, clips = images_of_call(pixel_values, image_grid_hw, pixel_values_videos, config)
        pack = None if image_grid_hw is None else check_pack(images, image_grid_hw, config)
        if pack is None:
            grid = check_images(images, config, "pixel_values" if clips is None else "pixel_values_videos")
            num_images = images.shape[0] if clips is None else clips.num_clips
        else:
            grid, num_images = pack.largest_grid, len(pack.grids)
        if draws is None and pack is not None and self.training:  # of each image, as where they are not packed
            draws = torch.rand(num_images, count_draws(config), device=images.device)
        position_draws, path_draws = split_draws(draws, config, num_images)
        if pack is None and not self._warned_of_pixel_range:
            self._warned_of_pixel_range = warn_of_pixel_range(images)
        window = resolve_window(config, window_size, grid)
        if with_attentions:
            check_attentions(config, pack is not None)

        if pack is None:
            pixels = self.input_conditioner(images)
            if clips is not None:
                pixels, path_draws = clips.group(pixels), clips.spread(path_draws)
                position_draws = clips.share_positions(position_draws, self.training)
            is_temporal = clips is not None and clips.is_temporal
            generator = self.model.patch_generator
            embedded = generator(generator.split_patches(pixels), *grid, position_draws, temporal=is_temporal)
            layout = AttentionLayout.for_grid(*grid, config.num_prefix_tokens, window, embedded.device)
        else:
            embedded = self._embed_packed(images, pack, position_draws)
            layout = pack.layout(window, embedded.device)
            path_draws = None if path_draws is None else pack.spread(path_draws)
        keep = {*keep, *(place - 1 for place in places or () if place)}
        encoded = None
        if config.num_mergings:
            from .radio1d_radio import count_tokens

            counts = None if full_length else count_tokens(config, num_tokens, grid, embedded.shape[0])
            arguments = (embedded, grid, counts, keep, path_draws, bool(with_attentions), decode)
            tokens, kept, runs, encoded = self.model(*arguments)
        else:
            tokens, kept, runs = self.model(embedded, layout, keep, path_draws, bool(with_attentions))
        states = None if places is None else gather_states(places, [embedded, *map(kept.get, range(len(runs)))], pack)
        weights = tuple(join_runs(each, tokens.shape[0]) for each in runs) if with_attentions else None
        num_clips = None if clips is None else clips.num_clips
        return NetworkPass(tokens, embedded, kept, states, weights, grid, pack, num_clips, encoded, decode)

    @property
    def input_embeddings(self) -> nn.Module:
        """What reads pixels: the patch projection."""
        return self.model.patch_generator.embedder

    def replace_input_embeddings(self, value: nn.Module) -> None:
        """Put another module in its place."""
        self.model.patch_generator.embedder = value

    def build_trunk(self, config: RadioConfig) -> nn.Module:
        """Return what stands between conditioner and adaptors; what no plain ViT has is imported where it is built."""
        if not config.num_mergings:
            return RadioVisionTransformer(config)
        from .radio1d_radio import Radio1dTransformer

        return Radio1dTransformer(config)

    def adaptor(self, name: str) -> RadioAdaptor:
        """Return an adaptor; the `ValueError` of an unknown name lists all and suggests the nearest."""
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

        Raises:
            ValueError: If tokens of the map were cut.
        """
        features, grid = self.patch_features(tokens), self.config.block_grid(grid, block)
        if features.shape[1] != grid.height * grid.width:
            raise ValueError(
                f"Block {block} has {features.shape[1]} of {grid.height} x {grid.width} tokens left, no map: "
                "`progressive_reduction` cuts them. `get_intermediate_features` runs without it."
            )
        return to_map(features, grid)

    def _embed_packed(self, patches: Tensor, pack: ImagePack, draws: Tensor | None) -> Tensor:
        """Return the tokens `(1, length, hidden)` of flattened patches in the order of `pack`."""
        size = self.config.patch_size
        patches = self.input_conditioner(patches.view(-1, self.config.num_channels, size, size)).flatten(1)
        return self.model.patch_generator(patches, *pack.largest_grid, draws, pack)
