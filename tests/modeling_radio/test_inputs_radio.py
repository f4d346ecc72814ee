"""Inputs of the models: refused ones, cached positions, hidden states, attention weights, and clips."""

import shutil
import threading
import warnings

import pytest
import torch
from reference_cases import REFERENCE, write_hub_folder
from refusals import refused, wrong
from releases import needs_native_clips
from safetensors.torch import load_file
from task_models import EVERY_MODEL, THREE_MODELS, build, images, tensors_of, tiny_config
from transformers.models.radio import RadioModel as NativeRadioModel
from transformers.utils.generic import TransformersKwargs

from modeling_radio import RadioConfig, RadioForImageClassification, RadioImageProcessor, RadioModel
from modeling_radio.conversion.from_nvidia import convert
from modeling_radio.inputs_radio import FOREIGN_ARGUMENTS


@pytest.fixture
def model() -> RadioModel:
    return RadioModel(RadioConfig.from_preset("radio-test")).eval()


@pytest.mark.parametrize(
    ("pixel_values", "message"),
    [
        (torch.rand(1, 3, 60, 33), "60 x 33.* 64 x 32"),
        (torch.rand(1, 3, 272, 64), "272 x 64.* 256 x 64"),
        (torch.rand(1, 3, 4, 64), "4 x 64.* 16 x 64"),
        (torch.tensor(0.5), "`pixel_values`"),
        (torch.rand(0, 3, 64, 64), "`pixel_values`"),
        ([[0.5]], "`pixel_values`"),
    ],
)
def test_bad_images(model, pixel_values, message):
    with pytest.raises(ValueError, match=message):
        model(pixel_values)


@wrong(
    feature_format=["NHWC"],
    adaptor_names=["sam3", 5, [5], {"sam3": 1}],
    draws=[[0.5]],
    output_hidden_states=[[5], -6, [1.0], "12", [True], torch.tensor([1]), {1}],
)
def test_bad_options(model, name, value):
    refused(name, lambda: model(torch.rand(1, 3, 32, 32), **{name: value}))


@wrong(indices=["01", 3, [2, 1], [0.0], [True], [None], torch.tensor([1])], aggregation=["mean"])
def test_bad_blocks(model, name, value):
    images = torch.rand(1, 3, 32, 32)
    refused(name, lambda: model.get_intermediate_features(images, **{"indices": [1], name: value}))


@pytest.mark.parametrize(
    ("name", "patches", "grids"),
    [
        ("pixel_values", torch.rand(()), [[2, 3]]),
        ("pixel_values", torch.zeros(6, 768, dtype=torch.long), [[2, 3]]),
        ("pixel_values", [[0.5]], [[2, 3]]),
        ("pixel_values", torch.rand(5, 768), [[2, 3]]),
        *(("image_grid_hw", torch.rand(6, 768), grids) for grids in ([[2.0, 3.0]], [], [[-2, -3]], [2, 3])),
        ("image_grid_hw", torch.rand(0, 768), [[0, 3]]),
    ],
)
def test_bad_packs(model, name, patches, grids):
    refused(name, lambda: model(patches, image_grid_hw=torch.tensor(grids)))


def test_pixels_far_outside_the_range_warn_once(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.rand(1, 3, 32, 32) * 1.1 - 0.05)
    with pytest.warns(UserWarning, match="divided by 255"):
        model(torch.rand(1, 3, 32, 32) * 255)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.rand(1, 3, 32, 32) * 255)


def test_nearest_supported_resolution(model):
    assert model.get_nearest_supported_resolution(100, 37) == (96, 32)
    assert model.get_nearest_supported_resolution(3, 5000) == (16, 256)
    assert (model.patch_size, model.min_resolution_step, model.max_resolution) == (16, 16, 256)
    assert model.preferred_resolution == (64, 64)
    for height in (0, -5, float("nan"), float("inf"), "64", True):
        with pytest.raises(ValueError, match="`height`"):
            model.get_nearest_supported_resolution(height, 64)


