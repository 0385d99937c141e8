"""What are the dashboards made of? A page of panels, the kinds of panels, and the variables, each as a builder of the SDK's."""

from __future__ import annotations

from typing import Any

from grafana_foundation_sdk.builders import bargauge, common, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models

TAG = "hopwatch"
PROMETHEUS = common_models.DataSourceRef(type_val="prometheus", uid="${datasource}")
TEMPO = common_models.DataSourceRef(type_val="tempo", uid="${tempo}")
WIDTH = 24
PER_SECOND = "cps"
Panel = Any
"""A builder of one of the kinds of panels: they share no class, but their methods' names."""


class Page:
    """One dashboard as it is put together: panels from left to right, rows from top to bottom."""

    def __init__(self, uid: str, title: str, description: str) -> None:
        self.uid = uid
        self._x = self._y = self._height = 0
        self._number = 0
        self.built = (
            build.Dashboard(title)
            .uid(uid)
            .description(description)
            .tags([TAG])
            .editable()
            .timezone("browser")
            .refresh("15s")
            .time("now-1h", "now")
            .tooltip(models.DashboardCursorSync.CROSSHAIR)
            .link(
                build.DashboardLink("hopwatch")
                .type(models.DashboardLinkType.DASHBOARDS)
                .tags([TAG])
                .as_dropdown(True)
                .keep_time(True)
                .include_vars(True)
            )
        )

    def row(self, title: str) -> None:
        """Begin a row; it is open."""
        self._end_line()
        self._number += 1
        self.built.with_row(build.Row(title).id(self._number).grid_pos(self._place(WIDTH, 1)))

    def closed_row(self, title: str, *panels: tuple[Panel, int, int]) -> None:
        """A row that is closed, with its panels: each with its width and height."""
        self._end_line()
        self._number += 1
        row = build.Row(title).id(self._number).grid_pos(self._place(WIDTH, 1)).collapsed(True)
        for panel, width, height in panels:
            self._number += 1
            row.with_panel(panel.id(self._number).grid_pos(self._place(width, height)))
        self.built.with_row(row)

    def add(self, panel: Panel, width: int, height: int) -> None:
        """Put a panel behind the last one."""
        self._number += 1
        self.built.with_panel(panel.id(self._number).grid_pos(self._place(width, height)))

    def _place(self, width: int, height: int) -> models.GridPos:
        if self._x + width > WIDTH:
            self._end_line()
        placed = models.GridPos(h=height, w=width, x=self._x, y=self._y)
        self._x += width
        self._height = max(self._height, height)
        return placed

    def _end_line(self) -> None:
        self._x = 0
        self._y += self._height
        self._height = 0


# Parts ---------------------------------------------------------------------------------------------------------


def query(
    expression: str, legend: str = "", *, letter: str = "A", instant: bool = False
) -> prometheus.Dataquery:
    """A query; an instant one asks for the newest values only, as a table wants them."""
    made = (
        prometheus.Dataquery()
        .datasource(PROMETHEUS)
        .ref_id(letter)
        .expr(expression)
        .legend_format(legend or "__auto")
    )
    return made.instant().format(prometheus.prometheus.PromQueryFormat.TABLE) if instant else made.range()


def looks(panel: Panel, title: str, description: str, unit: str) -> Panel:
    """What every panel has."""
    return panel.title(title).description(description).datasource(PROMETHEUS).unit(unit)


