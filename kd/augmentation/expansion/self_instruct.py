"""Self-Instruct: a pool of tasks grows by what a model makes of some of them."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from kd.augmentation import Expected, Resources
from kd.augmentation.filters.novelty import Pool, unfit
from kd.augmentation.new_records import Draft, NewRecords, Seed, plain, question, readable
from kd.augmentation.ratings import checked_template
from kd.augmentation.replies import blocks, items
from kd.data.prompt_templates import inserted
from kd.seeding import derive
from kd.types import Record

INPUT, CLASS, OUTPUT = "input", "class", "output"  # headings of the replies
NO_INPUT = {"", "none", "n/a", "no input", "(none)", "<none>"}


@dataclass(kw_only=True, eq=False)
class SelfInstruct(NewRecords):
    """New instructions with instances, of demonstrations that are drawn from a growing pool.

    Self-Instruct (Wang et al., arXiv 2212.10560, section 2.2), step by step:

    1. the teacher continues a list of 8 tasks, 6 of the seeds and 2 of those that were generated before;
    2. it decides whether a new task is classification with few labels;
    3. it generates instances: the input first and then the output, or, of a classification, the class first and then an
       input of it, since inputs generated first are mostly of one class;
    4. an instruction is added to the pool if its ROUGE-L with every one there is below 0.7, has 4 to 150 words and does
       not require images or files; instances that are repeated, that have the same input but other outputs, or whose
       output repeats the input are dropped.

    Alpaca's variant requests more tasks at once and has no classification: set `classification_template` to null.

    Args:
        count: new instructions, at most.
        requests: for lists of instructions, at most; each has `together` others beside it, of the same pool.
        seeds, own: demonstrations of each request: given prompts, and instructions that were generated before.
        instances: of each instruction, at most.
        below: the bound of ROUGE-L. heuristics: whether the rules of length and words count (for English).
        instruction_template: with {demonstrations}; its reply is a list.
        classification_template: with {instruction}; its reply begins with yes or no. None: no task is classification.
        input_template, class_template: of instances, with {instruction}; their replies have the headings Input and
            Output, and Class and Input.
        max_new_tokens, temperature, top_p, batch_size, keep_given, generator: as in `NewRecords`.

    Raises:
        ValueError: a number is not positive, or a template lacks a field.
    """

    name: ClassVar[str] = "self_instruct"

    count: int
    requests: int
    together: int
    seeds: int
    own: int
    instances: int
    below: float | int
    heuristics: bool
    instruction_template: str
    classification_template: str | None
    input_template: str
    class_template: str
    keep_given: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        names = ("count", "requests", "together", "seeds", "instances")
        if wrong := [name for name in names if getattr(self, name) < 1]:
            raise ValueError(f"{wrong[0]}={getattr(self, wrong[0])} makes no record; set it to 1 or more")
        self.below = float(self.below)
        Pool(below=self.below)
        self.instruction = checked_template("instruction_template", self.instruction_template, "demonstrations")
        self.classification = self.classification_template and checked_template(
            "classification_template", self.classification_template, "instruction"
        )
        self.input_first = checked_template("input_template", self.input_template, "instruction")
        self.class_first = checked_template("class_template", self.class_template, "instruction")

    @staticmethod
    def expected(records: int, settings: Mapping[str, Any]) -> Expected:
        """See `kd.augmentation.Stage`."""
        count, kept = settings["count"], records if settings["keep_given"] else 0
        prompts = settings["requests"] + count * (1 if settings["classification_template"] is None else 2)
        new_tokens = prompts * settings["max_new_tokens"]
        return Expected(kept + count * settings["instances"], prompts, prompts, new_tokens)

    def drafts(self, given: Sequence[Record], resources: Resources) -> Iterator[tuple[Seed, Draft]]:
        """See `NewRecords`."""
        if not (pool := readable(given)):
            return
        tasks = self._instructions(pool, resources)
        classes = self._classes(tasks, resources)
        requests = [
            seed.asking(inserted(self.class_first if is_class else self.input_first, seed.fields))
            for seed, is_class in zip(tasks, classes, strict=True)
        ]
        texts = self.texts(requests, resources, "instances")
        for seed, is_class, text in zip(tasks, classes, texts, strict=True):
            for found in () if text is None else self._parsed(seed, text, is_class):
                if isinstance(found, str):
                    resources.dropped(found)
                else:
                    yield seed, found

    def _instructions(self, given: Sequence[Record], resources: Resources) -> list[Seed]:
        """The new instructions, each as the field of a seed with its demonstrations as parents."""
        pool, found = Pool(map(question, given), below=self.below), list[Seed]()
        for number in range(0, self.requests, self.together):
            wave = [
                self._request(given, found, resources.seed, i)
                for i in range(number, min(number + self.together, self.requests))
            ]
            requests = [seed.asking(inserted(self.instruction, seed.fields)) for seed in wave]
            for seed, reply in zip(wave, self.replies(requests, resources, f"instructions {number}"), strict=True):
                for text in items(reply.texts[0], finished=reply.finished[0]):
                    reason = (unfit(text) if self.heuristics else None) or (
                        None if pool.add(text) else "known instruction"
                    )
                    if reason is not None:
                        resources.dropped(reason)
                    elif len(found) < self.count:
                        found.append(Seed(seed.skill, seed.skill, {"instruction": text}, seed.parents))
            if len(found) == self.count:
                break
        return found

    def _request(self, given: Sequence[Record], found: Sequence[Seed], run: int, number: int) -> Seed:
        """The seed of a request for instructions, whose field is a list of demonstrations in random order."""
        draw = random.Random(derive(run, self.name, number))
        own = draw.sample(found, min(self.own, len(found)))
        seeds = draw.sample(given, min(self.seeds + self.own - len(own), len(given)))
        texts = [*map(question, seeds), *(seed.fields["instruction"] for seed in own)]
        draw.shuffle(texts)
        listed = "\n".join(f"{i}. {' '.join(text.split())}" for i, text in enumerate(texts, start=1))
        parents = tuple(record.id for record in seeds)
        return Seed(seeds[0].skill, seeds[0].skill, {"demonstrations": listed}, parents)

    def _classes(self, tasks: Sequence[Seed], resources: Resources) -> list[bool]:
        """Whether each task is classification."""
        if self.classification is None:
            return [False] * len(tasks)
        requests = [seed.asking(inserted(self.classification, seed.fields)) for seed in tasks]
        replies = self.replies(requests, resources, "classifications")
        return [reply.texts[0].lstrip("\"'*# \n").lower().startswith("yes") for reply in replies]

    def _parsed(self, seed: Seed, text: str, is_class: bool) -> Iterator[Draft | str]:
        first, output = (CLASS, CLASS) if is_class else (INPUT, OUTPUT)
        found = [
            (block[INPUT] if plain(block[INPUT]) not in NO_INPUT else "", block[output])
            for block in blocks(text, first, INPUT if is_class else OUTPUT)
            if INPUT in block and block.get(output)
        ][: self.instances]
        if not found:
            yield "reply without an instance"
        outputs: dict[str, set[str]] = {}
        for given, answer in found:
            outputs.setdefault(plain(given), set()).add(plain(answer))
        known = set[str]()
        for given, answer in found:
            if len(outputs[plain(given)]) > 1:
                yield "input with several outputs"
            elif plain(given) in known:
                yield "repeated record"
            elif plain(given) == plain(answer):
                yield "output that repeats the input"
            else:
                known.add(plain(given))
                prompt = f"{seed.fields['instruction']}\n\n{given}" if given else seed.fields["instruction"]
                yield Draft(prompt, answer, facts={"classification": is_class})
