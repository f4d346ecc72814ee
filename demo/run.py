"""The demo: one student distilled, reopened, measured and drawn.

It writes below an output folder, by default `runs/demo`: the checkpoint folder `final/` with its model card,
`results.json`, the figures `features.png` and those in `pictures`, and all of it on one page, `index.html`.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from modeling_radio import RadioModel
from modeling_radio.checks_radio import check_choice
from modeling_radio.core.files import sole_run
from modeling_radio.core.opening import open_model
from modeling_radio.core.timing import Clock, Phase, WholeRun, describe_run
from modeling_radio.demo.before_after import draw_before_after
from modeling_radio.demo.closing_page import FIGURE_CAPTION, write_closing_page
from modeling_radio.demo.evaluation_data import DemoData, load_photographs
from modeling_radio.demo.images import photographs
from modeling_radio.evaluation.features import at_night, match_at_night, shifted_maps, window_of
from modeling_radio.evaluation.models.pretrained import RawPixels
from modeling_radio.evaluation.students import StudentEvaluation
from modeling_radio.figures.features import only_where, to_colors
from modeling_radio.figures.rows import FigureRow, draw_rows, feature_rows
from modeling_radio.metrics.feature_model import FeatureModel
from modeling_radio.metrics.results import Measurement, Results
from modeling_radio.model_cards.build import FEATURES_FIGURE, write_card
from modeling_radio.publishing.reopen import reopen_elsewhere
from modeling_radio.training.distillation.trainer import Distiller
from modeling_radio.training.recipes.recipe import Recipe, RecipeError
from modeling_radio.training.student.provenance import teacher_sources
from modeling_radio.training.teachers.registry import reachable_teachers


FIGURE_LICENSE = "CC0-1.0"  # of the photographs shown: the figure may be published anywhere
FIGURE_SHIFTS = 4  # our choice: grid positions for each patch and direction: at 128 px the grid of a 512 px image
FIGURE_PX = 512  # our choice: side of the photographs as they are drawn
MAX_PHOTOGRAPHS = 5  # our choice: with more the labels are too small on a card
PAGE, RESULTS, WEIGHTS = "index.html", "results.json", "model.safetensors"

# Expected by the progress bar: measured on two cores of an AMD EPYC with bfloat16, corrected as the run goes on.
FIRST_PHASES = (
    Phase("fetch", 10.0, "fetch teachers and images", tells_speed=False),
    Phase("references", 37.0, "measure the teachers"),
)
LAST_PHASES = (
    Phase("evaluate", 24.0, "measure the student"),
    Phase("draw", 20.0, "draw what it sees"),
    Phase("reopen", 6.0, "open its folder elsewhere"),
)
CACHED_IMAGES_PER_SECOND = 76.0
SECONDS_PER_IMAGE = 0.006
"""Time of an image in a training step."""


def expected_phases(recipe: Recipe, num_seeds: int) -> list[Phase]:
    """Return the demo's phases in order."""
    images_per_step = sum(partition.batch_size or 0 for partition in recipe.partitions)
    seconds = recipe.schedule.num_steps * max(images_per_step, 1) * SECONDS_PER_IMAGE
    of_seed = [Phase("distill", seconds, "train the student"), *LAST_PHASES]
    cached = []
    if recipe.views.teachers == "cached":
        seconds = (recipe.data.num_images or 0) / CACHED_IMAGES_PER_SECOND
        cached = [Phase("teacher features", seconds, "compute what the teachers see")]
    return [*FIRST_PHASES, *cached, *of_seed * num_seeds]


def is_finished(recipe: Recipe, output: Path, seeds: Sequence[int], device: str | None = None) -> bool:
    """Return whether an earlier demo with this recipe and these seeds has written everything.

    Raises:
        ValueError: If `output` holds a run of another recipe.
    """
    measured, students = output / RESULTS, [folder / "final" / WEIGHTS for folder in folders_of(output, seeds)]
    if not all(path.is_file() for path in (measured, output / PAGE, *students)):
        return False
    if Results.load(measured).run.get("seeds") != list(seeds):
        return False
    if any(student.stat().st_mtime > measured.stat().st_mtime for student in students):
        return False
    recipe = recipe.replace(teachers=reachable_teachers(recipe))
    return all(
        Distiller(recipe.replace(seed=seed), student.parents[1], device=device).is_finished
        for seed, student in zip(seeds, students, strict=True)
    )


def folders_of(output: Path, seeds: Sequence[int]) -> list[Path]:
    """Return the folder of each seed's run."""
    return [output if len(seeds) == 1 else output / f"seed-{seed}" for seed in seeds]


def run_demo(recipe: Recipe, output: Path, seeds: Sequence[int], command: str, device: str | None = None) -> Results:
    """Distill, reopen, measure and draw; the module's docstring lists the files.

    Args:
        recipe: Recipe of the student.
        output: Folder for everything; with several seeds each has a subfolder `seed-N`.
        seeds: One run each.
        command: Named in the results file.
        device: Device of the training (see `build_accelerator`); all else runs on the CPU.

    Returns:
        The measurements of all seeds, also written to `results.json`.

    Raises:
        Interrupted: After Ctrl-C in training; the same command goes on.
        ReopenError: If the checkpoint folder does not open elsewhere with the same outputs.
        PackageError: If packages cannot be fetched.
        UserError: If another run is using `output`.
        ValueError: If the recipe cannot be used or has other data than the demo's, or `output` holds files that no run
            of it wrote.
    """
    check_choice("data.source", recipe.data.source, ("demo",), error=RecipeError)
    with sole_run(output, "radio distill"), WholeRun(expected_phases(recipe, len(seeds))) as clock:
        return _run_phases(recipe, output, seeds, command, device, clock)


