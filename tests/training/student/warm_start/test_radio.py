import inspect
from pathlib import Path

import pytest
import torch
from comparisons import assert_same_weights
from tiny_radio1d import ADAPTORS, FIELDS, build_radio1d

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.configuration_radio import PixelFields, TrunkFields
from modeling_radio.conversion.from_nvidia import convert
from modeling_radio.modeling_radio import DECODER_PREFIX, POSITIONS, PREFIX_TOKENS
from modeling_radio.training.recipes.recipe import RecipeError
from modeling_radio.training.student.parameters import CLIPS
from modeling_radio.training.student.warm_start import radio as radio_start
from modeling_radio.training.student.warm_start.radio import (
    TRUNK_FIELDS,
    check_widening,
    open_source,
    warm_start,
    widen,
)


REFERENCE = Path(__file__).parents[3] / "reference"


def adaptor(name: str, token_index: int, summary_dim: int | None = 4, feature_dim: int = 8) -> dict:
    shape = {"summary_dim": summary_dim, "feature_dim": feature_dim, "hidden_size": 8, "num_inner_blocks": 0}
    return {"name": name, "token_index": token_index, **shape}


def build(*adaptors: dict, **fields) -> RadioModel:
    config = RadioConfig.from_preset(
        "radio-test", num_cls_tokens=len(adaptors), summary_idxs=[0], adaptors=list(adaptors), **fields
    )
    return RadioModel(config).eval()


def test_trunk_and_heads_of_shared_teachers_are_taken() -> None:
    source = build(adaptor("a", 0), adaptor("b", 1), adaptor("wide", 2))
    student = build(adaptor("new", 0), adaptor("wide", 1, feature_dim=9), adaptor("b", 2))
    fresh = {key: value.clone() for key, value in student.state_dict().items()}
    result = warm_start(student, source, "start")
    assert result.kept == ["b"]
    assert result.taken == ["trunk", "heads of b", "class tokens of wide, b"]
    assert result.added == ["heads of new", "heads, since the checkpoint's have other shapes, of wide"]
    assert result.left_out == ["heads of a"]
    assert result.resized == []
    own, given = student.state_dict(), source.state_dict()
    for key, value in own.items():
        if key.startswith(("radio_model.adaptors.new", "radio_model.adaptors.wide")):
            assert torch.equal(value, fresh[key])
        elif key not in (PREFIX_TOKENS, "radio_model.summary_idxs"):
            assert torch.equal(value, given[key])
    tokens = torch.cat([fresh[PREFIX_TOKENS][:1], given[PREFIX_TOKENS][[2, 1, *range(3, len(given[PREFIX_TOKENS]))]]])
    assert torch.equal(own[PREFIX_TOKENS], tokens)


def test_tokens_of_slots_are_taken_and_patches_are_none() -> None:
    source = build(adaptor("slot", 1), adaptor("register", 4), adaptor("patch", 10), nvidia_source={})
    student = build(adaptor("slot", 0), adaptor("register", 1), adaptor("patch", 2))
    fresh = student.state_dict()[PREFIX_TOKENS].clone()
    assert "class tokens of slot, register" in warm_start(student, source, "start").taken
    own, given = student.state_dict()[PREFIX_TOKENS], source.state_dict()[PREFIX_TOKENS]
    assert torch.equal(own[:3], torch.stack([given[1], given[4], fresh[2]]))


def test_other_position_table_is_resized_and_other_registers_are_cut() -> None:
    source = build(adaptor("a", 0), max_img_size=64, num_registers=5)
    student = build(adaptor("a", 0), max_img_size=128, num_registers=3)
    result = warm_start(student, source, "start")
    assert result.resized == ["position table from 4 x 4 to 8 x 8"]
    assert result.left_out == ["2 registers"]
    table, given = student.state_dict()[POSITIONS], source.state_dict()[POSITIONS]
    torch.testing.assert_close(table.mean(1), given.mean(1), rtol=0, atol=0.02)
    assert torch.equal(table[:, 0], given[:, 0])  # corners stay corners
    assert torch.equal(student.state_dict()[PREFIX_TOKENS], source.state_dict()[PREFIX_TOKENS][:4])


