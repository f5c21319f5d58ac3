"""Alerts and dashboard of the chart: they ask for what the program exports, and each alert fires when it should."""

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from attrs import field, frozen

from proxy import docs
from proxy.policy.outcome import Outcome
from proxy.record.exposition import Totals
from proxy.record.metrics import Metrics, SupervisorMetrics
from proxy.settings import Rules
from proxy.settings.fields import rows
from proxy.translate.model import DEFAULT_ACTIONS, Action
from proxy.translate.outcome import Loss, Translation
from tests.chart.promql import Expression, Selector, series
from tests.conftest import require_tool
from tests.deliver.site import message, site
from tests.docs.pages import DOCS, ROOT, coded, table
from tests.operation.program import eventually, samples

FILES = ROOT / "charts" / "cmail-proxy" / "files"
ALERTS_FILE, DASHBOARD_FILE = FILES / "alerts.yaml", FILES / "dashboard.json"
CASES = sorted((Path(__file__).parent / "promtool").glob("*.yaml"))
OPERATION = DOCS / "operation.md"

OF_THE_TARGET = frozenset({"namespace", "job", "instance", "pod"})
"""Labels that Prometheus gives to all series of a pod; outside of Kubernetes only ``job`` and ``instance``."""

SELECTED = {("namespace", "=~", "$namespace"), ("job", "=~", "$job")}
"""What the dashboard lets people choose."""

GIVEN_BY_GRAFANA = {"__rate_interval": "5m", "__range": "6h"}

NOT_ASKED_FOR = {"cmail_proxy_certificate_last_reload_timestamp_seconds", "cmail_proxy_set_aside_total"}
"""Metrics in no alert and no panel: the certificate's end, and the gauge of what is set aside, say more."""

ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(ALERTS_FILE.read_text("utf-8"))["groups"] for rule in group["rules"]
]
DASHBOARD: dict[str, Any] = json.loads(DASHBOARD_FILE.read_text("utf-8"))
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def by_name(alert: dict[str, Any]) -> str:
    """For test ids."""
    return str(alert["alert"])


def by_title(panel: dict[str, Any]) -> str:
    """For test ids."""
    return str(panel["title"])


def with_intervals(text: str) -> str:
    """Put in what Grafana puts in; variables in quotes stay, as words."""
    return re.sub(r"\$(__\w+)", lambda name: GIVEN_BY_GRAFANA[name[1]], text)


def expressions(panel: dict[str, Any]) -> list[Expression]:
    """The queries of a panel."""
    return [Expression(with_intervals(target["expr"])) for target in panel["targets"]]


# What the program exports


@frozen
class Exported:
    """
    The series of the program.

    Attributes:
        labels: For each metric its labels, with the values that are known.
    """

    labels: Mapping[str, Mapping[str, frozenset[str]]] = field(repr=False)

    def problems(self, selector: Selector) -> Iterator[str]:
        """What a selector asks for and the program does not have."""
        labels = self.labels.get(selector.metric)
        if labels is None:
            yield f"no metric {selector.metric}"
            return
        for name, _, _ in selector.matchers:
            if name not in labels and name not in OF_THE_TARGET:
                yield f"no label {name} of {selector.metric}"
        for name, value in selector.literals():
            if value not in labels.get(name, ()):
                yield f"never {name}={value} of {selector.metric}"

    def unknown(self, expression: Expression) -> list[str]:
        """What an expression asks for and the program does not have."""
        known = {label for metric in expression.metrics for label in self.labels.get(metric, {})}
        groupings = [f"grouped by {label}" for label in expression.groupings - known - OF_THE_TARGET]
        return [problem for selector in expression.selectors for problem in self.problems(selector)] + groupings


def from_text(text: str) -> dict[str, dict[str, set[str]]]:
    """Metrics, their labels and the values of these, as ``/metrics`` shows them."""
    known: dict[str, dict[str, set[str]]] = {}
    for metric, labels in samples(text):
        of_metric = known.setdefault(metric, {})
        for label, value in labels:
            of_metric.setdefault(label, set()).add(value)
    return known


