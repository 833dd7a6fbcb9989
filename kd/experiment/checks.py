"""Checks of tokenizers, data and licences on an experiment's own records. Each returns its findings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedTokenizerBase

from kd.data.chat_template import encode_conversation, end_id
from kd.data.sequences import Encoder, pad_id
from kd.data.windows import Windows
from kd.experiment import export
from kd.experiment.build import Parts
from kd.experiment.findings import Finding, Verdict
from kd.generators.generation import end_ids
from kd.models.language_model import LanguageModel
from kd.skills.records import held
from kd.teachers.ensemble import Ensemble
from kd.types import Batch, Record, Sequences

CONVERSATIONS, WINDOWS = 64, 20  # numbers examined
UNBOUNDED = 10**9  # tokens


@dataclass
class Subject:
    """A built experiment. `alignment` is the config's own; `parts` has none, so that it could be built in any case."""

    cfg: DictConfig
    parts: Parts
    alignment: Any
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True)
class Reader:
    """A model and the encoder of records in its tokens."""

    role: str
    model: LanguageModel
    encoder: Encoder

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The encoder's tokenizer: the model's own, or one with the same ids."""
        return self.encoder.student

    def sequences(self, batches: Sequence[Batch]) -> list[Sequences]:
        """The model's sequences in these micro-batches."""
        return [batch.student if self.role == "student" else batch.teacher for batch in batches]


def sampled(subject: Subject, count: int) -> list[Batch]:
    """The micro-batches of the first `count` windows, as one rank would see them."""
    data = subject.parts.data
    windows = Windows(data.train, data.encoder, size=data.window, seed=data.seed, steps=count)
    return [batch for step in range(count) for batch in windows[step].batches]


def teachers(parts: Parts) -> dict[str, LanguageModel]:
    """The models that teach: none, "teacher", or each member of an ensemble under "teacher" and its name."""
    if isinstance(parts.teacher, Ensemble):
        return {f"teacher {name}": member for name, member in parts.teacher.parts.items()}
    return {} if parts.teacher is None else {"teacher": parts.teacher}


def readers(subject: Subject) -> list[Reader]:
    """The models that read tokens, each with an encoder for its own."""
    parts = subject.parts
    own = parts.encoder.of_student(UNBOUNDED)
    found = [Reader("student", parts.module.student, own)]
    if parts.teacher is not None:
        theirs = parts.encoder.teacher
        own = own if theirs is None else _alone(theirs, parts.encoder.max_length)
        found += [Reader(role, model, own) for role, model in teachers(parts).items()]
    return found


