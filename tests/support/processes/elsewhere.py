"""Runs code as a stranger would: in a fresh process, in another folder, without this repository and without the Hub.

Such a process spends its time on importing torch and transformers. So one process of a test session imports them, and
every run is a fork of it, as fresh as a new interpreter: with modules, a cache of remote code, a working folder and
outputs of its own. This file is both ends: the class that tests use and, as a script, the process that forks.
"""

import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path


# What most strangers import, and what the code of our folders does.
PRELOADED = (
    "PIL.Image",
    "safetensors.torch",
    "torch",
    "torchvision.transforms.v2",
    "transformers.pipelines",
    "transformers.models.auto",
    "transformers.models.clip.modeling_clip",
    "transformers.models.dpt.modeling_dpt",
    "transformers.models.radio.modeling_radio",
    "transformers.models.rf_detr.modeling_rf_detr",
    "transformers.models.siglip2.modeling_siglip2",
)


class Elsewhere:
    """Starts processes that know neither this repository nor the Hub, nor the user's caches."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="radio-elsewhere-")
        self._server: subprocess.Popen[str] | None = None

    def run(self, code: str, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run code in a process of its own.

        Args:
            code: Python; it runs as the main module.
            folder: Working folder.
            arguments: What `sys.argv[1:]` holds, as text.

        Returns:
            The exit status and what was printed.
        """
        outputs = Path(tempfile.mkdtemp(dir=self._folder.name))
        from folders import OURS  # not where this file is a script

        request = {
            "code": code,
            "ours": OURS,
            "folder": str(folder),
            "arguments": [str(argument) for argument in arguments],
            "outputs": str(outputs),
        }
        server = self._start()
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        printed = [(outputs / name).read_text() for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess([sys.executable, "-I", "-c", code], status, *printed)

    def run_command(
        self, command: list[str], *, cwd: str | Path, **options: object
    ) -> subprocess.CompletedProcess[str]:
        """Run `[python, "-I", "-c", code, *arguments]`: in place of `subprocess.run` in code that is tested."""
        assert command[:3] == [sys.executable, "-I", "-c"]
        assert options["capture_output"]
        assert options["text"]
        return self.run(command[3], Path(cwd), *command[4:])

    def stop(self) -> None:
        """End the process that forks, and remove what the others left."""
        if self._server is not None:
            self._server.kill()
            self._server.communicate()
        self._folder.cleanup()

    def _start(self) -> "subprocess.Popen[str]":
        if self._server is None:
            names = ("PATH", "LD_LIBRARY_PATH", "ATEN_CPU_CAPABILITY")  # the last, so that both compute alike
            kept = {name: os.environ[name] for name in names if name in os.environ}
            environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": self._folder.name, "OMP_NUM_THREADS": "1", "NO_PROXY": "*"}
            self._server = subprocess.Popen(
                [sys.executable, "-I", __file__],
                cwd=self._folder.name,
                env=kept | environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        return self._server


def serve() -> None:
    """Fork for each request, a line of JSON, and answer with the exit status."""
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # or each child's garbage collection would copy the memory that it shares
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            status = _become_stranger(**json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)  # at once: an orderly end would first copy and free all that was imported
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _become_stranger(code: str, ours: list[str], folder: str, arguments: list[str], outputs: str) -> int:
    """Run the code in this process, and return the status that an interpreter would end with."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        os.dup2(os.open(os.path.join(outputs, name), os.O_RDWR | os.O_CREAT), descriptor)
    os.chdir(folder)
    sys.argv[:] = ["-c", *arguments]
    sys.modules.update(dict.fromkeys(ours))  # importing any fails: no installed package of ours makes a folder work
    dynamic_modules = importlib.import_module("transformers.dynamic_module_utils")
    dynamic_modules.HF_MODULES_CACHE = os.path.join(outputs, "modules")
    try:
        exec(compile(code, "elsewhere", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:  # noqa: BLE001  (as an interpreter does)
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    serve()