@pytest.fixture(scope="module")
def exported() -> Exported:
    """What a parent shows of itself and a worker in which everything happened."""
    worker = Metrics("1", ["127.0.0.1:2525"], Rules().providers)
    for action, loss_class in product(Action, DEFAULT_ACTIONS):
        worker.translation(Translation(losses=(Loss("mailgun", "X-Mailgun-Variables", loss_class, action, "", ""),)))
    for outcome in Outcome:
        worker.delivery.attempted(outcome.value, "example.com", 0)
    totals = Totals()
    totals.update("1", worker.snapshot())
    totals.update("parent", SupervisorMetrics().snapshot())
    known = from_text(totals.render().decode())
    return Exported(
        {metric: {label: frozenset(values) for label, values in labels.items()} for metric, labels in known.items()}
    )


def test_running_program_exports_the_same(exported: Exported, tmp_path: Path) -> None:
    """One that has all there is, a queue and several workers, shows these metrics with these labels, and no others."""
    with site(tmp_path, workers=2) as here:
        eventually(lambda: here.proxy.get("/readyz")[0] == 200, "ready")
        here.only(here.send(message(b"X-Mailgun-Tag: orders", b'X-Mailgun-Variables: {"a": 1}')))
        here.proxy.wait_for_metric("cmail_proxy_attempts_total", 1)
        running = from_text(here.proxy.get("/metrics")[1])
    assert {metric: set(labels) for metric, labels in running.items()} == {
        metric: set(labels) for metric, labels in exported.labels.items()
    }
    told = set(re.findall(r"^\| `(cmail_proxy_\w+)`", docs.metrics(), re.MULTILINE))
    assert told == {re.sub(r"_(bucket|count|sum)$", "", metric) for metric in running if metric.startswith("cmail_")}


@pytest.mark.parametrize("alert", ALERTS, ids=by_name)
def test_alert_asks_for_what_the_program_exports(exported: Exported, alert: dict[str, Any]) -> None:
    """Every metric, every label and every value in the expression exists."""
    expression = Expression(alert["expr"])
    assert expression.selectors
    assert exported.unknown(expression) == []


@pytest.mark.parametrize("panel", PANELS, ids=by_title)
def test_panel_asks_for_what_the_program_exports(exported: Exported, panel: dict[str, Any]) -> None:
    """Every metric, every label and every value in the queries exists."""
    for expression in expressions(panel):
        assert expression.selectors
        assert exported.unknown(expression) == []


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_cases_feed_what_the_program_exports(exported: Exported, file: Path) -> None:
    """An alert proves nothing that fires on series which no program has; names of groups and fields are free."""
    free = {"group", "field", "listener", "provider", "version", "python"}
    for case in yaml.safe_load(file.read_text("utf-8"))["tests"]:
        for each in case["input_series"]:
            selector = series(each["series"])
            told = tuple(matcher for matcher in selector.matchers if matcher[0] not in OF_THE_TARGET | free)
            assert list(exported.problems(Selector(selector.metric, told))) == []
            assert {name for name, _, _ in selector.matchers} <= OF_THE_TARGET | set(exported.labels[selector.metric])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("sum(rate(cmail_proxy_relay_total[5m]))", "no metric cmail_proxy_relay_total"),
        ('cmail_proxy_relayed_total{outcome="accepted"} > up_', "no metric up_"),
        ('cmail_proxy_relayed_total{result="accepted"} > 0', "no label result of cmail_proxy_relayed_total"),
        ('cmail_proxy_relayed_total{outcome=~"queued|taken"}', "never outcome=taken of cmail_proxy_relayed_total"),
        ('sum by (job, stage) (cmail_proxy_relayed_total{outcome!="failed"})', "grouped by stage"),
    ],
)
def test_names_that_do_not_exist_are_found(exported: Exported, text: str, problem: str) -> None:
    """The checks above see a wrong metric, label, value and grouping."""
    assert problem in exported.unknown(Expression(text))


