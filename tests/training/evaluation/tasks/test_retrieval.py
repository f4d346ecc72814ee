"""Images and texts that find each other, beside torchmetrics' scores."""

import pytest
import torch
from torchmetrics.retrieval import RetrievalMAP, RetrievalRecall

from training.evaluation.data import Examples, Part, Stacked
from training.evaluation.data_tables import TableData
from training.evaluation.models.pretrained import RawPixels
from training.evaluation.tasks.base import Evaluation, TaskSettings
from training.evaluation.tasks.classification import (
    measure_image_retrieval,
    measure_image_text_retrieval,
    pair_scores,
    text_space,
)


def test_image_retrieval_is_that_of_torchmetrics(noisy_folders):
    evaluation = Evaluation(RawPixels(8, 16), TableData(str(noisy_folders)), TaskSettings(recall_at=[1, 5]))
    found = {each.metric: each for each in measure_image_retrieval(evaluation)}
    assert list(found) == ["mAP", "hit rate@1", "recall@1", "hit rate@5", "recall@5"]
    part = evaluation.part("labels")
    queries, gallery = (evaluation.features("labels", split).summary() for split in ("test", "gallery"))
    similarity = 1 + torch.nn.functional.cosine_similarity(queries[:, None], gallery[None], dim=2)
    relevant = part.test.labels[:, None] == part.train.labels
    index = torch.arange(len(queries))[:, None].expand_as(relevant)
    for metric, reference in {"mAP": RetrievalMAP(), "recall@5": RetrievalRecall(top_k=5)}.items():
        expected = reference(similarity.flatten(), relevant.flatten(), index.flatten()).item()
        assert found[metric].value == pytest.approx(expected, abs=1e-6)
        assert found[metric].low < found[metric].value < found[metric].high


class WithTexts(RawPixels):
    """Knows the mean color of texts that name it."""

    text_adaptor = None
    COLORS = {"red": [1.0, 0.1, 0.1], "green": [0.1, 1.0, 0.1], "orange": [1.0, 0.4, 0.0]}

    def encode(self, pixels, adaptors=()):
        return super().encode(pixels)._replace(summary=pixels.mean((2, 3)))

    def embed_texts(self, texts):
        return torch.tensor([self.COLORS[text] for text in texts])

    def embed_classes(self, class_names, templates):
        return self.embed_texts(class_names)


class Captioned:
    """Three images in the colors of their captions, but for the last, which is blue."""

    name = "captioned"

    def part(self, kind):
        images = torch.zeros(3, 3, 16, 16, dtype=torch.uint8)
        for number in range(3):
            images[number, number] = 255
        captions = [["red"], ["green", "green"], ["orange"]]
        return Part("captioned", Examples(Stacked(images), "x", captions=captions))


def test_images_and_texts_find_each_other():
    evaluation = Evaluation(WithTexts(8, 16), Captioned(), TaskSettings(recall_at=[1, 3]))
    found = {each.metric: each.value for each in measure_image_text_retrieval(evaluation)}
    assert found == {
        "image to text recall@1": pytest.approx(2 / 3),
        "image to text recall@3": pytest.approx(2 / 3),  # its caption is the last of four
        "text to image recall@1": pytest.approx(3 / 4),
        "text to image recall@3": 1.0,
    }


def test_texts_need_a_model_that_knows_them():
    with pytest.raises(ValueError, match=r"`image_text_retrieval` needs a text tower .*, which 'raw pixels' does not"):
        text_space(RawPixels(8, 16))


def test_images_of_one_source_do_not_count_as_found(pixels):
    """Of three pairs of equal images each finds its own; without it the next one is of the other class."""
    evaluation = pixels(recall_at=[1])
    colors = torch.tensor([[255, 0, 0], [255, 60, 0], [0, 60, 255]], dtype=torch.uint8).repeat_interleave(2, 0)
    images, labels = Stacked(colors[:, :, None, None].repeat(1, 1, 16, 16)), torch.tensor([0, 0, 1, 1, 0, 0])
    for groups, hits in ((None, 1), (torch.arange(6) // 2, 0)):
        evaluation._parts["labels"] = Part("x", Examples(images, "x", labels=labels, groups=groups))
        found = {each.metric: each.value for each in measure_image_retrieval(evaluation)}
        assert found["hit rate@1"] == hits


def test_classes_of_one_image_cannot_be_found(pixels):
    evaluation = pixels()
    part = evaluation.part("labels")
    alone = Examples(part.test.images, "x", labels=torch.arange(6))
    evaluation._parts["labels"] = Part("x", alone)
    with pytest.raises(ValueError, match=r"must have two images of one class, of different sources, for .*, got none"):
        measure_image_retrieval(evaluation)


def test_any_of_the_own_captions_will_do():
    images = torch.eye(3)
    texts = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.1, 0.0], [0.0, 1.0, 0.1], [0.2, 0.0, 1.0]])
    owners = torch.tensor([0, 0, 1, 2])
    own = torch.arange(3)
    assert pair_scores(images, own, texts, owners, [1, 9])["recall@1"].tolist() == [1, 1, 0]  # text 0 is nearest to 2
    assert pair_scores(texts, owners, images, own, [1, 9])["recall@1"].tolist() == [0, 1, 1, 1]
    assert pair_scores(texts, owners, images, own, [1, 9])["recall@9"].tolist() == [1, 1, 1, 1]
