"""What transformers' own common tests ask of a model's test file; `test_transformers_common.py` runs it.

It runs in a folder beside transformers' sources, as `tests.models.radio.test_radio`, and is no test file here.
"""

import copy
import math
import unittest
from typing import Any

import torch
from task_models import ADAPTORS, tiny_config
from tests.test_backbone_common import BackboneTesterMixin
from tests.test_configuration_common import ConfigTester
from tests.test_image_processing_common import (
    ImageProcessingTester,
    ImageProcessingTestMixin,
    PostProcessSemanticSegmentationTestMixin,
)
from tests.test_modeling_common import ModelTesterMixin
from transformers import SiglipTextConfig

from modeling_radio import (
    RadioBackbone,
    RadioConfig,
    RadioForDepthEstimation,
    RadioForImageClassification,
    RadioForInstanceSegmentation,
    RadioForObjectDetection,
    RadioForSemanticSegmentation,
    RadioForUniversalSegmentation,
    RadioForZeroShotImageClassification,
    RadioImageProcessor,
    RadioModel,
)


NUM_LABELS = 3
ROWS = COLS = 4  # patches of a side


class RadioModelTester:
    """A tiny configuration and noise; what transformers' tests read stands in its attributes."""

    batch_size = 2
    num_hidden_layers = 2

    def __init__(self, fields: dict[str, Any], is_training: bool) -> None:
        self.is_training = is_training
        self.fields = {"num_hidden_layers": self.num_hidden_layers, **fields}
        self.inputs: dict[str, torch.Tensor] = {}
        config = self.get_config()
        self.hidden_size = config.hidden_size
        self.num_attention_heads = config.num_attention_heads
        self.image_size = ROWS * config.patch_size
        self.map_shape = (self.batch_size, self.image_size, self.image_size)
        self.num_pixels = math.prod(self.map_shape)
        self.seq_length = config.num_prefix_tokens + ROWS * COLS

    def get_config(self) -> RadioConfig:
        return tiny_config(num_labels=NUM_LABELS, **self.fields)

    def prepare_config_and_inputs_for_common(self) -> tuple[RadioConfig, dict[str, torch.Tensor]]:
        pixel_values = torch.rand(self.batch_size, 3, *self.map_shape[1:])
        return self.get_config(), {**self.inputs, "pixel_values": pixel_values}


class Common(ModelTesterMixin):
    """The settings of all models: no embeddings of words, and none whose size is fixed."""

    test_resize_embeddings = False
    model_class: type
    fields: dict[str, Any] = {}
    has_loss = True

    def setUp(self) -> None:
        self.all_model_classes = (self.model_class,)
        self.model_tester = RadioModelTester(self.fields, self.has_loss)

    def labels(self) -> dict[str, Any]:
        """Return arguments that make the model return a loss, each time the same ones."""
        return {}

    def _prepare_for_class(self, inputs_dict: Any, model_class: type, return_labels: bool = False) -> dict[str, Any]:
        return {**copy.deepcopy(inputs_dict), **(self.labels() if return_labels else {})}


class RadioModelTest(Common, unittest.TestCase):
    model_class = RadioModel
    has_loss = False

    def test_config(self) -> None:
        fields = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        ConfigTester(self, config_class=RadioConfig, has_text_modality=False, **fields).run_common_tests()


class RadioModelWithAdaptorsTest(Common, unittest.TestCase):
    model_class = RadioModel
    has_loss = False
    fields = {"adaptors": ADAPTORS}


class RadioModelWithWindowsTest(Common, unittest.TestCase):
    model_class = RadioModel
    has_loss = False
    fields = {
        "vitdet_window_size": 2,
        "vitdet_num_global": 1,
        "use_layer_scale": True,
        "use_feature_normalizer": True,
        "num_intermediate_normalizers": 2,
    }


class RadioForImageClassificationTest(Common, unittest.TestCase):
    model_class = RadioForImageClassification

    def labels(self) -> dict[str, Any]:
        return {"labels": torch.tensor([2, 0])}


class RadioForSemanticSegmentationTest(Common, unittest.TestCase):
    model_class = RadioForSemanticSegmentation

    def labels(self) -> dict[str, Any]:
        return {"labels": torch.arange(self.model_tester.num_pixels).view(self.model_tester.map_shape) % NUM_LABELS}


