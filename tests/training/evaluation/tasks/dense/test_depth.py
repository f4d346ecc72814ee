import numpy as np
from PIL import Image

from training.evaluation.data.tables import TableData
from training.evaluation.tasks.dense.depth import measure_depth_probe


def test_depth_is_read_from_brightness(tmp_path, pixels):
    for split in ("train", "val"):
        for number in range(6):
            shade = np.random.default_rng([number, len(split)]).uniform(0, 1, (2, 2)).repeat(8, 0).repeat(8, 1)
            for folder in ("images", "depth"):
                (tmp_path / split / folder).mkdir(parents=True, exist_ok=True)
            picture = np.stack([shade * 255] * 3, axis=-1).astype(np.uint8)
            Image.fromarray(picture).save(tmp_path / split / "images" / f"{number}.png")
            np.save(tmp_path / split / "depth" / f"{number}.npy", np.exp(shade).astype(np.float32))
    found = {
        steps: {each.metric: each for each in measure_depth_probe(pixels(TableData(str(tmp_path)), probe_steps=steps))}
        for steps in (1, 200)
    }
    assert found[200]["abs_rel"].value < 0.15 < found[1]["abs_rel"].value
    assert found[200]["delta1"].value > 0.8
    assert found[200]["rmse"].low < found[200]["rmse"].value < found[200]["rmse"].high
