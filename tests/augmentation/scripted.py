"""Teachers that answer by a rule, a skill whose answers are numbers, and what a stage makes of records with them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hydra import compose

from kd.augmentation import Account, Resources, Stage
from kd.components.choices import CONF
from kd.composition.overrides import started
from kd.data.prompt_templates import question
from kd.experiment.loading import load_teacher
from kd.generators.settings import Decoding
from kd.metrics.final_number import final_number
from kd.teachers.interface import Answers, Teacher
from kd.types import Message, Record, Response, Skill, Split

CUT = "…"  # a text that ends so was truncated
SETTINGS: dict[str, Any] = {"max_new_tokens": 64, "temperature": 0.0}
Rule = Callable[[str], str]


class Scripted(Teacher):
    """A teacher of text alone: its answer to a prompt is that of a rule; of sample i > 0, that to `i <prompt>`."""

    provides = frozenset({"text"})

    def __init__(self, rule: Rule):
        self.rule = rule
        self.read: list[tuple[Message, ...]] = []

    def identity(self) -> str:
        return "scripted"

    def generate(self, records: Sequence[Record], *, decoding: Decoding, **_: Any) -> list[Answers]:
        self.read += [record.prompt for record in records]
        return [self._answers(question(record), decoding.samples) for record in records]

    def _answers(self, prompt: str, samples: int) -> Answers:
        texts = tuple(self.rule(f"{i} {prompt}" if i else prompt) for i in range(samples))
        return Answers(texts, tuple(not text.endswith(CUT) for text in texts), len(prompt))


def smollm2() -> Any:
    """A real teacher."""
    with started(CONF):
        return load_teacher(compose("config", overrides=["teacher=smollm2_135m"]).teacher)


def silent(prompt: str) -> str:
    """The rule of a teacher that must not be asked."""
    raise AssertionError(f"a prompt was answered again: {prompt[:80]!r}")


class Sums(Skill):
    """Sums such as "3 + 4"; an answer is right if its last number is the sum."""

    name, licence, group_key, metric = "sums", "Apache-2.0", "none", "accuracy"

    def __init__(self, *records: Record):
        self.records = records

    def load(self, split: Split) -> Sequence[Record]:
        return self.records if split == "train" else ()

    def score(self, record: Record, text: str) -> float:
        return float(final_number(text) == str(record.meta["answer"]))


def sums(*pairs: tuple[int, int]) -> list[Record]:
    """Records "a + b" with the sum as their response."""
    return [
        Record(
            f"{a}+{b}",
            "sums",
            ({"role": "user", "content": f"{a} + {b}"},),
            (Response(str(a + b)),),
            meta={"answer": a + b},
        )
        for a, b in pairs
    ]


def made(
    stage: Stage,
    given: Iterable[Record],
    rule: Rule,
    *,
    student: Rule | None = None,
    skill: Skill | None = None,
    seed: int = 0,
    teacher: Scripted | None = None,
) -> tuple[list[Record], Account]:
    """The records after a stage, and its account."""
    account = Account()
    found = Resources(
        seed,
        teacher or Scripted(rule),
        "scripted",
        None if student is None else Scripted(student),
        "scripted student",
        skill,
        account=account,
    )
    return list(stage(iter(given), found)), account


NASTY = (
    *("", " \n ", "\x00", "�", "a" * 100_000, "[[5]]", "[[A]] [[B]]", "[[A]]", "{question} {0} {", "}{"),
    *(
        "The answer is",
        "So the answer is 7.",
        "answer: " * 2000,
        "=" * 50,
        "\u2028\u2029",
        "<|im_end|><|im_start|>user",
    ),
    *(
        "שלום 👩‍👩‍👧 ﷽",
        "```python\nimport os\nos.system('rm -rf /')\nprint(1)\n```",
        "```",
        f"no end{CUT}",
        "so " * 20_000,
    ),
)