@pytest.fixture
def resizes(model, monkeypatch) -> list[tuple[int, int]]:
    """Grids for which the position table was resized."""
    calls: list[tuple[int, int]] = []
    generator = model.radio_model.model.patch_generator
    original = generator._resize_positions

    def count(rows, cols):
        calls.append((rows, cols))
        return original(rows, cols)

    monkeypatch.setattr(generator, "_resize_positions", count)
    return calls


@torch.no_grad()
def test_positions_are_resized_once_per_size(model, resizes):
    for _ in range(3):
        model(torch.rand(1, 3, 32, 48))
        model(torch.rand(1, 3, 64, 64))
    assert resizes == [(2, 3), (4, 4)]
    model.to(torch.float64)
    model(torch.rand(1, 3, 32, 48, dtype=torch.float64))
    assert len(resizes) == 3


@torch.no_grad()
@pytest.mark.parametrize("window_size", ["global", 2])
@pytest.mark.parametrize("is_training", [False, True])
def test_no_value_is_looked_at_on_the_way_of_an_image(window_size, is_training):
    """On the meta device there are no values to look at: what works there does not wait for a GPU either."""
    adaptors = [{"name": "sam3", "summary_dim": 8, "feature_dim": 8, "hidden_size": 8, "upsample_factor": 2}]
    config = RadioConfig.from_preset("radio-test", adaptors=adaptors, drop_path_rate=0.2, vitdet_num_windowed=1)
    model = RadioModel(config).to("meta").train(is_training)
    batch, draws = torch.rand(2, 3, 48, 64, device="meta"), torch.rand(2, model.num_draws, device="meta")
    output = model(batch, window_size=window_size, draws=draws, output_hidden_states=True)
    assert output.adaptors["sam3"].features.shape == (2, 6 * 8, 8)
    assert len(model.get_intermediate_features(batch, [1, 3], "dense", window_size=window_size)) == 2


CHANGES = {
    "in place": lambda table: table.mul_(2),
    "through .data": lambda table: table.data.mul_(2),
    "new data": lambda table: setattr(table, "data", table.data * 2),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_positions_never_go_stale(model, change):
    batch = torch.rand(1, 3, 32, 48)
    before = model(batch).features
    CHANGES[change](model.radio_model.model.patch_generator.pos_embed)
    after = model(batch).features
    assert not torch.equal(before, after)
    fresh = RadioModel(model.config).eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(batch).features, after)


@torch.no_grad()
def test_takes_what_the_processor_returns(model):
    """Padded and packed batches go straight in; packing equals one image at a time."""
    images = [torch.randint(0, 256, (3, rows, cols), dtype=torch.uint8) for rows, cols in ((48, 64), (80, 32))]
    processor = RadioImageProcessor.from_model_config(model.config, do_resize=False)
    padded = model(**processor(images, do_pad=True, return_tensors="pt"))
    assert padded.features.shape == (2, 5 * 4, 32)
    packed = model(**processor(images, do_pack=True, return_tensors="pt"))
    single = [model(processor(image, return_tensors="pt").pixel_values).features[0] for image in images]
    torch.testing.assert_close(packed.features, torch.cat(single), rtol=0, atol=2e-6)


OF_PEFT = {"input_ids": None, "attention_mask": None, "inputs_embeds": None}
OF_TRANSFORMERS = {
    **dict.fromkeys(TransformersKwargs.__annotations__),
    "num_items_in_batch": torch.tensor(4),
    "is_causal": False,
    "cu_seq_lens_q": torch.tensor([0, 4]),
    "max_length_q": 4,
    "seq_idx": torch.zeros(1, 4),
}


@torch.no_grad()
@pytest.mark.parametrize("name", THREE_MODELS)
def test_what_others_add_changes_nothing(name):
    call_model = build(name)
    batch = images()
    found = tensors_of(call_model(batch, interpolate_pos_encoding=True, **{**OF_PEFT, **OF_TRANSFORMERS}))
    assert all(map(torch.equal, found, tensors_of(call_model(batch))))


def test_every_argument_of_transformers_has_its_place():
    ours = {"output_hidden_states", "output_attentions"}
    assert set(TransformersKwargs.__annotations__) - ours <= set(FOREIGN_ARGUMENTS)


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [("adaptor_name", "adaptor_names"), ("interpolate_pos_encodings", "interpolate_pos_encoding")],
)
def test_misspelt_arguments_are_refused(misspelt, meant):
    with pytest.raises(TypeError, match=f"'{misspelt}' .*'{meant}'"):
        build("backbone with adaptors")(images(), **{misspelt: None})


