"""Help pages have small pictures of their own; translated ones are built as the English are."""

import re
from pathlib import Path

import pytest
from PIL import Image

DOCS = Path(__file__).resolve().parents[2] / "web" / "docs"
PAGES = sorted(DOCS.glob("*.md"))
TRANSLATED = sorted(DOCS.glob("*/*.md"))
# The front end puts /extensions/<pack>/docs/ before a relative path, whatever the page's language.
PICTURE = re.compile(r"^!\[([^\]]+)\]\((pictures/[A-Za-z0-9]+\.jpg)\)$", re.MULTILINE)

# What no language translates: code, addresses, and what the program says in English.
KEPT = re.compile(r'(`[^`\n]+`)|\]\(([^)\n]+)\)|"([^"\n]+)"')
START = re.compile(r"#+ |\||\* |\d+\. |!")


def pictures(page: Path) -> list[str]:
    """Paths of a page's pictures; each stands on a line of its own and has a description."""
    text = page.read_text(encoding="utf-8")
    found = PICTURE.findall(text)
    assert len(found) == text.count("!["), f"{page.name}: a picture that is not pictures/NAME.jpg"
    return [path for _, path in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_its_node(page):
    shown = pictures(page)
    assert shown and shown[0] == f"pictures/{page.stem}.jpg"
    for path in shown:
        with Image.open(DOCS / path) as picture:
            picture.load()
            # wide enough to be read, small enough for the panel of some 300 to 600 px
            assert picture.format == "JPEG" and 300 <= picture.width <= 1200
    before = page.read_text(encoding="utf-8").split("![")[0]
    assert "\n## " not in before, "the picture stands before the tables"


@pytest.mark.parametrize("page", TRANSLATED, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_a_translated_page_shows_what_the_english_one_shows(page):
    assert pictures(page) == pictures(DOCS / f"{page.parent.name}.md")


@pytest.mark.parametrize("page", TRANSLATED, ids=lambda page: f"{page.parent.name}-{page.stem}")
def test_a_translated_page_is_built_as_the_english_one_line_by_line(page):
    english = (DOCS / f"{page.parent.name}.md").read_text(encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    assert shape(text) == shape(english)
    assert not [kept for kept in quoted(english) if kept not in text]


def shape(text: str) -> list[tuple[str, int]]:
    """How each line of a page starts (heading, row, item, text) and its number of cells."""
    lines = text.split("\n")
    starts = [START.match(line) for line in lines]
    return [
        (start.group() if start else line and "text", line.count("|"))
        for start, line in zip(starts, lines, strict=True)
    ]


def quoted(text: str) -> set[str]:
    """Code, link targets and quoted messages of a page."""
    return {"".join(found) for found in KEPT.findall(text)}


def test_every_page_is_there_in_chinese():
    assert [page.parent.name for page in TRANSLATED if page.stem == "zh"] == [
        page.stem for page in PAGES
    ]


def test_no_picture_is_left_over_and_all_are_small():
    files = sorted(path.name for path in (DOCS / "pictures").iterdir())
    used = {Path(path).name for page in PAGES for path in pictures(page)}
    assert files == sorted(used)
    assert sum(path.stat().st_size for path in DOCS.rglob("*") if path.is_file()) < 1.5e6
