"""The calls of programs that embed RADIO, in our own words: robots, mapping, driving, trainers of adapters.

Each is written for NVIDIA's repository or its folders on the Hub, and gets what it would get there.
"""

import copy
import io
from pathlib import Path

import huggingface_hub
import pytest
import torch
from local_hub import hub_in_place
from nvidia_twin import TWINS, serve_twin, write_repository
from tiny_eradio import build_eradio
from torch import Tensor, nn
from transformers import AutoModel

from modeling_radio import RadioModel
from modeling_radio.conversion.convert import main
from modeling_radio.nvidia.releases import HUB_RELEASES
from modeling_radio.torch_hub import find_version


pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[3]
IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    """RADIOv2.5-B, converted with all of its adaptors."""
    root = tmp_path_factory.mktemp("hub")
    write_repository("nvidia/RADIO-B", root / "nvidia")
    assert main([str(root / "nvidia"), str(root / "ours"), "--adaptors", "all"]) == 0
    return root / "ours"


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def load(version: Path | str | None, **arguments) -> nn.Module:
    version = str(version) if isinstance(version, Path) else version
    return torch.hub.load(str(ROOT), "radio_model", source="local", version=version, **arguments)


def test_adaocc_calls_the_network_of_an_auto_model_for_a_pair(release):
    """AdaOcc (driving): `_, features = AutoModel(...).radio_model(x, feature_fmt="NCHW")`."""
    model = AutoModel.from_pretrained(release, adaptor_names=[]).eval()
    summary, features = model.radio_model(IMAGES, feature_fmt="NCHW")
    expected = model(IMAGES, feature_format="NCHW")
    assert torch.equal(summary, expected.summary)
    assert torch.equal(features, expected.features)
    answers = AutoModel.from_pretrained(release, adaptor_names=["dino_v2"]).radio_model(IMAGES, feature_fmt="NLC")
    assert list(answers) == ["backbone", "dino_v2"]
    with pytest.raises(ValueError, match="`feature_fmt`"):
        model.radio_model(IMAGES, feature_fmt="NCWH")


def test_networks_whose_output_is_a_pair_compile_as_one_graph(release):
    model = AutoModel.from_pretrained(release, adaptor_names=[]).eval()
    compiled = torch.compile(model.radio_model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(IMAGES, feature_fmt="NCHW")[1], model(IMAGES, feature_format="NCHW").features)


def test_uniception_reads_the_width_of_a_head_and_loads_hub_weights(release):
    """UniCeption (MapAnything): widths by the head's last layer, `load_state_dict(checkpoint["model"])`."""
    model = load(release, adaptor_names=["dino_v2"])
    width = model.adaptors["dino_v2"].feat_mlp.final[-1].out_features
    assert model(IMAGES)["dino_v2"].features.shape[2] == width
    state = model.state_dict()
    assert "model.blocks.0.attn.qkv.weight" in state
    assert all(not name.startswith("radio_model.") for name in (*state, *dict(model.named_parameters())))
    other = load(release, adaptor_names=["dino_v2"])
    for parameter in other.parameters():
        parameter.zero_()
    other.load_state_dict(state)
    assert torch.equal(other(IMAGES)["dino_v2"].features, model(IMAGES)["dino_v2"].features)
    for parameter in other.parameters():
        parameter.zero_()
    other.load_state_dict({f"radio_model.{name}": value for name, value in state.items()})
    assert torch.equal(other(IMAGES)["dino_v2"].features, model(IMAGES)["dino_v2"].features)
    with pytest.raises(RuntimeError, match=r"model\.blocks\.0\.attn\.qkv\.weight"):
        other.load_state_dict({name: value for name, value in state.items() if ".qkv." not in name})


def test_uniception_fits_the_windows_of_e_radio_to_its_images():
    model = build_eradio()
    window = model.model.set_optimal_window_size((64, 96))
    assert window == model.window_size == model.config.vitdet_window_size == model.set_optimal_window_size([64, 96])
    expected = model(IMAGES, window_size=window).features
    assert torch.equal(model(IMAGES).features, expected)
    model.model.change_window_size(None)
    assert model.window_size is None


