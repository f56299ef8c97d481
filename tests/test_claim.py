"""The checklist: every item once, filled where the run knows, open where it does not."""

import re
from itertools import pairwise

import pytest

from pp_jax.evaluate.claim import CLAIM, write_claim


def rows(path) -> dict[int, list[str]]:
    """Cells by the number of their item."""
    lines = [line for line in path.read_text().splitlines() if re.match(r"\| [☑☐] ", line)]
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return {int(one[1]): one for one in cells}


def test_all_items_are_there_in_their_order_and_sections():
    assert [item.number for item in CLAIM.values()] == list(range(1, 45))
    sections = [item.section for item in CLAIM.values()]
    changes = sum(a != b for a, b in pairwise(sections))
    assert changes + 1 == len(set(sections))  # No section is torn apart.
    assert {item.section.split(":")[0] for item in CLAIM.values()} == {
        *("Title and abstract", "Introduction", "Methods", "Results", "Discussion"),
        "Other information",
    }
    assert len({item.asks for item in CLAIM.values()}) == 44


def test_what_the_run_knows_is_filled_and_the_rest_says_what_to_write(tmp_path):
    facts = {"disjoint": "By patient:\n46 | 11.", "model": "vit_b", "funding": " "}
    write_claim(tmp_path / "claim.md", facts)
    found = rows(tmp_path / "claim.md")
    assert sorted(found) == list(range(1, 45))
    assert {number for number, cells in found.items() if cells[0] == "☑"} == {20, 22}
    assert found[20][3] == r"By patient: 46 \| 11."
    assert found[22][2:] == ["detailed description of the model", "vit_b"]
    assert all(found[n][3].startswith("Open: ") for n in found if n not in (20, 22))
    told = (tmp_path / "claim.md").read_text()
    assert "☑ 2 of 44" in told
    assert "☐ 42 open" in told
    assert "10.1148/ryai.240300" in told


def test_a_key_without_an_item_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"'modle' is no item of CLAIM; its keys are title, "):
        write_claim(tmp_path / "claim.md", {"modle": "vit_b"})
    assert not list(tmp_path.iterdir())
