import pytest

from modeling_radio import RadioConfig
from modeling_radio.metrics.results import Measurement, Results
from modeling_radio.model_cards.metadata import card_data, hub_metric, pipeline_tag


HOSTILE = ("a\n---\nb", 'a"b', "a|b", "<script>alert(1)</script>", "a: b", "- a", "{a", "'")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_stay_texts_of_one_line(text):
    results = Results([Measurement("student", text, "accuracy", text, 0.5)])
    config = RadioConfig.from_preset("radio-test")
    data = card_data(config, text, None, tags=[], base_models=[text, "org/base"], relation="adapter", results=results)
    (result,) = data.eval_results
    assert result.dataset_name == " ".join(text.split()) == data.model_name
    assert data.base_model == ["org/base"]
    assert "\n---" not in data.to_yaml()


def test_identifiers_are_the_hubs():
    assert [hub_metric(name) for name in ("accuracy, mean features", "mIoU", "one patch")] == [
        *("accuracy", "mean_iou", None)
    ]
    assert pipeline_tag(RadioConfig.from_preset("radio-test")) == "image-feature-extraction"
    config = RadioConfig.from_preset("radio-test", architectures=["RadioForObjectDetection"])
    assert pipeline_tag(config) == "object-detection"
    with pytest.raises(ValueError, match="`relation`"):
        card_data(config, "t", None, tags=[], base_models=["org/base"], relation="finetuned")
