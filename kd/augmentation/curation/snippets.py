"""Snippets of code as the seeds of problems."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from kd.augmentation import Expected, Resources
from kd.augmentation.documents import DocumentRequests
from kd.augmentation.new_records import Draft, Seed, plain
from kd.augmentation.replies import block
from kd.seeding import derive
from kd.types import Record

CODE = (".py", ".js", ".ts", ".java", ".c", ".h", ".cc", ".cpp", ".cs", ".go", ".rs", ".php", ".sh", ".swift")


@dataclass(kw_only=True, eq=False)
class Snippets(DocumentRequests):
    """Problems inspired by lines of code, with their solutions: OSS-Instruct.

    Magicoder (Wei et al., arXiv 2312.02120, section 2.1): from each document 1 to 15 consecutive lines are extracted at
    random, and the model creates a problem inspired by them and its solution. Of equal snippets one is used, and a
    problem that only names the snippet without containing it is dropped: the snippet is not shown with it.

    Args:
        longest: lines of a snippet at most; the paper's 15.
        documents: `{address: …}` of a file or a folder of source files; None: the texts of the records.
        part: of a record that is the code. template: with {document}, the snippet; the reply has the headings Problem
            and Solution.
        max_new_tokens, temperature, top_p, batch_size, keep_given, generator: as in
            `kd.augmentation.new_records.NewRecords`.

    Raises:
        ValueError: `longest` is not positive.
    """

    name: ClassVar[str] = "snippet"
    suffixes: ClassVar[tuple[str, ...]] = CODE

    longest: int
    words: int | None = field(default=None, init=False)  # a document is not divided
    keep_given: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.longest < 1:
            raise ValueError(f"longest={self.longest} leaves no line of a snippet; set it to 1 or more")

    @staticmethod
    def expected(records: int, settings: Mapping[str, Any]) -> Expected:
        """See `kd.augmentation.Stage`: of documents that are records."""
        kept, new_tokens = records if settings["keep_given"] else 0, records * settings["max_new_tokens"]
        return Expected(kept + records, records, records, new_tokens)

    def seeds(self, given: Sequence[Record], resources: Resources) -> Iterator[Seed]:
        """See `Requests`."""
        known = set[str]()
        for seed in self.sources(given):
            text = snippet(seed.fields["document"], self.longest, derive(resources.seed, self.name, seed.id))
            if text in known:
                resources.dropped("repeated snippet")
            else:
                known.add(text)
                yield replace(seed, fields={"document": text})

    def parsed(self, seed: Seed, text: str) -> Iterator[Draft | str]:
        """See `Requests`."""
        found = block(text, "problem", "solution")
        if found is None:
            yield "reply without problem and solution"
        elif "snippet" in found["problem"].lower() and plain(seed.fields["document"]) not in plain(found["problem"]):
            yield "problem about an unseen snippet"
        else:
            yield Draft(found["problem"], found["solution"])


def snippet(text: str, longest: int, seed: int) -> str:
    """1 to `longest` consecutive lines of a text, drawn with the seed, without blank lines at its ends."""
    lines = [line.rstrip() for line in text.splitlines()]
    draw = random.Random(seed)
    size = draw.randint(1, min(longest, len(lines)))
    filled = [i for i, line in enumerate(lines) if line.strip()]
    start = min(draw.choice(filled), len(lines) - size)
    found = "\n".join(lines[start : start + size]).strip("\n")
    return found if found.strip() else lines[draw.choice(filled)]
