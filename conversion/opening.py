"""Settings of conversions from folder to folder, and a check of outputs that would replace something else."""

from pathlib import Path

from modeling_radio.core.files import check_output
from modeling_radio.core.ids import ModelFolder
from modeling_radio.core.settings import Settings


class FolderSettings(Settings):
    """Settings of a conversion from one folder to another.

    Attributes:
        checkpoint: Folder with config.json and weights.
        output: Folder to write.
        overwrite: Replace the output if it exists.
    """

    checkpoint: ModelFolder
    output: Path
    overwrite: bool = False


def check_file_output(path: Path, checkpoint: Path, *, endings: tuple[str, ...], overwrite: bool) -> None:
    """Refuse an output file that would replace the checkpoint or a file of another kind, before any long work.

    Args:
        path: Output file.
        checkpoint: Folder that is read. Earlier exports in it may be replaced.
        endings: Endings of the names of such files.
        overwrite: Whether to replace an earlier one.

    Raises:
        ValueError: If `path` is or holds part of the checkpoint, has another ending, is a folder, or exists and
            `overwrite` is off.
    """
    parts = (each for each in checkpoint.glob("*") if not each.name.endswith(endings))
    check_output(path, overwrite=overwrite, inputs=[checkpoint, *parts])
    if not path.name.endswith(endings):
        raise ValueError(f"`output` must end in {' or '.join(endings)}, got {str(path)!r}. Name another output.")
    if path.is_dir():
        raise ValueError(f"`output` must be a file, got the folder {str(path)!r}. Name another output.")
