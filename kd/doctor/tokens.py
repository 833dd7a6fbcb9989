"""One record as the model reads it: every token, the label predicted at it, and whether that is in the loss."""

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from kd.data.chat_template import end_id
from kd.data.sequences import Encoder
from kd.types import Record, Sequences

RESPONSE, CUT = "green", "bold red"


def record_tables(encoder: Encoder, record: Record) -> Iterator[Table | Text]:
    """A table per response, in the student's tokens and, where they differ, in the teacher's."""
    batches = encoder.batches([record])
    if not batches:
        yield Text(f"{record.id} is left out: its prompt alone fills data.max_length={encoder.max_length}", CUT)
        return
    [batch] = batches
    readers = {"student": (encoder.student, batch.student)}
    if encoder.teacher is not None:
        readers["teacher"] = (encoder.teacher, batch.teacher)
    for role, (tokenizer, sequences) in readers.items():
        for row, response in enumerate(record.responses):
            title = f"{record.id}, response {row + 1} of {len(record.responses)} ({response.source}), {role}'s tokens"
            yield token_table(sequences, row, tokenizer, title)


def token_table(sequences: Sequences, row: int, tokenizer: PreTrainedTokenizerBase, title: str) -> Table:
    """One line per token of a sequence. `in loss`: whether the label counts; `predicted at`: where the token is learnt.

    Tokens of the response are green. A response without its end token was truncated, as the caption states.
    """
    length = int(sequences.lengths[row])
    start = 0 if sequences.padding_side == "right" else sequences.tokens.shape[1] - length
    span = slice(start, start + length)
    tokens, labels = sequences.tokens[row, span].tolist(), sequences.labels[row, span].tolist()
    mask = sequences.mask[row, span].tolist()
    table = Table(box=SIMPLE_HEAD, title=Text(title, "bold"), title_justify="left", caption_justify="left")
    for column in ("position", "id", "text", "label", "label text", "in loss", "predicted at"):
        table.add_column(column, justify="left" if "text" in column else "right", no_wrap="text" not in column)
    for position, token in enumerate([*tokens, labels[-1]]):
        learnt = position > 0 and mask[position - 1]
        has_label = position < length  # the last token is predicted and never read
        label = labels[position] if has_label else None
        table.add_row(
            str(position),
            str(token),
            Text(visible(token, tokenizer)),
            "" if label is None else str(label),
            Text("" if label is None else visible(label, tokenizer)),
            "✓" if has_label and mask[position] else "",
            str(position - 1) if learnt else "",
            style=RESPONSE if learnt else None,
        )
    if labels[-1] != end_id(tokenizer):
        table.caption = Text("cut at data.max_length: the end token is missing, and is not learnt", CUT)
    return table


def visible(token: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of one id in quotes, with escapes; the vocabulary's own spelling where it is part of a character."""
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    if not text or "\N{REPLACEMENT CHARACTER}" in text:
        return f"<{tokenizer.convert_ids_to_tokens(token)}>"
    return repr(text)
