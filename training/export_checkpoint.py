"""Export a checkpoint of a run that may still be at work: `radio export-checkpoint RUN/checkpoints/step_N OUTPUT`.

The folder is the one that the run would write at its end, without feature normalizers, which need images.
"""

import sys
from functools import partial
from pathlib import Path

from modeling_radio.core.command_line import Command
from modeling_radio.core.settings import Settings
from modeling_radio.training.recipes.recipe import RECIPE_FILE, RecipeOptions


class ExportCheckpointSettings(Settings):
    """Settings of the command.

    Attributes:
        checkpoint: Folder of a checkpoint, `RUN/checkpoints/step_N`; of a stage `RUN/stages/STAGE/checkpoints/step_N`.
        output: Folder to write.
        overwrite: Replace a model in `output`.
        trust_remote_code: Import the Python that the run's recipe names.
    """

    checkpoint: Path
    output: Path
    overwrite: bool = False
    trust_remote_code: bool = False


COMMAND = Command(
    "radio export-checkpoint",
    "Write a checkpoint of a run as a model, while the run goes on. It needs neither teachers nor images.",
    ExportCheckpointSettings,
    positionals=("checkpoint", "output"),
    examples=("radio export-checkpoint runs/radio_s/checkpoints/step_00100000 step_100k",),
)


def export_checkpoint(settings: ExportCheckpointSettings) -> Path:
    """Write the model, and return its folder.

    Raises:
        ValueError: If there is no checkpoint.
        CheckpointError: If it is damaged, or of another network than the run's recipe says.
        WriteError: If the folder cannot be written.
    """
    from modeling_radio import RadioModel
    from modeling_radio.core.checkpoints import MODEL_FOLDER  # these take seconds, which `--help` need not wait for
    from modeling_radio.core.files import check_output
    from modeling_radio.core.manifests import CheckpointError, find_damage
    from modeling_radio.model_cards.lineage import Lineage
    from modeling_radio.training.distillation.checkpoints import load_modules, read_state
    from modeling_radio.training.student.build import build_student, regularize
    from modeling_radio.training.student.ema import MovingAverage
    from modeling_radio.training.student.export import export_student
    from modeling_radio.training.targets.statistics import TeacherStatistics
    from modeling_radio.training.teachers.outputs import TeacherWidths

    folder, run = settings.checkpoint, settings.checkpoint.absolute().parent.parent
    if not (folder / "state.json").is_file() or not (run / RECIPE_FILE).is_file():
        raise ValueError(f"`checkpoint` must be a folder such as 'runs/demo/checkpoints/step_00000100', got {folder}.")
    check_output(settings.output, overwrite=settings.overwrite, inputs=[run], kind=MODEL_FOLDER)
    if damage := find_damage(folder):
        raise CheckpointError(f"{damage}. Export another one.")
    recipe = RecipeOptions(trust_remote_code=settings.trust_remote_code).read_recipe(str(run / RECIPE_FILE))
    state = read_state(folder)
    if "widths" not in state:
        raise CheckpointError(
            f"`checkpoint` must be of this version of the package, got {folder} without `widths` in its state.json: go "
            "on with the run, and export its next one."
        )
    widths = {name: TeacherWidths(*each) for name, each in state["widths"].items()}
    student = build_student(recipe, widths)
    regularize(student, recipe)
    network = MovingAverage(student, recipe.ema.decay) if recipe.ema.is_exported else student
    statistics = TeacherStatistics(recipe.standardization, widths)
    load_modules(folder, {"ema" if recipe.ema.is_exported else "student": network, "statistics": statistics})
    trained = network.module if isinstance(network, MovingAverage) else network
    assert isinstance(trained, RadioModel)  # a student is one
    export_student(
        trained,
        statistics.standardizers(),
        settings.output,
        lineage=Lineage.find(run),
        folds_layer_scale=recipe.export.fold_layer_scale,
    )
    return settings.output


def _export(settings: ExportCheckpointSettings) -> None:
    print(f"Wrote {export_checkpoint(settings)}.")


main = partial(COMMAND.run, _export)


if __name__ == "__main__":
    sys.exit(main())
