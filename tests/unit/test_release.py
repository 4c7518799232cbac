"""Release habits: one version, the changelog's form, bounds of numba, links that lead somewhere."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from mpigd.version import __version__

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
SECTIONS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
FOLDERS = (ROOT / "docs", ROOT / ".github")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in folder.rglob("*.md"))])


def slug(heading: str) -> str:
    """The anchor that a heading of a page gets."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def test_the_version_stands_once() -> None:
    assert "version" not in PROJECT["project"] and PROJECT["project"]["dynamic"] == ["version"]
    source = PROJECT["tool"]["setuptools"]["dynamic"]["version"]["attr"]
    assert source == "mpigd.version.__version__"
    # setuptools reads the number without importing the package, so it must be a plain text.
    text = (ROOT / "mpigd" / "version.py").read_text(encoding="utf-8")
    assert f'__version__ = "{__version__}"' in text
    # CITATION.cff may have a version; it would be a second copy.
    assert "\nversion:" not in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_changelog_begins_with_this_version() -> None:
    headings = re.findall(r"^## (.+)$", CHANGELOG, re.MULTILINE)
    versions = []
    for heading in headings:
        match = re.fullmatch(r"(\d+\.\d+\.\d+) - (Unreleased|\d{4}-\d{2}-\d{2})", heading)
        assert match, f"{heading!r} is not 'VERSION - DATE' or 'VERSION - Unreleased'"
        versions.append(Version(match[1]))
    assert str(versions[0]) == __version__
    assert versions == sorted(versions, reverse=True)
    assert not any("Unreleased" in heading for heading in headings[1:])


def test_the_changelog_has_the_sections_of_keep_a_changelog() -> None:
    for release in re.split(r"^## ", CHANGELOG, flags=re.MULTILINE)[1:]:
        sections = re.findall(r"^### (.+)$", release, re.MULTILINE)
        assert sections and set(sections) <= set(SECTIONS)
        assert len(set(sections)) == len(sections), "a section stands twice"
    assert all(len(line) <= 100 for line in CHANGELOG.splitlines())


@pytest.mark.parametrize("name", ["numba", "llvmlite"])
def test_numba_is_bounded_by_what_was_tested(name: str) -> None:
    """The kernels use interfaces inside numba: any version outside of the bounds may break them."""
    requirements = [Requirement(text) for text in PROJECT["project"]["dependencies"]]
    (bounds,) = [requirement.specifier for requirement in requirements if requirement.name == name]
    assert {bound.operator for bound in bounds} == {">=", "<"}
    assert metadata.version(name) in bounds
    oldest = next(bound.version for bound in bounds if bound.operator == ">=")
    newest = next(bound.version for bound in bounds if bound.operator == "<")
    page = (ROOT / "docs" / "releasing.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \d+\.\d+\.\d+ \| (\S+) \| (\S+) \|", page, re.MULTILINE)
    tested = [Version(row[("numba", "llvmlite").index(name)]) for row in rows]
    assert tested, "the table of tested versions in docs/releasing.md has no rows"
    assert min(tested).release[:2] == Version(oldest).release[:2]
    major, minor = max(tested).release[:2]
    assert Version(newest) == Version(f"{major}.{minor + 1}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{target} does not exist"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), f"{target}: no such heading"


def test_the_glossary_is_in_order() -> None:
    """Terms of a section are sorted, so that they are found and none stands twice."""
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    terms = [re.findall(r"^\*\*([^*]+)\*\*", section, re.MULTILINE) for section in sections]
    assert all(names == sorted(names, key=str.lower) for names in terms)
    every = [name for names in terms for name in names]
    assert len(every) > 30 and len(set(every)) == len(every)


@pytest.mark.parametrize("form", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda p: p.name)
def test_forms_for_issues_are_well_formed(form: Path) -> None:
    yaml = pytest.importorskip("yaml")
    content = yaml.safe_load(form.read_text(encoding="utf-8"))
    if form.name == "config.yml":
        return
    assert {"name", "description", "body"} <= set(content)
    fields = [field for field in content["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["type"] in ("input", "textarea") for field in fields)