def number(
    title: str,
    description: str,
    expression: str,
    *,
    unit: str = "short",
    bad_from: float | None = None,
    colour: str = "red",
) -> Panel:
    """One figure; from `bad_from` on it is coloured."""
    steps = [models.Threshold(None, "green" if bad_from is not None else "blue")]
    if bad_from is not None:
        steps.append(models.Threshold(bad_from, colour))
    return (
        looks(stat.Panel(), title, description, unit)
        .with_target(query(expression))
        .color_mode(common_models.BigValueColorMode.VALUE)
        .graph_mode(common_models.BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(build.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
        .no_value("0")
    )


def curves(
    title: str,
    description: str,
    *queries: tuple[str, str],
    unit: str = "short",
    stacked: bool = False,
    colours: dict[str, str] | None = None,
) -> Panel:
    """Lines over time, each query with its legend."""
    panel = (
        looks(timeseries.Panel(), title, description, unit)
        .min(0)
        .fill_opacity(30 if stacked else 8)
        .line_width(1)
        .show_points(common_models.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(common_models.LegendDisplayMode.TABLE)
            .placement(common_models.LegendPlacement.RIGHT)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI))
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    for letter, (expression, legend) in zip("ABCD", queries, strict=False):
        panel.with_target(query(expression, legend, letter=letter))
    for name, colour in (colours or {}).items():
        panel.override_by_name(
            name, [models.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": colour})]
        )
    return panel


def bars(title: str, description: str, expression: str, legend: str, *, unit: str = "short") -> Panel:
    """One bar for each label, of the newest values."""
    return (
        looks(bargauge.Panel(), title, description, unit)
        .with_target(query(expression, legend))
        .orientation(common_models.VizOrientation.HORIZONTAL)
        .display_mode(common_models.BarGaugeDisplayMode.BASIC)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(
            build.ThresholdsConfig()
            .mode(models.ThresholdsMode.ABSOLUTE)
            .steps([models.Threshold(None, "blue")])
        )
        .min(0)
    )


def rows(
    title: str, description: str, expression: str, *, unit: str = "short", hide: tuple[str, ...] = ()
) -> Panel:
    """A table of the newest values, the largest first."""
    return (
        looks(table.Panel(), title, description, unit)
        .with_target(query(expression, instant=True))
        .with_transformation(
            models.DataTransformerConfig(
                "organize",
                options={"excludeByName": dict.fromkeys(("Time", *hide), True), "renameByName": {}},
            )
        )
        .sort_by([common.TableSortByFieldState().display_name("Value").desc(True)])
    )


def alerts_on(page: Page) -> None:
    """Mark on every curve when an alert fired."""
    page.built.annotation(
        build.AnnotationQuery()
        .name("Alerts")
        .datasource(PROMETHEUS)
        .enable(True)
        .icon_color("red")
        .expr('max by (alertname, agent) (ALERTS{job="hopwatch", alertstate="firing"})')
        .title_format("{{alertname}}")
        .text_format("{{agent}}")
        .tag_keys("alertname")
        .step("15s")
    )


def source(page: Page) -> None:
    """The variables that say where figures come from."""
    page.built.with_variable(build.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    page.built.with_variable(
        build.QueryVariable("instance")
        .label("Collector")
        .datasource(PROMETHEUS)
        .query("label_values(hopwatch_collector_info, instance)")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .include_all(True)
        .all_value(".*")
        .multi(True)
        .current(models.VariableOption(True, "All", "$__all"))
    )


def agents(page: Page) -> None:
    """The variable that narrows it down to some agents."""
    page.built.with_variable(
        build.QueryVariable("agent")
        .label("Agent")
        .datasource(PROMETHEUS)
        .query('label_values(hopwatch_processes{instance=~"$instance"}, agent)')
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .include_all(True)
        .all_value(".*")
        .multi(True)
        .current(models.VariableOption(True, "All", "$__all"))
    )


def traces_in(page: Page) -> None:
    """The variable that says where traces are."""
    page.built.with_variable(build.DatasourceVariable("tempo").label("Tempo").type("tempo"))


def on(**labels: str) -> str:
    """The selector of the collectors that were chosen, and of such labels. A value may begin with `!=`."""
    wanted = [
        f'{label}!="{value[2:]}"' if value.startswith("!=") else f'{label}="{value}"'
        for label, value in labels.items()
    ]
    return "{" + ", ".join(['instance=~"$instance"', *wanted]) + "}"


def of_agent(**labels: str) -> str:
    """The selector of the collectors and agents that were chosen, and of such labels."""
    return on(**labels).replace("}", ', agent=~"$agent"}')
