"""Rows of the usual shapes, and what is read of each.

Run: python -m pytest tests/data/test_recognition.py
"""

# ruff: noqa: E501 - tables

import re

import pytest

from kd.data.recognition import recognised
from kd.types import Response

USER, ANSWER = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}
MORE = {"role": "user", "content": "Who?"}
HI = (USER,)
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
TOOL = {"type": "function", "function": {"name": "add"}}
OFFERED = (
    'You may call these functions, each call as <tool_call>{"name": ..., "arguments": {...}}</tool_call>:\n'
    '{"type": "function", "function": {"name": "add"}}'
)
LETTERED = {"role": "user", "content": "Sky?\nA. red\nB. blue"}
BLUE = {"choices": ["red", "blue"], "answer_index": 1}
FROM, TO = {"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}

SHAPES = {  # row -> form, prompt, (text, score) of each response, meta
    "messages": ({"messages": [USER, ANSWER]}, "messages → the last answer", HI, [("Hello.", None)], {}),
    "messages of several turns": (
        {"messages": [USER, ANSWER, MORE, ANSWER]},
        "messages → the last answer",
        (USER, ANSWER, MORE),
        [("Hello.", None)],
        {},
    ),
    "messages without an answer": ({"messages": [USER]}, "messages", HI, [], {}),
    "messages whose answer is a call": (
        {
            "messages": [{**USER, "tool_calls": None}, {"role": "assistant", "content": None, "tool_calls": [CALL]}],
            "tools": [TOOL],
        },
        "messages → the last answer",
        ({"role": "system", "content": OFFERED}, USER),
        [('<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>', None)],
        {},
    ),
    "sharegpt": ({"conversations": [FROM, TO]}, "conversations → the last answer", HI, [("Hello.", None)], {}),
    "sharegpt with a system text": (
        {"conversations": [FROM, TO], "system": "Be kind."},
        "conversations → the last answer",
        ({"role": "system", "content": "Be kind."}, USER),
        [("Hello.", None)],
        {},
    ),
    "alpaca": (
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        "instruction + input → output",
        ({"role": "user", "content": "Add.\n\n1 2"},),
        [("3", None)],
        {},
    ),
    "alpaca without input": (
        {"instruction": "Hi?", "input": "", "output": "Hello."},
        "instruction + input → output",
        HI,
        [("Hello.", None)],
        {},
    ),
    "dolly": (
        {"instruction": "Who?", "context": "Ann.", "response": "Ann", "category": "closed_qa"},
        "instruction + context → response",
        ({"role": "user", "content": "Who?\n\nAnn."},),
        [("Ann", None)],
        {"category": "closed_qa"},
    ),
    "prompt and completion": (
        {"prompt": "Hi?", "completion": "Hello."},
        "prompt → completion",
        HI,
        [("Hello.", None)],
        {},
    ),
    "prompt and completion as messages": (
        {"prompt": [USER], "completion": [ANSWER]},
        "prompt → completion",
        HI,
        [("Hello.", None)],
        {},
    ),
    "question and answer": ({"question": "Hi?", "answer": 5}, "question → answer", HI, [("5", None)], {}),
    "question with a rationale": (
        {"question": "Hi?", "response": "It is 2 + 3.", "answer": "5"},
        "question → response",
        HI,
        [("It is 2 + 3.", None)],
        {"answer": "5"},
    ),
    "squad": (
        {"id": "x", "context": "Ann.", "question": "Who?", "answers": {"text": ["Ann", "ann"], "answer_start": [0, 0]}},
        "question + context → answers",
        ({"role": "user", "content": "Ann.\n\nWho?"},),
        [("Ann", None)],
        {"id": "x", "references": ["Ann", "ann"]},
    ),
    "chosen and rejected": (
        {"prompt": "Hi?", "chosen": "Hello.", "rejected": "No."},
        "prompt → chosen + rejected",
        HI,
        [("Hello.", 1.0), ("No.", 0.0)],
        {},
    ),
    "whole conversations with scores": (
        {
            "chosen": [USER, ANSWER],
            "rejected": [USER, {**ANSWER, "content": "No."}],
            "score_chosen": 8,
            "score_rejected": 2.5,
        },
        "chosen + score_chosen + rejected + score_rejected",
        HI,
        [("Hello.", 8.0), ("No.", 2.5)],
        {},
    ),
    "a conversation with chosen and rejected turns": (
        {"conversations": [FROM], "chosen": TO, "rejected": {"from": "gpt", "value": "No."}},
        "conversations → chosen + rejected",
        HI,
        [("Hello.", 1.0), ("No.", 0.0)],
        {},
    ),
    "a list with scores": (
        {"prompt": "Hi?", "responses": ["No.", "Hello."], "scores": [0.5, 2]},
        "prompt → responses + scores",
        HI,
        [("Hello.", 2.0), ("No.", 0.5)],
        {},
    ),
    "a list with ranks": (
        {"prompt": "Hi?", "responses": ["No.", "Hello."], "ranks": [2, 1]},
        "prompt → responses + ranks",
        HI,
        [("Hello.", -1.0), ("No.", -2.0)],
        {},
    ),
    "a list that bears its scores": (
        {
            "instruction": "Hi?",
            "completions": [{"response": "No.", "overall_score": 1}, {"response": "Hello.", "overall_score": 9}],
        },
        "instruction → completions",
        HI,
        [("Hello.", 9.0), ("No.", 1.0)],
        {},
    ),
    "a verdict": (
        {"prompt": "Hi?", "completion": "Hello.", "label": True},
        "prompt → completion + label",
        HI,
        [("Hello.", 1.0)],
        {},
    ),
    "choices by number": (
        {"question": "Sky?", "choices": ["red", "blue"], "answer": 1},
        "question → choices + answer",
        (LETTERED,),
        [("blue", None)],
        BLUE,
    ),
    "choices by letter": (
        {"question": "Sky?", "choices": {"label": ["A", "B"], "text": ["red", "blue"]}, "answerKey": "B"},
        "question → choices + answerKey",
        (LETTERED,),
        [("blue", None)],
        BLUE,
    ),
    "choices by text, in a prompt of its own": (
        {"prompt": "Hi?", "options": {"A": "red", "B": "blue"}, "answer": "blue"},
        "prompt → options + answer",
        HI,
        [("blue", None)],
        BLUE,
    ),
    "a prompt alone": ({"prompt": "Hi?", "source": "web"}, "prompt", HI, [], {"source": "web"}),
    "a null beside it": (
        {"prompt": "Hi?", "input": None, "response": "Hello."},
        "prompt → response",
        HI,
        [("Hello.", None)],
        {},
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_of_each_shape(shape):
    row, form, prompt, responses, meta = SHAPES[shape]
    found = recognised(row)
    assert (found.form, found.prompt, found.meta) == (form, tuple(prompt), meta)
    assert found.responses == tuple(Response(text, score=score) for text, score in responses)


WRONG = [
    ({}, "fits no known shape: its columns are none; map its columns"),
    ({"a": 1, "b": None}, "its columns are a, b, of which b is null; map its columns"),
    ({"text": "Once."}, "is plain text, without a prompt and a response; give it a prompt"),
    ({"prompt": "  ", "response": "a"}, "has an empty text as its prompt; fill it in, or leave the row out"),
    ({"prompt": "a", "response": {"b": 1}}, 'has {"b": 1}, which is no text as its response'),
    ({"prompt": "a", "response": True}, "has true, which is no text as its response"),
    ({"prompt": "a", "response": ""}, "has an empty text as its response"),
    ({"prompt": "a", "response": float("nan")}, "has NaN, which is no text as its response"),
    ({"prompt": {"b": 1}, "response": "a"}, 'has {"b": 1}, which is no text as its prompt'),
    ({"prompt": "a" * 10_000_001, "response": "a"}, "has 10000001 characters as its prompt; cut it below 10000000"),
    ({"messages": []}, "has no messages in messages; write some"),
    ({"messages": [{"content": "a"}]}, "has a message without a role (messages[0])"),
    ({"messages": [{"role": "user", "content": None}]}, "has null as messages[0].content"),
    ({"messages": [ANSWER]}, "has an answer without a question before it"),
    ({"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{a"}}]}]}, "has a call of f whose arguments are no JSON ({a)"),
    ({"messages": [USER], "tools": "[{"}, "has tools that are no JSON"),
    ({"conversations": [{"from": "alien", "value": "a"}]}, "has a turn from 'alien' (conversations[0]); write one of human"),
    ({"conversations": [{"from": "human"}]}, "has null as conversations[0].value"),
    ({"prompt": "a", "chosen": "b", "rejected": ["c", 1], "score_chosen": 1}, "has no score_rejected beside score_chosen"),
    ({"chosen": "b", "rejected": "c"}, "fits no known shape: its columns are chosen, rejected"),
    ({"prompt": "a", "responses": ["b", "c"], "scores": [1]}, "has 2 responses and 1 scores; give each response its score"),
    ({"prompt": "a", "responses": ["b"], "scores": ["x"]}, "has scores[0]='x', which is no number"),
    ({"prompt": "a", "responses": ["b"], "scores": [float("inf")]}, "has scores[0]=inf; give a finite number"),
    ({"prompt": "a", "responses": []}, "has no list in responses, or an empty one"),
    ({"question": "a", "choices": ["b", "c"], "answer": 2}, "has answer=2, which is none of its 2 choices"),
    ({"question": "a", "choices": [], "answer": 0}, "has no list in choices, or an empty one"),
    ({"question": "a", "answers": {"text": []}}, "has no list in answers, or an empty one"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "sentence"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_row_is_one_sentence(row, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)) as raised:
        recognised(row)
    assert "\n" not in str(raised.value)
