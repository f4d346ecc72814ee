"""The distillation run: loop, stages, optimizers, checkpoints, what is watched."""
