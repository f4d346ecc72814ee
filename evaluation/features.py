"""Features of images: extracted once for all tasks, chunk by chunk on disk; or on a grid finer than the patch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import center_crop, resize

from modeling_radio.core.checked_tensors import load_tensors, save_tensors, stored_names
from modeling_radio.core.files import remove_abandoned, write_file, write_text
from modeling_radio.core.ranks import rank_and_count, wait_for_ranks
from modeling_radio.core.settings import hash_of
from modeling_radio.core.timing import ProgressBar
from modeling_radio.evaluation.data import ByNumber, SizedImages
from modeling_radio.figures.features import finer_maps
from modeling_radio.metrics.feature_model import FeatureModel, FeaturePair


CHUNK = 64
"""Our choice of images for each file: a ViT-H's maps of 512 px are 320 MiB then."""
ABOUT = "about.json"
Arrays = Mapping[str, Tensor]


@dataclass(frozen=True)
class Wanted:
    """Features that are kept besides the summary and the mean of the dense features.

    Attributes:
        dense: Whether dense features are kept, also those of the adaptors.
        adaptors: Adaptors whose features are kept.
    """

    dense: bool = False
    adaptors: frozenset[str] = frozenset()

    def __or__(self, other: Wanted) -> Wanted:
        return Wanted(self.dense or other.dense, self.adaptors | other.adaptors)

    def keys(self) -> set[str]:
        """Return the keys of the features, without those of summaries, which not all models have."""
        names = ["mean_features", *(["features", "grids"] if self.dense else [])]
        return {f"{prefix}{name}" for prefix in ("", *(f"{adaptor}/" for adaptor in self.adaptors)) for name in names}


class StoredFeatures:
    """Features of a set of images by index; float32 on the CPU.

    Args:
        chunks: Features of `CHUNK` images each, in memory or as files.
        num_images: Number of images in all chunks.
    """

    def __init__(self, chunks: Sequence[Arrays | Path], num_images: int) -> None:
        self._chunks, self._num_images = list(chunks), num_images
        self._maps: dict[tuple[int, str], _Maps] = {}

    def __len__(self) -> int:
        return self._num_images

    def summary(self, adaptor: str | None = None) -> Tensor | None:
        """Return the summaries, `(num_images, dim)`, of the model or of an adaptor; None if it has none."""
        return self._joined(_key(adaptor, "summary"))

    def mean_features(self) -> Tensor:
        """Return the dense features averaged over each image, `(num_images, dim)`."""
        means = self._joined("mean_features")
        assert means is not None  # always kept
        return means

    def map(self, index: int, adaptor: str | None = None) -> Tensor:
        """Return the dense features of one image, `(dim, rows, cols)`."""
        chunk, position = divmod(index, CHUNK)
        key = (chunk, _key(adaptor, "features"))
        if key not in self._maps:
            self._maps[key] = _Maps(self._arrays(chunk), adaptor)
        return self._maps[key].read(position)

    def maps(self, indices: Sequence[int] | None = None) -> Tensor:
        """Return the dense features of some images or all, `(num_images, dim, rows, cols)`.

        Raises:
            ValueError: If they are not all on one grid.
        """
        maps = [self.map(index) for index in (range(len(self)) if indices is None else indices)]
        grids = {tuple(each.shape[1:]) for each in maps}
        if len(grids) > 1:
            raise ValueError(f"Images must be of one size to be joined, got maps of {sorted(grids)}. Give a `size`.")
        return torch.stack(maps)

    def _joined(self, key: str) -> Tensor | None:
        parts = [self._arrays(chunk).get(key) for chunk in range(len(self._chunks))]
        present = [part.float() for part in parts if part is not None]
        return torch.cat(present) if present else None

    def _arrays(self, chunk: int) -> Arrays:
        arrays = self._chunks[chunk]
        if isinstance(arrays, Path):
            arrays = self._chunks[chunk] = load_tensors(arrays)[0]
        return arrays


class _Maps:
    """The dense features of one chunk, read one image at a time."""

    def __init__(self, chunk: Arrays, adaptor: str | None) -> None:
        grids, self.tokens = chunk[_key(adaptor, "grids")], chunk[_key(adaptor, "features")]
        self.grids = grids.tolist()
        self.ends = grids.prod(1).cumsum(0).tolist()

    def read(self, position: int) -> Tensor:
        rows, cols = self.grids[position]
        tokens = self.tokens[self.ends[position] - rows * cols : self.ends[position]]
        return tokens.float().T.unflatten(1, (rows, cols))  # (tokens, dim) -> (dim, rows, cols)


