"""What all sections of a recipe derive from."""

from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Lt

from foundation.fields import Mark
from foundation.settings import Settings, SettingsError


Count = Annotated[int, Gt(0)]
Decay = Annotated[float, Ge(0), Lt(1)]

INDECISIVE = Mark("may change between two sessions of a run: it moves the weights by no more than rounding")
STAGELESS = Mark("is the same for all stages")


class RecipeError(SettingsError):
    """A recipe that cannot be used; the message is one line that says what to change."""


class RecipeSection(Settings):
    """Base of a recipe and its sections."""

    error_class: ClassVar[type[SettingsError]] = RecipeError


class Named(RecipeSection):
    """Base of the entries of a list, which changes find by their name."""

    name: str
