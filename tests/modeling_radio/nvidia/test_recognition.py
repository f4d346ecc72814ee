import pytest
from nvidia_twin import TWINS, training_state

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.conversion.to_nvidia import training_file_content
from modeling_radio.nvidia.config import release_fields
from modeling_radio.nvidia.recognition import MATTERING
from modeling_radio.presets_radio import RELEASES, SIZES


AMBIGUOUS = {"radio_v2.5-h", "c-radio_v2-vlm-h"}
"""Both are ViT-H with these teachers; the windows differ, and no fact about the files tells them apart."""
OTHERS = {  # of which the Hub has no folder
    "radio_v1": {"model": "vit_huge_patch14_224", "teachers": [{"name": "clip"}], "mlp_version": "v1"},
    "radio_v2.5-h-norm": vars(training_state(TWINS["nvidia/RADIO-H"])["args"]),
}
BY_VERSION = {twin.version: twin for twin in TWINS.values()}


def args_of(version):
    args = OTHERS.get(version) or vars(training_state(BY_VERSION[version])["args"])
    return dict(args)


def recognized(version, args=None, **changes):
    """Return what is told of a release, by the arguments of its twin and its own size."""
    size = SIZES[RELEASES[version].size]
    shape = {
        "hidden_size": size.hidden_size,
        "num_hidden_layers": size.num_hidden_layers,
        "patch_size": 14 if version in ("radio_v1", "radio_v2.5-g") else 16,
        "use_patch_bias": version == "radio_v2.5-g",
        **changes,
    }
    return release_fields(args or args_of(version), shape, {}, has_normalizer=version.endswith("-norm"))


@pytest.mark.parametrize("version", sorted({*BY_VERSION, *OTHERS} - AMBIGUOUS))
def test_every_release_is_recognized_by_what_its_files_hold(version):
    fields = recognized(version)
    assert fields["version"] == version
    assert fields["pos_embed_align_corners"] == RELEASES[version].fields.get("pos_embed_align_corners", False)


def test_the_name_of_readme_is_recognized_too():
    args = args_of("c-radio_v3-b")
    args["teachers"] = [{**each, "name": each["name"].replace("siglip2", "siglip2-g")} for each in args["teachers"]]
    assert recognized("c-radio_v3-b", args)["pos_embed_align_corners"] is True


@pytest.mark.parametrize("version", sorted(AMBIGUOUS))
def test_releases_that_cannot_be_told_apart_are_refused_by_name(version):
    with pytest.raises(ValueError, match=r"`version`.*radio_v2\.5-h or c-radio_v2-vlm-h.*`vitdet_num_global`"):
        recognized(version)
    shape = {"hidden_size": 1280, "num_hidden_layers": 32, "patch_size": 16, "use_patch_bias": False}
    assert release_fields(args_of(version), shape, {"version": version})["version"] == version


def test_a_generation_without_its_size_is_refused_where_its_releases_differ():
    tiny = {"hidden_size": 32, "num_hidden_layers": 4}
    assert recognized("c-radio_v3-b", **tiny)["pos_embed_align_corners"] is True  # by the architecture's name
    other = {**args_of("c-radio_v3-b"), "model": "vit_tiny_patch16_224"}
    with pytest.raises(ValueError, match=r"`version`.*`pos_embed_align_corners`"):
        recognized("c-radio_v3-b", other, **tiny)
    same = {**args_of("c-radio_v4-h"), "model": "vit_tiny_patch16_224"}
    assert recognized("c-radio_v4-h", same, **tiny)["version"] is None  # both of C-RADIOv4 compute the same


def test_our_own_files_say_what_no_tensor_shows():
    config = RadioConfig.from_preset("radio-test", pos_embed_align_corners=True, vitdet_num_global=1)
    args = vars(training_file_content(RadioModel(config))["args"])
    fields = recognized("c-radio_v3-l", args)
    assert {name: fields.get(name) for name in MATTERING[:2]} == {name: getattr(config, name) for name in MATTERING[:2]}
