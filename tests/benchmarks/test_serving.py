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


def test_images_differ():
    assert len(set(encode_images(20, 32))) == 20


@pytest.mark.tour
def test_a_server_that_cannot_start_says_why(tmp_path):
    with pytest.raises(RuntimeError, match="ended before it served"), serving.serve(tmp_path / "nothing"):
        pass


@pytest.mark.tour
def test_a_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("fastapi", reason="needs the extra `serve`")
    model = RadioModel(RadioConfig.from_preset("radio-test"))
    model.save_pretrained(tmp_path / "model")
    RadioImageProcessor.from_model_config(model.config).save_pretrained(tmp_path / "model")
    monkeypatch.setattr("benchmarks.measuring.results.RESULTS", tmp_path)
    words = [str(tmp_path / "model"), "--in-flight", "1,8", "--num-requests", "16", "--size", "64", "--max-batch", "4"]
    assert serving.main(words) == 0
    table = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    columns = [name.strip("| ") for name in table[0]]
    rows = [dict(zip(columns, (cell.strip("| ") for cell in line), strict=True)) for line in table[2:]]
    assert [(row["in flight"], row["lost"], row["mixed up"]) for row in rows] == [("1", "0", "0"), ("8", "0", "0")]
    assert float(rows[0]["images a batch"]) == 1
    assert 1 < float(rows[1]["images a batch"]) <= 4
    assert np.isfinite(float(rows[1]["95 %, ms"]))
