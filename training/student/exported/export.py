"""From a trained student to a folder that `AutoModel` opens."""

import copy
from collections.abc import Mapping
from pathlib import Path

import torch

from foundation.files import write_folder
from model_cards.heritage import Heritage
from modeling_radio import RadioModel
from modeling_radio.image_processing_radio import RadioImageProcessor
from training.student.exported.normalizers import Normalizers, add_normalizers
from training.student.regularizers.spectral import fold_spectral_scales
from training.targets.phi_s import FeatureStandardizer


def export_student(
    model: RadioModel,
    standardizers: Mapping[str, FeatureStandardizer],
    path: Path,
    normalizers: Normalizers | None = None,
    heritage: Heritage | None = None,
) -> None:
    """Write model and processor: plain weights, and adaptors that answer in their teachers' own spaces.

    Args:
        model: The student or its moving average; it is not changed.
        standardizers: By adaptor name; the inverse is folded into the dense head's last layer.
        path: Folder to write, replaced as a whole if it exists.
        normalizers: Of the model's features, which it has from then on; its adaptors answer as without.
        heritage: What it learned from, for its card; None writes nothing of it.

    Raises:
        WriteError: If it cannot be written; an older folder is intact.
    """
    exported = copy.deepcopy(model).cpu().eval().requires_grad_(True)
    fold_spectral_scales(exported)
    for name, standardizer in standardizers.items():
        standardizer.fold_inverse_into_linear(exported.radio_model.adaptor(name).last_dense_linear)
    if normalizers is not None:
        add_normalizers(exported, normalizers)
    processor = RadioImageProcessor.from_model_config(exported.config)

    def write(folder: Path) -> None:
        exported.save_pretrained(folder)
        processor.save_pretrained(folder)
        if heritage is not None:
            heritage.save(folder)

    with torch.no_grad():
        write_folder(path, write)
