"""Merge a saved adapter into its base: `radio merge RUN` writes what `radio finetune --merge` writes.

The result is a plain folder that opens without peft and without the base.
"""

import shutil
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from modeling_radio.core.command_line import Command
from modeling_radio.core.ids import FINAL, MERGED
from modeling_radio.core.settings import Settings


class MergeSettings(Settings):
    """Settings of a merge.

    Attributes:
        adapter: Folder of an adapter, or of the run of `radio finetune` that made it.
        output: Folder to write; by default `merged` beside the adapter.
        base: Folder or Hub id of the adapter's base; by default the one on the Hub that the adapter names.
        overwrite: Replace a model in `output`.
    """

    adapter: Path
    output: Path | None = None
    base: str | None = None
    overwrite: bool = False


COMMAND = Command(
    "radio merge",
    "Merge an adapter into its base: a plain model, as `radio finetune --merge` writes it.",
    MergeSettings,
    positionals=("adapter",),
    examples=(
        "radio merge runs/pets --base runs/demo/final",
        "radio merge runs/pets/final --output pets",
    ),
)


@dataclass(frozen=True)
class _Copied:
    """The files of the adapter's folder that belong to the merged model, too.

    Attributes:
        folder: The adapter's folder.
    """

    folder: Path

    def save_pretrained(self, folder: Path) -> None:
        """Copy those that the model itself does not write: tokenizer, results, lineage."""
        from modeling_radio.core.trust import COPIED_FILES, allowed_files

        for name, path in allowed_files(self.folder, (*COPIED_FILES, "results.json")).items():
            is_code_or_card = name.endswith(".py") or name == "README.md"
            if not (name.startswith("adapter_") or is_code_or_card or (folder / name).exists()):
                shutil.copyfile(path, folder / name)


def merge(settings: MergeSettings) -> Path:
    """Write the merged model, and return its folder.

    Raises:
        ValueError: If there is no adapter, its base must be named, or does not fit it, or weights are not
            finite or no floating-point numbers, those of the result too.
        WriteError: If the folder cannot be written.
    """
    import torch  # these take seconds, which `--help` need not wait for

    from modeling_radio import RadioConfig, RadioImageProcessor
    from modeling_radio.core.checkpoints import MODEL_FOLDER
    from modeling_radio.core.files import check_output
    from modeling_radio.core.opening import MODELS, load
    from modeling_radio.core.trust import check_parts
    from modeling_radio.tuning.adapters import merge_adapter
    from modeling_radio.tuning.models import save_plain

    folder = settings.adapter
    if not (folder / "adapter_config.json").is_file() and (folder / FINAL / "adapter_config.json").is_file():
        folder = folder / FINAL
    base = check_parts(str(folder), settings.base) if folder.is_dir() else None
    if base is None:
        raise ValueError(f"`adapter` must be the folder of an adapter or of its run, got {str(settings.adapter)!r}.")
    output = settings.output or folder.parent / MERGED
    check_output(output, overwrite=settings.overwrite, inputs=[folder, Path(base)], kind=MODEL_FOLDER)
    config = RadioConfig.from_pretrained(folder)
    name = (config.architectures or [""])[0]
    if name not in MODELS:
        raise ValueError(
            f"`adapter` must be one of a model of this package, got {name!r}. For a model of your own tune with "
            "`--merge`."
        )
    model = load(MODELS[name], base, config=config, dtype=torch.float32).model
    processor = RadioImageProcessor.from_pretrained(folder)
    save_plain(merge_adapter(model, folder), processor, output, extras=[_Copied(folder)])
    return output


def _merge(settings: MergeSettings) -> None:
    print(f"Wrote {merge(settings)}.")


main = partial(COMMAND.run, _merge)


if __name__ == "__main__":
    sys.exit(main())
