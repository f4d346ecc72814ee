"""The card of a data set of features: its columns, the model that computed them, and how to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from huggingface_hub import DatasetCard, DatasetCardData

from modeling_radio.core.tables import markdown, one_line
from modeling_radio.model_cards.licenses import License
from modeling_radio.model_cards.rendering import PLACEHOLDER, Raw, code_span, escaped, render_part


SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B")
"""The Hub's categories of the number of rows, each ten times the one before."""


class Column(NamedTuple):
    """One column of the data set.

    Attributes:
        name: Name in the files.
        type: Type of its numbers.
        shape: Shape in words such as "(1280,)"; empty for a single value.
        meaning: Description in one line.
    """

    name: str
    type: str
    shape: str
    meaning: str


@dataclass(frozen=True)
class FeatureSet:
    """Content of the card.

    Attributes:
        model: Name of the model.
        source: Name of the images.
        rows: Number of rows of each split.
        files: Pattern of the files of each split.
        columns: Columns in their order.
        made: Facts about its making, as pairs of an aspect and its value.
        dtype: Data type of the vectors.
        is_dense: Whether there are dense features.
        has_bases: Whether these are principal components, which `pca.safetensors` inverts.
        indexes: Index files of the first split by column.
        model_id: The model's repository on the Hub.
        source_id: The images' repository on the Hub.
    """

    model: str
    source: str
    rows: Mapping[str, int]
    files: Mapping[str, str]
    columns: Sequence[Column]
    made: Sequence[tuple[str, str]]
    dtype: str = "float32"
    is_dense: bool = False
    has_bases: bool = False
    indexes: Mapping[str, str] = field(default_factory=dict)
    model_id: str | None = None
    source_id: str | None = None

    @property
    def title(self) -> str:
        """The heading."""
        return f"Features of {self.source} by {self.model}"


def build_features_card(features: FeatureSet, license: License | None) -> DatasetCard:
    """Return the card of a data set of features.

    Args:
        features: Content of the data set.
        license: License of the features; None leaves it open, and the card is not complete.
    """
    known: dict[str, Any] = {"base_model": features.model_id} | ({} if license is None else license.metadata())
    data = DatasetCardData(
        pretty_name=one_line(features.title),
        task_categories=["image-feature-extraction"],
        size_categories=[size_category(sum(features.rows.values()))],
        source_datasets=[features.source_id] if features.source_id else None,
        tags=["radio", "vision", "embeddings"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": path} for split, path in features.files.items()],
            }
        ],
        **{name: value for name, value in known.items() if value is not None},
    )
    table = [
        [code_span(each.name), escaped(each.type), escaped(each.shape), escaped(each.meaning)]
        for each in features.columns
    ]
    text = render_part(
        "features.md",
        card_data=Raw(data.to_yaml()),
        features=features,
        license=license,
        source=PLACEHOLDER,
        split=next(iter(features.rows)),
        columns=Raw(markdown(["column", "type", "shape", "meaning"], table)),
        made=Raw(markdown(["what", "how"], [[escaped(what), escaped(value)] for what, value in features.made])),
    )
    return DatasetCard(text)


def size_category(num_rows: int) -> str:
    """Return the Hub's category for a number of rows."""
    return next((word for power, word in enumerate(SIZES) if num_rows < 10 ** (power + 3)), "n>1T")
