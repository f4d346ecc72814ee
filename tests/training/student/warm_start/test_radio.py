import dataclasses
from pathlib import Path

import pytest
import torch
from comparisons import assert_same_weights

from conversion.from_nvidia import convert
from modeling_radio import RadioConfig, RadioModel
from training.recipe import RecipeError
from training.student.warm_start.radio import TRUNK_FIELDS, open_source, standardize_heads, warm_start
from training.targets.phi_s import PhiS


REFERENCE = Path(__file__).parents[3] / "data/reference"
TRUNK = "radio_model.model.blocks.1.mlp.fc1.weight"
POSITIONS = "radio_model.model.patch_generator.pos_embed"
TOKENS = "radio_model.model.patch_generator.cls_token.token"


def adaptor(name: str, token_index: int, summary_dim: int | None = 4, feature_dim: int = 8) -> dict:
    shape = {"summary_dim": summary_dim, "feature_dim": feature_dim, "hidden_size": 8, "num_inner_blocks": 0}
    return {"name": name, "token_index": token_index, **shape}


def build(*adaptors: dict, **fields) -> RadioModel:
    config = RadioConfig.from_preset(
        "radio-test", num_cls_tokens=len(adaptors), summary_idxs=[0], adaptors=list(adaptors), **fields
    )
    return RadioModel(config).eval()


def test_trunk_and_heads_of_shared_teachers_come_along() -> None:
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
        elif key not in (TOKENS, "radio_model.summary_idxs"):
            assert torch.equal(value, given[key])
    assert torch.equal(own[TOKENS][0], fresh[TOKENS][0])
    assert torch.equal(own[TOKENS][1:], given[TOKENS][[2, 1, *range(3, len(given[TOKENS]))]])


def test_tokens_of_slots_come_along_and_patches_are_none() -> None:
    source = build(adaptor("slot", 1), adaptor("register", 4), adaptor("patch", 10), nvidia_source={})
    student = build(adaptor("slot", 0), adaptor("register", 1), adaptor("patch", 2))
    fresh = student.state_dict()[TOKENS].clone()
    assert "class tokens of slot, register" in warm_start(student, source, "start").taken
    own, given = student.state_dict()[TOKENS], source.state_dict()[TOKENS]
    assert torch.equal(own[:2], given[[1, 4]])
    assert torch.equal(own[2], fresh[2])


def test_same_student_again_answers_the_same() -> None:
    source, student = (build(adaptor("a", 0), adaptor("b", 1, summary_dim=None)) for _ in range(2))
    pixel_values = torch.rand(2, 3, 32, 48)
    assert not torch.equal(student(pixel_values).summary, source(pixel_values).summary)
    warm_start(student, source, "start")
    assert_same_weights(student, source)
    ours, theirs = student(pixel_values), source(pixel_values)
    torch.testing.assert_close(ours.summary, theirs.summary, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.adaptors["b"].features, theirs.adaptors["b"].features, atol=1e-6, rtol=0)


def test_other_position_table_is_resized_and_other_registers_are_cut_with_a_note() -> None:
    source = build(adaptor("a", 0), max_img_size=64, num_registers=5)
    student = build(adaptor("a", 0), max_img_size=128, num_registers=3)
    result = warm_start(student, source, "start")
    assert result.resized == ["position table from 4 x 4 to 8 x 8"]
    assert result.left_out == ["2 registers"]
    table, given = student.state_dict()[POSITIONS], source.state_dict()[POSITIONS]
    torch.testing.assert_close(table.mean(1), given.mean(1), rtol=0, atol=0.02)
    assert torch.equal(table[:, 0], given[:, 0])  # corners stay corners
    assert torch.equal(student.state_dict()[TOKENS], source.state_dict()[TOKENS][:4])


def test_kept_heads_go_on_in_the_standardized_space() -> None:
    model, pixel_values = build(adaptor("a", 0), adaptor("b", 1)), torch.rand(2, 3, 32, 32)
    standardizer = PhiS(8)
    standardizer.update(torch.randn(4, 8, 5, 5) * 3 + 1)
    standardizer.end_step()
    standardizer.refit()
    before = model(pixel_values, feature_format="NCHW").adaptors
    standardize_heads(model, ["b"], {"a": standardizer, "b": standardizer})
    after = model(pixel_values, feature_format="NCHW").adaptors
    torch.testing.assert_close(after["b"].features, standardizer.standardize(before["b"].features))
    assert torch.equal(after["a"].features, before["a"].features)


def test_converted_checkpoint_of_nvidia_is_a_start_for_another_teacher_set(tmp_path: Path) -> None:
    converted = convert(REFERENCE / "c_radio_v4_tiny/checkpoint.pth.tar").eval()
    converted.save_pretrained(tmp_path / "converted")
    kept = next(entry for entry in converted.config.adaptors if entry["name"] == "dino_v3")
    fields = {"adaptors": [adaptor("new", 0), {**kept, "token_index": 1}], "adaptor_names": None}
    student = RadioModel(RadioConfig.from_dict({**converted.config.to_dict(), **fields})).eval()
    result = warm_start(student, open_source(str(tmp_path / "converted"), student.config), "start")
    assert result.kept == ["dino_v3"]
    for key, value in student.state_dict().items():
        if key.startswith(("radio_model.model.blocks.", "radio_model.adaptors.dino_v3.")):
            assert torch.equal(value, converted.state_dict()[key])


def test_what_is_no_start_is_refused_in_one_line(tmp_path: Path) -> None:
    build(adaptor("a", 0)).save_pretrained(tmp_path / "a")
    config = RadioConfig.from_preset("radio-test", num_hidden_layers=5, norm_mean=[0.5, 0.5, 0.5])
    with pytest.raises(
        RecipeError, match=r"`student.init_from` '.*a' has another trunk \(num_hidden_layers is 4, not 5; "
    ):
        open_source(str(tmp_path / "a"), config)
    with pytest.raises(RecipeError, match=r"`student.init_from` 'no/where/at-all' is no checkpoint of RADIO") as error:
        open_source("no/where/at-all", config)
    assert "\n" not in str(error.value)


def test_every_field_of_the_trunk_is_compared_or_known_not_to_matter() -> None:
    of_no_weight = {"mlp_ratio", "image_size", "max_resolution", "preferred_resolution", "initializer_range"}
    of_training = {"attention_probs_dropout_prob", "hidden_dropout_prob", "drop_path_rate", "layerscale_value"}
    carried_over = {"max_img_size", "num_cls_tokens", "num_registers", "summary_idxs"}
    of_clips = {"video_temporal_patch_size"}
    others = of_no_weight | of_training | carried_over | of_clips
    assert not others & set(TRUNK_FIELDS)
    names = [field.name for field in dataclasses.fields(RadioConfig)]
    assert others | set(TRUNK_FIELDS) == set(names[names.index("hidden_size") : names.index("vitdet_window_size")])


@pytest.mark.parametrize("frames", [None, 2])
def test_a_student_of_clips_starts_from_one_of_images_or_clips(frames: int | None) -> None:
    source, student = (
        build(adaptor("a", 0), video_temporal_patch_size=frames),
        build(adaptor("a", 0), video_temporal_patch_size=2),
    )
    key = "radio_model.model.patch_generator.video_embedder.weight"
    before = student.state_dict()[key].clone()
    result = warm_start(student, source, "start")
    assert torch.equal(student.state_dict()[TRUNK], source.state_dict()[TRUNK])
    assert ("projection of clips" in result.added) == (frames is None)
    assert torch.equal(student.state_dict()[key], before) == (frames is None)
