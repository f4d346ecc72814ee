"""The report of weights where a model with a head is opened from a backbone's folder."""

from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import logging
from transformers.utils.loading_report import LoadStateDictInfo


_BACKBONE = "radio_model"
_LOGGER = logging.get_logger("transformers.modeling_utils")  # which logs the table: one verbosity for both


class NewHeadReport(PreTrainedModel):
    """A model whose head may be new: it is then named in one line, and not weight by weight.

    A head of which the folder has a part is not a new head. It is reported in full, as are weights of the backbone
    that are missing, unknown weights, and those of another shape.
    """

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Open a checkpoint or an adapter, and warn of new parts that an adapter did not bring."""
        opened = super().from_pretrained(*args, **kwargs)
        model = opened[0] if isinstance(opened, tuple) else opened
        brought = {name.partition(".")[0] for name, _ in model.named_modules() if ".modules_to_save" in name}
        new = {name: keys for name, keys in vars(model).pop("_new", {}).items() if name not in brought}
        if new:
            count = len(set().union(*new.values()))
            _LOGGER.warning(f"{cls.__name__}: {count} new weights to train: {', '.join(new)}.")
        return opened

    def _adjust_missing_and_unexpected_keys(self, loading_info: LoadStateDictInfo) -> None:
        """Adjust what transformers is about to report; `output_loading_info=True` still gives every key."""
        super()._adjust_missing_and_unexpected_keys(loading_info)
        missing = loading_info.missing_keys
        new = {name: {key for key in missing if key.startswith(f"{name}.")} for name in self._unfilled_heads(missing)}
        if not new:
            return
        self._new = new
        keys = set().union(*new.values())
        loading_info.create_loading_report = replace(loading_info, missing_keys=missing - keys).create_loading_report

    def _unfilled_heads(self, missing: set[str]) -> list[str]:
        """Return the parts beside the backbone whose parameters were all missing."""
        parameters = {
            name: {key for key, _ in module.named_parameters(prefix=name)}
            for name, module in self.named_children()
            if name != _BACKBONE
        }
        return [name for name, keys in parameters.items() if keys and keys <= missing]