class RadioForSemanticSegmentationByDptTest(RadioForSemanticSegmentationTest):
    fields = {"segmentation_head": "dpt"}


class RadioForDepthEstimationTest(Common, unittest.TestCase):
    model_class = RadioForDepthEstimation

    def labels(self) -> dict[str, Any]:
        return {"labels": torch.linspace(1, 2, self.model_tester.num_pixels).view(self.model_tester.map_shape)}


class RadioForObjectDetectionTest(Common, unittest.TestCase):
    model_class = RadioForObjectDetection

    def labels(self) -> dict[str, Any]:
        label = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.4]])}
        return {"labels": [label] * self.model_tester.batch_size}


class RadioForObjectDetectionByDefaultTest(RadioForObjectDetectionTest):
    """With the windows that a detector has where nothing else is asked."""

    fields = {"detection_window_size": 16}


class RadioForInstanceSegmentationTest(RadioForObjectDetectionTest):
    model_class = RadioForInstanceSegmentation

    def labels(self) -> dict[str, Any]:
        masks = torch.ones(1, *self.model_tester.map_shape[1:])
        return {"labels": [{**label, "masks": masks} for label in super().labels()["labels"]]}


class RadioForUniversalSegmentationTest(Common, unittest.TestCase):
    model_class = RadioForUniversalSegmentation

    def labels(self) -> dict[str, Any]:
        batch_size, *size = self.model_tester.map_shape
        return {"mask_labels": [torch.ones(1, *size)] * batch_size, "class_labels": [torch.tensor([1])] * batch_size}


class RadioForZeroShotImageClassificationTest(Common, unittest.TestCase):
    model_class = RadioForZeroShotImageClassification
    has_attentions = False  # those of two towers lie deeper
    test_all_params_have_gradient = False  # the dense half of the adaptor does not run
    fields = {
        "adaptors": ADAPTORS,
        "text_adaptor": ADAPTORS[0]["name"],
        "text_tower": SiglipTextConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            vocab_size=32,
            max_position_embeddings=8,
            projection_size=ADAPTORS[0]["summary_dim"],
        ).to_dict(),
    }

    def setUp(self) -> None:
        super().setUp()
        self.model_tester.inputs = {"input_ids": torch.arange(self.model_tester.batch_size * 8).view(-1, 8)}

    def _text_features_prepare_config_and_inputs(self) -> tuple[RadioConfig, dict[str, Any]]:
        """The tests ask a configuration object of the tower for its width; ours keeps it as JSON."""
        config, inputs = super()._text_features_prepare_config_and_inputs()
        config.text_config = SiglipTextConfig.from_dict(self.fields["text_tower"])
        return config, inputs

    def labels(self) -> dict[str, Any]:
        return {"return_loss": True}


class RadioBackboneTest(BackboneTesterMixin, Common, unittest.TestCase):
    model_class = RadioBackbone
    has_loss = False
    config_class = RadioConfig


class RadioBackboneWithPyramidTest(Common, unittest.TestCase):
    model_class = RadioBackbone
    has_loss = False
    fields = {"use_feature_pyramid": True, "feature_pyramid_size": 16}


class RadioImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent: unittest.TestCase) -> None:
        super().__init__(parent, batch_size=3, min_resolution=30, max_resolution=80)
        self.size = {"height": 48, "width": 64}

    def _get_image_processing_classes(self) -> dict[str, type]:
        return {"torchvision": RadioImageProcessor}

    def expected_output_image_shape(self, images: Any) -> tuple[int, int, int]:
        return self.num_channels, self.size["height"], self.size["width"]

    def prepare_post_process_semantic_segmentation_inputs(self) -> tuple[dict[str, Any], dict[str, int]]:
        class Outputs:
            logits = torch.rand(self.batch_size, NUM_LABELS, 6, 8)

        return {"outputs": Outputs()}, {"num_labels": NUM_LABELS, "height": 6, "width": 8}


class RadioImageProcessingTest(ImageProcessingTestMixin, PostProcessSemanticSegmentationTestMixin, unittest.TestCase):
    image_processor_tester_class = RadioImageProcessingTester