class FeatureStore:
    """Extracts features, and keeps them.

    Args:
        folder: Folder of the features; None keeps them in memory, in the return value of `extract`.
        batch_size: Images for each pass.
        num_workers: Processes that decode and resize images if there are many; 0 does it between passes.
    """

    def __init__(self, folder: Path | None = None, *, batch_size: int = 32, num_workers: int = 0) -> None:
        self.folder, self.batch_size, self.num_workers = folder, batch_size, num_workers

    def extract(
        self,
        model: FeatureModel,
        images: SizedImages,
        fingerprint: str,
        wanted: Wanted,
        *,
        size_px: int | None = None,
        description: str = "",
    ) -> StoredFeatures:
        """Return the features of images; features on disk are not computed again.

        Several ranks share the work, and need a shared folder. Chunks, and so the numbers, depend neither on the number
        of ranks nor on interruptions.

        Args:
            model: Model in eval mode.
            images: The images.
            fingerprint: Fingerprint of the images.
            wanted: Features to keep.
            size_px: Shorter side of the images; None takes the model's.
            description: Label of the progress bar, which appears on terminals only.

        Raises:
            ValueError: If there are no images, or features are not finite.
        """
        if not len(images):
            raise ValueError(f"`data` must have images to measure on, got none for {description or 'the model'}.")
        label, starts = f"{model.name}: {description}", range(0, len(images), CHUNK)

        def encode(starts: Sequence[int]) -> Iterator[dict[str, Tensor]]:
            return self._encode(model, images, starts, wanted, size_px, label)

        if self.folder is None:
            return StoredFeatures(list(encode(starts)), len(images))
        facts = {"model": model.fingerprint(), "images": fingerprint, "size_px": size_px}
        folder = self.folder / hash_of(facts)[:24]
        if not (folder / ABOUT).exists():
            write_text(folder / ABOUT, json.dumps({"name": label, **facts}, indent=2) + "\n")
        paths = {start: folder / f"{start:09d}.safetensors" for start in starts}
        remove_abandoned(folder)
        rank, count = rank_and_count()
        wait_for_ranks()  # all look before one writes
        missing = [
            start for start, path in paths.items() if not (path.exists() and wanted.keys() <= stored_names(path))
        ]
        mine = missing[rank::count]
        wait_for_ranks()
        for start, arrays in zip(mine, encode(mine), strict=True):
            path = paths[start]
            kept = load_tensors(path)[0] if path.exists() else {}
            write_file(path, lambda temporary, content={**kept, **arrays}: save_tensors(content, temporary))
        wait_for_ranks()
        return StoredFeatures(list(paths.values()), len(images))

    def _encode(
        self,
        model: FeatureModel,
        images: SizedImages,
        starts: Sequence[int],
        wanted: Wanted,
        size_px: int | None,
        label: str,
    ) -> Iterator[dict[str, Tensor]]:
        """Yield the features of the chunks that begin at these images."""
        ends = [min(start + CHUNK, len(images)) for start in starts]
        batches = [
            batch
            for start, end in zip(starts, ends, strict=True)
            for batch in batches_between(start, end, self.batch_size)
        ]
        encoded = encode_batches(model, images, batches, wanted, size_px=size_px, num_workers=self.num_workers)
        # disable=None: tqdm hides itself where stderr is no terminal.
        bar = ProgressBar(list(zip(starts, ends, strict=True)), label, unit="chunk", leave=False, disable=None)
        for start, end in bar:
            rows: list[Arrays] = []
            while len(rows) < end - start:
                rows += next(encoded)
            yield _joined_rows(rows)


def batches_between(first: int, end: int, batch_size: int) -> list[list[int]]:
    """Return the indices from `first` to `end`, exclusive, in batches."""
    return [list(range(start, min(start + batch_size, end))) for start in range(first, end, batch_size)]


