"""Refuses a transformers that is too old, by one clear error, before anything is imported that only newer ones have."""

import transformers


MINIMUM = (5, 17)
"""Oldest transformers, major and minor version, whose classes this code can extend; `pyproject.toml` says the same."""

if tuple(int(number) for number in transformers.__version__.split(".")[:2]) < MINIMUM:
    needed = f"{MINIMUM[0]}.{MINIMUM[1]}"
    raise ImportError(
        f"RADIO's code needs transformers {needed} or newer, found {transformers.__version__}. Run "
        f'`pip install -U "transformers>={needed},<{MINIMUM[0] + 1}"`.'
    )