@wrong(input_ids=[torch.tensor([[1]])], position_ids=[torch.tensor([[1]])], is_causal=[True])
def test_what_would_not_be_heeded_is_refused(name, value):
    refused(name, lambda: build("maps")(images(), **{name: value}))


@pytest.fixture
def requested_model():
    return RadioModel(tiny_config(vitdet_num_global=2)).eval()  # windows in blocks 0 and 2


@pytest.fixture(params=THREE_MODELS)
def any_model(request):
    model_class, fields = EVERY_MODEL[request.param]
    return model_class(tiny_config(**fields, vitdet_num_global=2)).eval()


def same(left, right):
    return len(left) == len(right) and all(map(torch.equal, left, right))


# Attention weights


@torch.no_grad()
def test_asking_for_attention_weights_makes_the_call_eager(any_model):
    batch = images()
    plain, fast = any_model(batch), any_model(batch, output_attentions=True)
    assert any_model.config._attn_implementation == "sdpa"
    any_model.set_attn_implementation("eager")
    eager = any_model(batch, output_attentions=True)
    assert plain.attentions is None
    assert len(fast.attentions) == any_model.config.num_hidden_layers
    assert same(fast.attentions, eager.attentions)
    for name in plain:
        torch.testing.assert_close(fast[name], plain[name], rtol=0, atol=1e-4)


@torch.no_grad()
def test_windows_stand_one_after_the_other(requested_model):
    batch = images()  # 3 x 5 patches in windows of 2 x 2: 1 x 2 whole ones, one right, two at the bottom, a corner
    out = requested_model(batch, window_size=2, output_attentions=True, output_hidden_states=True)
    block = requested_model.radio_model.model.blocks[0]
    assert not requested_model.config.is_global_block(0)
    patches = out.hidden_states[0][:, requested_model.config.num_prefix_tokens :]
    query, key, _ = block.attn.qkv(block.norm1(patches)).unflatten(-1, (3, block.attn.num_heads, -1)).unbind(2)
    windows = [[0, 1, 5, 6], [2, 3, 7, 8], [4, 9], [10, 11], [12, 13], [14]]
    weights = out.attentions[0].unflatten(0, (2, 6))
    assert weights.shape == (2, 6, 2, 4, 4)
    for index, window in enumerate(windows):
        scores = torch.einsum("bqhc,bkhc->bhqk", query[:, window], key[:, window]) * block.attn.scaling
        size = len(window)
        torch.testing.assert_close(weights[:, index, :, :size, :size], scores.softmax(-1), rtol=0, atol=1e-6)
        assert not weights[:, index, :, size:].any()
        assert not weights[:, index, :, :, size:].any()
    assert out.attentions[-1].shape == (2, 2, *[15 + requested_model.config.num_prefix_tokens] * 2)


@torch.no_grad()
def test_calls_of_several_threads_get_their_own_weights(requested_model):
    batches = [images(count) for count in (1, 2, 3, 4)]
    expected = [requested_model(batch, output_attentions=True).attentions for batch in batches]
    found = {}

    def call(index):
        with torch.no_grad():
            found[index] = [requested_model(batches[index], output_attentions=True).attentions for _ in range(10)]

    threads = [threading.Thread(target=call, args=[index]) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(attentions, expected[index]) for index in range(4) for attentions in found[index])


# Hidden states


@torch.no_grad()
@pytest.mark.parametrize(
    ("asked", "places"),
    [([0, 2], {0, 2}), ((-1,), {4}), (0, {0}), (1, {1}), (-2, {3}), (range(2), {0, 1}), ([2, 2, -5], {0, 2})],
)
def test_some_hidden_states_stand_in_their_places(requested_model, asked, places):
    batch = images()
    everything = requested_model(batch, window_size=2, output_hidden_states=True).hidden_states
    some = requested_model(batch, window_size=2, output_hidden_states=asked).hidden_states
    assert len(some) == len(everything) == requested_model.config.num_hidden_layers + 1
    for place, (state, full) in enumerate(zip(some, everything, strict=True)):
        assert torch.equal(state, full) if place in places else state is None


