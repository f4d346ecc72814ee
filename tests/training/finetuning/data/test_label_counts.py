"""What is said of classes before a run."""

from training.finetuning.data.label_counts import LabelCounts, count_classes


def counts(train, validation, names=("cat", "dog", "emu", "fox"), total=None):
    return LabelCounts(names, count_classes(train, len(names), total), count_classes(validation, len(names)))


def rows_of(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_classes_of_one_label_an_image():
    assert rows_of(counts([[1], [1], [0]], [[0]]).table())[0] == ["class", "id", "training images", "validation images"]
    assert rows_of(counts([[1], [1], [0]], [[0]]).table())[2:4] == [["dog", "1", "2", "0"], ["cat", "0", "1", "1"]]


def test_objects_are_counted_beside_images():
    table = rows_of(counts([[1, 1, 0], []], [[0, 0]]).table())
    assert table[0][2:] == ["training images", "validation images", "training objects", "validation objects"]
    assert [row for row in table if row[0] == "dog"] == [["dog", "1", "1", "0", "2", "0"]]


def test_what_will_hurt_is_a_line_each():
    found = counts([[0]] * 40 + [[1]] * 2, [[0], [2]])
    assert found.remarks() == [
        "No image shows fox.",
        "Only validation images show, so that it is never learned, emu.",
        "Only training images show, so that it is never measured, dog.",
        "'cat' has 40 training images and 'dog' 2: `sampler` and `class_weights` help rare classes.",
    ]
    assert counts([[0], [1]], [[0], [1]], names=("cat", "dog")).remarks() == []


def test_what_accuracy_has_to_beat_comes_first():
    train, validation = count_classes([[1], [1], [0]], 2), count_classes([[1], [0], [0], [0]], 2)
    (line,) = LabelCounts(("cat", "dog"), train, validation, is_accuracy_measured=True).remarks()
    assert line == "Always answering 'dog', the commonest, has an accuracy of 0.250."


def test_of_many_classes_the_middle_is_left_out():
    names = tuple(f"class {number}" for number in range(9))
    found = counts([[number] for number in range(9) for _ in range(9 - number)], [[0]], names)
    shown = [row[0] for row in rows_of(found.table(4))[2:]]
    assert shown == ["class 0", "class 1", "...", "class 7", "class 8"]
    assert len(rows_of(found.table())) == 11


def test_a_part_of_the_images_is_said():
    assert "Counted in the first 2 images" in counts([[0], [1]], [[0], [1]], ("cat", "dog"), total=9).remarks()[0]
