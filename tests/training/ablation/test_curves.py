import json
from pathlib import Path

import pytest
from toy_studies import save_toy_results

from training.ablation import curves
from training.ablation.curves import draw_study_curves, read_curves
from training.ablation.raw_results import RunResult, load_raw, result_path, save_raw
from training.ablation.report import load_results
from training.ablation.study import OpenedStudy


def test_the_fidelities_at_the_largest_size_are_kept(tmp_path: Path) -> None:
    lines = [
        (2, {"loss": 9.0, "dense_fidelity_centered/a/32px": 0.1, "dense_fidelity_centered/a/128px": 0.2}),
        (4, {"dense_fidelity_centered/a/32px": 0.3, "dense_fidelity_centered/a/128px": 0.4, "shift_error/128px": 0.5}),
        (4, {"student/dense_fidelity_centered/a/128px": 0.6, "summary_fidelity_centered/a/32px": 0.7}),
    ]
    path = tmp_path / "history.jsonl"
    path.write_text("".join(json.dumps({"step": step, "values": values}) + "\n" for step, values in lines))
    before = path.read_bytes()
    assert read_curves(path) == {
        "dense_fidelity_centered/a": ([2, 4], [0.2, 0.4]),
        "summary_fidelity_centered/a": ([4], [0.7]),
    }
    assert path.read_bytes() == before
    assert read_curves(tmp_path / "nothing.jsonl") == {}


def test_a_panel_has_the_curves_of_all_arms_and_seeds(opened: OpenedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[dict] = []
    monkeypatch.setattr(curves, "draw_runs", lambda panels, path, quantity: drawn.append(panels))
    errors = {("plain", 0): 0.5, ("plain", 1): 0.6, ("dropping", 0): 0.4}
    save_toy_results(opened, errors)
    draw_study_curves(opened, load_results(opened))
    assert drawn == []  # no run recorded any
    for arm, seed in errors:
        path = result_path(opened.folder, arm, seed)
        run = load_raw(path, RunResult)
        run.curves["dense_fidelity_centered/semantic"] = ([1, 2], [0.0, float(seed)])
        save_raw(path, run)
    draw_study_curves(opened, load_results(opened))
    assert drawn == [
        {
            "semantic, dense features": {
                "plain": [([1, 2], [0.0, 0.0]), ([1, 2], [0.0, 1.0])],
                "dropping": [([1, 2], [0.0, 0.0])],
            }
        }
    ]
