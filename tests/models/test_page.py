"""docs/models.md says what the rows of the census say; no row may say that an adapter hangs on a wrong module."""

import page
import pytest


def test_the_page_says_what_the_rows_say():
    assert page.PAGE.read_text() == page.page(page.read_rows())


@pytest.mark.parametrize("version", page.read_rows())
def test_no_type_has_adapters_on_wrong_modules_or_in_part_without_a_word(version):
    rows = page.read_rows()[version]
    assert len(rows) > 300
    bad = {row["type"]: row["words"] for row in rows if {row[mode] for mode in page.MODES} & {"wrong", "in part"}}
    assert not bad
