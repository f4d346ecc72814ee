"""Arguments of types that no run can have had: one line that names the file, the argument and its value."""

import json

import pytest
import torch
from reference_cases import load_training_file, write_hub_folder

from conversion.from_nvidia import main
from modeling_radio import RadioModel
from modeling_radio.nvidia.arguments import check_arguments, check_hub_config


TEACHERS = [{"name": "siglip2-g"}]
BROKEN_ARGUMENTS = [
    ({"teachers": None}, "`args.teachers` must be given: a list of at least one entry"),
    ({"teachers": "siglip2-g"}, "`args.teachers` must be a list of at least one entry, got 'siglip2-g'"),
    ({"teachers": {"siglip2-g": {}}}, "`args.teachers` must be a list of at least one entry, got {'siglip2-g': {}}"),
    ({"teachers": []}, "`args.teachers` must be a list of at least one entry, got []"),
    ({"teachers": [5]}, "`args.teachers.0` must be a mapping, got 5"),
    ({"teachers": [{"name": "a"}, None]}, "`args.teachers.1` must be given: a mapping"),
    ({"teachers": [{"type": "sam"}]}, "`args.teachers.0.name` must be given: one line of at most 200 characters"),
    ({"teachers": [{"name": 5}]}, "`args.teachers.0.name` must be one line of at most 200 characters, got 5"),
    ({"teachers": [{"name": "a\n# b"}]}, r"`args.teachers.0.name` must be one line"),
    ({"teachers": [{"name": "a", "fd_upsample_factor": "x"}]}, "upsample_factor` must be an integer in [0, 1048576]"),
    ({"teachers": [{"name": "a", "fd_upsample_factor": 0.5}]}, "upsample_factor` must be an integer in [0, 1048576]"),
    ({"teachers": [{"name": "a", "fd_upsample_factor": -1}]}, "must be an integer in [0, 1048576], got -1"),
    ({"teachers": [{"name": "a", "token_slot": "x"}]}, "token_slot` must be an integer in [0, 1048576], got 'x'"),
    ({"teachers": [{"name": "a", "use_summary": "no"}]}, "use_summary` must be True or False, got 'no'"),
    ({"model": None}, "`args.model` must be given: one line of at most 200 characters"),
    ({"model": 5}, "`args.model` must be one line of at most 200 characters, got 5"),
    ({"register_multiple": "x"}, "`args.register_multiple` must be an integer in [0, 1048576], got 'x'"),
    ({"cpe_num_registers": True}, "`args.cpe_num_registers` must be an integer in [0, 1048576], got True"),
    ({"cpe_max_size": 10**30}, "`args.cpe_max_size` must be an integer in [1, 1048576], got 1000"),
    ({"model_kwargs": "x"}, "`args.model_kwargs` must be a mapping, got 'x'"),
    ({"model_kwargs": {"num_heads": 0}}, "`args.model_kwargs.num_heads` must be an integer in [1, 1048576], got 0"),
    ({"model_kwargs": {"mlp_ratio": float("nan")}}, "`args.model_kwargs.mlp_ratio` must be a number in (0, 1048576]"),
    ({"dtype": []}, "`args.dtype` must be one line of at most 200 characters, got []"),
    ({"model_kwargs": {"dtype": []}}, "`args.model_kwargs.dtype` must be one line of at most 200 characters, got []"),
    ({"spectral_reparam": {"eps": "x"}}, "`args.spectral_reparam.eps` must be a number in (0, 1048576], got 'x'"),
]
HEAD = {"hidden_dim": 1, "output_dim": 1, "num_inner": 0}
BROKEN_CONFIGS = [
    ({"adaptor_configs": {"a\nb": None}}, r"`adaptor_configs.a\nb` must be given: a mapping"),
    ({"version": 5}, "`version` must be one line of at most 200 characters, got 5"),
    ({"version": "c-radio\n# heading"}, "`version` must be one line"),
    ({"max_resolution": "x"}, "`max_resolution` must be an integer in [1, 1048576], got 'x'"),
    ({"max_resolution": -5}, "`max_resolution` must be an integer in [1, 1048576], got -5"),
    (
        {"preferred_resolution": "x"},
        "`preferred_resolution` must be a list of 2, each an integer in [1, 1048576], got 'x'",
    ),
    (
        {"preferred_resolution": [0, 0]},
        "`preferred_resolution` must be a list of 2, each an integer in [1, 1048576], got [0, 0]",
    ),
    (
        {"preferred_resolution": [512]},
        "`preferred_resolution` must be a list of 2, each an integer in [1, 1048576], got [512]",
    ),
    ({"vitdet_window_size": "x"}, "`vitdet_window_size` must be an integer in [1, 1048576], got 'x'"),
    (
        {"adaptor_names": "sam3"},
        "`adaptor_names` must be a list of which each entry is one line of at most 200 characters, got 'sam3'",
    ),
    ({"adaptor_names": ["sam"]}, "`adaptor_configs.sam` must be given"),
    ({"adaptor_configs": "x"}, "`adaptor_configs` must be a mapping, got 'x'"),
    ({"adaptor_configs": {"sam3": {}}}, "`adaptor_configs.sam3.feature` must be given: a mapping"),
    ({"adaptor_configs": {"sam3": {"feature": 1}}}, "`adaptor_configs.sam3.feature` must be a mapping, got 1"),
    (
        {"adaptor_configs": {"sam3": {"feature": HEAD, "summary": {**HEAD, "output_dim": None}}}},
        "`adaptor_configs.sam3.summary.output_dim` must be given: an integer in [1, 1048576]",
    ),
    ({"feature_normalizer_config": 5}, "`feature_normalizer_config` must be a mapping, got 5"),
    (
        {"inter_feature_normalizer_config": {"num_intermediates": 3}},
        "`inter_feature_normalizer_config.rot_per_layer` must be given: True or False",
    ),
]


