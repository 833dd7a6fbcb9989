import copy

import pytest
import torch

from kd.data.chat_template import encode_prompt
from kd.data.sequences import Encoder
from kd.models.language_model import LanguageModel
from kd.models.networks import scratch
from kd.types import Record, Response, Skill


def tiny(seed: int, **fields) -> LanguageModel:
    """A Llama of two layers over bytes, in float64, random but far from uniform."""
    torch.manual_seed(seed)
    architecture = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        **fields,
    }
    return scratch(architecture=architecture, dtype="float64")


def record(name: str, question: str, answer: str, **meta) -> Record:
    return Record(
        id=name, skill="toy", prompt=({"role": "user", "content": question},), responses=(Response(answer),), meta=meta
    )


def silenced(model: LanguageModel) -> LanguageModel:
    """The same model, but a forward pass through it is an error."""

    def refuse(*_, **__):
        raise AssertionError("forward was called")

    copied = copy.deepcopy(model)
    copied.network.model.forward = refuse
    return copied


RECORDS = [
    record("short", "1+1?", "2"),
    record("long", "Name the days at the weekend, please.", "Saturday and Sunday"),
    record("accents", "naïve?", "Zoë, 日本, 3 €"),
    record("empty", "Say nothing.", ""),
]


def greedy(model: LanguageModel, ids: list[int], limit: int) -> list[int]:
    """Greedy decoding as one would explain it."""
    start = len(ids)
    while len(ids) < start + limit and (len(ids) == start or ids[-1] != model.tokenizer.eos_token_id):
        with torch.no_grad():
            ids = [*ids, int(model.network(torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[start:]


class TenIntegers(Skill):
    """Ten prompts. What `model` answers is right for the numbers in `right` and wrong for the others."""

    name, metric, licence, group_key = "ten", "accuracy", "none", "parity"

    def __init__(self, model: LanguageModel, limit: int, right: tuple[int, ...]):
        self.model, self.limit, self.right = model, limit, right

    def load(self, split: str) -> list[Record]:
        return [self._record(number) for number in range(10)]

    def score(self, record: Record, text: str) -> float:
        return float(text == record.meta["expected"])

    def _record(self, number: int) -> Record:
        prompt = (
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"What is the number {number}?"},
        )
        written = greedy(self.model, encode_prompt(prompt, self.model.tokenizer), self.limit)
        text = self.model.tokenizer.decode(written, skip_special_tokens=True)
        expected = text if number in self.right else text + "?"
        return Record(f"ten/{number}", "ten", prompt, (Response(str(number)),), meta={"expected": expected})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache for every test."""
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "evaluation"


@pytest.fixture(scope="session")
def student() -> LanguageModel:
    return tiny(0)


@pytest.fixture(scope="session")
def teacher() -> LanguageModel:
    return tiny(1, hidden_size=48)


@pytest.fixture
def encoder(student) -> Encoder:
    return Encoder(student.tokenizer, None, max_length=200, max_tokens=100)
