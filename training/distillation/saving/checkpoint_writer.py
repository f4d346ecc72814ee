"""Writes checkpoints while the training goes on: folders that appear complete or not at all; oldest ones go."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from foundation.files import (
    TEMPORARY_PREFIX,
    WriteError,
    move_into_place,
    one_line_errors,
    scratch_folder,
    write_through,
)
from foundation.ranks import of_all_ranks, on_first_rank
from training.distillation.saving.checkpoints import checkpoint_path, list_checkpoints
from training.distillation.saving.manifests import FileFacts, describe_files, write_manifest


class CheckpointWriter:
    """Lets every rank write its own files in a thread, into a folder that all see; the first one names it in the end.

    A thread exchanges nothing with other ranks: they agree between two steps, when all are done. After a kill at any
    moment the checkpoints that have a name are whole, and the scratch folder of the one at work is removed by the next
    session.

    Args:
        folder: Of all checkpoints of the run.
        num_kept: Newest checkpoints that stay.
    """

    def __init__(self, folder: Path, num_kept: int) -> None:
        self.folder, self.num_kept = folder, num_kept
        self._threads = ThreadPoolExecutor(1, "checkpoint")
        self._state: dict[str, Any] = {}
        self._written: Future[dict[str, FileFacts]] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether this rank still writes."""
        return self._written is not None and not self._written.done()

    def begin(self, state: Mapping[str, Any], files: Mapping[str, Callable[[Path], object]]) -> None:
        """Start to write a checkpoint, once the one before is finished; all ranks must take part.

        Args:
            state: Plain data for `state.json`; `state["step"]` names the checkpoint.
            files: Writers of this rank's files by name. What they write must not change any more.

        Raises:
            WriteError: If the one before cannot be written.
        """
        self.finish()
        self._state = dict(state)
        self._written = self._threads.submit(self._write, files)

    def finish(self) -> None:
        """Wait until all ranks have written, and let the checkpoint appear; nothing if none is pending.

        Raises:
            WriteError: If it cannot be written, on all ranks; older checkpoints are intact.
        """
        if self._written is None:
            return
        error = self._written.exception()
        if not isinstance(error, WriteError | None):
            raise error
        report = {} if error else self._written.result()
        self._written = None
        reports = of_all_ranks((report, str(error) if error else None))
        on_first_rank(lambda: self._complete(reports))

    def _path(self) -> Path:
        return checkpoint_path(self.folder, self._state["step"])

    def _scratch(self) -> Path:
        """Return the folder that is filled, whose name all ranks know; `remove_partial` clears it up after a kill."""
        return self.folder / f"{TEMPORARY_PREFIX}{self._path().name}"

    def _write(self, files: Mapping[str, Callable[[Path], object]]) -> dict[str, FileFacts]:
        scratch = self._scratch()
        with one_line_errors(self._path()):
            scratch.mkdir(parents=True, exist_ok=True)
            for name, write in files.items():
                write(scratch / name)
                write_through(scratch / name)
            return describe_files(scratch, files)

    def _complete(self, reports: list[tuple[dict[str, FileFacts], str | None]]) -> None:
        """End what all ranks have written, then remove the oldest checkpoints, and later ones, which were damaged."""
        scratch, path = self._scratch(), self._path()
        errors = [error for _, error in reports if error is not None]
        if errors:
            shutil.rmtree(scratch, ignore_errors=True)
            raise WriteError(errors[0])
        with one_line_errors(path):
            (scratch / "state.json").write_text(json.dumps(self._state, indent=2), encoding="utf-8")
            write_manifest(scratch, {name: facts for files, _ in reports for name, facts in files.items()})
            move_into_place(scratch, path)
            shutil.rmtree(scratch, ignore_errors=True)  # what had the same name, if there was such
        all_there = list_checkpoints(self.folder)
        up_to_now = [each for each in all_there if each <= path]
        for other in [*up_to_now[: -self.num_kept], *all_there[len(up_to_now) :]]:
            with scratch_folder(self.folder) as leaving:  # what has a checkpoint's name is never half of one
                os.replace(other, leaving / other.name)
