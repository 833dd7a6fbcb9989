"""A model's answers to the prompts of a stage, kept on disk as they are generated, so that none is generated twice."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from kd.artifacts import Cost, cache_root, key, once
from kd.data.images import digest
from kd.data.sequences import prompt_ids
from kd.generators import Generator
from kd.generators.account import Spent, charge, metered
from kd.generators.settings import Decoding
from kd.progress import Phase, phase
from kd.seeding import seeded
from kd.teachers.interface import Answers, Teacher
from kd.types import Record, Source
from kd.versions import versions
from kd.workers import Workers

VERSION = 1  # part of every key: raise it when the same requests are to give other texts
KIND = "set of answers"
TOGETHER = 256  # responses that are kept at once: a process that is killed generates these again at most


class Part(NamedTuple):
    """Prompts of one call that are answered, and kept, together: a task that is the same in every process.

    Attributes:
        prompts: their place among the call's parts is in `stream`.
        stream: the random stream of the responses, whichever process draws them.
        path: of the file that keeps the answers.
    """

    prompts: Sequence[Record]
    decoding: Decoding
    engine: Generator
    stream: tuple[Any, ...]
    path: Path

    def answered(
        self, model: Teacher, progress: Callable[[int], None] | None = None
    ) -> tuple[Sequence[Answers], Spent]:
        """The answers of a model, and their cost, which is added to every open meter, too."""
        with metered() as meter, seeded(*self.stream):
            rows = model.respond(self.prompts, decoding=self.decoding, engine=self.engine, progress=progress)
        return rows, meter.spent


@dataclass(frozen=True)
class Writer:
    """A model that answers the prompts of stages.

    Attributes:
        model: generates; None where all that is requested is on disk.
        named: names its content (weights, tokenizer, template).
        source: of its responses.
        room: tokens of prompt and response together; None: without limit.
        workers: that generate in place of this process, where the model has weights; None: none do.
    """

    model: Teacher | None
    named: str
    source: Source = "teacher"
    room: int | None = None
    workers: Workers | None = None

    def fits(self, prompt: Record) -> bool:
        """Return whether the prompt leaves room for a response; always of a model without a tokenizer."""
        words = None if self.model is None else self.model.tokenizer
        return words is None or self.room is None or len(prompt_ids(prompt, words)) < self.room


def is_missing(answer: Answers) -> bool:
    """Return whether a model gave no response: the prompt left no room for one, or its server sent empty ones."""
    return not any(answer.texts) and not any(answer.finished)


def answers(
    writer: Writer, prompts: Sequence[Record], decoding: Decoding, *, what: str, seed: int, engine: Generator
) -> list[Answers]:
    """`decoding.samples` responses to each prompt, from disk where they were generated before, at the same cost.

    A prompt that leaves no room for a response has empty ones, which are not finished.

    Args:
        what: the texts that are generated, as "labels": those of another name are other draws.
        seed: the run's. Greedy text is the same for all seeds and names.
        engine: generates with the weights of a model that has some.

    Raises ValueError where a model is needed and there is none that generates text.
    """
    found = [Answers(("",) * decoding.samples, (False,) * decoding.samples, 0)] * len(prompts)
    fitting = [i for i, prompt in enumerate(prompts) if writer.fits(prompt)]
    size = max(1, TOGETHER // decoding.samples)
    chunks = [fitting[start : start + size] for start in range(0, len(fitting), size)]
    searches = 1 if decoding.temperature == 0 else decoding.samples  # one search ends in several
    name, total = f"generate {what} ({writer.source})", searches * len(fitting)
    parts = []
    for number, chunk in enumerate(chunks):
        given, stream = [prompts[i] for i in chunk], (seed, "augmentation", what, number)
        path = _path(writer, given, decoding, None if decoding.temperature == 0 else stream, engine)
        parts.append(Part(given, decoding, engine, stream, path))
    if writer.workers is not None and writer.model is not None and writer.model.has_weights:
        _keep(writer.workers, writer, parts, name, searches)
    with ExitStack() as stack:
        shown: Phase | None = None
        for number, (chunk, part) in enumerate(zip(chunks, parts, strict=True)):
            if shown is None and not part.path.exists():
                shown = stack.enter_context(phase(name, total, "responses", done=searches * number * size))
            for i, row in zip(chunk, _kept(part, writer, shown), strict=True):
                found[i] = row
    return found


def _keep(workers: Workers, writer: Writer, parts: Sequence[Part], name: str, searches: int) -> None:
    """Have workers answer what is not on disk; each part is kept when it arrives, whatever becomes of the others."""
    total = sum(len(part.prompts) for part in parts)
    missing = [part for part in parts if not part.path.exists()]
    if not missing:
        return
    left = sum(len(part.prompts) for part in missing)
    with phase(name, searches * total, "responses", done=searches * (total - left)) as shown:
        for part, rows, spent in workers.answered(writer.source, writer.named, missing):
            once(part.path, partial(_written, part, rows, spent), kind=KIND)
            shown.advance(searches * len(part.prompts))


def _path(
    writer: Writer, prompts: Sequence[Record], decoding: Decoding, stream: tuple[Any, ...] | None, engine: Generator
) -> Path:
    content = {
        "code": versions(__name__, type(engine).__module__),
        "samples": decoding.samples,
        "max_new_tokens": decoding.max_new_tokens,
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "model": writer.named,
        "stream": stream and list(stream),
        "prompts": [prompt_content(prompt) for prompt in prompts],
    }
    if engine.settings:
        content["generator"] = dict(engine.settings)
    return cache_root() / "augmentation" / f"{key(content)}.jsonl"


def prompt_content(prompt: Record) -> list[Any]:
    """All of a prompt that counts, as plain data: its skill and id, messages, control tokens, and images if any."""
    own = [prompt.skill, prompt.id, [dict(message) for message in prompt.prompt], prompt.control_tokens]
    return [*own, digest(prompt.images)] if prompt.images else own


def _kept(part: Part, writer: Writer, shown: Phase | None) -> Iterator[Answers]:
    """The answers in the file, which is written now if it is not there; charged as when they were generated."""
    generated: list[Spent] = []

    def write(path: Path) -> Cost:
        model = writer.model
        if model is None or "text" not in model.provides:
            raise ValueError(
                f"the augmentation needs a {writer.source} that generates the responses, but there is none; choose one "
                "whose weights are here (teacher=smollm2_135m), or augmentation=none"
            )
        rows, spent = part.answered(model, None if shown is None else shown.advance)
        generated.append(spent)
        return _written(part, rows, spent, path)

    manifest = once(part.path, write, kind=KIND)
    if not generated:  # before, by this process or another
        charge(Spent.of(manifest.cost))
    with part.path.open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            yield Answers(tuple(row["responses"]), tuple(row["finished"]), row["tokens"])


def _written(part: Part, rows: Sequence[Answers], spent: Spent, path: Path) -> Cost:
    """Write answers to `path`. Returns their cost."""
    path.write_text(_lines(part.prompts, rows), encoding="utf-8")
    return spent._asdict()


def _lines(prompts: Sequence[Record], rows: Sequence[Answers]) -> str:
    lines = []
    for prompt, row in zip(prompts, rows, strict=True):
        texts = [text.encode("utf-8", "replace").decode() for text in row.texts]  # half of a surrogate pair becomes "?"
        own = {"id": prompt.id, "responses": texts, "finished": row.finished, "tokens": row.tokens}
        lines.append(json.dumps(own, ensure_ascii=False) + "\n")
    return "".join(lines)
