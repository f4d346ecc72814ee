from model_cards.rendering import count_parameters
from modeling_radio import RadioModel


def test_parts_add_up_to_the_whole_model(checkpoint):
    model = RadioModel.from_pretrained(checkpoint)
    counts = count_parameters(model.config)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert counts.backbone + counts.position_table + sum(counts.adaptors.values()) == total
    assert counts.position_table == 8 * 8 * 16