def _alone(tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoder:
    """An encoder whose records need to fit one tokenizer only."""
    return Encoder(tokenizer, None, max_length=max_length, max_tokens=UNBOUNDED)


# --- tokenizers ---


def end_tokens(student: LanguageModel, teacher: LanguageModel | None, compared: bool) -> Finding:
    """Check that both models end a response with the same token, and that their generation settings contain it.

    compared: the two are compared at the same ids, so that an end token of one is a wrong guess of the other.
    """
    models = {"student": student} | ({} if teacher is None else {"teacher": teacher})
    for role, model in models.items():
        if not has_end(model):
            fact = f"the {role}'s tokenizer has none and its chat template writes none, so no response would end"
            return Finding("FAIL", "end token", fact, "set eos_token in its tokenizer_config.json")
    ends = [_token(model.tokenizer, end_id(model.tokenizer)) for model in models.values()]
    fact = ", ".join(f"{role} {end}" for role, end in zip(models, ends, strict=True))
    if len({end.partition(" ")[2] for end in ends}) > 1:
        fact = f"{fact}: the teacher does not end where the student should"
        remedy = "take both of one kind (both Instruct), or give the student the teacher's chat_template and tokenizer"
        return Finding("FAIL" if compared else "WARN", "end token", fact, remedy)
    for role, model in models.items():
        declared, end = model.network.generation_config.eos_token_id, end_id(model.tokenizer)
        if declared is not None and end not in (declared if isinstance(declared, list) else [declared]):
            fact = f"{fact}, but the {role}'s generation settings end with {declared}"
            return Finding("WARN", "end token", fact, f"{end} is added to those of the exported student")
    return Finding("PASS", "end token", fact)


def has_end(model: LanguageModel) -> bool:
    """Return whether the model's answers end: its template or its tokenizer has an end token."""
    try:
        return end_id(model.tokenizer) >= 0
    except ValueError:
        return False


def round_trip(reader: Reader, records: Sequence[Record]) -> Finding:
    """Check that prompt + response + end token are the ids that the tokenizer writes for the conversation."""
    check, tokenizer = f"chat template ({reader.role})", reader.tokenizer
    if not tokenizer.chat_template:
        return Finding("PASS", check, "none: messages are joined as plain text, and the end token follows")
    pairs, shortened = list[tuple[list[int], list[int]]](), 0
    for record in records[:CONVERSATIONS]:
        for row, response in zip(reader.encoder.encode(record) or (), record.responses, strict=False):
            theirs = conversation_ids(record, response.text, tokenizer)
            kept = response.text.strip() in tokenizer.decode(theirs)
            shortened += not kept
            pairs += [(list(row.ids), theirs)] if kept else []
    if shortened:
        fact = f"the chat template leaves out a part of {shortened} responses (a chain of thought); they are read whole"
        return Finding("WARN", check, fact, "set chat_template of the model to one that writes them")
    odd = [(ours, theirs) for ours, theirs in pairs if theirs[: len(ours)] != ours]
    if not odd:
        return Finding("PASS", check, f"{len(pairs)} conversations are the tokenizer's own ids, end token included")
    fact = f"{len(odd)} of {len(pairs)} conversations differ: {_difference(*odd[0], tokenizer)}"
    if all(str(tokenizer.decode(theirs)).startswith(str(tokenizer.decode(ours))) for ours, theirs in odd):
        note = "the text is the same; tokens merge differently where the response begins, as when it is generated"
        return Finding("WARN", check, fact, note)
    return Finding("FAIL", check, fact, "correct chat_template or eos_token of the tokenizer, or the responses")


def conversation_ids(record: Record, response: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The whole conversation by the tokenizer's template; control tokens in its texts are text, as in training."""
    messages = [*map(dict, record.prompt), {"role": "assistant", "content": response}]
    return encode_conversation(messages, tokenizer, control_tokens=record.control_tokens, images=record.images)


def _difference(ours: list[int], theirs: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    i = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), len(theirs))
    written = _token(tokenizer, theirs[i]) if i < len(theirs) else "nothing more"
    return f"at position {i} training reads {_token(tokenizer, ours[i])}, the template writes {written}"


def _token(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    return f"{token} {tokenizer.convert_ids_to_tokens(token)!r}"


# --- batches ---


def shift(sequences: Sequence[Sequences]) -> Finding:
    """Check that every label is the token that follows."""
    for s in sequences:
        follows = torch.arange(1, s.tokens.shape[1]) < s.lengths[:, None]
        if not (s.tokens[:, 1:] == s.labels[:, :-1])[follows].all():
            fact = "a label is not the token that follows"
            return Finding("FAIL", "shift", fact, "make sequences with kd.data.sequences.collate and nowhere else")
    return Finding("PASS", "shift", "every label is the token that follows")


def same_rows(batches: Sequence[Batch]) -> Finding:
    """Check that two models with different prompt tokens are compared at the same response tokens."""
    for batch in batches:
        ours, theirs = (s.labels[s.mask].tolist() for s in (batch.student, batch.teacher))
        if ours != theirs:
            fact = "student and teacher differ in the response tokens at which they are compared"
            return Finding("FAIL", "rows", fact, "end both alike, raise data.max_length, or take another alignment")
    return Finding("PASS", "rows", "prompts differ, but the response tokens of student and teacher are the same")


def end_token_learnt(reader: Reader, sequences: Sequence[Sequences]) -> Finding:
    """Check that every response that was not truncated has its end token in the loss, whatever the padding is."""
    check, end = f"end token learnt ({reader.role})", end_id(reader.tokenizer)
    whole = learnt = 0
    for s in sequences:
        rows, last = torch.arange(len(s.tokens)), s.lengths - 1
        full = s.lengths + 1 < reader.encoder.max_length  # a response that fills it may be truncated
        whole += int(full.sum())
        learnt += int((full & (s.labels[rows, last] == end) & s.mask[rows, last]).sum())
    fact = f"in {learnt} of {whole} whole responses {_token(reader.tokenizer, end)} is a label of the loss"
    if learnt < whole:
        return Finding("FAIL", check, fact, "the student would not learn to stop; end each response with it")
    pads = pad_id(reader.tokenizer)
    note = "it also pads (masks go by length, so nothing is lost)" if pads == end else f"padding is {pads}"
    return Finding("PASS", check, f"{fact}; {note}")


def vocabulary(reader: Reader, sequences: Sequence[Sequences]) -> Finding:
    """Check that every id has a row in the embeddings and in the head; rows of a padded head are cut off."""
    network: Any = reader.model.network
    check, tokens = f"vocabulary ({reader.role})", reader.model.vocabulary
    embeddings = network.get_input_embeddings().weight.shape[0]
    head = network.get_output_embeddings().weight.shape[0]
    largest = max(int(max(s.tokens.max(), s.labels.max())) for s in sequences)
    beyond = max(reader.tokenizer.get_vocab().values())
    if largest >= min(embeddings, head):
        fact = f"the batches hold id {largest}, but there are {embeddings} embeddings and {head} head rows"
        return Finding("FAIL", check, fact, "take the tokenizer of this very checkpoint, or resize its embeddings")
    if beyond >= head:
        fact = f"the tokenizer's ids reach {beyond}, the head has {head} rows (these records stay below)"
        return Finding("WARN", check, fact, "do not use the tokens added last, or resize the embeddings")
    fact = f"largest id {largest}; {tokens} of {head} head rows belong to tokens, {head - tokens} of padding are cut"
    return Finding("PASS", check, fact)


def positions(reader: Reader, sequences: Sequence[Sequences]) -> Finding:
    """Check that the model has positions for the longest sequence."""
    check = f"positions ({reader.role})"
    limit = getattr(reader.model.network.config.get_text_config(), "max_position_embeddings", None)
    longest = max(int(s.lengths.max()) for s in sequences)
    if limit is not None and longest > limit:
        fact = f"a sequence of {longest} tokens exceeds the model's {limit} positions"
        return Finding("FAIL", check, fact, f"set data.max_length={limit}")
    return Finding("PASS", check, f"longest sequence {longest}, the model takes {limit or 'any'}")


def lengths(reader: Reader, records: Sequence[Record]) -> Finding:
    """The shares of all training records that data.max_length truncates and leaves out."""
    check, limit = f"lengths ({reader.role})", reader.encoder.max_length
    dropped = [record for record in records if not reader.encoder.encode(record)]
    cut = [record for record in records if any(row.truncated for row in reader.encoder.encode(record) or ())]
    if not dropped and not cut:
        return Finding("PASS", check, f"all {len(records)} records fit data.max_length={limit}")
    unbounded = Encoder(reader.tokenizer, None, max_length=UNBOUNDED, max_tokens=UNBOUNDED)
    longest = max(len(row.ids) for record in [*dropped, *cut] for row in unbounded.encode(record) or ())
    shares = [f"{len(some) / len(records):.1%}" for some in (cut, dropped)]
    fact = f"of {len(records)} records data.max_length={limit} cuts {shares[0]} and leaves out {shares[1]}"
    verdict: Verdict = "FAIL" if len(dropped) + len(cut) == len(records) else "WARN"
    return Finding(verdict, check, fact, f"data.max_length={longest} keeps all")


def padding(batches: Sequence[Batch], bound: float = 0.1, *, read: bool = True) -> Finding:
    """The share of padding among the student's positions in the first windows; `read`: it costs time."""
    total = sum(batch.student.tokens.numel() for batch in batches)
    share = 1 - sum(int(batch.student.lengths.sum()) for batch in batches) / total
    fact = f"{share:.1%} of {total} positions in the first {WINDOWS} windows ({len(batches)} micro-batches)"
    if share < bound or not read:
        return Finding("PASS", "padding", fact + ("" if read else "; no model reads padding"))
    return Finding("WARN", "padding", fact, "lower data.max_tokens or raise optim.window")


# --- licences ---


def licences(subject: Subject) -> Finding:
    """The licences of the data, the teacher and the student's first weights, which may hold for the student."""
    config: dict[str, Any] = OmegaConf.to_container(subject.cfg, resolve=True)  # type: ignore[assignment]
    known = {role: licence for role, (_, licence) in export.licences(config, "", subject.parts.skill.licence).items()}
    line = ", ".join(f"{name} {licence or 'unknown'}" for name, licence in known.items())
    if not all(known.values()):
        return Finding("WARN", "licences", line, "find it before the student is passed on")
    if any(word in line.lower() for word in ("-nc", "non-commercial", "noncommercial", "-nd", "research only")):
        return Finding("WARN", "licences", line, "its restrictions hold for the student too")
    return Finding("PASS", "licences", line)


# --- all of them ---


def check_run(cfg: DictConfig, parts: Parts) -> None:
    """Raises ValueError, with the finding's sentence, for a run whose diagnosis has a FAIL."""
    subject = Subject(cfg, parts, parts.module.alignment)
    for finding in (check_ends(subject), *check_data(subject, windows=1)):
        if finding.verdict == "FAIL":
            raise ValueError(f"{finding.check}: {finding.fact}; {finding.remedy}")


def check_ends(subject: Subject) -> Finding:
    """The end tokens of the subject's models."""
    parts = subject.parts
    compared = "logits" in subject.alignment.provides and bool(parts.module.teacher_fields)
    compared = compared and not subject.alignment.translates  # end tokens stand for each other there
    return end_tokens(parts.module.student, next(iter(teachers(parts).values()), None), compared)


def control_tokens(reader: Reader, records: Sequence[Record]) -> Finding:
    """The number of records that hold control tokens as strings, and how these are encoded."""
    check, fact = f"control tokens ({reader.role})", held(records, reader.tokenizer)
    return Finding("PASS", check, fact or f"none in the texts of {len(records)} records")


def check_data(subject: Subject, windows: int = WINDOWS) -> Iterator[Finding]:
    """All findings that need no forward pass of a model."""
    encoder, records, found = subject.parts.encoder, subject.parts.data.train, readers(subject)
    own = found if encoder.teacher is not None else found[:1]  # one tokenizer is checked once
    yield from (lengths(reader, records) for reader in own)
    yield from (control_tokens(reader, records) for reader in own)
    yield from (round_trip(reader, records) for reader in own)
    if not any(encoder.encode(record) for record in records):
        return
    batches = sampled(subject, windows)
    yield shift([s for reader in own for s in reader.sequences(batches)])
    if encoder.teacher is not None and "logits" in subject.alignment.provides and not subject.alignment.translates:
        yield same_rows(batches)
    yield from (end_token_learnt(reader, reader.sequences(batches)) for reader in own)
    for reader in found:
        yield vocabulary(reader, reader.sequences(batches))
        yield positions(reader, reader.sequences(batches))
    yield padding(batches, read=encoder.max_padding < 1)


def special_tokens(models: dict[str, LanguageModel]) -> dict[str, list[str]]:
    """Name of each special token -> its text and id in each model, "none" where there is none."""
    rows: dict[str, list[str]] = {}
    for name in ("bos", "eos", "pad", "unk"):
        ids = [getattr(model.tokenizer, f"{name}_token_id") for model in models.values()]
        tokens = zip(models.values(), ids, strict=True)
        rows[name] = ["none" if i is None else _token(model.tokenizer, i) for model, i in tokens]
    if all(map(has_end, models.values())):
        rows["ends an answer"] = [", ".join(map(str, sorted(end_ids(model)))) for model in models.values()]
    rows["chat template"] = ["yes" if model.tokenizer.chat_template else "none" for model in models.values()]
    return rows
