"""Distills on a Ray cluster: `radio distill` in each worker of Ray's `TorchTrainer`.

    python deploy/ray_train.py --workers 16 --gpu -- --recipe radio_s --output /shared/mine data.source=/shared/images

Every machine needs `ray[train]` and this package with its extra `train`. Words after `--` are those of `radio distill`;
all machines must see the folders that they name. If a worker dies, Ray starts all workers again, and the run goes on
from its last checkpoint. Signals do not reach workers: `--max-minutes` ends a session with a checkpoint.
"""

import argparse
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer


def distill(settings: dict[str, Any]) -> None:
    """Be one rank. Ray has set `RANK` and the like as torchrun does.

    Args:
        settings: `words` of `radio distill`.

    Raises:
        RuntimeError: If the run ends with an error, which it has printed.
    """
    from modeling_radio.training.distill import main

    if status := main(settings["words"]):
        raise RuntimeError(f"radio distill ended with status {status}.")


def main() -> None:
    """Start the workers and wait for them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, required=True, help="ranks, one on each GPU")
    parser.add_argument("--gpu", action="store_true", help="give each worker a GPU")
    parser.add_argument("--restarts", type=int, default=3, help="how often the workers are started again (default: 3)")
    parser.add_argument("words", nargs="+", help="of `radio distill`, after --")
    options = parser.parse_args()
    TorchTrainer(
        distill,
        train_loop_config={"words": options.words},
        scaling_config=ScalingConfig(num_workers=options.workers, use_gpu=options.gpu),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=options.restarts)),
        # One rank alone may work for long before the first step; then the run itself sets a shorter time.
        torch_config=TorchConfig(timeout_s=24 * 3600),
    ).fit()


if __name__ == "__main__":
    main()
