"""What the pages for developers and users name is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
FOLDERS = ("distrib", "callbacks", "launch", "k8s", "tests", "examples", "benchmarks", "docs")
FILES = [
    f"/{path.relative_to(ROOT)}"
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*")
    if path.is_file()
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = set(re.findall(r"`([\w/-]+\.(?:py|sh|sbatch|yaml|txt))`", page.read_text()))
    users = {"train.py", "script.py", "model.py", "evaluate.py"}  # Of those who read the page.
    missing = {
        name for name in named - users if not any(file.endswith(f"/{name}") for file in FILES)
    }
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]*)(?:#[^)]*)?\)", text):
        assert not target or (page.parent / target).exists(), target


def test_the_map_has_every_package() -> None:
    text = (ROOT / "docs" / "development.md").read_text()
    packages = {path.parent.name for path in (ROOT / "distrib").glob("*/__init__.py")}
    assert not {name for name in packages if f"`{name}/`" not in text}
