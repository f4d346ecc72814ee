from pathlib import Path

from core.ranks import TIMEOUT
from training.distillation.sharding import build_accelerator
from training.recipe import load_recipe


def test_copies_of_the_student_hold_their_gradients_once(tmp_path: Path) -> None:
    """As memory is planned: where they are exchanged, not beside it."""
    accelerator = build_accelerator(load_recipe("demo"), tmp_path)
    assert accelerator.ddp_handler is not None
    assert accelerator.ddp_handler.to_kwargs() == {"gradient_as_bucket_view": True}


def test_ranks_wait_long_for_one_that_works_alone(tmp_path: Path) -> None:
    accelerator = build_accelerator(load_recipe("demo"), tmp_path)
    assert accelerator.init_handler is not None
    assert accelerator.init_handler.to_kwargs() == {"timeout": TIMEOUT}