@pytest.mark.parametrize(("changes", "message"), BROKEN_ARGUMENTS)
def test_arguments_of_a_training_file_are_refused_by_name(changes, message, tmp_path, capsys):
    content, path = load_training_file("c_radio_v4_tiny"), tmp_path / "edited.pth.tar"
    vars(content["args"]).update(changes)
    torch.save(content, path)
    assert main([str(path), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"from_nvidia: error: {str(path)!r} is damaged, or no checkpoint of NVIDIA's that we know: " in error
    assert message in error


@pytest.mark.parametrize(
    ("changes", "message"), [*(({"args": changes}, message) for changes, message in BROKEN_ARGUMENTS), *BROKEN_CONFIGS]
)
def test_a_hub_configuration_is_refused_by_name_converted_or_opened(changes, message, tmp_path, capsys):
    file = write_hub_folder("c_radio_v4_tiny", tmp_path / "hub") / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, **changes, "args": {**config["args"], **changes.get("args", {})}}))
    assert main([str(file.parent), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    with pytest.raises(ValueError, match="no checkpoint of NVIDIA's that we know") as opened:
        RadioModel.from_pretrained(file.parent)
    for text in (error, str(opened.value)):
        assert f"{str(file)!r} is damaged" in text
        assert message in text


@pytest.mark.parametrize("name", ["cpe_max_size", "mlp_version"])
def test_what_a_folder_cannot_be_opened_without(name):
    args = {"teachers": TEACHERS, "model": "vit_base_patch16_224", "cpe_max_size": 256, "mlp_version": "v2"}
    check_hub_config({"args": args}, "config.json")
    with pytest.raises(ValueError, match=rf"'config\.json' .* `args\.{name}` must be given: .*"):
        check_hub_config({"args": {**args, name: None}}, "config.json")
    check_arguments({**args, name: None}, "file")


def test_all_faults_are_named_at_once():
    with pytest.raises(ValueError, match=r"`args\.model` must be .*; `args\.teachers` must be given: a list"):
        check_arguments({"model": 5}, "file")


def test_what_is_not_read_may_be_anything():
    check_arguments({"model": "x", "teachers": TEACHERS, "lr": "x", "model_kwargs": {"drop_rate": [1, 2]}}, "file")
