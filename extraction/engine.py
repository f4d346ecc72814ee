"""Files of features made by Daft: on this machine, or on a cluster by its Ray runner (`DAFT_RUNNER=ray`).

Daft starts the workers and gives each the numbers of files; a worker makes them as `radio extract` does, by the same
claims and with the same `Embedder`, so that the files are the same bytes.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import torch

from modeling_radio.core.errors import UserError
from modeling_radio.core.ranks import rank_and_count
from modeling_radio.extraction.settings import ExtractionSettings


def check_engine(settings: ExtractionSettings) -> None:
    """Refuse an engine that is not installed, or started by a launcher of ranks.

    Raises:
        ValueError: If it is.
    """
    if settings.engine is None:
        return
    if rank_and_count()[1] > 1:
        raise ValueError("`engine` starts its own workers, got several ranks. Start one process, or leave it out.")
    try:
        importlib.import_module("daft")
    except ImportError as error:
        raise ValueError("`engine` needs a package. Run `pip install daft`, or `pip install 'daft[ray]'`.") from error


def make_on_daft(settings: ExtractionSettings, numbers: Sequence[int], maker_class: type) -> int:
    """Let Daft's workers make files, and return the number of rows that they wrote.

    Args:
        settings: Settings of the extraction.
        numbers: Numbers of the missing files.
        maker_class: Its objects, made of the settings as plain data, have `make`: a number to the rows of that file.

    Raises:
        UserError: If a worker fails.
    """
    import daft

    gpus = float(torch.cuda.is_available())
    workers = daft.cls(maker_class, gpus=gpus, max_concurrency=settings.engine_workers, use_process=True)
    maker = workers(settings.to_dict())
    frame = daft.from_pydict({"number": list(numbers)})
    # One file at a time for each worker: Ray's runner deals partitions, the native one batches.
    is_ray = daft.get_or_infer_runner_type() == "ray"
    frame = frame.into_partitions(len(numbers)) if is_ray else frame.into_batches(1)
    try:
        rows = frame.select(maker.make(daft.col("number")).alias("rows")).to_pydict()["rows"]
    except Exception as error:  # whatever a worker raised, with its stack
        reason = ([line for line in str(error).splitlines() if line.strip()] or [type(error).__name__])[-1].strip()
        raise UserError(f"A worker of Daft failed: {reason} The same command makes what is missing.") from error
    return sum(rows)
