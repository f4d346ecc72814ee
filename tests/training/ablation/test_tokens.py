from toy_studies import save_toy_results

from training.ablation import tokens
from training.ablation.measures import is_higher_better, of_tokens, read_token_measure, token_measure
from training.ablation.raw_results import RunResult, load_raw, result_path, save_raw
from training.ablation.report import load_results
from training.ablation.study import OpenedStudy
from training.ablation.tokens import draw_study_tokens


def test_names() -> None:
    assert token_measure("knn", 16) == "knn/16 tokens"
    assert read_token_measure("knn/16 tokens") == ("knn", 16)
    assert read_token_measure("dense_error/worst") is None
    assert of_tokens(["knn/16 tokens", "knn", "miou/1 tokens", "knn/2 tokens"]) == [
        "knn/2 tokens",
        "knn/16 tokens",
        "miou/1 tokens",
    ]
    assert is_higher_better("cosine/1 tokens")


def test_a_curve_for_each_arm_with_a_value_for_each_seed(opened: OpenedStudy, monkeypatch) -> None:
    drawn: list[dict] = []
    monkeypatch.setattr(tokens, "draw_over_counts", lambda panels, path, counted: drawn.append(panels))
    errors = {("plain", 0): 0.5, ("plain", 1): 0.6, ("dropping", 0): 0.4}
    save_toy_results(opened, errors)
    draw_study_tokens(opened, load_results(opened))
    assert drawn == []  # no student has global tokens
    for arm, seed in errors:
        path = result_path(opened.folder, arm, seed)
        run = load_raw(path, RunResult)
        run.numbers.update({"knn/1 tokens": 0.25 * seed, "knn/4 tokens": 0.5})
        save_raw(path, run)
    results = load_results(opened)
    draw_study_tokens(opened, results)
    assert drawn == [{"knn": {"plain": {1: [0.0, 0.25], 4: [0.5, 0.5]}, "dropping": {1: [0.0], 4: [0.5]}}}]
    assert results.measures()[-2:] == ["knn/1 tokens", "knn/4 tokens"]
