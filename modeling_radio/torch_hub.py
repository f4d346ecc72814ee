"""Models for `torch.hub.load`, by `hubconf.py`: they take the calls of NVIDIA's repository and return the same outputs.

This file is of the package alone: saved folders have no copy.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .checks_radio import check_choice, own_names
from .inputs_radio import check_feature_format
from .modeling_radio import RadioModel, RadioNetwork
from .nvidia.beside import fetch_archive
from .nvidia.releases import DEFAULT_VERSION, HUB_RELEASES
from .outputs_radio import FeatureFormat, RadioPair


def _remove_model_prefix(_: nn.Module, state: dict[str, Tensor], prefix: str, *__: Any) -> None:
    """Rename weights that are named as those of `RadioModel`; a hook of `load_state_dict`."""
    before = f"{prefix}radio_model."
    for key in [key for key in state if key.startswith(before)]:
        state[prefix + key.removeprefix(before)] = state.pop(key)


class TorchHubRadio(nn.Module):
    """A network with NVIDIA's names and outputs; see `forward`.

    It shares the network's modules, parameters and buffers, so their names are NVIDIA's, `model.blocks.0.norm1.weight`
    for example. Its other names are those of the network too. It has no `config`, since FiftyOne saves that of whatever
    has one in a file that `torch.load` then refuses. `load_state_dict` also takes the names of `RadioModel`, which
    begin with `radio_model.`.

    Args:
        network: Network of any model; all of its adaptors run at every call.
    """

    radio_model: RadioNetwork

    def __init__(self, network: RadioNetwork) -> None:
        super().__init__()
        self.__dict__["radio_model"] = network  # not registered: that would put `radio_model.` before each name
        self._modules, self._parameters, self._buffers = network._modules, network._parameters, network._buffers
        self.register_load_state_dict_pre_hook(_remove_model_prefix)
        self.train(network.training)

    def __getattr__(self, name: str) -> Any:
        if name in ("config", "radio_model"):  # the second while a copy is being made
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.radio_model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "adaptors":  # `None`, or some of those that are there
            self.radio_model.keep_adaptors(value or ())
        elif name == "summary_idxs":
            self.radio_model.summary_idxs = value
        else:
            super().__setattr__(name, value)

    def train(self, mode: bool = True) -> "TorchHubRadio":
        """Set the training mode of the network too, which is no submodule."""
        self.radio_model.train(mode)
        return super().train(mode)

    def forward(
        self, x: Tensor, feature_fmt: FeatureFormat = "NLC", **options: Any
    ) -> RadioPair | dict[str, RadioPair]:
        """Return `(summary, features)`, or with adaptors such pairs by "backbone" and the adaptors' names.

        Args:
            x: RGB images in [0, 1], `(batch, channels, height, width)`.
            feature_fmt: "NLC" for token sequences, "NCHW" for maps.
            options: `window_size`, `image_grid_hw`, `num_tokens` and others of `RadioModel.forward` about the input.

        Raises:
            ValueError: As `RadioModel.forward`.
        """
        check_feature_format(feature_fmt, is_packed="image_grid_hw" in options, argument="feature_fmt")
        return self.radio_model.make_output(self.radio_model(x, **options), list(self.adaptors), feature_fmt).to_pairs()


def find_version(version: str | None) -> str:
    """Return the folder, training file or Hub repository that a version means; some releases are files to be fetched.

    Args:
        version: A version in `HUB_RELEASES`, `None` for NVIDIA's default, or a path or name of any other model.

    Raises:
        ValueError: If it is no version, path or name of a model, or its file cannot be fetched.
    """
    release = HUB_RELEASES.get(version or DEFAULT_VERSION)
    if release is None:
        if not Path(version or "").exists() and "/" not in (version or ""):
            check_choice("version", version, HUB_RELEASES)
        return version or ""
    if release.repository is None:
        return str(fetch_archive(str(release.archive_in), str(release.archive)))
    return release.repository


def open_for_torch_hub(
    version: str | None = None,
    adaptor_names: str | Sequence[str] | None = None,
    vitdet_window_size: int | None = None,
) -> RadioModel:
    """Open a model by the arguments of NVIDIA's entry of `torch.hub`, with the adaptors that it names alone.

    Args:
        version: A folder of ours or NVIDIA's, a name on the Hub, or a version in `HUB_RELEASES`; `None` takes
            NVIDIA's default.
        adaptor_names: Adaptors to run. That of the folder's text tower also has `tokenizer` and `encode_text`.
        vitdet_window_size: Side of the ViTDet windows in tokens; `None` takes the folder's.

    Raises:
        ValueError: If there is no such version or adaptor.
    """
    names = [adaptor_names] if isinstance(adaptor_names, str) else list(adaptor_names or [])
    model = RadioModel.from_pretrained(find_version(version), **({"adaptor_names": names} if names else {}))
    if vitdet_window_size is not None:
        model.config.vitdet_window_size = vitdet_window_size
        model.config.check()
    available = list(model.adaptors)  # that of the folder's text tower encodes texts from here on
    names = own_names("adaptor_names", names, available)
    for name in names:
        check_choice("adaptor_names", name, available)
    model.adaptors = names
    return model
