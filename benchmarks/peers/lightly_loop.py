"""The distillation of lightly-train (read of 0.18), of the same student from the same teacher, both of random weights.

    PEER_PYTHON -m benchmarks.peers.lightly_loop FOLDER BATCH_SIZE NUM_STEPS OUTPUT

Its Python has `lightly-train` and `timm`, and need not have what this project needs. The method is "distillationv2",
which takes students of any width; of its augmentations crops and flips are left, and the optimizer is AdamW, as of the
others.
"""

import os
import sys

from benchmarks.peers.stepping import Stepper


TEACHER = "vits14-noreg"
STEPS_WITHOUT_END = 10**6
PLAIN_VIEWS = {"color_jitter": None, "random_gray_scale": None, "gaussian_blur": None}


def main(folder: str, batch_size: str, num_warm_up_steps: str, output: str) -> None:
    """Start its training, which then waits after each step that was asked for."""
    os.environ["LIGHTLY_TRAIN_EVENTS_DISABLED"] = "1"  # it tells its makers of runs
    stepper = Stepper(int(num_warm_up_steps))

    import lightly_train  # pyrefly: ignore[missing-import]
    from lightly_train._models.dinov2_vit.dinov2_vit_src.configs import MODELS  # pyrefly: ignore[missing-import]
    from torch.optim.optimizer import register_optimizer_step_post_hook

    MODELS[TEACHER]["url"] = ""  # random weights: nothing is fetched
    register_optimizer_step_post_hook(lambda *_: stepper.end_step())
    lightly_train.pretrain(
        out=output,
        data=folder,
        model="timm/vit_tiny_patch16_224",
        method="distillationv2",
        method_args={"teacher": f"dinov2/{TEACHER}"},
        optim="adamw",
        transform_args=PLAIN_VIEWS,
        batch_size=int(batch_size),
        epochs=STEPS_WITHOUT_END,
        num_workers=0,
        devices=1,
        accelerator="cpu",
        precision="bf16-mixed",
        overwrite=True,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