def _run_phases(
    recipe: Recipe, output: Path, seeds: Sequence[int], command: str, device: str | None, clock: Clock
) -> Results:
    with clock.phase("fetch"):
        evaluation = StudentEvaluation.load(recipe.replace(teachers=reachable_teachers(recipe)))
    with clock.phase("references"):
        baseline = RawPixels(evaluation.patch_size, evaluation.size_px)
        pixels = evaluation.measure_backbone(evaluation.of(baseline))
        teachers = [
            measurement
            for name in evaluation.teachers
            for measurement in evaluation.measure_backbone(evaluation.of(evaluation.teacher(name)))
        ]
    students = []
    folders = folders_of(output, seeds)
    for seed, folder in zip(seeds, folders, strict=True):
        students += run_seed(evaluation, folder, seed, clock, device)
    results = Results(
        [*pixels, *students, *teachers],
        teacher_sources(evaluation.untrained_student(seeds[0]).config, evaluation.recipe),
        _data_of(evaluation).sources(is_trained_on=True),
        {**describe_run(command, clock), "seeds": list(seeds)},
        evaluation.data.remarks(evaluation.settings.neighbors),
    )
    for seed, folder in zip(seeds, folders, strict=True):
        write_card(folder / "final", results.of_seed(seed), name=f"radio-{recipe.name}")
    results.save(output / RESULTS)
    write_closing_page(
        output / PAGE,
        results,
        title=f"radio-{recipe.name}: one student of {len(evaluation.teachers)} teachers",
        checkpoint=folders[0] / "final",
        run=folders[0],
    )
    return results


def run_seed(
    evaluation: StudentEvaluation, folder: Path, seed: int, clock: Clock, device: str | None = None
) -> list[Measurement]:
    """Distill one student, reopen and draw it; return its scores before and after training."""
    recipe = evaluation.recipe.replace(seed=seed)
    distiller = Distiller(recipe, folder, device=device)
    with clock.phase("distill" if distiller.resumed_from is None else "distill (resumed)"):
        checkpoint = distiller.run()
    assert checkpoint is not None  # only a run that was stopped early has none
    before, after = evaluation.untrained_student(seed), open_model(checkpoint, device="cpu").backbone
    with clock.phase("evaluate"):
        measurements = [
            *evaluation.measure_student(before, " before training", seed),
            *evaluation.measure_student(after, "", seed),
        ]
    with clock.phase("draw"):
        draw_features(evaluation, before, after, folder / FEATURES_FIGURE)
        draw_before_after(before, after, _data_of(evaluation).assets, folder)
        shutil.copyfile(folder / FEATURES_FIGURE, checkpoint / FEATURES_FIGURE)
    with clock.phase("reopen"):
        reopen_elsewhere(checkpoint, to_pil_image(_data_of(evaluation).unlabeled[0]))
    return measurements


def _data_of(evaluation: StudentEvaluation) -> DemoData:
    assert isinstance(evaluation.data, DemoData)  # its recipe's source says so
    return evaluation.data


def draw_features(evaluation: StudentEvaluation, before: RadioModel, after: RadioModel, path: Path) -> None:
    """Draw held-out photographs beside the features of teachers, adaptors and backbones."""
    assets = _data_of(evaluation).assets
    chosen = photographs(assets, license=FIGURE_LICENSE)
    chosen = (chosen or photographs(assets))[:MAX_PHOTOGRAPHS]
    size, patch = evaluation.size_px, evaluation.patch_size
    images = load_photographs(chosen, size + patch)

    def maps_of(model: FeatureModel, adaptors: Sequence[str] = (), shown: Tensor = images) -> Mapping[str, Tensor]:
        return shifted_maps(model, shown, size_px=size, shifts=FIGURE_SHIFTS, adaptors=adaptors)

    untrained, trained = evaluation.student(before), evaluation.student(after)
    distilled, night = maps_of(trained, list(evaluation.teachers)), at_night(images)
    large = window_of(load_photographs(chosen, FIGURE_PX), size, patch)
    rows = feature_rows(
        large,
        teachers={name: maps_of(evaluation.teacher(name))[""] for name in evaluation.teachers},
        adaptors={name: distilled[name] for name in evaluation.teachers},
        backbone=distilled[""],
    )
    rows.append(FigureRow("mirrored, closer,\nat night", to_colors(at_night(large))))
    for title, model, maps in (
        ("before training", untrained, maps_of(untrained)[""]),
        ("after training", trained, distilled[""]),
    ):
        found = match_at_night(maps, maps_of(model, shown=night)[""], FIGURE_SHIFTS)
        shown = only_where(to_colors(large), found.is_right)
        rows.append(FigureRow(f"found again at night:\n{found.share:.0%} {title}", shown, starts_group=False))
    draw_rows(rows, path, caption=FIGURE_CAPTION)
