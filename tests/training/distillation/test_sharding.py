from pathlib import Path

from foundation.ranks import TIMEOUT
from training.distillation.sharding import build_accelerator
from training.recipe import load_recipe


def test_ranks_wait_long_for_one_that_works_alone(tmp_path: Path) -> None:
    accelerator = build_accelerator(load_recipe("demo"), tmp_path)
    assert accelerator.init_handler is not None
    assert accelerator.init_handler.to_kwargs() == {"timeout": TIMEOUT}
