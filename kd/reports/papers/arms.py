"""The arms of our runs that the rows of a published table stand for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kd.reports.comparisons.pivot import headline_of
from kd.reports.frame import Arm, Frame
from kd.reports.paired import Side
from kd.reports.papers.published import Published, Row
from kd.reports.settings import every_setting, has


@dataclass(frozen=True)
class Place:
    """A column in our runs.

    Attributes:
        name: the published column; none where the skill is one of our own.
        heading: of the column.
        skill, metric: on which and by which systems are compared; none: the first metric of the skill's answers.
        scale: published = ours × scale.
    """

    name: str | None
    heading: str
    skill: str
    metric: str | None
    scale: float


class Arms:
    """Rows of a published table as arms of a frame.

    Where several arms have a row's settings, those with runs that name the paper count.
    """

    def __init__(self, frame: Frame, published: Published, name: str):
        self.frame, self.published = frame, published
        firsts = [next(iter(arm.runs.values())) for arm in frame.arms]
        self.named = [any(job.config.get("paper") == name for job in arm.runs.values()) for arm in frame.arms]
        self.settings = every_setting(firsts)
        self.fitting: Mapping[str, list[int]] = {
            row.heading: [i for i, one in enumerate(self.settings) if not row.lacks and has(one, row.arm)]
            for row in published.rows
        }

    def places(self, metric: str | None = None) -> list[Place]:
        """The columns of the table on which our runs were evaluated; where there are none, the skills of our own.

        metric: that of our own skills; none: each skill's own.
        """
        arms = [self.frame.arms[i] for i in self._counting()]
        evaluated = {skill for arm in arms for skill in arm.skills}
        table = self.published
        found = [
            Place(name, column.heading, column.skill, table.metric_of(name), table.scale_of(name))
            for name, column in table.columns.items()
            if column.skill in evaluated
        ]
        own: dict[str, list[Arm]] = {}
        for arm in arms:
            own.setdefault(arm.skill, []).append(arm)
        return found or [Place(None, s, s, metric or headline_of(each, s), 1.0) for s, each in own.items() if s]

    def side(self, row: Row, place: Place) -> Side | None:
        """The scores of a row in a column; None where no run has them.

        Raises ValueError where several arms do, of a row of the teacher or the student before: with other models.
        """
        having = [(i, side) for i in self.fitting[row.heading] if (side := self._side(i, row, place)) is not None]
        trained = [one for one in having if one[1].arm.skill == place.skill] or having
        own = [one for one in trained if self.named[one[0]]] or trained
        if len(own) > 1 and len({self._model(i, row.system) for i, _ in own}) > 1:
            labels = " and ".join(side.arm.label or side.arm.skill for _, side in own)
            raise ValueError(
                f"row {row.heading} of {self.published.paper} fits {len(own)} arms on {place.skill}: {labels}; name "
                "fewer folders, as that of one sweep, or more settings in its published.yaml"
            )
        return own[0][1] if own else None

    def _model(self, i: int, system: str) -> frozenset[tuple[str, str]] | int:
        """What arms share whose scores of a system are the same: the settings of a model that they do not train.

        Of a system that was trained nothing, which is its place.
        """
        role = {"teacher": "teacher", "before": "student"}.get(system)
        if role is None:
            return i
        pairs = self.settings[i].items()
        return frozenset((k, v) for k, v in pairs if k.partition(".")[0] == role and not k.endswith(".seed"))

    def without_row(self) -> list[Arm]:
        """Arms on the table's skills that no row stands for."""
        used = {i for row in self.published.rows if row.arm for i in self.fitting[row.heading]}
        counting = set(self._counting())
        skills = {self.frame.arms[i].skill for i in counting & used}
        return [arm for i, arm in enumerate(self.frame.arms) if i in counting - used and arm.skill in skills]

    def _counting(self) -> Sequence[int]:
        """Places of the arms that name the paper; where none does, of all."""
        named = [i for i, one in enumerate(self.named) if one]
        return named or range(len(self.frame.arms))

    def _side(self, i: int, row: Row, place: Place) -> Side | None:
        arm = self.frame.arms[i]
        metric = place.metric or arm.headline(place.skill)
        if metric is None or place.skill not in arm.skills:
            return None
        side = Side(arm, place.skill, metric, row.system)
        return side if side.seeds else None
