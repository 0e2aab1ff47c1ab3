"""The documents as a whole: pages of commands follow from the help, and links lead somewhere."""

import re
import runpy
from collections import Counter
from pathlib import Path

import click
import pytest

from tolpack.cli import main

ROOT = Path(__file__).parents[1]
FOLDERS = ("docs", "formats", "fuzz", "benchmarks", "examples", "tolpack")
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*.md"))]
)
MAKER = "docs/make_command_pages.py"


# -- pages of commands ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def maker():
    """The names of the script that writes the pages."""
    return runpy.run_path(str(ROOT / MAKER))


def test_pages_of_commands_follow_from_the_help(maker):
    """The pages that are kept are those that the script writes, no more and no fewer."""
    made = maker["pages"]()
    kept = {path.name: path.read_text(encoding="utf-8") for path in maker["FOLDER"].iterdir()}
    wrong = sorted(name for name in made.keys() | kept.keys() if made.get(name) != kept.get(name))
    assert not wrong, f"{', '.join(wrong)} are not what the help says: run python {MAKER}"


@pytest.mark.parametrize("name", sorted(main.commands))
def test_a_page_has_all_of_the_help(maker, name):
    """Every option, every default that click shows, and every word of the help is on its page."""
    command, text = main.commands[name], maker["pages"]()[f"{name}.md"]
    for option in (one for one in command.params if isinstance(one, click.Option)):
        assert f"| `{'`, `'.join(option.opts)}` |" in text
        assert not option.show_default or f"| `{option.default}` |" in text
    words = Counter(re.findall(r"\w+", re.sub(r"<!--.*?-->|`", "", text)))
    assert not Counter(re.findall(r"\w+", command.help)) - words


def test_further_reading_is_of_commands_that_exist(maker):
    """The map of documents names no command that is gone."""
    assert maker["FURTHER"].keys() <= main.commands.keys()


# -- links ---------------------------------------------------------------------------------------


def prose(path):
    """Return a document without its blocks of code, and without brackets in code."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", lambda code: re.sub(r"[][()]", "", code[0]), text)


def links(path):
    """Return the targets of a document's links that are not addresses of the web."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(path))
    found += re.findall(r"^\[[^\]]+\]: +(\S+)", prose(path), flags=re.M)
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(path):
    """Return the anchors of a document: names, and headings as GitHub writes them."""
    text, seen = prose(path), Counter()
    found = set(re.findall(r'<a (?:name|id)="([^"]+)"', text))
    for heading in re.findall(r"^#+ +(.+?) *$", text, flags=re.M):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    """Every relative link names a file or folder that exists, and an anchor that it has."""
    for target in links(path):
        name, _, anchor = target.partition("#")
        found = (path.parent / name).resolve() if name else path
        assert found.is_relative_to(ROOT), f"{target} leads out of the repository"
        assert found.exists(), f"{target}: there is no {found.relative_to(ROOT)}"
        assert not anchor or anchor in anchors(found), f"{target}: no such heading"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_document_names_exist(path):
    """A script, a test or a module in backticks is a file of the project."""
    text = path.read_text("utf-8")
    named = re.findall(
        r"`(?:python )?((?:tests|fuzz|benchmarks|tolpack|formats)/[\w/.-]+\.\w+)", text
    )
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_documents_are_two_links_from_the_readme():
    """Whoever reads the README finds every document in docs/ by two links at most."""
    reached = {ROOT / "README.md"}
    for _ in range(2):
        targets = [(p.parent / t.partition("#")[0]).resolve() for p in reached for t in links(p)]
        reached |= {found for found in targets if found.suffix == ".md"}
    lost = [str(path) for path in (ROOT / "docs").rglob("*.md") if path not in reached]
    assert not lost


# -- tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_rows_of_tables_follow_their_header(path):
    """A row begins no table: a blank line within one would show the rest of it as text."""
    groups = re.findall(r"(?:^\|.*\n?)+", prose(path), flags=re.M)
    assert [one for one in groups if not re.match(r".*\n\|[-:| ]+\|$", one, flags=re.M)] == []
