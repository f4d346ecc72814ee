"""The evaluation of one model on one data set, which tasks measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from modeling_radio.evaluation.data import CroppedViews, EvaluationData, Examples, Kind, Part, SizedImages, Windows
from modeling_radio.evaluation.features import FeatureStore, StoredFeatures, Wanted
from modeling_radio.evaluation.tasks.settings import TaskSettings
from modeling_radio.metrics.bootstrap import Interval, bootstrap_interval, mean_interval
from modeling_radio.metrics.feature_model import FeatureModel, TextModel
from modeling_radio.metrics.results import Measurement


DENSE_KINDS: tuple[Kind, ...] = ("masks", "depth")
"""Kinds whose images are cut into square windows, so that positions in images and features correspond."""

DENSE = Wanted(dense=True)
"""The features of most dense tasks."""

NUM_SHOWN = 4
"""Our choice of images of each kind in the report: a page of five models stays short."""


@dataclass
class Evaluation:
    """One model on one data set.

    Attributes:
        model: The model.
        data: The data set.
        settings: Settings of the tasks.
        store: Store of extracted features.
        seed: Seed of the training run of the model; None if it was not trained here.
        find_teachers: Returns the teachers of the model's adaptors by name; called when a task needs them.
        shown_masks: Predicted masks of the images of `shown`, by index, for the report.
        references: Features of the teachers by name, kind of images and size; models of one recipe may share them.
    """

    model: FeatureModel
    data: EvaluationData
    settings: TaskSettings = field(default_factory=TaskSettings)
    store: FeatureStore = field(default_factory=FeatureStore)
    seed: int | None = None
    find_teachers: Callable[[], Mapping[str, FeatureModel]] = dict
    shown_masks: dict[int, Tensor] = field(default_factory=dict)
    references: dict[tuple[str, Kind, int | None], StoredFeatures] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._wanted: dict[Kind, Wanted] = {}
        self._features: dict[tuple[object, ...], StoredFeatures] = {}
        self._parts: dict[Kind, Part] = {}
        self._windows: dict[tuple[Kind, str], Windows] = {}

    @cached_property
    def teachers(self) -> Mapping[str, FeatureModel]:
        """The teachers of the model's adaptors by name."""
        return self.find_teachers()

    def expect(self, kind: Kind, wanted: Wanted) -> None:
        """Announce the features that a task will need, so that one pass over the images serves all tasks."""
        self._wanted[kind] = self._wanted.get(kind, Wanted()) | wanted

    def part(self, kind: Kind) -> Part:
        """Return the images for tasks of one kind; see `EvaluationData.part`."""
        if kind not in self._parts:
            self._parts[kind] = self.data.part(kind)
        return self._parts[kind]

    def examples(self, kind: Kind, split: str = "test") -> Examples:
        """Return the images of one split: "test", or "gallery", which is the same without a train split."""
        part = self.part(kind)
        return part.test if split == "test" else part.gallery

    def shown(self, kind: Kind) -> list[int]:
        """Return the indices of the test images in the report: a few, spread over the whole set."""
        number = len(self.examples(kind))
        return sorted({round(step * (number - 1) / (NUM_SHOWN - 1)) for step in range(NUM_SHOWN)})

    def windows(self, kind: Kind, split: str = "test") -> Windows:
        """Return the square windows over the images of a dense task."""
        key = (kind, split)
        if key not in self._windows:
            window_px = self.settings.window_px or self.model.size_px
            images, settings = self.examples(kind, split).images, self.settings
            self._windows[key] = Windows(images, window_px, settings.window_stride, settings.shorter_px)
        return self._windows[key]

    def square_features(
        self, kind: Kind, split: str = "test", *, size_px: int, wanted: Wanted | None = None
    ) -> StoredFeatures:
        """Return features of the middle squares of the images of a split, at a size.

        Tasks that compare sizes use squares: several sizes of a long image become one where the model bounds the longer
        side.

        Args:
            kind: Kind of the images.
            split: "test" or "gallery".
            size_px: Side of the squares.
            wanted: Features to keep.
        """
        images, fingerprint = squares_of(self.examples(kind, split))
        description = f"{self.part(kind).name}, {split}, {size_px} px"
        return self._extracted(images, fingerprint, wanted or Wanted(), size_px, description)

    def features(
        self, kind: Kind, split: str = "test", *, wanted: Wanted | None = None, size_px: int | None = None
    ) -> StoredFeatures:
        """Return features of the images of a split, at the model's own size or another one.

        Args:
            kind: Kind of the images; for masks and depth, features of windows.
            split: "test" or "gallery".
            wanted: Features to keep besides the announced ones.
            size_px: Shorter side; None takes the model's own preprocessing, or whole windows at the model's size.
        """
        examples = self.examples(kind, split)
        wanted = wanted or Wanted()
        if size_px is None:
            wanted |= self._announced(kind, split, examples)
        at = "" if size_px is None else f", {size_px} px"
        images, fingerprint = examples.images, examples.image_fingerprint
        if kind in DENSE_KINDS:
            images = self.windows(kind, split)
            fingerprint = f"{fingerprint} {images.description}"
            size_px = size_px or self.model.size_px
        return self._extracted(images, fingerprint, wanted, size_px, f"{self.part(kind).name}, {split}{at}")

    def _extracted(
        self, images: SizedImages, fingerprint: str, wanted: Wanted, size_px: int | None, description: str
    ) -> StoredFeatures:
        """Return features of images from memory, or extract them."""
        key = (fingerprint, size_px, wanted)
        if key not in self._features:
            self._features[key] = self.store.extract(
                self.model, images, fingerprint, wanted, size_px=size_px, description=description
            )
        return self._features[key]

    def _announced(self, kind: Kind, split: str, examples: Examples) -> Wanted:
        """Return the announced features of these images, also under other kinds: one pass serves all."""
        wanted = self._wanted.get(kind, Wanted())
        for other, announced in self._wanted.items():
            is_alike = (other in DENSE_KINDS) == (kind in DENSE_KINDS)
            if is_alike and self.examples(other, split).image_fingerprint == examples.image_fingerprint:
                wanted |= announced
        return wanted

    def reference(self, teacher: str, kind: Kind, size_px: int | None = None) -> StoredFeatures:
        """Return the features of a teacher on the test images.

        Args:
            teacher: Name of the teacher.
            kind: Kind of the images.
            size_px: Side of their middle squares; None for whole images at the student's own size.
        """
        key = (teacher, kind, size_px)
        if key not in self.references:
            examples, description = self.examples(kind), self.part(kind).name
            images, fingerprint = examples.images, examples.image_fingerprint
            if size_px is not None:
                images, fingerprint = squares_of(examples)
                description = f"{description}, {size_px} px"
            self.references[key] = self.store.extract(
                self.teachers[teacher], images, fingerprint, DENSE, size_px=size_px, description=description
            )
        return self.references[key]

    def supported_sizes(self, name: str, sizes_px: list[int]) -> list[int]:
        """Return sizes in ascending order, rounded to whole patches and bounded by the model's largest size.

        Raises:
            ValueError: If they all become one size.
        """
        step, largest = self.model.patch_size, self.model.max_size_px
        sizes = sorted({min(max(step, round(size / step) * step), largest) for size in sizes_px})
        if len(sizes) < 2:
            raise ValueError(f"`{name}` {sizes_px} are all {sizes[0]} px to this model: choose others.")
        return sizes

    def measurement(
        self, task: str, metric: str, value: float, kind: Kind, interval: Interval | None = None
    ) -> Measurement:
        """Return a number with its row and column in the tables."""
        low, high = interval or (None, None)
        return Measurement(self.model.name, task, metric, self.part(kind).name, float(value), self.seed, low, high)

    def mean(self, task: str, metric: str, scores: Tensor, kind: Kind, groups: Tensor | None = None) -> Measurement:
        """Return the mean of scores, with its interval.

        Args:
            task: Task of the measurement.
            metric: Metric of the measurement.
            scores: One for each test image, or for each image or pair of `groups`, `(num_scores,)`.
            kind: Kind of the images.
            groups: Sources of the scores, as `bootstrap_interval` takes them; None takes those of the test images.
        """
        groups = self.part(kind).test.groups if groups is None else groups
        assert groups is None or len(groups) == len(scores), f"{task}: {len(scores)} scores, {len(groups)} sources"
        settings = self.settings
        interval = mean_interval(scores, groups=groups, num_resamples=settings.resamples, seed=settings.seed)
        return self.measurement(task, metric, scores.double().mean().item(), kind, interval)

    def of_sums(
        self,
        task: str,
        metric: str,
        sums: Tensor,
        combine: Callable[[Tensor], Tensor],
        kind: Kind,
        groups: Tensor | None = None,
    ) -> Measurement:
        """Return a number that is computed from sums over test images, with its interval.

        Args:
            task: Task of the measurement.
            metric: Metric of the measurement.
            sums: Terms of each image, `(num_images, num_sums)`.
            combine: Computes the number from sums, `(..., num_sums)` to `(...)`.
            kind: Kind of the images.
            groups: Sources of the terms, as in `mean`.
        """
        sums = sums.double()
        interval = bootstrap_interval(
            lambda weights: combine(weights @ sums),
            len(sums),
            groups=self.part(kind).test.groups if groups is None else groups,
            num_resamples=self.settings.resamples,
            seed=self.settings.seed,
        )
        return self.measurement(task, metric, combine(sums.sum(0)).item(), kind, interval)


