"""The section of `FINETUNING.md` about options at test time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from foundation.tables import markdown
from training.demo_kit.tuning.cells import difference, spread
from training.demo_kit.tuning.experiments import DETECTOR_SIZE
from training.demo_kit.tuning.test_time.looks import OFF_SEAMS
from training.demo_kit.tuning.test_time.results import FOLDER, FittedScore, LookScore, Measured, load


Score = TypeVar("Score", LookScore, FittedScore)

TEXT = """`python -m training.demo_kit.test_time` measures what the options of `predict`, a temperature and thresholds
are worth: models of {arm}, seeds {seeds}, on the same {num_images} held-out images of each task with and without.

A large image is four of these beside each other: objects are as large as in the training unless it is shrunk. Its tiles
meet the seams of the scenes, which real images have not; those that are {off} px smaller do not. The student takes 256
px at most. Areas of boxes are those of the image at {boxes} px, where three in five boxes of large images are small
(less than 32 x 32 px) and hardly any other. "Merged alone" is one look whose boxes are merged. Differences are to the
first row of the same images, with their standard errors; the cost is how many pixels the network sees, over that
row's."""

FITTED_TEXT = """Temperatures and thresholds are fitted to one half of all held-out images and measured on the other,
each half in either role; both halves of scenes show the same objects and photographs. "Same half" is what is seen on
the images that they were fitted to, as in the `results.json` of a run. F1 is the mean over classes, before at a
threshold of .5 for all."""


def build_section(folder: Path, conclusions: str) -> str:
    """Return the section's text below its title.

    Args:
        folder: Of the raw results.
        conclusions: Name of the file beside the numbers in which they are.

    Raises:
        RawResultError: If the file is damaged.
    """
    measured = load(folder)
    if measured is None:
        return "Not measured yet."
    path = folder / FOLDER / conclusions
    text = path.read_text(encoding="utf-8").strip() if path.is_file() else "Not drawn yet."
    return "\n\n".join([*_tables(measured), f"**Conclusions.** {text}"])


def _tables(measured: Measured) -> list[str]:
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(score.seed for score in measured.looks))
    count = max(score.num_images for score in measured.looks)
    text = TEXT.format(arm=measured.arm, seeds=seeds, num_images=count, off=OFF_SEAMS, boxes=DETECTOR_SIZE)
    return [text, look_table(measured.looks), FITTED_TEXT, fitted_table(measured.fitted)]


def look_table(scores: Sequence[LookScore]) -> str:
    """Return a table with a row for each way to look."""
    rows = []
    for subject, looks in _grouped(scores, "subject").items():
        ways = {look: _by_seed(found) for look, found in _grouped(looks, "look").items()}
        first = next(iter(ways.values()))
        metric, *others = first[min(first)].metrics
        for look, found in ways.items():
            gains = [found[seed].metrics[metric] - first[seed].metrics[metric] for seed in found.keys() & first.keys()]
            small = [spread([score.metrics[other] for score in found.values()]) for other in others]
            rows.append(
                [
                    f"{subject}: {metric}",
                    look,
                    spread([score.metrics[metric] for score in found.values()]),
                    "" if found is first else difference(gains),
                    *(small or [""]),
                    f"{found[min(found)].pixels / first[min(first)].pixels:.2g}",
                ]
            )
    return markdown(["", "look", "score", "to the first", "map_small", "cost"], rows)


def fitted_table(scores: Sequence[FittedScore]) -> str:
    """Return a table with a row for each score of what is fitted."""
    rows = []
    for subject, measures in _grouped(scores, "subject").items():
        for measure, found in _grouped(measures, "measure").items():
            gains = [score.held_out - score.before for score in found]
            columns = [[getattr(score, name) for score in found] for name in ("before", "held_out", "same")]
            before, held_out, same = (spread(values) for values in columns)
            rows.append([f"{subject}: {measure}", before, held_out, difference(gains), same])
    return markdown(["", "before", "fitted to the other half", "difference", "same half"], rows)


def _grouped(scores: Sequence[Score], name: str) -> dict[str, list[Score]]:
    """Return scores by the value of a field, in their order."""
    values = dict.fromkeys(getattr(score, name) for score in scores)
    return {value: [score for score in scores if getattr(score, name) == value] for value in values}


def _by_seed(scores: Sequence[LookScore]) -> Mapping[int, LookScore]:
    return {score.seed: score for score in scores}
