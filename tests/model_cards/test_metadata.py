import pytest

from model_cards.metadata import card_data, hub_metric, pipeline_tag
from model_cards.results import Measurement, Results
from modeling_radio import RadioConfig


HOSTILE = ("a\n---\nb", 'a"b', "a|b", "<script>alert(1)</script>", "a: b", "- a", "{a", "'")


@pytest.mark.parametrize(
    ("metric", "name"),
    [("accuracy", "accuracy"), ("accuracy, mean features", "accuracy"), ("mIoU", "mean_iou"), ("one patch", None)],
)
def test_metrics_have_the_hubs_names(metric, name):
    assert hub_metric(metric) == name


def test_tasks_follow_the_class():
    assert pipeline_tag(RadioConfig.from_preset("radio-test")) == "image-feature-extraction"
    config = RadioConfig.from_preset("radio-test", architectures=["RadioForObjectDetection"])
    assert pipeline_tag(config) == "object-detection"


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_stay_texts_of_one_line(text):
    results = Results([Measurement("student", text, "accuracy", text, 0.5)])
    config = RadioConfig.from_preset("radio-test")
    data = card_data(config, text, None, tags=[], base_models=[text, "org/base"], relation="adapter", results=results)
    (result,) = data.eval_results
    assert result.dataset_name == " ".join(text.split()) == data.model_name
    assert data.base_model == ["org/base"]
    assert "\n---" not in data.to_yaml()


def test_a_relation_that_the_hub_does_not_know_is_refused():
    config = RadioConfig.from_preset("radio-test")
    with pytest.raises(ValueError, match=r"`relation` must be one of .*'finetune'.*, got 'finetuned'\. Did you mean"):
        card_data(config, "t", None, tags=[], base_models=["org/base"], relation="finetuned")
