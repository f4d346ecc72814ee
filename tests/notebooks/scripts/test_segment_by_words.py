import re

import numpy as np
import pytest
from documentation import ROOT
from PIL import Image


pytestmark = pytest.mark.tour

PHOTOGRAPH = ROOT / "docs" / "photograph.jpg"


@pytest.mark.parametrize("source", ["summary_head", "features"])
def test_every_pixel_goes_to_a_word(source, output_of, words, tmp_path):
    arguments = ["--words", "cat", "dog", "rock", "--source", source, "--size", 96]
    printed = output_of("segment_by_words", words, PHOTOGRAPH, "words.png", *arguments)
    shares = {word: float(share) for share, word in re.findall(r"([\d.]+)%  (\w+)", printed)}
    assert shares.keys() == {"cat", "dog", "rock"}
    assert sum(shares.values()) == pytest.approx(100, abs=0.2)
    drawn, photograph = Image.open(tmp_path / "words.png"), Image.open(PHOTOGRAPH)
    assert drawn.size == photograph.size
    assert np.abs(np.asarray(drawn, dtype=float) - np.asarray(photograph.convert("RGB"), dtype=float)).mean() > 10


def test_one_word_is_refused(run_script, words, tmp_path):
    done = run_script("segment_by_words", words, PHOTOGRAPH, "words.png", "--words", "cat")
    assert done.returncode == 2
    assert "two or more" in done.stderr
    assert not list(tmp_path.iterdir())
