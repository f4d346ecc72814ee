"""What a pass of the student costs on the meta device."""

import pytest

from training.planning.networks import Networks


def test_student_counts_forward_and_backward_and_what_it_keeps(networks: Networks) -> None:
    small, large = networks.student_cost(64), networks.student_cost(256)
    assert large.flops > 10 * small.flops
    assert small.kept_checkpointed < 0.7 * small.kept
    # Without attention weights, which would make it grow with the square of the number of tokens.
    assert large.kept < 16 * small.kept


def test_a_student_that_answers_in_pairs_is_counted_too(networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks.student.config, "return_dict", False)
    assert networks.student_cost(32).flops < networks.student_cost(48).flops < networks.student_cost(64).flops
