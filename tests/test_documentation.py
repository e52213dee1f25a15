"""The documentation leads to all of its pages and to every public name, and can be read without a network."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
EXPORTING = ["data", "engines", "handlers", "losses", "metrics", "networks", "splits", "deploy.export", "api"]


class Configuration(yaml.SafeLoader):
    """mkdocs.yml without the objects that Markdown extensions are given."""


Configuration.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def entries(nav: list[Any]) -> list[str]:
    """Pages of a navigation, in order."""
    values = [next(iter(entry.values())) if isinstance(entry, dict) else entry for entry in nav]
    return [page for value in values for page in (entries(value) if isinstance(value, list) else [value])]


def navigation() -> list[str]:
    configuration = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Configuration)
    return entries(configuration["nav"])


def links(page: Path) -> list[str]:
    """Pages that a Markdown page links to, below docs/."""
    found = re.findall(r"\]\(([^)#\s]+\.md)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    return [Path(os.path.relpath((page.parent / link).resolve(), DOCS)).as_posix() for link in found if ":" not in link]


def test_readme_and_navigation_name_the_same_pages() -> None:
    table = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## Documentation\n")[1]
    readme = set(re.findall(r"\(docs/([^)#]+\.md)[^)]*\)", table))
    # decisions are one row in both, and API pages are filled on the site only
    pages = {
        page for page in navigation() if not page.startswith(("decisions/", "reference/api/")) and page != "index.md"
    }
    assert readme - {"reference/api/index.md", "decisions/index.md"} == pages


def test_every_decision_is_in_the_navigation_and_on_the_page_of_decisions() -> None:
    files = sorted(f"decisions/{path.name}" for path in (DOCS / "decisions").glob("0*.md"))
    assert links(DOCS / "decisions/index.md") == files
    assert [page for page in navigation() if page.startswith("decisions/0")] == files


def test_every_api_page_is_in_the_navigation_and_on_the_first_of_them() -> None:
    pages = {f"reference/api/{path.name}" for path in (DOCS / "reference/api").glob("*.md")}
    first = "reference/api/index.md"
    assert {page for page in navigation() if page.startswith("reference/api/")} == pages
    assert set(links(DOCS / first)) == pages - {first}


def exported(package: str) -> list[str]:
    """``__all__`` of a module of kdml_med, read and not imported."""
    path = ROOT / "kdml_med" / package.replace(".", "/")
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    values = [
        node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__"
    ]
    return list(ast.literal_eval(values[0]))


def documented() -> list[str]:
    pages = sorted((DOCS / "reference/api").glob("*.md"))
    return [name for page in pages for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.M)]


@pytest.mark.parametrize("package", EXPORTING)
def test_every_exported_name_is_on_one_api_page(package: str) -> None:
    room = "kdml_med" if package == "api" else f"kdml_med.{package}"  # where people import it from
    found = documented()
    assert {name: found.count(f"{room}.{name}") for name in exported(package)} == dict.fromkeys(exported(package), 1)


def test_every_part_that_is_on_an_api_page_is_named_once() -> None:
    found = documented()
    assert sorted(set(found)) == sorted(found)


class Page(HTMLParser):
    """Addresses in a page: those that a browser fetches to show it, those that a reader may follow, and places."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.followed: list[str] = []
        self.places: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.places.update(values[name] for name in ("id", "name") if name in values)
        if "src" in values:
            self.fetched.append(values["src"])
        if "href" in values:
            is_used = tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload", "preconnect")
            (self.fetched if is_used else self.followed).append(values["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documentation") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr[-3000:]
    assert "WARNING" not in built.stderr
    return folder


@pytest.mark.slow
def test_pages_of_the_site_fetch_nothing_from_a_network(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 60
    outside = {(page.name, link) for page in pages for link in Page(page).fetched if urlsplit(link).netloc}
    assert outside == set()


@pytest.mark.slow
def test_every_link_of_the_site_ends_at_a_place_that_is_there(site: Path) -> None:
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    broken = []
    for path, page in pages.items():
        if path.name == "404.html":  # served from any address, so its links begin at the root of the site
            continue
        for link in [*page.fetched, *page.followed]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            places = pages[target].places if target in pages else set()
            if not target.is_file() or (parts.fragment and unquote(parts.fragment) not in {*places, "__skip"}):
                broken.append((str(path.relative_to(site)), link))
    assert broken == []


@pytest.mark.slow
def test_equations_of_the_site_are_mathml_without_a_rest_of_tex(site: Path) -> None:
    page = (site / "explanation/method.html").read_text(encoding="utf-8")
    assert page.count('<div class="equation"') == (DOCS / "explanation/method.md").read_text().count("```math")
    for path in sorted(site.rglob("*.html")):
        text = path.read_text(encoding="utf-8")
        assert "arithmatex" not in text
        for equation in re.findall(r"<math.*?</math>", text, re.DOTALL):
            assert not re.search(r"<mi>(?:&amp;|&|\\.*?)</mi>|\\[a-z]", equation), path


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_search_finds_something_in_pages_opened_as_files(site: Path, tmp_path: Path) -> None:
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    address = f"{(site / 'index.html').as_uri()}?q=distillation_loss"
    shown = subprocess.run(
        [*command, "--virtual-time-budget=15000", "--dump-dom", address], capture_output=True, text=True, timeout=120
    ).stdout
    assert re.search(r'md-search-result__meta">[1-9]\d* matching', shown)
    assert "reference/api/losses.html" in shown


def test_means_of_the_crops_are_those_of_their_seeds() -> None:
    """Every point estimate of the table of arms is the mean over docs/results/crops.csv."""
    seeds = pd.read_csv(DOCS / "results/crops.csv")
    seeds["role"] = seeds["network"].str.replace(r"_\d+$", "s", regex=True)
    means = seeds.groupby(["arm", "set", "role"])["auroc"].mean()
    words = {"labels only": "independent", "teacher alone": "teacher_only", "offline KD": "kd_offline",
             "online KD": "kd_online", "ML": "ml", "KD + ML": "kdml", "offline KD + ML": "kdml_offline"}  # fmt: skip
    section = (DOCS / "results.md").read_text(encoding="utf-8").partition("AUROC of single crops:")[2]
    table = section.partition("\n\n")[2].partition("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    columns = [(where, role) for where in ("kvasir", "cvc") for role in ("teacher", "students", "ensemble")]
    told = 0
    for name, *cells in (line for line in rows[2:]):
        for (where, role), cell in zip(columns, cells, strict=True):
            if cell.strip():
                told += 1
                assert float(cell.split()[0]) == pytest.approx(means[words[name], where, role], abs=5.1e-4), (
                    name,
                    cell,
                )
    assert told == len(means)
    assert seeds.groupby(["arm", "set", "network"])["seed"].nunique().unique().size == 1
