from collections import Counter

import pytest
from nvidia_twin import DEPTH, TWINS, training_state, write_repository
from safetensors import safe_open

from modeling_radio import RadioModel
from modeling_radio.presets_radio import RELEASES


def keys_of(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return list(file.keys())


@pytest.mark.parametrize(
    ("name", "blocks", "others"),
    [
        ("nvidia/C-RADIOv4-SO400M", 12, 6),  # 330 tensors with 27 blocks
        ("nvidia/C-RADIOv3-H", 12, 6),
        ("nvidia/C-RADIOv3-B", 14, 7),  # LayerScale and `reg_token`
    ],
)
def test_folders_hold_as_many_tensors_as_the_real_ones(tmp_path, name, blocks, others):
    folder = write_repository(name, tmp_path / "folder")
    parts = Counter("blocks" if ".blocks." in key else "others" for key in keys_of(folder))
    assert parts == {"blocks": blocks * DEPTH, "others": others}
    assert not any("adaptors" in key for key in keys_of(folder))
    model = RadioModel.from_pretrained(folder)
    assert (model.config.version, list(model.adaptors)) == (TWINS[name].version, [])


def test_archives_lie_where_nvidias_code_looks_for_them_and_name_heads_by_teacher(tmp_path):
    for name, files in {
        "nvidia/C-RADIOv4-H": {"c-radio_v4-h_half.pth.tar"},
        "nvidia/RADIO-B": set(),
        "nvidia/C-RADIOv3-L": {"c-radio-v3_l_half.pth.tar"},
    }.items():
        assert {path.name for path in write_repository(name, tmp_path / name).glob("*.pth.tar")} == files
    heads = {key.split(".")[1] for key in training_state(TWINS["nvidia/C-RADIOv4-H"])["state_dict"] if "_heads" in key}
    assert heads == {"siglip2-g", "dino_v3_7b", "sam3"}


def test_every_twin_is_a_release_of_nvidias():
    assert {twin.version for twin in TWINS.values()} <= set(RELEASES)
