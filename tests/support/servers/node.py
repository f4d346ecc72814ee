"""Modules of the page in Node.js."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest


PAGE = Path(__file__).parents[3] / "conversion" / "web" / "page"


def run_module(name: str, expression: str, given: Any = None, *, setup: str = "") -> Any:
    """Evaluate an expression of a page's module and return its value, by way of JSON.

    Args:
        name: File of `conversion/web/page/`; in the expression its exports are `page`.
        expression: Expression of `page` and `given`.
        given: Values for it.
        setup: Statements before.
    """
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")
    script = f"""
        import {{ readFileSync }} from "node:fs";
        const page = await import({json.dumps((PAGE / name).as_uri())});
        const given = JSON.parse(readFileSync(0, "utf8"));
        {setup}
        const plain = (_, value) => (ArrayBuffer.isView(value) ? Array.from(value, Number) : value);
        console.log(JSON.stringify({expression}, plain));
    """
    command = [node, "--input-type=module", "-e", script]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
