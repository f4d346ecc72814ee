import re

import pytest


pytestmark = pytest.mark.tour


def test_words_share_the_probability(output_of, words, pictures):
    images = [pictures / "red" / "1.png", pictures / "blue" / "2.png"]
    printed = output_of("classify_by_words", words, *images, "--words", "cat", "dog", "rock")
    assert [name for name in ("1.png", "2.png") if name in printed] == ["1.png", "2.png"]
    lines = re.findall(r"(\d\.\d{3})  (\w+)", printed)
    assert sorted(word for _, word in lines[:3]) == ["cat", "dog", "rock"]
    assert sum(float(score) for score, _ in lines[:3]) == pytest.approx(1, abs=0.002)
    assert [float(score) for score, _ in lines[:3]] == sorted((float(score) for score, _ in lines[:3]), reverse=True)


def test_words_must_be_given(run_script, words, pictures):
    done = run_script("classify_by_words", words, pictures / "red" / "1.png")
    assert done.returncode == 2
    assert "--words" in done.stderr