def test_the_same_student_again_is_the_same(tmp_path: Path) -> None:
    """Also from a converted checkpoint of NVIDIA, with one of its teachers."""
    source, student = (build(adaptor("a", 0), adaptor("b", 1, summary_dim=None)) for _ in range(2))
    warm_start(student, source, "start")
    assert_same_weights(student, source)
    converted = convert(REFERENCE / "c_radio_v4_tiny/checkpoint.pth.tar").eval()
    converted.save_pretrained(tmp_path)
    kept = next(entry for entry in converted.config.adaptors if entry["name"] == "dino_v3")
    fields = {"adaptors": [adaptor("new", 0), {**kept, "token_index": 1}], "adaptor_names": None}
    student = RadioModel(RadioConfig.from_dict({**converted.config.to_dict(), **fields})).eval()
    assert warm_start(student, open_source(str(tmp_path), student.config), "start").kept == ["dino_v3"]
    for key, value in student.state_dict().items():
        if key.startswith(("radio_model.model.blocks.", "radio_model.adaptors.dino_v3.")):
            assert torch.equal(value, converted.state_dict()[key])


@pytest.mark.parametrize("frames", [None, 2])
def test_a_student_of_clips_starts_from_one_of_images_or_clips(frames: int | None) -> None:
    source = build(adaptor("a", 0), video_temporal_patch_size=frames)
    student = build(adaptor("a", 0), video_temporal_patch_size=2)
    before = student.state_dict()[CLIPS].clone()
    result = warm_start(student, source, "start")
    trunk = "radio_model.model.blocks.1.mlp.fc1.weight"
    assert torch.equal(student.state_dict()[trunk], source.state_dict()[trunk])
    assert ("projection of clips" in result.added) == (frames is None)
    assert torch.equal(student.state_dict()[CLIPS], before) == (frames is None)


def test_a_bad_source_is_refused_in_one_line(tmp_path: Path) -> None:
    build(adaptor("a", 0)).save_pretrained(tmp_path)
    config = RadioConfig.from_preset("radio-test", num_hidden_layers=5, norm_mean=[0.5, 0.5, 0.5])
    for source, named in ((str(tmp_path), "num_hidden_layers is 4, not 5; norm_mean"), ("no/where/at-all", "no/where")):
        with pytest.raises(RecipeError, match=rf"^`student\.init_from` [^\n]*{named}[^\n]*$"):
            open_source(source, config)


def test_every_field_of_the_trunk_is_compared_or_known_not_to_matter() -> None:
    of_no_weight = {"mlp_ratio", "image_size", "max_resolution", "preferred_resolution", "initializer_range"}
    of_training = {"attention_probs_dropout_prob", "hidden_dropout_prob", "drop_path_rate", "layerscale_value"}
    carried_over = {"max_img_size", "num_cls_tokens", "num_registers", "summary_idxs"}
    others = of_no_weight | of_training | carried_over | {"video_temporal_patch_size", "navit"}  # compared apart
    assert not others & set(TRUNK_FIELDS)
    assert others | set(TRUNK_FIELDS) == {*inspect.get_annotations(TrunkFields), *inspect.get_annotations(PixelFields)}


PLAIN = {name: value for name, value in FIELDS.items() if name not in ("downscale_levels", "decoder_depth")}


