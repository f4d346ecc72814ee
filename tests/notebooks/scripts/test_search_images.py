import pytest
from PIL import Image


pytestmark = pytest.mark.tour


@pytest.mark.parametrize("adaptor", [[], ["--adaptor", "words"]])
def test_the_likest_images_come_first(adaptor, output_of, model, pictures, tmp_path):
    query = pictures / "red" / "5.png"
    printed = output_of("search_images", model, query, pictures, "--top", 4, "--sheet", "sheet.png", *adaptor)
    found = [line.split() for line in printed.splitlines()[:-1]]
    cosines = [float(cosine) for cosine, _ in found]
    assert len(found) == 4
    assert cosines == sorted(cosines, reverse=True)
    assert all(name.startswith("red/") and name != "red/5.png" for _, name in found)
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.size == (5 * 192, 192)
    red, _, blue = sheet.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    assert red > 3 * blue


def test_a_folder_without_images_is_told(run_script, model, pictures, tmp_path):
    done = run_script("search_images", model, pictures / "red" / "5.png", tmp_path)
    assert done.returncode == 2
    assert "no other images below" in done.stderr
