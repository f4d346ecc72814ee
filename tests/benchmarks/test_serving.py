"""What a load says: answers lost or mixed up are counted, and the benchmark runs a server of its own."""

import numpy as np
import pytest

from benchmarks import serving
from benchmarks.serving import Reply, encode_images, row_of
from modeling_radio import RadioConfig, RadioImageProcessor, RadioModel


def replies(*summaries, statuses=None):
    pairs = zip(statuses or [200] * len(summaries), summaries, strict=True)
    return [Reply(status, {"summary": [summary, 1.0]}, 0.01) for status, summary in pairs]


def test_lost_and_mixed_up_answers_are_counted():
    expected = replies(1.0, 2.0, 3.0, 4.0)
    given = replies(1.0001, 3.0, 2.0, 0.0, statuses=[200, 200, 200, None])
    row = row_of(4, given, expected, seconds=0.5, batches=2)
    assert (row["lost"], row["mixed up"], row["images a second"], row["images a batch"]) == (1, 2, 8.0, 2.0)
    assert row["median, ms"] == 10.0
    assert len(set(encode_images(20, 32))) == 20


@pytest.mark.tour
def test_a_server_that_cannot_start_says_why(tmp_path):
    with pytest.raises(RuntimeError, match="ended before it served"), serving.serve(tmp_path / "nothing"):
        pass


@pytest.mark.tour
def test_a_run(tmp_path):
    pytest.importorskip("fastapi", reason="needs the extra `app`")
    model = RadioModel(RadioConfig.from_preset("radio-test"))
    model.save_pretrained(tmp_path)
    RadioImageProcessor.from_model_config(model.config).save_pretrained(tmp_path)
    rows, end = serving.measure(tmp_path, [1, 8], 16, 64)
    assert [(row["in flight"], row["lost"], row["mixed up"]) for row in rows] == [(1, 0, 0), (8, 0, 0)]
    assert rows[0]["images a batch"] == 1
    assert rows[1]["images a batch"] > 1
    assert np.isfinite(rows[1]["95 %, ms"])
    assert (end["exit status"], end["other"]) == (143, 0)
