from refusals import refused, wrong

from modeling_radio.core.settings import SettingsError
from modeling_radio.evaluation.settings import PRESETS, EvaluationSettings


@wrong(tasks=[[]], preset=["ade20"], shorter_px=[64], radseg=[["scrap"]])
def test_bad_settings_are_named(name, value):
    refused(name, lambda: EvaluationSettings(checkpoint="x", **{name: value}), SettingsError)


def test_a_preset_gives_other_defaults():
    chosen = EvaluationSettings(checkpoint="x", data="ade", preset="ade20k", probe_steps=3)
    assert chosen.probe_steps == 3
    assert (chosen.window_px, chosen.layout, chosen.tasks) == (512, "ade20k", ["segmentation_probe"])
    chosen = EvaluationSettings(checkpoint="x", data="in", preset="imagenet-1k")
    assert (chosen.neighbors, chosen.temperature, chosen.templates) == (20, 0.07, "openai")
    for name in PRESETS:
        EvaluationSettings(checkpoint="x", preset=name)


def test_the_preset_of_the_demo_is_for_its_images():
    left_out = EvaluationSettings(checkpoint="x")
    assert left_out.for_source("mine") == left_out
    assert left_out.neighbors == 20
    demo = left_out.for_source("demo")
    assert (demo.neighbors, demo.of_tasks()["preset"]) == (5, "demo")
    assert EvaluationSettings(checkpoint="x", neighbors=9).for_source("demo").neighbors == 9
    assert EvaluationSettings(checkpoint="x", preset="imagenet-1k").for_source("demo").neighbors == 20
