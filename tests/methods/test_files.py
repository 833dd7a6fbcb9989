"""Every file of conf/method: it says whose it is, runs, and tells what it lacks.

Run: python -m pytest tests/methods/test_files.py
"""

import re
from collections.abc import Iterator

import pytest
import yaml
from omegaconf import OmegaConf

from kd.components.axes import sections
from kd.components.choices import CONF, axes, choices
from kd.composition.check import check
from kd.experiment.build import build
from kd.pages.methods import PAGE, comment, omissions, page, settings, sources_read
from tests import runs
from tests.alignment.tokenizers import byte_level
from tests.methods.points import point

NAMES = choices("method")
EXPECTED = {
    *("sft", "seqkd", "kd", "imitkd", "gkd", "minillm", "distillm", "distillm2", "fdistill", "abkd", "akl", "taid"),
    *("dskd", "uld", "gold", "skd", "opd", "kdrl", "spin", "babyllama", "minilm", "tinybert", "pkd", "sdft", "gad"),
    *("iw_opd", "eopd", "opsd", "sdpo", "mopd", "dn_mopd", "distillspec", "soda"),
    *("trd", "trd_self", "tool_opd"),
}


def test_they_are_all_there():
    assert set(NAMES) >= EXPECTED


@pytest.mark.parametrize("name", NAMES)
def test_every_method_names_its_authors_and_its_difference(name):
    first, *others = comment(name)
    assert re.search(r"arXiv \d{4}\.\d{4,5}|et al\., .*, 20\d\d\.$", first)
    assert all(block[0].isupper() and len(block) > 20 for block in (first, *others)), "a block broke in its middle"
    assert any(block.startswith("Beside ") for block in others), "say what distinguishes it from its nearest neighbour"
    theirs = [block for block in others if block.startswith("Theirs: ")]
    assert all(re.search(r"\[(code|read|unconfirmed)\]", block) for block in theirs), "say how a number was found"
    assert theirs


@pytest.mark.parametrize("name", NAMES)
def test_every_method_states_which_code_was_read(name):
    """A commit and files of it, or that there is none, and then no number of it is said to be from code."""
    [read] = [block for block in comment(name) if block.startswith("Read: ")]
    if found := sources_read(name):
        assert re.search(r"\w\.(py|sh|md|yaml)\b|/\w+", read.rpartition(found[-1].commit)[2]), "name the files"
    else:
        assert "no code of the authors' is public" in read
        assert not any("[code]" in block for block in comment(name))


PLACE = re.compile(r"\w\.(py|sh|md|yaml)\b|\b(eqs?|section|table|algorithm)\.? \d|\[(read|unconfirmed)\]|\bours\b")


def numbers_of(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
    """Every number of a yaml file, however deep."""
    if isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            yield from numbers_of(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from numbers_of(value)
    elif re.fullmatch(r"[-+]?\d[\d_]*\.?\d*(e[-+]?\d+)?", node.value):
        yield node


@pytest.mark.parametrize("name", NAMES)
def test_every_number_names_the_place_that_it_comes_from(name):
    text = (CONF / "method" / f"{name}.yaml").read_text(encoding="utf-8")
    lines = text.splitlines()
    for number in numbers_of(yaml.compose(text)):
        line = lines[number.start_mark.line]
        assert PLACE.search(line.partition("#")[2]), f"{line.strip()}: file, section or equation, or ours"


def test_numbers_are_found_wherever_they_stand():
    found = numbers_of(yaml.compose("a: {b: [1, 5e-3], c: -2.0, d: true, e: null, f: k2}\ng: 1_000"))
    assert [number.value for number in found] == ["1", "5e-3", "-2.0", "1_000"]


@pytest.mark.parametrize("name", NAMES)
def test_every_method_is_choices_of_axes_and_values(name):
    content = OmegaConf.to_container(OmegaConf.load(CONF / "method" / f"{name}.yaml"), resolve=False)
    chosen = axes("method", name, CONF)
    assert len(chosen) == len(content["defaults"])  # nothing but `override /axis: choice`
    assert set(chosen) <= set(sections())
    assert {"objective", "rollout"} <= chosen.keys()
    for axis, files in chosen.items():
        assert set(files) <= set(choices(axis))
    assert isinstance(content["omits"], list)
    assert all(isinstance(sentence, str) and not sentence.endswith(".") for sentence in content["omits"])
    assert not {path.partition(".")[0] for path in settings(name)} & {"run", "seed", "name", "optim", "evaluation"}


@pytest.mark.parametrize("name", NAMES)
def test_every_method_runs_on_the_tiny_pair(name):
    cfg = point(name)
    check(cfg)
    assert list(cfg.omits) == omissions(name)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    byte_level(end="<|end|>").save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return str(folder)


@pytest.mark.parametrize(
    "choices", [["method=uld"], ["method=gold", "alignment=spans"], ["method=dskd", "alignment=spans"]]
)
def test_methods_of_two_tokenizers(choices, vocabulary):
    cfg = runs.config(f"teacher.model.tokenizer={{address: local:{vocabulary}}}", "compare=null", *choices)
    check(cfg)
    assert build(cfg).encoder.teacher is not None


def test_the_page_is_what_the_files_say():
    assert PAGE.read_text(encoding="utf-8") == page(), "run make docs"


def test_the_page_has_a_row_and_a_section_for_each():
    text = page()
    for name in NAMES:
        assert re.search(rf"\| \[{name}\]\(#{name}\) \| (\[arXiv |[A-Z]\w+ et al\.)", text)
        assert f"\n## {name}\n" in text
        assert all(sentence in text.replace("\\|", "|") or "arXiv" in sentence for sentence in omissions(name))
