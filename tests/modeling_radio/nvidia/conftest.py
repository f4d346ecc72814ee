"""The reference cases in both of NVIDIA's formats."""

from reference_cases import edited, hub_folder, reference, training_file


__all__ = ["edited", "hub_folder", "reference", "training_file"]
