"""Cards of data sets of features."""

import dataclasses

import yaml
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt

from modeling_radio.model_cards.features import Column, FeatureSet, build_features_card, size_category
from modeling_radio.model_cards.licenses import License


FEATURES = FeatureSet(
    model="radio-tiny",
    source="pets",
    rows={"train": 1200, "test": 7},
    files={"train": "data/train-*.parquet", "test": "data/test-*.parquet"},
    columns=[Column("id", "string", "", "name"), Column("summary", "float32", "(8,)", "the whole image")],
    made=[("computed in", "float32")],
)


def test_metadata_is_the_hubs():
    data = build_features_card(FEATURES, License("apache-2.0")).data.to_dict()
    assert data == {
        "license": "apache-2.0",
        "pretty_name": "Features of pets by radio-tiny",
        "task_categories": ["image-feature-extraction"],
        "size_categories": ["1K<n<10K"],
        "tags": ["radio", "vision", "embeddings"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": "train", "path": "data/train-*.parquet"},
                    {"split": "test", "path": "data/test-*.parquet"},
                ],
            }
        ],
    }
    known = dataclasses.replace(FEATURES, model_id="org/model", source_id="org/pets")
    data = build_features_card(known, None).data.to_dict()
    assert (data["base_model"], data["source_datasets"]) == ("org/model", ["org/pets"])
    assert "license" not in data
    words = {999: "n<1K", 1000: "1K<n<10K", 2_000_000: "1M<n<10M", 10**13: "n>1T"}
    assert {rows: size_category(rows) for rows in words} == words


def test_names_break_neither_yaml_nor_markdown():
    name = 'a\n---\n# b | <script>alert(1)</script> "`x`" ```'
    strange = dataclasses.replace(
        FEATURES, model=name, source=name, columns=[Column(name, name, name, name)], made=[(name, name)]
    )
    text = str(build_features_card(strange, License("mit")))
    front, body = text.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(front)["license"] == "mit"
    assert isinstance(DatasetCard(text).data.to_dict(), dict)
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
    kinds = [token.type for token in tokens]
    assert kinds.count("heading_open") == 5
    assert kinds.count("table_open") == 3
    assert "html_block" not in kinds
    inline = [child.type for token in tokens for child in token.children or ()]
    assert "html_inline" not in inline