@pytest.mark.parametrize("opened", [load, RadioModel.from_pretrained], ids=["torch.hub", "folder"])
def test_viral_assigns_the_class_tokens_of_the_summary(release, opened, tmp_path):
    """VLM aligners assign `summary_idxs`; from then on those tokens are the summary, also of a saved folder."""
    model = opened(release) if opened is load else opened(release, adaptor_names=[])
    network = model if opened is load else model.radio_model
    before = model(IMAGES)[0]
    network.summary_idxs = torch.tensor([1])
    width = model.embed_dim
    assert model.summary_dim == width
    assert torch.equal(model(IMAGES)[0], before[:, width : 2 * width])
    if opened is not load:
        model.save_pretrained(tmp_path / "saved")
        again = RadioModel.from_pretrained(tmp_path / "saved", adaptor_names=[])
        assert torch.equal(again(IMAGES).summary, model(IMAGES).summary)
    with pytest.raises(ValueError, match="`summary_idxs`"):
        network.summary_idxs = torch.tensor([99])


class LoraQkv(nn.Module):
    """The projection of the trainers of ReinsRADIO and LoRARADIO: a frozen linear layer, and a low-rank part beside."""

    def __init__(self, frozen: nn.Module, width: int) -> None:
        super().__init__()
        self.frozen, self.down, self.up = frozen, nn.Linear(width, 2, bias=False), nn.Linear(2, 3 * width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.frozen(tokens) + self.up(self.down(tokens))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("window_size", [None, 2])
def test_reinsradio_replaces_qkv_by_a_module_of_its_own(release, attention, window_size):
    plain = AutoModel.from_pretrained(release, adaptor_names=[], attn_implementation=attention).eval()
    model = copy.deepcopy(plain)
    for block in model.model.blocks:
        block.attn.qkv = LoraQkv(block.attn.qkv, model.embed_dim)
        block.attn.qkv.up.weight.zero_()
    torch.testing.assert_close(
        model(IMAGES, window_size=window_size).features, plain(IMAGES, window_size=window_size).features
    )
    model.blocks[0].attn.qkv.up.weight.fill_(0.1)
    changed = model(IMAGES, window_size=window_size).features
    assert not torch.allclose(changed, plain(IMAGES, window_size=window_size).features, atol=1e-3)
    merged = copy.deepcopy(plain)
    lora = model.blocks[0].attn.qkv
    merged.blocks[0].attn.qkv.weight += lora.up.weight @ lora.down.weight
    torch.testing.assert_close(changed, merged(IMAGES, window_size=window_size).features)
    with torch.enable_grad():
        model(IMAGES, window_size=window_size).features.mean().backward()
    assert lora.down.weight.grad.abs().max() > 0


def test_bev_detectors_copy_pickle_and_move_hub_models(release):
    model = load(release, adaptor_names=["dino_v2"])
    expected = model(IMAGES)["dino_v2"].features
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for again in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(again(IMAGES)["dino_v2"].features, expected)
        assert again.model is again.radio_model.model
        again.half()
        assert next(again.radio_model.parameters()).dtype is torch.float16
    assert not model.train().radio_model.eval().training
    assert model.train().radio_model.training


def test_wildos_reads_the_training_arguments(release):
    """nasa-jpl WildOS (robots) asks for the checkpoint beside the model."""
    model, checkpoint = load(release, adaptor_names=["dino_v2"], return_checkpoint=True)
    assert "dino_v2" in [teacher["name"] for teacher in checkpoint["args"].teachers]
    weight = checkpoint["state_dict"]["base_model.blocks.0.attn.qkv.weight"]
    assert torch.equal(weight, model.model.blocks[0].attn.qkv.weight)


@pytest.mark.parametrize(
    ("name", "value"),
    [("adaptor_ckpt_path", "ckpts"), ("use_naclip", True), ("neck_name", "fine"), ("use_ema", False)],
)
def test_arguments_that_nothing_here_obeys_are_refused_by_name(release, name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        load(release, **{name: value})


def test_arguments_with_the_values_of_nvidias_entry_are_taken(release):
    others = {"neck_name": None, "use_ema": True, "return_spatial_features": True, "use_naclip": False}
    assert load(release, progress=False, adaptor_ckpt_path=None, **others)(IMAGES).features.isfinite().all()
    with pytest.warns(UserWarning, match="`return_spatial_features`"):  # which NVIDIA's own examples pass
        summary, _ = load(release, return_spatial_features=False)(IMAGES)
    assert summary.isfinite().all()
    with pytest.raises(TypeError, match="'vitdet_window'"):
        load(release, vitdet_window=8)


def test_a_version_that_is_none_is_answered_by_those_that_are(tmp_path, monkeypatch):
    for version in ("c-radio_v4-hh", "dinov3"):
        with pytest.raises(ValueError, match=r"`version` .*c-radio_v4-h"):
            load(version)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c-radio_v4-h").mkdir()  # a folder here is meant by "./c-radio_v4-h" alone
    assert find_version("c-radio_v4-h") == find_version("") == find_version(None) == "nvidia/C-RADIOv4-H"
    assert find_version("./c-radio_v4-h") == "./c-radio_v4-h"


def test_every_release_of_nvidias_entry_lies_where_the_twin_has_it():
    twins = {twin.version: (name, twin) for name, twin in TWINS.items()}
    for version, release in HUB_RELEASES.items():
        if version in twins:
            name, twin = twins[version]
            assert (release.repository, release.archive, release.archive_in) == (name, twin.archive, twin.archive_in)
    assert {version for version in HUB_RELEASES if version not in twins} <= {
        "radio_v1",
        "radio_v2",
        "radio_v2.5-h-norm",
        "e-radio_v2",
    }


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The twin of the Hub, asked by this process with empty caches."""
    constants = huggingface_hub.constants
    with hub_in_place(monkeypatch) as hub:
        for name in ("HF_HUB_CACHE", "HF_ASSETS_CACHE"):
            monkeypatch.setattr(constants, name, str(tmp_path / name))
        serve_twin(hub)
        yield hub


@pytest.mark.parametrize(
    ("version", "adaptors"),
    [
        ("", ["siglip2-g", "dino_v3_7b"]),  # water inspection, RADSeg
        (None, []),
        ("c-radio_v3-b", ["siglip2", "sam"]),  # RADSeg, RADIO-ViPE
        ("radio_v2.5-b", ["dino_v2"]),  # UniCeption
        *((twin.version, []) for twin in TWINS.values()),
    ],
)
def test_versions_of_nvidias_entry_open(version, adaptors, hub):
    """By release name, as these programs call `torch.hub`; adaptors that a folder lacks come from its training file."""
    model = load(version, adaptor_names=adaptors)
    answers = model(torch.rand(1, 3, 224, 224))
    assert list(answers) == ["backbone", *adaptors] if adaptors else answers.features.isfinite().all()


def test_a_release_that_is_a_file_alone_is_fetched(hub):
    repository = hub.repositories["models/nvidia/RADIO"]
    files = repository.commits[repository.resolve("main")]
    repository.commit({**files, "radio_v2.pth.tar": files["radio_v2.1_bf16.pth.tar"]})
    assert torch.equal(load("radio_v2")(IMAGES).features, load("radio_v2.1")(IMAGES).features)
    with pytest.raises(ValueError, match=r"radio_v1\.pth\.tar of nvidia/RADIO"):
        load("radio_v1")


def test_radio_gs_opens_a_training_file_by_its_path(hub, tmp_path):
    """RADIO-GS and the water inspectors give a `.pth.tar` as `version`, with the adaptors that it holds."""
    repository = hub.repositories["models/nvidia/C-RADIOv4-H"]
    name = "c-radio_v4-h_half.pth.tar"
    (tmp_path / name).write_bytes(repository.commits[repository.resolve("main")][name])
    by_file = load(tmp_path / name, adaptor_names=["dino_v3_7b"])
    by_name = load("c-radio_v4-h", adaptor_names=["dino_v3_7b"])
    torch.testing.assert_close(
        by_file(IMAGES)["dino_v3_7b"].features, by_name(IMAGES)["dino_v3_7b"].features, rtol=0, atol=0.02
    )
