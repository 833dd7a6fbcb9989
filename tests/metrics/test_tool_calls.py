"""Calls of tools: forms in which models write them, and what BFCL's ground truth accepts."""

import pytest

from kd.metrics.tool_calls import Call, ast_match, parsed_calls

WEATHER = Call("weather.get", {"city": "Paris", "days": 2})


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "weather.get", "arguments": {"city": "Paris", "days": 2}}',
        '[{"name": "weather.get", "parameters": {"city": "Paris", "days": 2}}]',
        '{"function": {"name": "weather.get", "arguments": "{\\"city\\": \\"Paris\\", \\"days\\": 2}"}}',
        'I call it.\n<tool_call>\n{"name": "weather.get", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>',
        'so:\n```json\n{"name": "weather.get", "arguments": {"city": "Paris", "days": 2}}\n```',
        "[weather.get(city='Paris', days=2)]",
        "weather.get(city='Paris', days=2)",
    ],
)
def test_forms_of_a_call(text):
    assert parsed_calls(text) == [WEATHER]


@pytest.mark.parametrize("text", ["", "It is sunny.", "f(", "f(1)", "[" * 20000, "f(a=__import__('os'))", "巴黎", "3"])
def test_no_call(text):
    assert parsed_calls(text) == []


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("weather.get(city='Paris', days=2)", 1),
        ("weather.get(city='PARIS')", 1),  # days may be absent, case does not count
        ("weather.get(city='Lyon')", 0),
        ("weather.get(days=2)", 0),  # city may not
        ("weather.get(city='Paris', mood=1)", 0),
        ("weather.set(city='Paris')", 0),
        ("[weather.get(city='Paris'), weather.get(city='Paris')]", 0),  # once
        ("weather.get(city='Paris', days=True)", 0),  # True is not 1
        ("", 0),
    ],
)
def test_what_the_ground_truth_accepts(text, right):
    truth = [{"weather.get": {"city": ["Paris", "Paris, FR"], "days": ["", 1, 2]}}]
    assert ast_match(text, [], {"ground_truth": truth}) == right


def test_parallel_calls_in_any_order_and_none_at_all():
    truth = [{"f": {"a": [1]}}, {"f": {"a": [2]}}]
    assert ast_match("[f(a=2), f(a=1)]", [], {"ground_truth": truth}) == 1
    assert ast_match("No tool fits.", [], {"ground_truth": []}) == 1
    assert ast_match("f(a=1)", [], {"ground_truth": []}) == 0
    nested = [{"f": {"q": [{"city": ["Paris"], "near": ["", "yes"]}]}}]
    assert ast_match("f(q={'city': 'paris'})", [], {"ground_truth": nested}) == 1


def test_the_reference_where_there_is_no_ground_truth():
    assert ast_match("f(a=[1, 2])", ['{"name": "f", "arguments": {"a": [1, 2]}}'], {}) == 1
    assert ast_match("f(a=[2, 1])", ['{"name": "f", "arguments": {"a": [1, 2]}}'], {}) == 0
