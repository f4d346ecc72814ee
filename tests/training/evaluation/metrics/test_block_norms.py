import torch

from modeling_radio import RadioConfig, RadioModel
from training.evaluation.metrics.block_norms import block_norms


def test_the_windows_are_the_models_own():
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 2, "vitdet_num_global": 1}
    model = RadioModel(RadioConfig.from_preset("radio-test", vitdet_window_size=2, **shape)).eval()
    images = torch.rand(2, 3, 64, 96)
    norms = block_norms(model, images)
    assert [norm.shape for norm in norms] == [(2 * 4 * 6,)] * 2
    for window, is_same in ((2, True), ("global", False)):
        with torch.no_grad():
            states = model(images, window_size=window, output_hidden_states=True).hidden_states
        expected = states[1][:, model.config.num_prefix_tokens :].norm(dim=2).flatten()
        assert torch.allclose(norms[0], expected) == is_same
