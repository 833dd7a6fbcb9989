"""A data set's rows as examples, all of one form, and their prompts: template, system text, demonstrations."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Literal, NamedTuple

from kd.data.bad_rows import BadRows, named
from kd.data.columns import check, filled
from kd.data.conversations import with_tools
from kd.data.locations import Table
from kd.data.recognition import Example, recognised
from kd.data.tables import Row
from kd.program import is_rank_zero
from kd.types import Message

WIDTH = 78  # columns of a row that is printed


class Item(NamedTuple):
    """A row with what was read of it. `text`: that by which it is nearly another one."""

    row: Row
    example: Example
    group: str | None
    text: str


class Prompting:
    """The prompt of an example.

    template: of the last message, of the row's columns and `{prompt}`; None: as it was recognised.
    system: opens each conversation.
    form: chat: demonstrations are turns | plain: everything is one text.
    """

    def __init__(self, template: str | None, system: str | None, form: Literal["chat", "plain"]):
        if template is not None:
            check("skill.prompt", template)
        if form not in ("chat", "plain"):
            raise ValueError(f"skill.form={form} is neither chat nor plain; take one of them")
        self.template, self.system, self.form = template, system, form

    def example(self, row: Row) -> Example:
        """The row as it is recognised, plain text by the template. Raises ValueError, which names its place."""
        try:
            return recognised(row.values)
        except ValueError as error:
            if self.template is None or "{prompt}" in self.template or "text" not in row.values:
                raise ValueError(f"{row.place} {error}") from error
            return recognised({**row.values, "prompt": filled(row, "skill.prompt", self.template)})

    def filled(self, row: Row, found: Example) -> Example:
        """The example with the template in its last message. Raises ValueError, which names the row's place."""
        if self.template is None:
            return found
        *before, last = found.prompt
        values = {**row.values, "prompt": last["content"]}
        text = filled(Row(row.place, values), "skill.prompt", self.template)
        return replace(found, prompt=(*before, {**last, "content": text}))

    def prompt(self, example: Example, shown: Sequence[Example]) -> tuple[Message, ...]:
        """The messages of the prompt after those of the demonstrations `shown`."""
        turns: list[Message] = []
        for other in shown:
            turns += [*_unled(other.prompt), {"role": "assistant", "content": other.responses[0].text}]
        led = [m for m in example.prompt if m["role"] == "system"][:1]
        whole = with_tools([*led, *turns, *_unled(example.prompt)], None, self.system or "")
        if self.form == "chat":
            return tuple(whole)
        parts = [f"{m['content']}" + ("\n" if m["role"] == "user" else "\n\n") for m in whole[:-1]]
        led_parts = [
            part if m["role"] != "system" else f"{m['content']}\n\n" for part, m in zip(parts, whole, strict=False)
        ]
        return ({"role": "user", "content": "".join(led_parts) + whole[-1]["content"]},)


def _unled(prompt: Sequence[Message]) -> list[Message]:
    return [message for message in prompt if message["role"] != "system"]


def items(sources: Sequence[Table], read: Callable[[Row], Item], bad: BadRows) -> list[Item]:
    """The rows of tables, all of one form: that of the first, or of most where bad rows are skipped.

    Raises ValueError for a row that cannot be read or is of another form, named by its place.
    """
    own = [item for source in sources for row in source(bad) if (item := bad.attempt(read, row))]
    forms = Counter(item.example.form for item in (own if bad.skip else own[:1]))
    form = next((form for form, _ in forms.most_common(1)), "")
    first = next((item for item in own if item.example.form == form), None)
    return [item for item in own if first and bad.attempt(_alike, item, first)]


def _alike(item: Item, first: Item) -> Item:
    if item.example.form != first.example.form:
        raise ValueError(
            f"{item.row.place} is read as {item.example.form}, and {first.row.place} as {first.example.form}; give it "
            "the same columns, or leave it out"
        )
    return item


def print_skipped(name: str, kept: int, sentences: Sequence[str]) -> None:
    """Print how many rows were skipped and the first of them, once in a process, on rank zero."""
    if sentences and is_rank_zero():
        count, rows = len(sentences), len(sentences) + kept
        _print(f"{name}: {count:,} of {rows:,} rows were skipped (skill.bad_rows=skip): {named(sentences)}")


def first_row(name: str, own: Sequence[Item]) -> None:
    """Print the form of the rows and the first of them, once in a process, on rank zero."""
    row, example = own[0].row, own[0].example
    shown = [f"  {key}: {' '.join(str(value).split())}" for key, value in row.values.items()]
    cut = [line if len(line) <= WIDTH else line[: WIDTH - 3] + "..." for line in shown]
    if is_rank_zero():
        _print("\n".join([f"{name}: {len(own):,} rows, read as {example.form}; {row.place}:", *cut]))


@lru_cache(maxsize=64)
def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