# What the configuration asks for


CASE = REFERENCE / "radio_video_tiny"
HEADS = [{"name": "dino_v3", "feature_dim": 8, "summary_dim": 12, "hidden_size": 16}]


@pytest.fixture(scope="module")
def stored():
    return load_file(CASE / "expected.safetensors")


@pytest.fixture(scope="module")
def converted():
    return convert(CASE / "checkpoint.pth.tar")


def video_build(frames=None, **fields):
    config = RadioConfig.from_preset("radio-test", video_temporal_patch_size=frames, num_hidden_layers=2, **fields)
    return RadioModel(config).eval()


@needs_native_clips
@pytest.mark.parametrize("size", ["64x64", "96x128"])
@torch.no_grad()
def test_native_radio_gives_equal_outputs_of_frames_and_clips(size, stored, converted, tmp_path):
    converted.save_pretrained(tmp_path / "ours")
    published = write_hub_folder("radio_video_tiny", tmp_path / "published")
    shutil.copy(CASE / "native_config.json", published / "config.json")
    clip = stored[f"{size}/clip_uint8"] / 255
    for folder in (tmp_path / "ours", published):
        native, report = NativeRadioModel.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"]
        frames = native.eval()(clip)
        normalized = native.make_preprocessor_external()(clip)
        packed = native(normalized.reshape(-1, 6, *clip.shape[-2:]))
        pairs = ((frames, converted(clip)), (packed, converted(pixel_values_videos=clip[None])))
        for theirs, ours in pairs:
            assert torch.equal(theirs.summary, ours.summary.view_as(theirs.summary))
            assert torch.equal(theirs.features, ours.features.view_as(theirs.features))


@needs_native_clips
@pytest.mark.parametrize("frames", [2, 3, 4])
@torch.no_grad()
def test_native_radio_gives_equal_outputs_of_other_groups(frames, tmp_path):
    model, clip = video_build(frames), torch.rand(1, 2 * frames - 1, 3, 48, 80)
    model.save_pretrained(tmp_path)
    native = NativeRadioModel.from_pretrained(tmp_path).eval()
    normalized = native.make_preprocessor_external()(torch.cat([clip, clip[:, -1:]], dim=1)[0])
    packed = native(normalized.reshape(2, 3 * frames, 48, 80))
    ours = model(pixel_values_videos=clip)
    assert torch.equal(packed.summary, ours.summary[0])
    assert torch.equal(packed.features, ours.features[0])