def require_protocol(part: Part) -> None:
    """Raise ValueError if a public set lacks the train split that its protocol learns from."""
    if part.has_protocol and part.train is None:
        raise ValueError(
            f"`data` must have the train split of {part.name}, from which the protocol learns, got none. A variant of "
            "ImageNet learns from `train_data`."
        )


def squares_of(examples: Examples) -> tuple[SizedImages, str]:
    """Return the middle squares of images, and their fingerprint."""
    return CroppedViews(examples.images, 0, 0), f"{examples.image_fingerprint} crops 0 0"


def summary_or_mean(features: StoredFeatures) -> Tensor:
    """Return the summaries, or the mean of the features of a model without a summary."""
    summary = features.summary()
    return features.mean_features() if summary is None else summary


@dataclass(frozen=True)
class Task:
    """A task of `radio evaluate`.

    Attributes:
        measure: Returns the measurements of an evaluation.
        kind: Kind of the images.
        wanted: Returns the features that the task needs; called before any are extracted.
        of_baselines: Whether raw pixels, random networks and all models of `compare` are measured too.
        of_compared: Whether a model of `compare` is measured too.
        needs_teachers: Whether the checkpoint is compared with the teachers of a recipe.
    """

    measure: Callable[[Evaluation], list[Measurement]]
    kind: Kind
    wanted: Callable[[FeatureModel], Wanted] = lambda model: Wanted()
    of_baselines: bool = False
    of_compared: Callable[[FeatureModel], bool] = lambda model: False
    needs_teachers: bool = False


def dense_features(model: FeatureModel) -> Wanted:
    """Return that a task needs dense features, of any model."""
    return DENSE


def takes_sizes(model: FeatureModel) -> bool:
    """Return whether a model runs at any size."""
    return model.runs_at_any_size


def knows_texts(model: FeatureModel) -> bool:
    """Return whether a model has texts."""
    return isinstance(model, TextModel)
