"""The generated parts of the documentation are what rule files, settings and metrics say now."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from proxy import docs
from proxy.translate.model import DEFAULT_ACTIONS, NATIVE, Reading, When
from tests.docs.pages import CHART_README, PAGES, README, ROOT


def run(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the generator as a maintainer does, on a checkout."""
    return subprocess.run(
        [sys.executable, "-m", "proxy.docs", *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the generator reads and writes."""
    for name in ("proxy", "mappings", "docs", "charts"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(README, tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", docs.pages(ROOT), ids=lambda page: str(page.relative_to(ROOT)))
def test_page_generated_parts_are_current(page: Path) -> None:
    """What a page says of rules, settings and metrics is what the program does; `--write` mends it."""
    text = page.read_text("utf-8")
    assert docs.render(text) == text


def test_generator_writes_all_pages_and_the_schema_of_the_chart() -> None:
    """What people read is what is held against the program."""
    assert set(docs.pages(ROOT)) == {*PAGES, CHART_README.with_name("values.schema.json")}


def test_generator_every_part_stands_on_one_page() -> None:
    """No generated table is missing, and none stands twice."""
    marks = [name for page in PAGES for name in re.findall(r"<!-- generated: (\S+) -->", page.read_text("utf-8"))]
    assert sorted(marks) == sorted(docs.PARTS)


def test_generator_on_a_checkout_that_is_current_says_nothing() -> None:
    """Exit code 0 and no output: there is nothing to do."""
    done = run()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_generator_after_a_change_of_rules_names_the_pages_and_mends_them(checkout: Path) -> None:
    """A changed rule shows as exit code 1 with the pages concerned, until they are written anew."""
    rules = checkout / "mappings" / "postmark.yaml"
    text = rules.read_text("utf-8").replace("  - X-PM-Tags\n", "  - X-PM-Tags\n  - X-PM-Label\n")
    rules.write_text(text.replace("field: [X-PM-Tag,", "field: [X-PM-Label, X-PM-Tag,"), "utf-8")
    stale = run(folder=checkout)
    assert stale.returncode == 1
    assert stale.stdout == (
        "README.md: out of date; run python -m proxy.docs --write\n"
        "docs/providers.md: out of date; run python -m proxy.docs --write\n"
    )
    written = run("--write", folder=checkout)
    assert (written.returncode, written.stdout) == (0, "README.md: written\ndocs/providers.md: written\n")
    assert "| `X-PM-Label`, else `X-PM-Tag`, else" in (checkout / "README.md").read_text("utf-8")
    assert run(folder=checkout).returncode == 0


def test_generator_after_a_change_of_values_names_the_page_of_the_chart_and_mends_it(checkout: Path) -> None:
    """A changed default or text shows until the README is written anew; so does a schema that is not current."""
    values = checkout / "charts" / "cmail-proxy" / "values.yaml"
    values.write_text(
        values.read_text("utf-8").replace("# -- Size of the volume.\n  size: 8Gi", "# -- Size.\n  size: 9Gi")
    )
    schema = checkout / "charts" / "cmail-proxy" / "values.schema.json"
    schema.write_text(schema.read_text("utf-8").replace('"maximum": 65535', '"maximum": 65536'))
    stale = run(folder=checkout)
    assert (stale.returncode, stale.stdout) == (
        1,
        "charts/cmail-proxy/README.md: out of date; run python -m proxy.docs --write\n"
        "charts/cmail-proxy/values.schema.json: out of date; run python -m proxy.docs --write\n",
    )
    assert run("--write", folder=checkout).returncode == 0
    assert '| `persistence.size` | `"9Gi"` | Size. |' in (values.with_name("README.md")).read_text("utf-8")
    assert run(folder=checkout).returncode == 0


def test_generator_with_other_arguments_says_how_to_use_it() -> None:
    """A slip in the option changes no page."""
    done = run("--wirte")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "usage: python -m proxy.docs [--write]\n")


def test_matrix_names_every_provider_and_target() -> None:
    """The matrix has a row for each rule file and a column for each field of the platform."""
    head, _, *rows = docs.provider_matrix().splitlines()
    assert [cell for cell in head.split("`") if cell.startswith("X-")] == list(NATIVE)
    titles = [file.title.partition(" (")[0] for file in docs.rule_files()]
    assert [row[3:].partition("]")[0] for row in rows] == titles
    assert len(rows) == len(list((ROOT / "mappings").glob("*.yaml")))


def test_losses_table_has_every_class_and_every_untranslatable_field() -> None:
    """No class and no field without counterpart is left out of the table of losses."""
    assert list(docs.CLASSES) == list(DEFAULT_ACTIONS)
    text = docs.losses()
    for file in docs.rule_files():
        for rule in file.untranslatable:
            for name in rule.selector.names.values():
                assert f"`{name}`" in text
            for path in rule.selector.paths:
                assert f"`{'.'.join(path)}`" in text


def test_providers_page_has_a_section_for_each_file_and_words_for_all_it_may_say() -> None:
    """Every rule file has its section, and whatever condition or reading a file may use can be told."""
    assert set(docs.CONDITIONS) == set(When)
    assert set(docs.READINGS) == set(Reading)
    text = docs.providers()
    for file in docs.rule_files():
        assert f"## {file.title}\n" in text
        assert text.count(f"mappings/{file.provider}.yaml") == 2


def test_metrics_table_explains_every_label() -> None:
    """Each label of each metric is either a closed list or explained, and no explanation is left over."""
    text = docs.metrics()
    for name, meaning in docs.LABELS.items():
        assert f"`{name}`: {meaning}" in text
    assert "<" not in text
