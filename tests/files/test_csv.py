"""Tables as people save them."""

import pytest

from coseg_lightning.errors import InputError
from coseg_lightning.files.csv import read_table

ROWS = [{"id": "a", "decision": "ok"}, {"id": "b, c", "decision": "take"}]


@pytest.mark.parametrize(
    "text",
    [
        'id,decision\na,ok\n"b, c",take\n',
        "id;decision\r\na;ok\r\nb, c;take\r\n",  # where the comma is the decimal sign
        "\ufeffid;decision\na;ok\n\nb, c;take\n",
        "id\tdecision\na\tok\nb, c\ttake\n",
    ],
)
def test_commas_semicolons_and_tabs_separate_cells(tmp_path, text):
    (tmp_path / "review.csv").write_bytes(text.encode())
    assert read_table(tmp_path / "review.csv", ["id", "decision"]) == ROWS


def test_unicode_text_of_excel(tmp_path):
    text = "id\tdecision\r\na\tok\r\nb, c\ttake\r\n"
    (tmp_path / "review.txt").write_bytes(text.encode("utf-16"))
    assert read_table(tmp_path / "review.txt", ["id", "decision"]) == ROWS


def test_a_semicolon_in_a_table_with_commas_is_text(tmp_path):
    (tmp_path / "a.csv").write_text("id,note\na,x; y\n")
    assert read_table(tmp_path / "a.csv") == [{"id": "a", "note": "x; y"}]


def test_a_table_without_the_columns_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("name\na\n")
    with pytest.raises(InputError, match="has no column id: its first line is 'name'"):
        read_table(tmp_path / "a.csv", ["id"])


def test_columns_that_differ_in_capitals_alone_stay_as_they_are(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("ID,id,Split\n1,a,train\n")
    assert read_table(path, ["id"], guarded=False) == [{"ID": "1", "id": "a", "split": "train"}]
    assert read_table(path, ["id"]) == [{"ID": "1", "id": "a", "Split": "train"}]
