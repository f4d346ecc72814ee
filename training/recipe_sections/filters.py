"""Which images are left out of a run."""

from pydantic import Field

from training.recipe_sections.base import RecipeSection


class FiltersRecipe(RecipeSection):
    """Images that are left out, and counted in `data.json` of the run's folder. Null switches a filter off.

    Attributes:
        min_side_ratio: Smallest shorter side of an image, as a multiple of the resolution that it is used at: the
            largest of a partition's `sizes_px`, or `data.image_size_px` with cached teachers. 1 leaves out of each
            partition what would be enlarged there even if all of it were shown.
        max_aspect: Largest ratio of the longer side to the shorter one.
        min_deviation: Smallest standard deviation of an image's colors, in levels of 255, on a thumbnail of 32 x 32
            pixels, in the channel where it is largest: below, an image is of one color. 2 leaves out empty pages.
        max_distance: Bits of 64 in which the perceptual hashes of two images differ at most if they are near
            duplicates, of which only the one with the most pixels stays, or the first of such. 0 finds copies of other
            sizes and qualities; beyond 4 different images begin to meet.
    """

    min_side_ratio: float | None = Field(None, gt=0)
    max_aspect: float | None = Field(None, ge=1)
    min_deviation: float | None = Field(None, gt=0)
    max_distance: int | None = Field(None, ge=0, le=7)

    @property
    def is_used(self) -> bool:
        """Whether any filter is on."""
        return any(value is not None for value in self.to_dict().values())

    @property
    def needs_pixels(self) -> bool:
        """Whether images must be decoded, and not only their headers read."""
        return self.min_deviation is not None or self.max_distance is not None