def encode_batches(
    model: FeatureModel,
    images: ByNumber[Tensor],
    batches: Sequence[list[int]],
    wanted: Wanted,
    *,
    size_px: int | None = None,
    num_workers: int = 0,
) -> Iterator[list[dict[str, Tensor]]]:
    """Yield the features of each image of each batch; see `encode_each`.

    Args:
        model: Model in eval mode.
        images: The images.
        batches: Indices of images.
        wanted: Features to keep.
        size_px: Shorter side of the images; None takes the model's.
        num_workers: Processes that decode and resize images if there are many; 0 does it between passes.
    """
    loader = DataLoader(
        _PreprocessedImages(images, model.preprocessing(size_px)),
        batch_sampler=batches,
        collate_fn=list,
        num_workers=num_workers if len(batches) > 2 * num_workers else 0,
    )
    for pixels in loader:
        yield encode_each(model, pixels, wanted)


class _PreprocessedImages(Dataset[Tensor]):
    def __init__(self, images: ByNumber[Tensor], preprocess: Callable[[Tensor], Tensor]) -> None:
        self.images, self.preprocess = images, preprocess

    def __getitem__(self, index: int) -> Tensor:
        return self.preprocess(self.images[index])


@torch.no_grad()
def encode_each(model: FeatureModel, pixels: Sequence[Tensor], wanted: Wanted) -> list[dict[str, Tensor]]:
    """Run a model on images of any sizes, those of one size together; return the features of each, in their order.

    Raises:
        ValueError: If features are not finite.
    """
    groups: dict[torch.Size, list[int]] = {}
    for index, image in enumerate(pixels):
        groups.setdefault(image.shape, []).append(index)
    found: dict[int, dict[str, Tensor]] = {}
    for indices in groups.values():
        batch = torch.stack([pixels[index] for index in indices]).to(model.device)
        encoding = model.encode(batch, sorted(wanted.adaptors))
        kept = _kept("", encoding, wanted.dense, model.name)
        for name in wanted.adaptors:
            kept |= _kept(f"{name}/", encoding.adaptors[name], wanted.dense, model.name)
        for row, index in enumerate(indices):
            found[index] = {key: tensor[row] for key, tensor in kept.items()}
    return [found[index] for index in range(len(pixels))]


def _kept(prefix: str, output: FeaturePair, dense: bool, name: str) -> dict[str, Tensor]:
    """Return summary, mean and tokens of a batch on the CPU; dense features keep their dtype."""
    if not all(part.isfinite().all() for part in (output.features, output.summary) if part is not None):
        raise ValueError(f"The features of {name!r} must be finite, got NaN or infinite ones. Leave this model out.")
    features = output.features
    kept = {"mean_features": features.float().mean((2, 3))}
    if output.summary is not None:
        kept["summary"] = output.summary.float()
    if dense:
        grid = torch.tensor(features.shape[2:])
        kept |= {"features": features.flatten(2).transpose(1, 2), "grids": grid.expand(len(features), 2)}
    return {f"{prefix}{key}": tensor.cpu() for key, tensor in kept.items()}


def _joined_rows(rows: Sequence[Arrays]) -> dict[str, Tensor]:
    """Join the features of the images of a chunk; dense features become the tokens of all images in a row."""
    joined = {}
    for key in rows[0]:
        values = [row[key] for row in rows]
        joined[key] = torch.cat(values) if key.rpartition("/")[2] == "features" else torch.stack(values)
    return {key: tensor.contiguous() for key, tensor in joined.items()}


def _key(adaptor: str | None, name: str) -> str:
    return name if adaptor is None else f"{adaptor}/{name}"


CLOSER, NIGHT, GAMMA = 0.75, torch.tensor([0.5, 0.65, 1.0]), 1.6
"""Changes of `at_night`: share of the sides that is kept, factors of red, green and blue, and contrast; our choice."""
SHIFTED_BATCH = 32
"""Our choice of images for each pass of `shifted_maps`."""


