"""The graphs of a page have all of its spaces, and patches where words are, if no adaptor's features are there."""

import pytest
import torch
from tiny_site import build_radio

from conversion.graphs.files import open_graph
from conversion.web.plan import TEXT_PATCHES, WebRadio, find_spaces, write_graphs


def test_spaces_are_those_with_dense_features():
    without = {"name": "words-only", "summary_dim": 12, "feature_dim": None, "hidden_size": 16}
    model = build_radio(adaptors=[without, {**without, "name": "dense", "feature_dim": 6, "upsample_factor": 2}])
    spaces = find_spaces(model, ["words-only", "dense"])
    assert [(each.name, each.output, each.width, each.scale) for each in spaces] == [
        ("backbone", "features", 32, 1),
        ("dense", "dense_features", 6, 2),
    ]
    with pytest.raises(ValueError, match="'nothing'"):
        find_spaces(model, ["nothing"])


@pytest.mark.slow
def test_a_graph_answers_as_the_model_and_takes_patches_to_the_texts(tmp_path):
    pytest.importorskip("onnxscript")
    model = build_radio()
    head = model.radio_model.adaptor("clip-a").head_mlp
    wrapped = WebRadio(model, ["clip-a"], None, head)
    assert wrapped.names == ["features", "clip-a_features", TEXT_PATCHES]
    paths = write_graphs({"global": wrapped}, tmp_path)
    images = torch.rand(1, 3, 64, 48)
    with torch.no_grad():
        wanted = wrapped(images)
    torch.testing.assert_close(wanted[2], head(wanted[0]))
    for found, tensor in zip(open_graph(paths["global"])({"pixel_values": images}), wanted, strict=True):
        torch.testing.assert_close(found, tensor, rtol=0, atol=1e-4)
