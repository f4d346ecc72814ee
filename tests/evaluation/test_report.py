"""The page of an evaluation: its numbers, and sections of images."""

import re

import pytest
import torch

from modeling_radio.evaluation.data import Examples, Part, Stacked
from modeling_radio.evaluation.models.radio import RadioFeatures
from modeling_radio.evaluation.report import (
    neighbor_section,
    report_sections,
    resolution_section,
    write_report,
)
from modeling_radio.evaluation.tasks.base import Evaluation
from modeling_radio.evaluation.tasks.classification import measure_knn
from modeling_radio.evaluation.tasks.dense_prediction import measure_segmentation_probe
from modeling_radio.evaluation.tasks.settings import TaskSettings
from modeling_radio.metrics.results import Measurement, Results, Source


MEASUREMENTS = [
    Measurement("student", "knn", "accuracy", "mine", 0.612),
    Measurement("student", "resolution_consistency", "128 to 512 px", "mine", 0.91, 0),
    Measurement("student", "resolution_consistency", "128 to 512 px", "mine", 0.93, 1),
    Measurement("student", "resolution_consistency", "256 to 512 px", "mine", 0.97),
    Measurement("a <b> $x_$", "resolution_consistency", "128 to 512 px", "mine", 0.4),
    Measurement("a <b> $x_$", "resolution_consistency", "128 to 512 px, centered", "mine", -0.1),
]


def test_measured_tasks_have_a_section(pixels, data, tiny_model):
    student = Evaluation(RadioFeatures(tiny_model, size_px=16), data, TaskSettings(probe_steps=20))
    evaluations = [student, pixels(probe_steps=20)]
    assert [section.title for section in report_sections(evaluations, ["effective_rank"])] == ["Dense features"]
    for evaluation in evaluations:
        measure_knn(evaluation)
        measure_segmentation_probe(evaluation)
    colors, neighbors, masks = report_sections(evaluations, ["knn", "segmentation_probe"])
    assert [picture.caption for picture in colors.rows[0].images] == ["image", "student", "raw pixels"]
    assert [picture.pixels.shape[1:] for picture in colors.rows[0].images] == [(16, 16), (2, 2), (2, 2)]
    assert not torch.equal(*(colors.rows[index].images[1].pixels for index in (0, 3)))
    assert len(neighbors.rows) == 2 * len(student.shown("labels"))
    scene = masks.rows[0].images
    assert [picture.caption for picture in scene] == ["image", "true classes", "student", "raw pixels"]
    assert torch.equal(scene[1].pixels, scene[3].pixels)  # colors alone tell the halves apart
    assert [name for name, _ in masks.legend] == ["left", "right"]


def test_numbers_curves_and_sources_are_on_the_page(tmp_path):
    results = Results(
        MEASUREMENTS,
        datasets=[Source("mine", "test images", "MIT", "https://example.org/images", "9 images")],
        run={"date": "2026-11-25", "command": "radio evaluate a <b>"},
        remarks=["Few images."],
    )
    write_report(tmp_path / "results.html", results)
    page = (tmp_path / "results.html").read_text(encoding="utf-8")
    assert "2026-11-25 · radio evaluate a &lt;b&gt;" in page
    assert re.findall("<h2>(.*)</h2>", page) == ["Measurements", "Over resolution", "Made from, measured on"]
    assert "0.612" in page
    assert "Few images." in page
    (section,) = resolution_section(MEASUREMENTS)
    for values in ("student: 128 px 0.920, 256 px 0.970;", "a <b> $x_$: 128 px 0.400;", "a <b> $x_$: 128 px -0.100."):
        assert values in section.drawing.alt
    assert section.drawing.content.startswith(b"\x89PNG")
    write_report(tmp_path / "empty.html", Results([]))
    assert "<h2>" not in (tmp_path / "empty.html").read_text(encoding="utf-8")


def images(count):
    return torch.randint(0, 256, (count, 3, 40, 60), dtype=torch.uint8)


@pytest.fixture
def part():
    test = Examples(Stacked(images(4)), "test", labels=torch.tensor([0, 1, 0, 1]))
    return Part("mine", test, Examples(Stacked(images(3)), "train", labels=torch.tensor([0, 1, 1])), ("cat", "dog"))


def test_neighbors_are_the_nearest_and_marked(part):
    gallery = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    tests = torch.tensor([[1.0, 0.1], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    section = neighbor_section({"a": (tests, gallery), "b": (tests.flip(1), gallery)}, part, [0, 3], num_neighbors=2)
    assert [row.title for row in section.rows] == ["a, cat", "b, cat", "a, dog", "b, dog"]
    first, other, third, _ = section.rows
    query, nearest, _ = first.images
    assert torch.equal(query.pixels, part.test.images[0][:, :, 10:50])
    assert torch.equal(nearest.pixels, part.train.images[0][:, :, 10:50])
    assert nearest.caption.startswith("cat, 1.00")
    assert [each.is_right for each in first.images] == [None, True, False]
    assert [each.is_right for each in other.images[1:]] == [False, False]
    assert third.images[1].is_right


@pytest.mark.parametrize(("groups", "num_neighbors"), [(None, 3), ([0, 1, 1, 1], 1)])
def test_an_image_has_no_neighbor_of_its_own_source(part, groups, num_neighbors):
    groups = None if groups is None else torch.tensor(groups)
    alone = Part("mine", Examples(part.test.images, "x", labels=part.test.labels, groups=groups), None, ("cat", "dog"))
    (row,) = neighbor_section({"a": (torch.eye(4), torch.eye(4))}, alone, [2], num_neighbors=9).rows
    assert len(row.images) == 1 + num_neighbors
    assert all("0.00" in each.caption for each in row.images[1:])
