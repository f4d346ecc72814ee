from model_cards.results import Measurement
from training.pictures.token_curves import values_by_tokens


def measured(task: str, metric: str, value: float, model: str = "student") -> Measurement:
    return Measurement(model, task, metric, "mine", value)


def test_values_by_metric_model_and_number():
    found = values_by_tokens(
        [
            measured("knn_over_tokens", "1 tokens, accuracy", 0.2),
            measured("knn_over_tokens", "16 tokens, accuracy", 0.5),
            measured("knn_over_tokens", "16 tokens, accuracy", 0.7),
            measured("fidelity_over_tokens", "2 tokens, centered features", 0.4, "adaptor a"),
            measured("knn", "accuracy", 0.9),
        ]
    )
    assert found == {
        "accuracy": {"student": {1: [0.2], 16: [0.5, 0.7]}},
        "centered features": {"adaptor a": {2: [0.4]}},
    }