def test_every_metric_is_asked_for(exported: Exported) -> None:
    """No metric of ours is in no alert and no panel; a histogram counts by one of its series."""
    asked = {metric for alert in ALERTS for metric in Expression(alert["expr"]).metrics}
    asked |= {metric for panel in PANELS for each in expressions(panel) for metric in each.metrics}
    asked = {re.sub(r"_(bucket|count|sum)$", "", metric) for metric in asked}
    ours = {re.sub(r"_(bucket|count|sum)$", "", metric) for metric in exported.labels if metric.startswith("cmail_")}
    assert ours - asked == NOT_ASKED_FOR


# Alerts


def promtool(*arguments: str | Path) -> str:
    """Run promtool, which must be content, and give what it says."""
    done = subprocess.run(
        [require_tool("promtool"), *arguments], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_is_content_with_the_alerts() -> None:
    """Prometheus would load the file, with every rule in it."""
    said = promtool("check", "rules", "--lint=all", "--lint-fatal", ALERTS_FILE)
    assert f"SUCCESS: {len(ALERTS)} rules found" in said


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_alerts_fire_when_they_should(file: Path) -> None:
    """promtool plays the series of each case, and finds the alerts that fire, with their texts."""
    assert "SUCCESS" in promtool("test", "rules", file)


@pytest.mark.parametrize("alert", ALERTS, ids=by_name)
def test_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not(alert: dict[str, Any]) -> None:
    """In both the alert has a series to look at, so that silence says something."""
    seen = {True: 0, False: 0}
    for file in CASES:
        for case in yaml.safe_load(file.read_text("utf-8"))["tests"]:
            fed = {series(each["series"]).metric for each in case["input_series"]}
            for check in case["alert_rule_test"]:
                if check["alertname"] == alert["alert"] and fed & Expression(alert["expr"]).metrics:
                    seen[bool(check["exp_alerts"])] += 1
    assert all(seen.values()), seen


def test_cases_are_about_alerts_that_exist() -> None:
    """promtool finds it no mistake that an alert which there is not does not fire."""
    asked = {
        check["alertname"]
        for file in CASES
        for case in yaml.safe_load(file.read_text("utf-8"))["tests"]
        for check in case["alert_rule_test"]
    }
    assert asked == {alert["alert"] for alert in ALERTS}


@pytest.mark.parametrize("alert", ALERTS, ids=by_name)
def test_alert_says_how_bad_it_is_and_what_to_do(alert: dict[str, Any]) -> None:
    """Severity, duration and three texts; where the alert is about several, each is named."""
    assert alert["labels"].keys() == {"severity"}
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert re.fullmatch(r"[1-9]\d*[mh]", alert["for"])
    assert alert["annotations"].keys() == {"summary", "description", "runbook"}
    assert "{{" not in alert["annotations"]["summary"] + alert["annotations"]["runbook"]
    named = set(re.findall(r"\$labels\.(\w+)", alert["annotations"]["description"]))
    assert {"namespace", "job"} <= named <= Expression(alert["expr"]).groupings


@pytest.mark.parametrize("alert", ALERTS, ids=by_name)
def test_alert_speaks_of_what_there_is(exported: Exported, alert: dict[str, Any]) -> None:
    """Log lines, settings, metrics, commands, pages and other alerts in the texts exist."""
    text = " ".join(alert["annotations"].values())
    events = {name for row in table(OPERATION, "Event") for name in coded(row[0])} | {"message"}
    commands = {span for row in table(OPERATION, "Command") for span in coded(row[0])}
    keys = {row.key for row in rows()}
    sections = "|".join({key.partition(".")[0] for key in keys if "." in key and "[" not in key})
    for told in re.findall(r'log lines? ((?:"\w+"(?: and )?)+)', text):
        assert set(re.findall(r'"(\w+)"', told)) <= events
    assert set(re.findall(rf"\b(?:{sections})\.[a-z_]+", text)) <= keys | {"deliver.retry"}
    assert set(re.findall(r"cmail_proxy_\w+", text)) <= {re.sub("_count$", "", name) for name in exported.labels}
    for told in re.findall(r"cmail-proxy (?:check|(?:token|queue) \w+)", text):
        assert told in commands
    assert [page for page in re.findall(r"docs/[\w.]+", text) if not (ROOT / page).exists()] == []
    assert set(re.findall(r"CmailProxy\w+", text)) <= {each["alert"] for each in ALERTS}


def test_alerts_in_the_docs_are_those_of_the_chart() -> None:
    """The table has each alert once, in the order of the file, under its severity."""
    told = [(coded(row[0]), row[1]) for row in table(OPERATION, "Alert")]
    assert told == [([alert["alert"]], alert["labels"]["severity"]) for alert in ALERTS]


# Dashboard


def test_promtool_is_content_with_the_dashboard(tmp_path: Path) -> None:
    """Every query, with what Grafana puts into it, is one that Prometheus takes."""
    rules = [
        {"record": f"panel:{panel['id']}:{number}", "expr": each.text}
        for panel in PANELS
        for number, each in enumerate(expressions(panel))
    ]
    file = tmp_path / "dashboard.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}), "utf-8")
    assert f"SUCCESS: {len(rules)} rules found" in promtool("check", "rules", file)


def test_dashboard_lets_people_choose_source_namespace_and_job() -> None:
    """Three variables, of which all values may be chosen at once, and which outside of Kubernetes match, too."""
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "namespace", "job"]
    assert variables["datasource"]["query"] == "prometheus"
    for name in ("namespace", "job"):
        assert variables[name]["query"]["query"].startswith("label_values(cmail_proxy_build_info")
        assert (variables[name]["multi"], variables[name]["allValue"]) == (True, ".*")
    assert DASHBOARD["uid"] == DASHBOARD["title"] == "cmail-proxy"
    assert DASHBOARD["schemaVersion"] >= 41
    assert DASHBOARD["id"] is None  # of the Grafana it is imported to


