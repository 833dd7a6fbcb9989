"""Dialogues of the student with an environment: a tool that it calls, or feedback on its answers."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from kd.data.chat_template import response_text
from kd.data.images import Prompt, view_of
from kd.data.sequences import Encoder, prompt_ids, shortened
from kd.data.token_ids import TextError
from kd.environments.interface import Environment
from kd.environments.observations import encode_observation
from kd.models.language_model import LanguageModel
from kd.rewards import judged
from kd.rollouts.wrapping import records_of
from kd.rollouts.writing import Writing
from kd.sandbox import concurrently
from kd.types import Batch, Models, Progress, Record, Written

Turns = Annotated[int, Field(ge=1, le=1000)]
COUNTS = ("dialogues", "turns", "finished", "calls", "malformed", "failed", "no_room")


@dataclass
class Episode:
    """One dialogue on its way: the record with the messages that open it, their ids, and the ids that have followed."""

    record: Record
    environment: Environment
    prompt: Any  # ids, with their images where there are some
    turns: list[Written] = field(default_factory=list)
    between: list[list[int]] = field(default_factory=list)  # what followed each turn but the last
    going: bool = True

    @property
    def ids(self) -> list[int]:
        """Everything after the prompt."""
        pieces = [[*turn.ids, *more] for turn, more in zip(self.turns, [*self.between, []], strict=False)]
        return [i for piece in pieces for i in piece]

    @property
    def read(self) -> Any:
        """The ids that the next turn follows."""
        ids, view = (*self.prompt, *self.ids), view_of(self.prompt)
        return ids if view is None else Prompt(ids, view)

    def written(self) -> Written:
        """The dialogue as one response."""
        observed, at = list[tuple[int, int]](), 0
        for turn, more in zip(self.turns, self.between, strict=False):
            at += len(turn.ids) + len(more)
            observed.append((at - len(more), at))
        behaviour, old = (self._logprobs(name) for name in ("behaviour_logprobs", "old_logprobs"))
        truncated = self.turns[-1].truncated
        return Written(tuple(self.ids), "student", behaviour, old, truncated=truncated, observed=tuple(observed))

    def _logprobs(self, name: Literal["behaviour_logprobs", "old_logprobs"]) -> Tensor | None:
        """Of the ids of all turns, 0 between them; None where a turn has none."""
        found = [turn.behaviour_logprobs if name == "behaviour_logprobs" else turn.old_logprobs for turn in self.turns]
        known = [values for values in found if values is not None]
        if len(known) < len(found):
            return None
        pieces = zip(known, [*self.between, []], strict=False)
        return torch.cat([torch.cat([values, values.new_zeros(len(more))]) for values, more in pieces])


@dataclass(kw_only=True, eq=False)
class Dialogue(Writing):
    """Dialogues of the student with an environment, of which the student learns its own turns.

    The environment opens the dialogue with messages, which student and teacher read. The student generates a turn; the
    environment returns an observation, which is appended as a message; and so on, until the environment ends the
    dialogue, for `max_turns` turns at the most. The whole is one response: the teacher scores it in one reading, and
    the observations are not among the loss rows, whatever the objective is. Its text, which a reward scores, is the
    last turn. Ids are those that were generated: no turn is encoded again.

    A turn that is truncated ends its dialogue, as does an observation after which no token would fit into the encoder's
    max_length; that observation is left out. A record whose opening leaves no room is left out.

    Logged beside the length and truncation of turns: `turns` of a dialogue; the share of dialogues that the environment
    ended (`dialogues_finished`), and that ended for want of room (`out_of_room`); of turns with a call, the share that
    was malformed (`calls_malformed`), and that failed (`calls_failed`); and the share of records `left_out`.

    Args:
        environment: makes the environment of one dialogue (`kd.environments.interface`).
        max_turns: of the student in a dialogue.
        role: of the messages that observations are; "tool" where the chat template writes such messages.
        samples: dialogues on each record, one group.
        max_new_tokens: bound on a turn.
        temperature, top_p, batch_size, generator: as for `kd.rollouts.writing.Writing`.

    Raises:
        ValueError: a setting is out of range, or the environment's is.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"group_size", "written_by", "behaviour_logprobs", "old_logprobs"})
    requires: ClassVar[frozenset[str]] = frozenset()
    one_vocabulary: ClassVar[bool] = True  # the teacher reads the same ids

    environment: Callable[[], Environment]
    max_turns: Turns = 4
    role: Literal["user", "tool"] = "user"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.environment()  # its settings are checked now
        self._counts = dict.fromkeys(COUNTS, 0.0)  # since the last report
        self._records = [0.0, 0.0]  # left out, and all

    def __call__(self, window: list[Batch], models: Models, progress: Progress, encoder: Encoder) -> list[Batch]:
        """The window's records with new dialogues, scored by the reward."""
        groups = self._opened(records_of(window), encoder)
        episodes = [episode for group in groups for episode in group]
        for turn in range(1, self.max_turns + 1):
            going = [episode for episode in episodes if episode.going]
            self._take_turns(going, models.student, progress.step, encoder)
            self._observe([episode for episode in going if episode.going], encoder, last=turn == self.max_turns)
        self._counts["dialogues"] += len(episodes)
        self._counts["turns"] += sum(len(episode.turns) for episode in episodes)
        written = [[episode.written() for episode in group] for group in groups]
        return judged(encoder.written([group[0].record for group in groups], written), models)

    def take_report(self) -> dict[str, tuple[float, float]]:
        """The report of `Writing`, and the numbers of turns, calls and ends."""
        found, self._counts = self._counts, dict.fromkeys(COUNTS, 0.0)
        (left_out, records), self._records = self._records, [0.0, 0.0]
        dialogues, calls = found["dialogues"], found["calls"]
        return {
            **super().take_report(),
            "turns": (found["turns"], dialogues),
            "dialogues_finished": (found["finished"], dialogues),
            "out_of_room": (found["no_room"], dialogues),
            "calls_malformed": (found["malformed"], calls),
            "calls_failed": (found["failed"], calls),
            "left_out": (left_out, records),
        }

    def _opened(self, records: list[Record], encoder: Encoder) -> list[list[Episode]]:
        """The dialogues of each record whose opening leaves room for a turn."""
        if encoder.teacher is not None:
            raise ValueError(
                "rollout Dialogue has the teacher read the student's ids, but the two tokenizers differ; take a "
                "teacher with the student's tokenizer"
            )
        groups = list[list[Episode]]()
        shortest: int | None = None
        for record in records:
            environments = [self.environment() for _ in range(self.samples)]
            opened = [replace(record, prompt=each.reset(record)) for each in environments]
            prompt = prompt_ids(opened[0], encoder.student)
            shortest = len(prompt) if shortest is None else min(shortest, len(prompt))
            if len(prompt) < encoder.max_length:
                groups.append([Episode(opened[0], each, prompt) for each in environments])
        if shortest is not None and not groups:
            raise ValueError(
                "no prompt of this window leaves room for a turn after what rollout.environment adds to it: the "
                f"shortest needs {shortest + 1 - encoder.max_length} tokens beyond "
                f"data.max_length={encoder.max_length}; raise it"
            )
        self._records = [self._records[0] + len(records) - len(groups), self._records[1] + len(records)]
        return groups

    def _take_turns(self, going: list[Episode], student: LanguageModel, step: int, encoder: Encoder) -> None:
        """Adds a turn of the student to each dialogue; called by every rank as often, also where it has none."""
        prompts = [episode.read for episode in going]
        rooms = [encoder.max_length - len(prompt) for prompt in prompts]
        answers = self.after(student, prompts, rooms, samples=1, version=step)
        for episode, room, [answer] in zip(going, rooms, answers, strict=True):
            episode.turns.append(shortened(answer, room))
            episode.going = not episode.turns[-1].truncated

    def _observe(self, going: list[Episode], encoder: Encoder, *, last: bool) -> None:
        """Adds the observation after the last turn of each dialogue, and ends those that it ends."""
        texts = [response_text(episode.turns[-1].ids, encoder.student) for episode in going]
        pairs = list(zip(going, texts, strict=True))
        found = concurrently(lambda pair: pair[0].environment.step(pair[1]), pairs)
        for episode, observation in zip(going, found, strict=True):
            if observation.text is None:
                self._counts["finished"] += 1
                episode.going = False
                continue
            self._counts["calls"] += 1
            self._counts["malformed"] += observation.malformed
            self._counts["failed"] += observation.failed
            if not last:
                self._append(episode, observation.text, encoder)

    def _append(self, episode: Episode, text: str, encoder: Encoder) -> None:
        try:
            more = encode_observation({"role": self.role, "content": text}, encoder.student)
        except TextError as error:
            raise ValueError(f"rollout.role={self.role}: an observation {error}, or rollout.role=user") from error
        if len(episode.read) + len(more) < encoder.max_length:
            episode.between.append(more)
        else:
            self._counts["no_room"] += 1
            episode.going = False
