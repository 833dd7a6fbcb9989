"""The comparison dashboard as code: a workspace view for each skill, and a report of all of them."""

from collections.abc import Sequence
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr

from kd.reports.frame import Frame, seeds_text
from kd.reports.sweep import Choices
from kd.reports.wandb.panels import grouping, score_table, sections
from kd.reports.wandb.record import AXIS

WIDTH, COLUMNS, HEIGHT = 24, 3, 8  # of a report's grid, in its units


def workspaces(frame: Frame, choices: Choices, *, entity: str, project: str) -> list[Any]:
    """A view for each skill: its runs, grouped by objective, and the sections of panels."""
    table, found = score_table(frame, choices), []
    for skill in frame.skills:
        parts = [ws.Section(name=title, panels=panels, is_open=True) for title, panels in sections(frame, skill)]
        if table:
            parts[0].panels = [wr.MarkdownPanel(markdown=table), *parts[0].panels]
        found.append(
            ws.Workspace(
                entity=entity,
                project=project,
                name=f"kd: {skill}",
                sections=parts,
                runset_settings=ws.RunsetSettings(groupby=[expr.Config(grouping(frame))], filters=_of(skill)),
            )
        )
    return found


def report(frame: Frame, choices: Choices, *, entity: str, project: str, publish: bool) -> Any:
    """The report: the table of scores, then for each skill its runs and panels.

    publish: name the project in each set of runs, for which an account is needed; without it they are of the project in
        which the report is published.
    """
    blocks: list[Any] = [wr.TableOfContents()]
    if table := score_table(frame, choices):
        blocks += [wr.H1(text="Scores"), wr.MarkdownBlock(text=table)]
    place = (entity, project) if publish else ("", "")
    for skill in frame.skills:
        arms = [arm for arm in frame.arms if arm.skill == skill]
        runs = sum(len(arm.runs) for arm in arms)
        blocks += [
            wr.H1(text=skill),
            wr.P(text=f"{runs} runs in {len(arms)} arms when this was written. {seeds_text(arms)}."),
        ]
        for title, panels in sections(frame, skill):
            chosen = wr.Runset(
                *place,
                name=skill,
                filters=_of(skill),
                groupby=[f"config.{grouping(frame)}"],
            )
            blocks += [wr.H2(text=title), wr.PanelGrid(runsets=[chosen], panels=_laid_out(panels))]
    return wr.Report(
        entity=entity,
        project=project,
        title="kd: comparison of distillation runs",
        description=", ".join(frame.skills),
        blocks=blocks,
        width="fluid",
    )


def _of(skill: str) -> str:
    """The filter of runs that were trained on a skill."""
    return f"Config('{AXIS}skill') == {skill!r}"


def _laid_out(panels: Sequence[Any]) -> list[Any]:
    """Panels in rows of COLUMNS; tables of answers and of runs have a row of their own."""
    x = y = 0
    for panel in panels:
        wide = isinstance(panel, wr.RunComparer | wr.WeavePanelSummaryTable)
        if wide and x:
            x, y = 0, y + HEIGHT
        width = WIDTH if wide else WIDTH // COLUMNS
        panel.layout = wr.Layout(x=x, y=y, w=width, h=HEIGHT)
        x += width
        if x >= WIDTH:
            x, y = 0, y + HEIGHT
    return list(panels)


def spec(frame: Frame, choices: Choices, *, entity: str, project: str) -> dict[str, Any]:
    """The dashboard as JSON: what W&B's server would be sent, made without an account."""
    views = workspaces(frame, choices, entity=entity, project=project)
    page = report(frame, choices, entity=entity, project=project, publish=False)
    return {
        "entity": entity,
        "project": project,
        "workspaces": [view._to_model().model_dump(mode="json", by_alias=True) for view in views],
        "report": page._to_model().model_dump(mode="json", by_alias=True),
    }


def publish(frame: Frame, choices: Choices, *, entity: str, project: str) -> list[str]:
    """Save the views and the report in a project of an account. Returns their addresses."""
    views = [view.save() for view in workspaces(frame, choices, entity=entity, project=project)]
    page = report(frame, choices, entity=entity, project=project, publish=True).save()
    return [*(view.url for view in views), page.url]