def test_dashboard_has_a_row_for_each_part() -> None:
    """From what everybody looks at to what few need."""
    assert [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"] == [
        "Overview",
        "Translation",
        "Platform and pool (route relay)",
        "TLS, AUTH and files",
        "Delivery (route deliver)",
        "Process",
    ]


@pytest.mark.parametrize("panel", PANELS, ids=by_title)
def test_panel_has_unit_description_and_legend(panel: dict[str, Any]) -> None:
    """A panel explains itself; its queries go to the chosen source, for the chosen pods; legends name real labels."""
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["description"].endswith(".")
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert [target["refId"] for target in panel["targets"]] == list("ABCDE"[: len(panel["targets"])])
    for target, expression in zip(panel["targets"], expressions(panel), strict=True):
        assert target["datasource"] == panel["datasource"]
        for selector in expression.selectors:
            assert set(selector.matchers) >= SELECTED
        assert target["legendFormat"]
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= expression.groupings


def test_panels_do_not_overlap() -> None:
    """Grafana would push them about; each has a title and an id of its own."""
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    for key in ("id", "title"):
        values = [panel[key] for panel in DASHBOARD["panels"]]
        assert len(set(values)) == len(values)


def test_columns_of_tables_are_labels_of_their_query() -> None:
    """A table that renames what its query does not give would show an empty column."""
    tables = [panel for panel in PANELS if panel["type"] == "table"]
    assert tables
    for panel in tables:
        (expression,) = expressions(panel)
        (transformation,) = panel["transformations"]
        renamed = transformation["options"]["renameByName"].keys()
        assert renamed == expression.groupings | {"Value"} == transformation["options"]["indexByName"].keys()