@torch.no_grad()
def shifted_maps(
    model: FeatureModel, images: Tensor, *, size_px: int, shifts: int, adaptors: Sequence[str] = ()
) -> Mapping[str, Tensor]:
    """Return dense features on a grid `shifts` times as fine as that of one pass.

    The model runs on windows of `size_px` at `shifts` x `shifts` offsets within a patch, and their maps are
    interleaved: each position has the features of the patch that is centered on it. Objects keep the size of the
    training, unlike in a larger image: a student of the recipe `demo` (trained at 96 and 128 px) comes closer to its
    teachers this way than at 512 px, on the same grid (centered cosines .38, .48 and .36 instead of .27, .43 and .13;
    one student, 2026-11-25).

    Args:
        model: Model in eval mode.
        images: uint8 RGB, `(num_images, 3, size_px + patch, size_px + patch)`: the features describe the middle
            `size_px`, and shifted windows reach half a patch beyond.
        size_px: Side of the windows, a multiple of the patch.
        shifts: Positions for each patch and direction; divides the patch.
        adaptors: Adaptors whose features are returned too.

    Returns:
        By name, the model's own under "", `(num_images, dim, shifts * rows, shifts * cols)`, on the CPU.

    Raises:
        ValueError: If the images or `shifts` do not fit the patch.
    """
    patch = model.patch_size
    if shifts < 1 or patch % shifts:
        raise ValueError(f"`shifts` must divide the {patch} pixels of a patch, got {shifts}. Take another number.")
    if tuple(images.shape[-2:]) != (size_px + patch, size_px + patch) or size_px % patch:
        raise ValueError(
            f"`images` must have sides of `size_px` and a patch, {size_px + patch} pixels with `size_px` a multiple of "
            f"{patch}, got {tuple(images.shape[-2:])}. Resize them."
        )
    return finer_maps(
        lambda windows: _dense_features(model, windows, adaptors), images, patch_size=patch, shifts=shifts
    )


def at_night(images: Tensor) -> Tensor:
    """Return photographs mirrored, closer and at night: other pixels of the same things.

    Args:
        images: uint8 RGB, `(..., 3, side, side)`.
    """
    side = images.shape[-1]
    near = resize(center_crop(images, [round(side * CLOSER)] * 2), [side, side], antialias=True).flip(-1).float() / 255
    gray = near.mean(dim=-3, keepdim=True)
    return (((near + gray) / 2) ** GAMMA * NIGHT[:, None, None] * 255).round().byte()


@dataclass(frozen=True)
class Matches:
    """The most similar place `at_night` for each place of some photographs.

    Attributes:
        places: Its column and row, `(num_photographs, side, side, 2)`.
        is_right: Whether it is the right place, bool `(num_photographs, side, side)`.
        is_seen: Whether the second view shows the place, bool `(side, side)`.
    """

    places: Tensor
    is_right: Tensor
    is_seen: Tensor

    @property
    def share(self) -> float:
        """Share of the places that are right, of those that both views show."""
        return float(self.is_right[:, self.is_seen].float().mean())


def match_at_night(features: Tensor, others: Tensor, within: int) -> Matches:
    """Match the places of photographs with those of the same photographs `at_night`.

    Args:
        features: Features of the photographs, `(num_photographs, dim, side, side)`.
        others: Features of the changed ones, of the same shape.
        within: Positions in each direction up to which a match counts as right.
    """
    side = features.shape[-1]
    first, second = (F.normalize(each - each.mean((2, 3), keepdim=True), dim=1) for each in (features, others))
    best = torch.stack(
        [
            torch.stack([(row.T @ other.flatten(1)).argmax(dim=1) for row in image.unbind(1)])  # a row: memory
            for image, other in zip(first, second, strict=True)
        ]
    )
    places = torch.stack([best % side, best // side], dim=-1)
    middle = (side - 1) / 2
    rows, cols = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    expected = torch.stack([middle - cols, rows - middle], dim=-1) / CLOSER + middle  # mirrored
    is_seen = ((expected >= 0) & (expected <= side - 1)).all(dim=-1)
    return Matches(places, ((places - expected).abs() <= within).all(dim=-1), is_seen)


def window_of(images: Tensor, size_px: int, patch_size: int) -> Tensor:
    """Return the part of images that `shifted_maps` describes, for images of another size.

    Args:
        images: Squares of another size with the same content, `(num_images, 3, side, side)`.
        size_px: As for `shifted_maps`.
        patch_size: Patch size of the model.
    """
    return center_crop(images, [round(images.shape[-1] * size_px / (size_px + patch_size))] * 2)


def _dense_features(model: FeatureModel, images: Tensor, adaptors: Sequence[str]) -> dict[str, Tensor]:
    """Return the dense features of square images, by name."""
    batches = []
    for some in images.split(SHIFTED_BATCH):
        pixels = torch.stack([model.preprocess(image, image.shape[-1]) for image in some]).to(model.device)
        encoding = model.encode(pixels, adaptors)
        batches.append({"": encoding.features, **{name: encoding.adaptors[name].features for name in adaptors}})
    return {name: torch.cat([batch[name].float().cpu() for batch in batches]) for name in batches[0]}
