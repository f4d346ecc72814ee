"""Arguments of types that no run can have had: one line that names the file, the argument and its value."""

import json

import pytest
from reference_cases import write_hub_folder

from modeling_radio import RadioModel
from modeling_radio.conversion.convert import main
from modeling_radio.nvidia.arguments import check_arguments, check_hub_config


TEACHERS = [{"name": "siglip2-g"}]
BROKEN_ARGUMENTS = [
    *(({"teachers": value}, "args.teachers") for value in (None, "siglip2-g", {"siglip2-g": {}}, [])),
    ({"teachers": [5]}, "args.teachers.0"),
    ({"teachers": [{"name": "a"}, None]}, "args.teachers.1"),
    *(
        ({"teachers": [teacher]}, "args.teachers.0.name")
        for teacher in ({"type": "sam"}, {"name": 5}, {"name": "a\n# b"})
    ),
    *(({"teachers": [{"name": "a", "fd_upsample_factor": value}]}, "upsample_factor") for value in ("x", 0.5, -1)),
    ({"teachers": [{"name": "a", "token_slot": "x"}]}, "token_slot"),
    ({"teachers": [{"name": "a", "use_summary": "no"}]}, "use_summary"),
    *(({"model": value}, "args.model") for value in (None, 5)),
    ({"register_multiple": "x"}, "args.register_multiple"),
    ({"cpe_num_registers": True}, "args.cpe_num_registers"),
    ({"cpe_max_size": 10**30}, "args.cpe_max_size"),
    ({"model_kwargs": "x"}, "args.model_kwargs"),
    ({"model_kwargs": {"num_heads": 0}}, "args.model_kwargs.num_heads"),
    ({"model_kwargs": {"mlp_ratio": float("nan")}}, "args.model_kwargs.mlp_ratio"),
    ({"dtype": []}, "args.dtype"),
    ({"model_kwargs": {"dtype": []}}, "args.model_kwargs.dtype"),
    ({"spectral_reparam": {"eps": "x"}}, "args.spectral_reparam.eps"),
]
HEAD = {"hidden_dim": 1, "output_dim": 1, "num_inner": 0}
BROKEN_CONFIGS = [
    ({"adaptor_configs": {"a\nb": None}}, r"adaptor_configs.a\nb"),
    *(({"version": value}, "version") for value in (5, "c-radio\n# heading")),
    *(({"max_resolution": value}, "max_resolution") for value in ("x", -5)),
    *(({"preferred_resolution": value}, "preferred_resolution") for value in ("x", [0, 0], [512])),
    ({"vitdet_window_size": "x"}, "vitdet_window_size"),
    ({"adaptor_names": "sam3"}, "adaptor_names"),
    ({"adaptor_names": ["sam"]}, "adaptor_configs.sam"),
    ({"adaptor_configs": "x"}, "adaptor_configs"),
    *(({"adaptor_configs": {"sam3": head}}, "adaptor_configs.sam3.feature") for head in ({}, {"feature": 1})),
    (
        {"adaptor_configs": {"sam3": {"feature": HEAD, "summary": {**HEAD, "output_dim": None}}}},
        "adaptor_configs.sam3.summary.output_dim",
    ),
    ({"feature_normalizer_config": 5}, "feature_normalizer_config"),
    ({"inter_feature_normalizer_config": {"num_intermediates": 3}}, "inter_feature_normalizer_config.rot_per_layer"),
]


@pytest.mark.parametrize(
    ("changes", "name"), [*(({"args": changes}, name) for changes, name in BROKEN_ARGUMENTS), *BROKEN_CONFIGS], ids=str
)
def test_a_hub_configuration_is_refused_by_name_converted_or_opened(changes, name, tmp_path, capsys):
    file = write_hub_folder("c_radio_v4_tiny", tmp_path / "hub") / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, **changes, "args": {**config["args"], **changes.get("args", {})}}))
    assert main([str(file.parent), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    with pytest.raises(ValueError) as opened:  # noqa: PT011
        RadioModel.from_pretrained(file.parent)
    for text in (error, str(opened.value)):
        assert repr(str(file)) in text
        assert f"{name}` " in text


@pytest.mark.parametrize("name", ["cpe_max_size", "mlp_version"])
def test_what_a_folder_cannot_be_opened_without(name):
    args = {"teachers": TEACHERS, "model": "vit_base_patch16_224", "cpe_max_size": 256, "mlp_version": "v2"}
    check_hub_config({"args": args}, "config.json")
    with pytest.raises(ValueError, match=rf"'config\.json' .* `args\.{name}`"):
        check_hub_config({"args": {**args, name: None}}, "config.json")
    check_arguments({**args, name: None}, "file")


def test_all_faults_are_named_at_once():
    with pytest.raises(ValueError, match=r"`args\.model` .*`args\.teachers`"):
        check_arguments({"model": 5}, "file")


def test_what_is_not_read_may_be_anything():
    check_arguments({"model": "x", "teachers": TEACHERS, "lr": "x", "model_kwargs": {"drop_rate": [1, 2]}}, "file")
