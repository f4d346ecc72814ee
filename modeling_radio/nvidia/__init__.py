"""Readers of what NVIDIA publishes. They stay in this package: a folder that is saved is always in our layout."""

from modeling_radio.configuration_radio import FOREIGN_LAYOUTS

from .folder import FolderWithUnnamedVideo, NemotronFolder, NvidiaFolder, TrainingFile


def register() -> None:
    """Let our classes open NVIDIA's folders."""
    FOREIGN_LAYOUTS[:] = [TrainingFile(), NvidiaFolder(), NemotronFolder(), FolderWithUnnamedVideo()]
