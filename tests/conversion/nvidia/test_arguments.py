"""Arguments of types that no run can have had: one line that names the file, the argument and its value."""

import json

import pytest

from conversion.from_nvidia import main
from conversion.nvidia.arguments import check_arguments, check_hub_config


TEACHERS = [{"name": "siglip2-g"}]
BROKEN_ARGUMENTS = [
    ({"teachers": None}, "`args.teachers` must be a valid list, got None"),
    ({"teachers": "siglip2-g"}, "`args.teachers` must be a valid list, got 'siglip2-g'"),
    ({"teachers": {"siglip2-g": {}}}, "`args.teachers` must be a valid list, got {'siglip2-g': {}}"),
    ({"teachers": []}, "`args.teachers` must have at least 1 item"),
    ({"teachers": [{"type": "sam"}]}, "`args.teachers.0.name` must be given"),
    ({"teachers": [{"name": 5}]}, "`args.teachers.0.name` must be a valid string, got 5"),
    ({"teachers": [{"name": "a\n# b"}]}, r"`args.teachers.0.name` must match pattern"),
    ({"teachers": [{"name": "a", "fd_upsample_factor": "x"}]}, "fd_upsample_factor` must be a valid integer, got 'x'"),
    ({"teachers": [{"name": "a", "fd_upsample_factor": 0.5}]}, "fd_upsample_factor` must be a valid integer, got 0.5"),
    ({"teachers": [{"name": "a", "fd_upsample_factor": -1}]}, "must be greater than or equal to 0, got -1"),
    ({"teachers": [{"name": "a", "token_slot": "x"}]}, "token_slot` must be a valid integer, got 'x'"),
    ({"model": 5}, "`args.model` must be a valid string, got 5"),
    ({"register_multiple": "x"}, "`args.register_multiple` must be a valid integer, got 'x'"),
    ({"cpe_num_registers": True}, "`args.cpe_num_registers` must be a valid integer, got True"),
    ({"model_kwargs": "x"}, "`args.model_kwargs` must be a valid dictionary"),
    ({"model_kwargs": {"num_heads": 0}}, "`args.model_kwargs.num_heads` must be greater than 0, got 0"),
    ({"model_kwargs": {"mlp_ratio": float("nan")}}, "`args.model_kwargs.mlp_ratio` must be a finite number, got nan"),
    ({"spectral_reparam": {"eps": "x"}}, "`args.spectral_reparam.eps` must be a valid number, got 'x'"),
]
BROKEN_CONFIGS = [
    ({"version": 5}, "`version` must be a valid string, got 5"),
    ({"version": "c-radio\n# heading"}, "`version` must match pattern"),
    ({"max_resolution": "x"}, "`max_resolution` must be a valid integer, got 'x'"),
    ({"max_resolution": -5}, "`max_resolution` must be greater than 0, got -5"),
    ({"preferred_resolution": "x"}, "`preferred_resolution` must be a valid list, got 'x'"),
    ({"preferred_resolution": [0, 0]}, "`preferred_resolution.0` must be greater than 0, got 0"),
    ({"preferred_resolution": [512]}, "`preferred_resolution` must have at least 2 items"),
    ({"vitdet_window_size": "x"}, "`vitdet_window_size` must be a valid integer, got 'x'"),
    ({"adaptor_configs": "x"}, "`adaptor_configs` must be a valid dictionary, got 'x'"),
    ({"adaptor_configs": {"sam3": {}}}, "`adaptor_configs.sam3.feature` must be given"),
    ({"adaptor_configs": {"sam3": {"feature": 1}}}, "`adaptor_configs.sam3.feature` must be a valid dictionary"),
]


@pytest.mark.parametrize(("changes", "message"), BROKEN_ARGUMENTS)
def test_arguments_of_a_training_file_are_refused_by_name(changes, message, edited, tmp_path, capsys):
    path = edited("c_radio_v4_tiny", lambda content: vars(content["args"]).update(changes))
    assert main([str(path), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"from_nvidia: error: {str(path)!r} is damaged, or no checkpoint of NVIDIA's that we know: " in error
    assert message in error


@pytest.mark.parametrize(("changes", "message"), BROKEN_CONFIGS)
def test_a_hub_configuration_is_refused_by_name(changes, message, hub_folder, tmp_path, capsys):
    file = hub_folder("c_radio_v4_tiny") / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    assert main([str(file.parent), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{str(file)!r} is damaged" in error
    assert message in error


def test_all_faults_are_named_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"`args\.model` must be .*; `args\.teachers` must be given"):
        check_arguments({"model": 5}, tmp_path / "file")


def test_what_is_not_read_may_be_anything(tmp_path):
    check_arguments({"teachers": TEACHERS, "lr": "x", "model_kwargs": {"img_size": [1, 2]}}, tmp_path / "file")
    check_hub_config({"torch_dtype": 5}, tmp_path / "file")
