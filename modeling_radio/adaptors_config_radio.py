"""Fields of the configuration that shape the adaptors: the list of them, and each entry."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from .config_checks_radio import ADAPTOR_RULES
from .messages_radio import check_choice, did_you_mean
from .trunk_config_radio import TrunkFields


@dataclass(frozen=True, kw_only=True)
class RadioAdaptorConfig:
    """Shape of one adaptor: the pair of heads that maps the backbone into one teacher's output space.

    Attributes:
        name: The teacher's name, for example `"siglip2-g"`. It is part of the weights' keys.
        token_index: Which class token the summary head reads. NVIDIA's files may also name a register, or the first
            patch, `num_prefix_tokens`.
        summary_dim: Channels of the teacher's summary; `None` builds no summary head.
        feature_dim: Channels of the teacher's dense features, after upsampling; `None` builds no dense head.
        hidden_size: Hidden width of both heads' MLPs.
        num_inner_blocks: Residual blocks between the first and the last linear layer (`mlp_version="v2"` only).
        mlp_version: `"v1"` (RADIOv2: linear, norm, ReLU, linear) or `"v2"` (every later model).
        feature_head: `"mlp"`, or `"attention"`: ViT blocks before the MLP (siglip2-g of C-RADIOv4).
        upsample_factor: The dense head predicts this many times more rows and columns (pixel shuffle).
        feature_hidden_size: Hidden width of the dense head's MLP where it differs from `hidden_size`.
        feature_num_inner_blocks: Residual blocks of the dense head's MLP where they differ.
        feature_mlp_version: Version of the dense head's MLP where it differs.
        feature_num_blocks: ViT blocks of an attention head.
        feature_num_attention_heads: Attention heads of those blocks.
    """

    name: str
    token_index: int = 0
    summary_dim: int | None = None
    feature_dim: int | None = None
    hidden_size: int
    num_inner_blocks: int = 1
    mlp_version: str = "v2"
    feature_head: str = "mlp"
    upsample_factor: int = 1
    feature_hidden_size: int | None = None
    feature_num_inner_blocks: int | None = None
    feature_mlp_version: str | None = None
    feature_num_blocks: int = 2
    feature_num_attention_heads: int = 16

    def __post_init__(self) -> None:
        ADAPTOR_RULES["name"].check("adaptors.name", self.name)
        for name, rule in ADAPTOR_RULES.items():
            rule.check(f"adaptors.{self.name}.{name}", getattr(self, name))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RadioAdaptorConfig":
        """Build one from a JSON object.

        Raises:
            ValueError: If a key is unknown (the message suggests the nearest one) or a required key is missing.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise ValueError(f"Unknown key {key!r} in `adaptors`.{did_you_mean(key, known)}")
        missing = [key for key in ("name", "hidden_size") if key not in values]
        if missing:
            raise ValueError(f"An entry of `adaptors` lacks {missing}: {values}.")
        return cls(**values)


@dataclass(kw_only=True, repr=False, eq=False)
class AdaptorFields(TrunkFields):
    """The heads into the teachers' spaces.

    Attributes:
        adaptors: One JSON object per adaptor, fields as in `RadioAdaptorConfig`.
        adaptor_names: Adaptors whose outputs `forward` returns by default; `None` means all of `adaptors`.
    """

    adaptors: list[dict[str, Any]] = field(default_factory=list)
    adaptor_names: list[str] | None = None

    @property
    def adaptor_configs(self) -> list[RadioAdaptorConfig]:
        """`adaptors` as typed objects."""
        return [RadioAdaptorConfig.from_dict(adaptor) for adaptor in self.adaptors]

    def adaptor(self, name: str, *, argument: str = "adaptor_names") -> RadioAdaptorConfig:
        """Return the adaptor of a name.

        Args:
            name: For example `"siglip2-g"`.
            argument: What holds that name, as the user wrote it; the message begins with it.

        Raises:
            ValueError: If there is none. The message lists all adaptors and suggests the nearest.
        """
        adaptors = {adaptor.name: adaptor for adaptor in self.adaptor_configs}
        check_choice(argument, name, adaptors)
        return adaptors[name]

    @property
    def all_adaptor_names(self) -> list[str]:
        """Names of all adaptors, which run where none are chosen."""
        return [adaptor["name"] for adaptor in self.adaptors]

    def complete_adaptors(self) -> None:
        """Write out every field of every adaptor, and the names of all where none are chosen."""
        # Not by assignment, with which the names would follow.
        vars(self).update(adaptors=[dataclasses.asdict(adaptor) for adaptor in self.adaptor_configs])
        if self.adaptor_names is None:
            self.adaptor_names = self.all_adaptor_names

    def check_adaptors(self) -> None:
        """Refuse adaptors that cannot be built.

        Raises:
            ValueError: If two have one name, a chosen one is unknown, or the heads of an attention do not divide the
                trunk's width.
        """
        adaptors = self.adaptor_configs
        names = [adaptor.name for adaptor in adaptors]
        if len(set(names)) < len(names):
            raise ValueError(f"`adaptors` must have distinct names, got {names}.")
        for name in self.adaptor_names or []:
            self.adaptor(name)
        for adaptor in adaptors:
            if adaptor.feature_head == "attention" and self.hidden_size % adaptor.feature_num_attention_heads:
                raise ValueError(
                    f"`adaptors.{adaptor.name}.feature_num_attention_heads` must divide `hidden_size` "
                    f"({self.hidden_size}), got {adaptor.feature_num_attention_heads}."
                )
