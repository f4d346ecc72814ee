"""What all sections of a recipe derive from."""

from typing import ClassVar

from foundation.settings import Settings, SettingsError


class RecipeError(SettingsError):
    """A recipe that cannot be used; the message is one line that says what to change."""


class RecipeSection(Settings):
    """Base of a recipe and its sections."""

    error_class: ClassVar[type[SettingsError]] = RecipeError
