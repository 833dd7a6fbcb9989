"""Tiny experiments to be diagnosed, and their diagnoses."""

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from kd.data.sequences import Encoder
from kd.doctor.__main__ import diagnose
from kd.doctor.subject import composed
from kd.experiment import checks
from kd.experiment.checks import Subject
from kd.models.language_model import LanguageModel
from tests.tiny import tiny

TINY = ["teacher=tiny", "student=tiny", "teacher.prepare=null", "optim.window=5", "data.max_tokens=128"]
END, PAD = 257, 256


@contextmanager
def toy(*overrides: str, **nodes: Mapping[str, Any]) -> Iterator[DictConfig]:
    """A tiny experiment on toy records; `nodes` replace whole sections. Files of conf/ can be composed inside."""
    nodes = {"skill": {"_target_": "tests.runs.Toy"}, **nodes}
    with composed([*TINY, *overrides]) as cfg:
        with open_dict(cfg):
            for name, node in nodes.items():
                cfg[name] = OmegaConf.create(node)
        yield cfg


def diagnosis(cfg: DictConfig, shown: int = 0) -> tuple[int, str]:
    """Exit code and output of a diagnosis."""
    console = Console(width=300, record=True, file=io.StringIO())
    code = diagnose(cfg, console, shown, measure=False)
    return code, console.export_text()


def line(text: str, check: str) -> str:
    """The finding of one check."""
    [found] = [row for row in text.splitlines() if re.match(rf"(PASS|WARN|FAIL)  {re.escape(check)}  ", row)]
    return found.rstrip()


def model(template: str | None = None, **tokens: str) -> LanguageModel:
    """A byte model whose tokenizer has another template, or other special tokens; named in configs below."""
    made = tiny(dtype="float32")
    if template is not None:
        made.tokenizer.chat_template = template
    for name, token in tokens.items():
        setattr(made.tokenizer, name, token)
    return made


def node(role: str, **changes: str) -> dict[str, Any]:
    """The config section of a student or teacher made by `model`."""
    made = {"_target_": "tests.doctor.subjects.model", **changes}
    if role == "student":
        return {"model": made, "prepare": None}
    return {"_target_": "kd.teachers.white_box.WhiteBox", "model": made, "prepare": None, "licence": "CC0-1.0"}


def altered(subject: Subject, *settings: str) -> Subject:
    """The same parts under another config."""
    cfg = subject.cfg.copy()
    for setting in settings:
        key, _, value = setting.partition("=")
        OmegaConf.update(cfg, key, yaml.safe_load(value))
    return replace(subject, cfg=cfg)


def reader(tokenizer: Any, max_length: int = 99, made: LanguageModel | None = None) -> checks.Reader:
    encoder = Encoder(tokenizer, None, max_length=max_length, max_tokens=999)
    return checks.Reader("student", made or tiny(), encoder)
