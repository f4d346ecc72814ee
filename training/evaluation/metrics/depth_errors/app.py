"""The page of this module as a Space: arguments of `compute` as JSON in, what it returns out."""

import json
from pathlib import Path

import evaluate
import gradio


FOLDER = Path(__file__).parent
EXAMPLE = json.loads((FOLDER / "example.json").read_text(encoding="utf-8"))
MODULE = evaluate.load(str(FOLDER / EXAMPLE["module"]))


def compute(arguments: str) -> str:
    """Return the module's answer to arguments in JSON, as JSON, or what is wrong with them."""
    try:
        return json.dumps(MODULE.compute(**json.loads(arguments)), indent=2)
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


PAGE = gradio.Interface(
    compute,
    gradio.Textbox(json.dumps(EXAMPLE["arguments"]), label="Arguments of `compute`, as JSON", lines=6),
    gradio.Textbox(label="Answer"),
    title=MODULE.name,
    description=f"{MODULE.description}\n\n{MODULE.inputs_description}",
    flagging_mode="never",
)

if __name__ == "__main__":
    PAGE.launch()