def test_frames_of_a_clip_share_the_stored_position_crop(stored, converted):
    draws, expected = stored["96x128/training/draws"], stored["96x128/training/positions"]
    generator = converted.radio_model.model.patch_generator
    positions = generator.sample_positions(6, 8, draws.repeat_interleave(4, dim=0))
    torch.testing.assert_close(positions, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("frames", [None, 2])
def test_groups_of_a_clip_share_a_position_crop_in_training(frames):
    model = video_build(frames).train()
    groups = 4 if frames is None else 2
    still = torch.rand(2, 1, 3, 64, 64).expand(-1, 4, -1, -1, -1)  # frames that differ in nothing but positions
    for draws in (None, torch.rand(2, model.num_draws)):
        features = model(pixel_values_videos=still, draws=draws).features
        assert features.shape == (2, groups, 16, 32)
        torch.testing.assert_close(features, features[:, :1].expand_as(features))
        again = model(pixel_values_videos=still, draws=draws).features
        assert torch.equal(features, again) == (draws is not None)
    apart = model(still.flatten(0, 1)).features.unflatten(0, (2, 4))
    assert not torch.allclose(apart[:, 0], apart[:, 1], atol=1e-3)
    one = draws.clone()
    one[1] = draws[0]
    shared = model(pixel_values_videos=still, draws=one).features
    torch.testing.assert_close(shared[0], features[0])
    assert not torch.allclose(shared[1], features[1], atol=1e-3)


@pytest.mark.parametrize(("frames", "count", "groups"), [(2, 6, 3), (2, 5, 3), (3, 7, 3), (3, 1, 1), (4, 8, 2)])
@torch.no_grad()
def test_the_last_frame_fills_the_last_group(frames, count, groups):
    model, clip = video_build(frames), torch.rand(2, count, 3, 32, 48)
    output = model(pixel_values_videos=clip)
    assert output.summary.shape == (2, groups, 64)
    filled = torch.cat([clip, clip[:, -1:].expand(-1, groups * frames - count, -1, -1, -1)], dim=1)
    torch.testing.assert_close(output.features, model(pixel_values_videos=filled).features)
    alone = model(pixel_values_videos=filled[1:, -frames:])  # no group sees another
    torch.testing.assert_close(output.features[1, -1], alone.features[0, 0])


@torch.no_grad()
def test_without_temporal_patches_each_frame_is_an_image():
    model, clip = video_build(adaptors=HEADS), torch.rand(2, 3, 3, 32, 48)
    output, images = model(pixel_values_videos=clip), model(clip.flatten(0, 1))
    assert torch.equal(output.features.flatten(0, 1), images.features)
    assert torch.equal(output.adaptors["dino_v3"].summary.flatten(0, 1), images.adaptors["dino_v3"].summary)


@torch.no_grad()
def test_every_output_has_an_axis_for_groups():
    model = video_build(2, adaptors=HEADS, attn_implementation="eager")
    clip = torch.rand(2, 4, 3, 32, 48)
    options = {"output_hidden_states": True, "output_attentions": True, "feature_format": "NCHW"}
    output = model(pixel_values_videos=clip, **options)
    assert output.features.shape == (2, 2, 32, 2, 3)
    assert output.pooler_output.shape == output.summary.shape == (2, 2, 64)
    assert output.last_hidden_state.shape == (2, 2, 16, 32)
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, 2, 16, 32)] * 3
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 2, 2, 16, 16)] * 2
    assert output.adaptors["dino_v3"].summary.shape == (2, 2, 12)
    assert output.adaptors["dino_v3"].features.shape == (2, 2, 8, 2, 3)
    pairs = model(pixel_values_videos=clip, return_dict=False)
    assert torch.equal(pairs["backbone"].summary, output.summary)
    assert model(pixel_values_videos=clip, output_hidden_states=[1]).hidden_states[0] is None


@pytest.mark.parametrize("pooling", ["summary", "summary_and_features"])
def test_a_classifier_reads_the_mean_of_the_groups(pooling):
    config = RadioConfig.from_preset(
        "radio-test", video_temporal_patch_size=2, num_labels=3, classifier_pooling=pooling, num_hidden_layers=2
    )
    model = RadioForImageClassification(config).eval()
    clip = torch.rand(2, 4, 3, 32, 32)
    output = model(pixel_values_videos=clip, labels=torch.tensor([0, 2]))
    assert output.logits.shape == (2, 3)
    output.loss.backward()
    assert model.radio_model.model.patch_generator.video_embedder.weight.grad.abs().sum() > 0
    read = model.radio_model(None, pixel_values_videos=clip)
    tokens = read.tokens
    parts = [tokens[:, 0], tokens[:, 1], *([tokens[:, 10:].mean(dim=1)] if pooling != "summary" else [])]
    mean = torch.cat(parts, dim=1).unflatten(0, (2, 2)).mean(dim=1)
    torch.testing.assert_close(output.logits, model.classifier(mean))


CLIP = torch.rand(1, 2, 3, 32, 32)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("pixel_values", {}),
        ("pixel_values", {"pixel_values": CLIP[0, :1], "pixel_values_videos": CLIP}),
        ("pixel_values_videos", {"pixel_values": CLIP}),
        *(
            ("pixel_values_videos", {"pixel_values_videos": clip})
            for clip in (CLIP[0], [1], CLIP[:, :0], torch.rand(1, 2, 4, 32, 32), CLIP[..., :30], CLIP.byte())
        ),
        ("image_grid_hw", {"image_grid_hw": torch.ones(1, 2).long(), "pixel_values_videos": CLIP}),
        ("draws", {"pixel_values_videos": CLIP, "draws": torch.rand(2, 12)}),
    ],
)
def test_what_is_no_clip_is_refused_by_name(name, arguments):
    refused(name, lambda: video_build(2)(**arguments))
