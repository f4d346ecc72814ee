from modeling_radio.core.tables import markdown, one_line, plain_cell


def test_plain_table():
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_names_stay_in_their_cells():
    assert one_line(" one\n\n two\t") == "one two"
    assert plain_cell("one | <b>two</b>\nthree") == r"one \| &lt;b>two&lt;/b> three"
