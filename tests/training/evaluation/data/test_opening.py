from training.evaluation.data_tables import DataOptions, TableData
from training.evaluation.demo_data import DemoData
from training.evaluation.opening import open_data


def test_the_demo_is_rendered_and_all_else_is_read(class_folders, monkeypatch):
    asked = []
    monkeypatch.setattr(DemoData, "load", lambda source, size_px: asked.append((source, size_px)))
    open_data("demo", DataOptions(), size_px=32)
    assert asked == [("demo", 32)]
    data = open_data(str(class_folders), DataOptions(max_images=2), size_px=32, seed=3)
    assert isinstance(data, TableData)
    assert (len(data.test), data.seed) == (2, 3)
