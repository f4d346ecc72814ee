"""Runs one model on images: NVIDIA's with its own remote code, or ours with the code beside it.

Runs as `python -I -c CODE REQUEST.json`, where neither this repository nor the other model's code can be imported: both
register the model type "radio" in transformers. It imports nothing of this repository.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel


OutputsByName = dict[str, tuple[Tensor | None, Tensor | None]]
"""Summary and features by name: "backbone", or an adaptor's."""
_PEAK = re.compile(r"VmHWM:\s+(\d+) kB")
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): sets the peak of resident memory to what is resident now


def open_ours(request: dict[str, Any], window: int | None) -> Callable[[Tensor], OutputsByName]:
    """Return a function that runs the model of a folder of ours."""
    options = {"trust_remote_code": True, "dtype": getattr(torch, request["dtype"])}
    model = AutoModel.from_pretrained(request["source"], **options).to(request["device"]).eval()
    window_size = window or ("global" if model.config.eradio is None else None)  # E-RADIO attends in windows only

    def forward(pixels: Tensor) -> OutputsByName:
        output = model(pixels, window_size=window_size, adaptor_names=request["adaptors"], return_dict=True)
        return {
            name: (entry.summary, entry.features) for name, entry in {"backbone": output, **output.adaptors}.items()
        }

    return forward


def open_theirs(request: dict[str, Any], window: int | None) -> Callable[[Tensor], OutputsByName]:
    """Return a function that runs NVIDIA's class, opened as its model card does."""
    config = AutoConfig.from_pretrained(request["source"], trust_remote_code=True)
    if not type(config).__module__.startswith("transformers_modules."):
        raise ValueError(f"it brings no code, and would be opened as {type(config).__module__}")
    config.adaptor_names = request["adaptors"]
    options = {"config": config, "trust_remote_code": True, "dtype": getattr(torch, request["dtype"])}
    model, loaded = AutoModel.from_pretrained(request["source"], output_loading_info=True, **options)
    if loaded["missing_keys"]:
        first, count = min(loaded["missing_keys"]), len(loaded["missing_keys"])
        request["notes"].add(f"NVIDIA's class has {count} weights that its file lacks, such as {first}")
    model.to(request["device"]).eval()
    if window is not None:
        _attend_in_windows(model, window)

    def forward(pixels: Tensor) -> OutputsByName:
        output = model(pixels)
        named = output if isinstance(output, dict) else {"backbone": output}
        return {name: (entry[0], entry[1]) for name, entry in named.items()}

    return forward


def _attend_in_windows(model: Any, window: int) -> None:
    """Switch NVIDIA's model to ViTDet mode, which its class for the Hub leaves to the caller.

    The version determines which blocks stay global, as in NVIDIA's own entry point for torch.hub.
    """
    package = type(model).__module__.rpartition(".")[0]
    try:
        vitdet, common = (import_module(f"{package}.{name}") for name in ("vitdet", "common"))
    except ModuleNotFoundError as error:
        raise LookupError(f"this revision's code has no {str(error.name).rpartition('.')[2]}.py") from error
    resource = common.RESOURCE_MAP.get(model.config.version)
    blocks = {name: getattr(resource, f"vitdet_{name}", None) for name in ("num_windowed", "num_global")}
    blocks = {name: value for name, value in blocks.items() if value is not None}
    network = model.radio_model
    vitdet.apply_vitdet_arch(network.model, vitdet.VitDetArgs(window, network.num_summary_tokens, **blocks))


@torch.inference_mode()
def run_all(request: dict[str, Any]) -> tuple[dict[str, Tensor], list[dict[str, Any]], dict[str, str]]:
    """Run every case.

    Returns:
        Outputs under `SIZE/WINDOW/NAME/KIND`, costs of the cases, and by window the reason why it could not be run.
    """
    images = load_file(request["images"])
    outputs: dict[str, Tensor] = {}
    costs: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    for window, sizes in request["cases"]:
        try:
            model = (open_theirs if request["is_theirs"] else open_ours)(request, window)
        except LookupError as error:
            left_out[str(window)] = str(error.args[0])
            continue
        for size in sizes:
            pixels = (images[size].to(request["device"]).float() / 255).to(getattr(torch, request["dtype"]))
            named, seconds, peak = _measure(lambda pixels=pixels, model=model: model(pixels), request["rounds"])
            outputs |= dict(_flat(f"{size}/{window}", named))
            costs.append({"size": size, "window": window, "seconds": seconds, "peak_mib": peak})
    return outputs, costs, left_out


def _flat(case: str, named: OutputsByName) -> Iterator[tuple[str, Tensor]]:
    for name, entry in named.items():
        for kind, value in zip(("summary", "features"), entry, strict=True):
            if value is not None:
                yield f"{case}/{name}/{kind}", value.float().cpu().contiguous()


def _measure(call: Callable[[], OutputsByName], rounds: int) -> tuple[OutputsByName, float, float | None]:
    """Return a call's outputs, the seconds of the fastest round, and the peak memory in MiB."""
    has_peak = _reset_peak()
    named = call()  # sets kernels up and does not count
    fastest = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        _wait()
        fastest = min(fastest, time.perf_counter() - started)
    return named, fastest, _peak_mib() if has_peak else None


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _reset_peak() -> bool:
    """Reset the peak of memory; return whether this machine measures one."""
    if torch.cuda.is_initialized():
        _wait()
        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _peak_mib() -> float | None:
    """Return the peak since the last reset: of the GPU's memory, or of this process's."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    found = _PEAK.search(_STATUS.read_text())
    return None if found is None else int(found[1]) / 2**10


def main(path: str) -> None:
    """Run the request in a file; write the files `outputs` and `report` that it names."""
    request = json.loads(Path(path).read_text()) | {"notes": set()}
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 means float32 here
    outputs, costs, left_out = run_all(request)
    save_file(outputs, request["outputs"])
    report = {"costs": costs, "left_out": left_out, "notes": sorted(request["notes"])}
    report["order"] = list(outputs)  # safetensors sorts its keys
    Path(request["report"]).write_text(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
