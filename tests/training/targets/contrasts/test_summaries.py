import pytest
import torch
from driven_weights import batch_of
from small_recipes import small_recipe

from training.losses.contrastive import SUMMARY_CONTRASTS, centered
from training.student.packing import HeadAnswer
from training.targets.contrasts.summaries import EmbeddingBank, SummaryContrasts
from training.targets.examples import Example, Target


CPU = torch.device("cpu")


def rows_of(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float32)[:, None].expand(-1, 2).clone()


def test_the_first_in_is_the_first_out() -> None:
    bank = EmbeddingBank(4, 2, CPU)
    bank.add(rows_of(1, 2, 3))
    assert bank.filled[:, 0].tolist() == [1, 2, 3]
    bank.add(rows_of(4, 5))
    assert sorted(bank.filled[:, 0].tolist()) == [2, 3, 4, 5]
    bank.add(rows_of(6, 7, 8, 9, 10, 11))
    assert sorted(bank.filled[:, 0].tolist()) == [8, 9, 10, 11]
    torch.testing.assert_close(bank.mean_with(rows_of(12))[0], bank.total.new_tensor(6.5))


def test_no_bank_at_all() -> None:
    bank = EmbeddingBank(0, 2, CPU)
    bank.add(rows_of(1, 2))
    assert bank.filled.shape == (0, 2)


class Shape:
    summary_dim, feature_dim = 3, 3


def test_images_are_found_among_the_candidates_of_all_parts() -> None:
    recipe = small_recipe("a", contrastive={"weight": 1.0, "kind": "info_nce", "bank_size": 8})
    contrasts = SummaryContrasts(recipe, {"a": Shape()}, CPU)
    summaries = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    parts = [
        (batch_of(0, rows, 5, "a"), Example([], {"a": Target(summaries[list(rows)], [], None)}))
        for rows in ((3, 4), (0, 1, 2))
    ]
    contrasts.begin_step(parts)
    found = []
    for batch, _ in parts:
        own = summaries[list(batch.rows)]
        found.append(contrasts.losses("a", batch, HeadAnswer(own, []), Target(own, [], None)))
    contrasts.end_step()
    contrasts.begin_step([(batch_of(0, (0, 1, 2, 3, 4), 5, "a"), Example([], {"a": Target(summaries, [], None)}))])
    assert len(contrasts.banks["a"].filled) == 5
    assert max(float(each.max()) for each in found) < 0.7  # less than one wrong candidate would give


@pytest.mark.parametrize("kind", ["relational", "info_nce"])
def test_summaries_of_earlier_steps_are_candidates_too(kind: str) -> None:
    draws = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(0))
    earlier, teacher, student = torch.nn.functional.normalize(draws, dim=-1).unbind(0)
    batch, losses = batch_of(0, (0, 1, 2, 3), 4, "a"), {}
    for size in (8, 0):
        recipe = small_recipe("a", contrastive={"weight": 1.0, "kind": kind, "bank_size": size})
        contrasts = SummaryContrasts(recipe, {"a": Shape()}, CPU)
        contrasts.begin_step([(batch, Example([], {"a": Target(earlier, [], None)}))])
        contrasts.end_step()
        contrasts.begin_step([(batch, Example([], {"a": Target(teacher, [], None)}))])
        losses[size] = contrasts.losses("a", batch, HeadAnswer(student, []), Target(teacher, [], None))
        candidates = torch.cat([teacher, earlier[: 4 if size else 0]])
        mean = torch.cat([teacher, earlier]).mean(0)
        embeddings = (centered(each, mean) for each in (student, teacher, candidates))
        torch.testing.assert_close(losses[size], SUMMARY_CONTRASTS[kind](*embeddings, torch.arange(4)))
    assert (losses[8] - losses[0]).abs().min() > 1e-3
