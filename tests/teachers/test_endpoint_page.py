"""The commands of docs/endpoint.md run, with a server and with the files that they name.

Run: python -m pytest tests/teachers/test_endpoint_page.py
"""

import json
import math
import re
import shlex
from pathlib import Path

import pytest

from kd.components.choices import content
from kd.models.tokenizers import byte_tokenizer
from kd.skills.records import load, skill_of
from tests.teachers.servers import Body, Scripted, plain, serving
from tests.test_readme import ROOT, run

PAGE = (ROOT / "docs" / "endpoint.md").read_text(encoding="utf-8")
COMMANDS = re.findall(
    r"^python .*$", "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)), flags=re.MULTILINE
)
SMALL = ["skill=spell_backward", "skill.train=8", "skill.validation=4", "skill.test=4", "student=tiny", "trainer=cpu"]
SHORT = ["optim.steps=1", "optim.window=2", "checkpoint.records=2", "compare=null", "evaluation=none"]


def with_logprobs(body: Body) -> Body:
    """The reply, byte by byte with one rival each where log-probabilities are requested."""
    found = plain(body)
    for choice in found["choices"] if body.get("logprobs") else ():
        tokens = [*choice["message"]["content"].encode()]
        rival = [{"token": "~", "logprob": math.log(0.2)}]
        choice["logprobs"] = {
            "content": [
                {
                    "token": chr(t),
                    "bytes": [t],
                    "logprob": math.log(0.7),
                    "top_logprobs": [*rival, {"token": chr(t), "bytes": [t], "logprob": math.log(0.7)}],
                }
                for t in tokens
            ]
        }
    return found


def files(folder: Path) -> None:
    """The files that the page names, for the training records of `SMALL`."""
    words = byte_tokenizer()
    with (folder / "targets.jsonl").open("w") as targets, (folder / "responses.jsonl").open("w") as responses:
        node = {**content("skill", "spell_backward"), "train": 8, "validation": 4, "test": 4}
        for record in load(skill_of(node), "train"):
            text = record.responses[0].text
            ids = words(text, add_special_tokens=False)["input_ids"]
            line = {"id": record.id, "ids": [[i, 255 - i] for i in ids], "tokens": ids}
            line |= {"logprobs": [[math.log(0.8), math.log(0.1)]] * len(ids), "mass": [0.9] * len(ids)}
            targets.write(json.dumps(line) + "\n")
            responses.write(json.dumps({"id": record.id, "response": text.upper()}) + "\n")


def shortened(command: str, folder: Path) -> list[str]:
    small = [word for word in SMALL if f" {word.partition('=')[0]}=" not in command]
    if "teacher=several" in command:
        small += [f"teacher.members.{name}.prepare=null" for name in ("first", "second")]
    if "augmentation=labeling" in command:
        small += ["augmentation.stages.labeling.max_new_tokens=8"]
    if "rollout=teacher" in command:
        small += ["rollout.max_new_tokens=8"]
    if "teacher=tiny" in command:
        small += ["teacher.prepare=null"]
    return [*small, *([*SHORT, f"run.root={folder / 'outputs'}"] if "run.py" in command else SHORT)]


@pytest.mark.long
@pytest.mark.parametrize("command", [one for one in COMMANDS if "cached=true" not in one])
def test_a_command_of_the_page_runs(command, tmp_path):
    files(tmp_path)
    commands = [command, *(one for one in COMMANDS if "kd.cache" in command and "cached=true" in one)]
    with serving(Scripted(reply=with_logprobs)) as server:
        for one in commands:
            words = one.replace("http://localhost:8000/v1", server.url).replace(
                "run.py", shlex.quote(str(ROOT / "run.py"))
            )
            environment = {"KD_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
            done = run(words, shortened(one, tmp_path), environment, where=tmp_path)
            assert done.returncode == 0, done.stderr[-3000:]


def test_the_page_has_a_command_of_each_kind():
    kinds = {
        "teacher=endpoint",
        "teacher=imported",
        "teacher=several",
        "augmentation=imported",
        "kd.elicit",
        "kd.cache",
    }
    assert {kind for kind in kinds if any(kind in command for command in COMMANDS)} == kinds