class TestWidening:
    """A RADIO1D starts from a plain network: its wide blocks return the narrow output twice."""

    def build_plain(self, **overrides) -> RadioModel:
        torch.manual_seed(3)
        fields = {name: value for name, value in overrides.items() if name not in ("downscale_levels", "decoder_depth")}
        model = RadioModel(RadioConfig(**{**PLAIN, **fields})).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)  # a new network hides what is zero or one at first
        return model

    @pytest.mark.parametrize(
        "overrides",
        [{}, {"downscale_levels": [0, 2], "decoder_depth": 3}, {"use_layer_scale": True, "qkv_bias": False}],
    )
    @pytest.mark.parametrize(("noise", "least", "most"), [(0.0, 0, 1e-5), (0.01, 1e-4, 0.1)])
    def test_the_function_is_kept_without_noise_and_nearly_with_it(
        self, overrides: dict, noise: float, least: float, most: float, monkeypatch
    ) -> None:
        monkeypatch.setattr(radio_start, "NOISE", noise)
        source, student = self.build_plain(**overrides), build_radio1d(adaptors=[], **overrides)
        warm_start(student, source, "start")
        tokens, errors = torch.randn(2, 9, 16), []
        for index in range(3):
            narrow, wide = source.radio_model.model.blocks[index], student.radio_model.model.blocks[index]
            times = 2 ** student.config.count_merges(index)
            with torch.no_grad():
                expected, _ = narrow(tokens, ((1, 9),))
                output, _ = wide(tokens.repeat(1, 1, times), ((1, 9),))
            difference = (output - expected.repeat(1, 1, times)).abs().max()
            errors.append((difference / (expected - tokens).abs().max()).item())
        assert least <= max(errors) < most

    def test_mergings_and_decoder_are_new(self) -> None:
        source, student = self.build_plain(), build_radio1d(adaptors=[])
        fresh = {key: value.clone() for key, value in student.state_dict().items()}
        report = warm_start(student, source, "start")
        assert report.added == ["mergings and decoder"]
        assert report.resized == ["blocks behind the mergings before [1], widened by repetition with 1% noise"]
        own, key = student.state_dict(), "radio_model.model.blocks.0.attn.qkv.weight"
        assert torch.equal(own[key], source.state_dict()[key])
        new = [name for name in own if ".decoder." in name or ".downscale_blocks." in name]
        assert new
        assert all(torch.equal(own[name], fresh[name]) for name in new)
        prefix = torch.randn(4, 16)
        projected = student.radio_model.model.prefix_proj_blocks[0](prefix)
        torch.testing.assert_close(projected, prefix.repeat(1, 2))

    def test_noise_parts_the_copies_and_is_the_same_everywhere(self) -> None:
        narrow = torch.randn(4, 4)
        first, second = (widen("blocks.1.mlp.fc1.weight", narrow, torch.Size([8, 8])) for _ in range(2))
        assert torch.equal(first, second)
        assert not torch.equal(first[:4], first[4:])
        assert not torch.equal(first, widen("blocks.2.mlp.fc1.weight", narrow, torch.Size([8, 8])))

    def test_a_radio1d_starts_from_one_as_it_is(self, tmp_path: Path) -> None:
        first, second = (build_radio1d(adaptors=[entry]).config.adaptors[0] for entry in ADAPTORS)
        source = build_radio1d(adaptors=[first, second])
        source.save_pretrained(tmp_path)
        turned = [{**second, "token_index": 0}, {**first, "token_index": 1}]
        student = RadioModel(RadioConfig(**FIELDS, adaptors=turned))
        warm_start(student, open_source(str(tmp_path), student.config), "start")
        own, given = student.state_dict(), source.state_dict()
        for key in (DECODER_PREFIX, PREFIX_TOKENS):  # class tokens follow their teachers
            assert torch.equal(own.pop(key), given[key][[1, 0, 2]])
        assert all(torch.equal(value, given[key]) for key, value in own.items())

    @pytest.mark.parametrize(
        ("fields", "source", "named"),
        [
            ({"decoder_depth": 3}, FIELDS, "decoder_depth"),
            ({"downscale_levels": None, "decoder_depth": 6}, FIELDS, "downscale_levels"),
            ({"qk_norm": True}, PLAIN, "`qk_norm`"),
            ({"merged_intermediate_sizes": [100]}, PLAIN, r"\[64, 128\].*\[64, 100\]"),
        ],
    )
    def test_impossible_widening_is_refused(self, fields: dict, source: dict, named: str) -> None:
        with pytest.raises(RecipeError, match=rf"`student\.init_from` 'start' .*{named}"):
            check_widening(RadioConfig(**{**FIELDS, **fields}), RadioConfig(**source), "start")
