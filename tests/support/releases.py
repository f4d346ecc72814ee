"""Marks for tests of features that older supported releases lack."""

import inspect

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import RadioModel as NativeRadioModel


TORCH, TRANSFORMERS = Version(torch.__version__), Version(transformers.__version__)

LOADS_HEADS = Version("5.18") <= TRANSFORMERS
"""Whether adapters with a head can be loaded; Hub folders of whole models always can."""
needs_heads = pytest.mark.skipif(not LOADS_HEADS, reason="load_adapter refuses adapters with heads")

PACKS_IMAGES = "image_grid_hw" in inspect.signature(NativeRadioModel.forward).parameters
needs_native_packs = pytest.mark.skipif(not PACKS_IMAGES, reason="this release of transformers packs no images")
needs_native_clips = pytest.mark.skipif(
    not hasattr(NativeRadioModel.config_class(), "video_temporal_patch_size"),
    reason="this release of transformers knows no clips",
)

IS_OLDEST = Version("2.7") > TORCH
needs_exporter = pytest.mark.skipif(
    Version("2.8") > TORCH, reason="this release of torch takes dynamic heights and widths for constants"
)
needs_compiler = pytest.mark.skipif(IS_OLDEST, reason="torch 2.6 compiles with guards that cannot be evaluated")
needs_flop_counter = pytest.mark.skipif(IS_OLDEST, reason="torch 2.6 counts some products only")
