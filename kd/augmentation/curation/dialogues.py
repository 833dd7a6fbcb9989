"""Dialogues of several turns that a teacher generates alone: as one transcript, or turn by turn for both sides."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from kd.augmentation import Expected, Resources
from kd.augmentation.new_records import Draft, NewRecords, Requests, Seed, question, readable
from kd.augmentation.ratings import checked_template
from kd.data.prompt_templates import inserted
from kd.types import Message, Record

_SPEAKER = re.compile(r"^[ \t*]*\[(human|ai)\][ \t*:]*", re.IGNORECASE | re.MULTILINE)
_THANKS = re.compile(r"\b(?:thanks?|thank you|goodbye|bye|you're welcome)\b", re.IGNORECASE)
CLOSING = 12  # words of a turn with thanks that closes a dialogue


@dataclass(kw_only=True, eq=False)
class SelfChat(Requests):
    """A dialogue between a human and an assistant, both of them the teacher's, in one reply: Baize.

    Xu et al. (arXiv 2304.01196, section 3.1): a question of a pool is the topic of a conversation that the model
    generates whole, with a marker before each turn, "[Human]" or "[AI]". The transcript counts as far as turns
    alternate from a human's on; what the human says last without a reply is left out. Prompts are the records'.

    The record of a dialogue has the last reply as its response, and the turns before it as its prompt: with
    `data.loss_on=all` all replies are learnt.

    Args:
        least: replies of a dialogue that stays.
        template: of the request, with {prompt}; the reply has the markers.
        max_new_tokens, temperature, top_p, batch_size, keep_given, generator: as in
            `kd.augmentation.new_records.NewRecords`.
    """

    name: ClassVar[str] = "self_chat"
    fields: ClassVar[tuple[str, ...]] = ("prompt",)

    least: int
    keep_given: bool = False

    @staticmethod
    def expected(records: int, settings: Mapping[str, Any]) -> Expected:
        """See `kd.augmentation.Stage`."""
        kept, new_tokens = records if settings["keep_given"] else 0, records * settings["max_new_tokens"]
        return Expected(kept + records, records, records, new_tokens)

    def seeds(self, given: Sequence[Record], resources: Resources) -> Iterator[Seed]:
        """See `Requests`."""
        for record in readable(given):
            yield Seed.of(record, prompt=question(record))

    def parsed(self, seed: Seed, text: str) -> Iterator[Draft | str]:
        """See `Requests`."""
        yield _draft(transcript(text), self.least)


@dataclass(kw_only=True, eq=False)
class SimulatedUser(NewRecords):
    """A dialogue turn by turn: the teacher answers, and in the user's place continues to ask: UltraChat.

    Ding et al. (arXiv 2305.14233, section 3): two models converse, of which one is prompted to be the user and reads
    the dialogue so far; the other one reads the conversation itself. Turns of a user that only thank, which the paper
    reduces by its prompt and removes afterwards, end a dialogue, and so do truncated ones. The first prompts are the
    records', as of `kd.augmentation.curation.topics`.

    Args:
        turns: replies of a dialogue, at most. least: replies of one that stays.
        user_template: of the user's turns, with {dialogue}.
        max_new_tokens, temperature, top_p, batch_size, keep_given, generator: as in `NewRecords`.

    Raises:
        ValueError: `turns` is not positive, or the template lacks its field.
    """

    name: ClassVar[str] = "dialogue"

    turns: int
    least: int
    user_template: str
    keep_given: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.least <= self.turns:
            raise ValueError(f"turns={self.turns} and least={self.least} leave no dialogue; set 1 <= least <= turns")
        self.user = checked_template("user_template", self.user_template, "dialogue")

    @staticmethod
    def expected(records: int, settings: Mapping[str, Any]) -> Expected:
        """See `kd.augmentation.Stage`."""
        written, longest = 2 * settings["turns"] - 1, settings["max_new_tokens"]
        prompts, kept = records * written, records if settings["keep_given"] else 0
        read_again = prompts * (written - 1) // 2 * longest  # each turn reads those before it
        return Expected(kept + records, prompts, prompts, prompts * longest, read_again)

    def drafts(self, given: Sequence[Record], resources: Resources) -> Iterator[tuple[Seed, Draft]]:
        """See `NewRecords`."""
        seeds = [Seed.of(record) for record in readable(given)]
        talks = [[dict(record.prompt[-1])] for record in readable(given)]  # messages from the first question on
        going = list(range(len(seeds)))
        for number in range(1, self.turns + 1):
            prompts = [self._prompt(seeds[i], talks[i]) for i in going]
            going = self._continued(going, talks, "assistant", prompts, f"replies {number}", resources)
            if number < self.turns:
                requests = [seeds[i].asking(inserted(self.user, {"dialogue": shown(talks[i])})) for i in going]
                going = self._continued(going, talks, "user", requests, f"questions {number + 1}", resources)
        for seed, talk in zip(seeds, talks, strict=True):
            found = _draft(talk, self.least)
            if isinstance(found, str):
                resources.dropped(found)
            else:
                yield seed, found

    def _prompt(self, seed: Seed, talk: Sequence[Message]) -> Record:
        return Record(seed.id, seed.skill, (*seed.before, *talk))

    def _continued(
        self,
        going: Sequence[int],
        talks: Sequence[list[dict[str, Any]]],
        role: str,
        prompts: Sequence[Record],
        what: str,
        resources: Resources,
    ) -> list[int]:
        """Add a turn to each dialogue. Returns those that go on."""
        kept = []
        for i, reply in zip(going, self.replies(prompts, resources, what), strict=True):
            text = reply.texts[0].strip()
            if text and reply.finished[0] and not (role == "user" and closing(text)):
                talks[i].append({"role": role, "content": text})
                kept.append(i)
        return kept


def transcript(text: str) -> list[dict[str, Any]]:
    """The messages of a text with "[Human]" and "[AI]" before turns, from the first human's on while they alternate."""
    marks = [*_SPEAKER.finditer(text)]
    ends = [*(mark.start() for mark in marks[1:]), len(text)][: len(marks)]
    turns = [(mark[1].lower(), text[mark.end() : end].strip()) for mark, end in zip(marks, ends, strict=True)]
    first = next((i for i, (speaker, _) in enumerate(turns) if speaker == "human"), len(turns))
    found = list[dict[str, Any]]()
    for speaker, content in turns[first:]:
        role = "user" if speaker == "human" else "assistant"
        if not content or (found and found[-1]["role"] == role):
            break
        found.append({"role": role, "content": content})
    return found


def shown(talk: Sequence[Message]) -> str:
    """The messages as a text, each after its role."""
    return "\n\n".join(f"{str(message['role']).capitalize()}: {message['content']}" for message in talk)


def closing(text: str) -> bool:
    """Return whether a turn of the user only thanks or takes leave."""
    return bool(_THANKS.search(text)) and len(text.split()) <= CLOSING and "?" not in text


def _draft(talk: Sequence[Message], least: int) -> Draft | str:
    """The draft of a dialogue, without a question at its end that has no reply; the reason where it is too short."""
    whole = talk[:-1] if talk and talk[-1]["role"] == "user" else talk
    if len(whole) < 2 * max(least, 1):
        return "short dialogue"
    *turns, asked, reply = whole
    return Draft(str(asked["content"]), str(reply["content"]), turns=tuple(turns))
