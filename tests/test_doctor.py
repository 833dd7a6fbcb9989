"""`python -m kd.doctor` on byte models: that it passes what is right, and tells what is wrong."""

import copy
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from kd.composition.choices import CONF
from kd.doctor import checks, memory, shift, tokens
from kd.doctor.__main__ import diagnose, main
from kd.doctor.findings import Finding, worst
from kd.doctor.measure import ResidentPeak, resident
from kd.doctor.subject import Subject, admit, composed, from_cache, without_teachers_text
from kd.export import export
from kd.models.language_model import LanguageModel
from kd.models.tokenizers import byte_tokenizer
from kd.module import Term
from kd.objectives.divergence import cross_entropy
from kd.preparation import _recipe, identity
from kd.rollouts.on_policy import OnPolicy
from kd.sequences import Encoded, Encoder, collate
from kd.types import Batch
from tests.tiny import record, records, tiny

ROOT = Path(__file__).parents[1]
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


def told(cfg: DictConfig, shown: int = 0) -> tuple[int, str]:
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
    made = {"_target_": "tests.test_doctor.model", **changes}
    if role == "student":
        return {"model": made, "prepare": None}
    return {"_target_": "kd.models.teacher.WhiteBox", "model": made, "prepare": None, "licence": "CC0-1.0"}


@pytest.fixture(scope="module")
def subject() -> Subject:
    with toy("+student.model.architecture.initializer_range=0.3") as cfg:
        return admit(cfg)


def altered(subject: Subject, *settings: str) -> Subject:
    """The same parts under another config."""
    cfg = subject.cfg.copy()
    for setting in settings:
        key, _, value = setting.partition("=")
        OmegaConf.update(cfg, key, yaml.safe_load(value))
    return replace(subject, cfg=cfg)


# --- what is right passes ---


def test_the_command_line_passes_tiny_models(capsys):
    code = main(["-n", "1", *TINY, "skill=spell_backward", "skill.train=100"])
    out = capsys.readouterr().out
    verdicts = re.findall(r"^(PASS|WARN|FAIL)  ", out, re.MULTILINE)
    assert (code, set(verdicts)) == (0, {"PASS"}), out
    assert len(verdicts) >= 12
    assert out.count("predicted at") == 1  # one table, as both read the same tokens


@pytest.mark.parametrize("name", ["fkl", "rkl", "jsd", "skew_fkl", "skew_rkl", "tvd"])
def test_every_divergence_passes_its_self_test(name, subject, monkeypatch):
    shared = OmegaConf.create({"temperature": 1.0, "temperature_squared": False})
    shared.objective = OmegaConf.load(CONF / "objective" / f"{name}.yaml")
    terms = {term: Term(**instantiate(node, _convert_="all")) for term, node in shared.objective.items()}
    monkeypatch.setattr(subject.parts.module, "objective", terms)
    finding = shift.shift_self_test(subject.parts, subject.parts.data.train[:2])
    assert finding.verdict == "PASS", finding
    assert finding.told.startswith(f"{name} is")


# --- the table of tokens ---


def cells(table: Any, column: str) -> list[str]:
    [found] = [c for c in table.columns if c.header == column]
    return [str(cell) for cell in found.cells]


def test_the_table_says_where_each_token_is_learnt():
    """<|user|> h i <|end|> <|assistant|> | o k <|end|>: the response is ids 5, 6, 7, predicted at 4, 5, 6."""
    tokenizer = byte_tokenizer()
    encoder = Encoder(tokenizer, None, max_length=99, max_tokens=999)
    [table] = tokens.record_tables(encoder, record(0, "hi", "ok"))
    h, i, o, k = (tokenizer.convert_tokens_to_ids(c) for c in "hiok")
    assert cells(table, "position") == list("01234567")
    assert cells(table, "id") == list(map(str, [259, h, i, END, 260, o, k, END]))
    assert cells(table, "label") == [*map(str, [h, i, END, 260, o, k, END]), ""]
    assert cells(table, "in loss") == ["", "", "", "", "✓", "✓", "✓", ""]
    assert cells(table, "predicted at") == ["", "", "", "", "", "4", "5", "6"]
    assert cells(table, "text")[-3:] == ["'o'", "'k'", "'<|end|>'"]
    assert [row.style for row in table.rows] == [None] * 5 + ["green"] * 3
    assert table.caption is None


def test_each_response_and_each_tokenizer_has_its_table():
    words = byte_tokenizer()
    words.chat_template = "{% for message in messages %}{{ message['content'] }}<|end|>{% endfor %}"
    encoder = Encoder(byte_tokenizer(), words, max_length=99, max_tokens=999)
    tables = list(tokens.record_tables(encoder, record(0, "hi", "a", "b")))
    assert [len(table.rows) for table in tables] == [7, 7, 5, 5]  # the teacher's are without <|user|>, <|assistant|>


def test_a_cut_response_and_a_record_that_is_left_out_are_flagged():
    encoder = Encoder(byte_tokenizer(), None, max_length=7, max_tokens=999)
    [cut] = tokens.record_tables(encoder, record(0, "hi", "okay"))
    assert "cut at data.max_length" in str(cut.caption)
    [dropped] = tokens.record_tables(encoder, record(1, "hi there"))
    assert "1 is left out: its prompt alone fills data.max_length=7" in str(dropped)


def test_text_is_visible():
    tokenizer = byte_tokenizer()
    newline, quote, first = tokenizer("\n'é", add_special_tokens=False)["input_ids"][:3]
    assert tokens.visible(newline, tokenizer) == r"'\n'"
    assert tokens.visible(quote, tokenizer) == '''"'"'''
    assert tokens.visible(first, tokenizer) == "<Ã>"  # half a character: the vocabulary's spelling of byte 0xc3
    assert tokens.visible(END, tokenizer) == "'<|end|>'"


# --- templates and end tokens ---

SPEAK = "{% for message in messages %}<|{{ message['role'] }}|>"
DROPS_END = SPEAK + "{{ message['content'] }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"


def reader(tokenizer: Any, max_length: int = 99, made: LanguageModel | None = None) -> checks.Reader:
    encoder = Encoder(tokenizer, None, max_length=max_length, max_tokens=999)
    return checks.Reader("student", made or tiny(), encoder)


def with_template(template: str | None) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_a_template_that_drops_the_end_token_fails():
    finding = checks.round_trip(reader(with_template(DROPS_END)), [record(0, "hi", "ok")])
    assert finding.verdict == "FAIL"
    assert finding.told.startswith("1 of 1 conversations differ: at position 6 ")  # <|user|> h i <|assistant|> o k
    assert finding.told.endswith("training reads 257 '<|end|>', the template writes nothing more")
    with toy(student=node("student", template=DROPS_END), teacher=node("teacher")) as cfg:
        code, text = told(cfg)
    assert code == 1
    assert line(text, "chat template (student)").startswith("FAIL")
    assert line(text, "chat template (teacher)").startswith("PASS")


def test_a_template_that_ends_with_another_token_than_the_tokenizer_fails():
    """As of a Base checkpoint: the template of its Instruct sibling, and an end token of its own."""
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = "<|pad|>"
    finding = checks.round_trip(reader(tokenizer), [record(0, "hi", "ok")])
    assert finding.verdict == "FAIL"
    assert "at position 7 training reads 256 '<|pad|>', the template writes 257 '<|end|>'" in finding.told


def test_a_template_that_changes_the_response_fails_where_it_does():
    trims = byte_tokenizer().chat_template.replace("message['content']", "message['content'] | trim")
    asked = [record(0, "hi", "ok"), record(1, "hi", " ok")]
    finding = checks.round_trip(reader(with_template(trims)), asked)
    assert finding.verdict == "FAIL"
    assert finding.told.startswith("1 of 2 conversations differ: at position 5 training reads 220 'Ġ'")


def test_what_follows_the_end_token_is_no_matter():
    more = byte_tokenizer().chat_template.replace("<|end|>", "<|end|>\n")
    assert checks.round_trip(reader(with_template(more)), [record(0, "hi", "ok")]).verdict == "PASS"


def test_without_a_template_there_is_nothing_to_compare():
    assert checks.round_trip(reader(with_template(None)), [record(0)]).verdict == "PASS"


def test_a_teacher_with_another_end_token_fails():
    with toy(student=node("student"), teacher=node("teacher", eos_token="<|pad|>")) as cfg:
        code, text = told(cfg)
    assert code == 1
    found = line(text, "end token")
    assert found.startswith("FAIL")
    assert "student 257 '<|end|>', teacher 256 '<|pad|>'" in found
    assert line(text, "rows").startswith("FAIL")  # the last label of each response is another
    assert re.search(r"eos +257 '<\|end\|>' +256 '<\|pad\|>'", text)


def test_another_end_token_is_a_warning_where_only_text_is_read():
    one, other = model(), model(eos_token="<|pad|>")
    assert checks.end_tokens(one, other, compared=True).verdict == "FAIL"
    assert checks.end_tokens(one, other, compared=False).verdict == "WARN"


def test_a_tokenizer_without_end_token_stops_the_examination():
    nobody = model()
    nobody.tokenizer.eos_token = None
    assert checks.end_tokens(nobody, None, compared=False).verdict == "FAIL"
    with toy(student=node("student", eos_token=None), teacher=node("teacher")) as cfg:  # type: ignore[arg-type]
        code, text = told(cfg, shown=1)
    assert code == 1
    assert "the student's tokenizer has none" in line(text, "end token")


def test_generation_settings_that_end_otherwise_are_a_warning():
    one = model()
    one.network.generation_config.eos_token_id = [1, 2]
    finding = checks.end_tokens(one, model(), compared=True)
    assert finding.verdict == "WARN"
    assert "the student's generation settings end with [1, 2]" in finding.told
    one.network.generation_config.eos_token_id = [1, END]
    assert checks.end_tokens(one, model(), compared=True).verdict == "PASS"


# --- sequences ---


def encoded(*shapes: tuple[int, int]) -> list[Encoded]:
    return [Encoded((*range(length - 1), END), prompt) for length, prompt in shapes]


def test_an_end_token_outside_the_loss_fails():
    sequences = collate(encoded((6, 3), (4, 2)), pad=PAD)
    found = reader(byte_tokenizer())
    finding = checks.end_token_learnt(found, [sequences])
    assert finding.verdict == "PASS"
    assert finding.told.startswith("in 2 of 2 whole responses")
    mask = sequences.mask.clone()
    mask[1, 2] = False  # of the shorter row's last label
    finding = checks.end_token_learnt(found, [replace(sequences, mask=mask)])
    assert finding.verdict == "FAIL"
    assert finding.told.startswith("in 1 of 2 whole responses")


def test_an_end_token_that_also_pads_is_no_matter():
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    finding = checks.end_token_learnt(reader(tokenizer), [collate(encoded((6, 3), (4, 2)), pad=END)])
    assert finding.verdict == "PASS"
    assert "it also pads" in finding.told


def test_labels_that_are_not_shifted_fail():
    sequences = collate(encoded((6, 3), (4, 2)), pad=PAD)
    assert checks.shift([sequences]).verdict == "PASS"
    assert checks.shift([replace(sequences, labels=sequences.tokens)]).verdict == "FAIL"
    one = sequences.labels.clone()
    one[0, 3] = 99  # the last label that a token follows; the label of the last position follows nothing
    assert checks.shift([replace(sequences, labels=one)]).verdict == "FAIL"
    twice = torch.cat([sequences.labels[:, 1:], sequences.labels[:, :1]], dim=1)
    assert checks.shift([replace(sequences, labels=twice)]).verdict == "FAIL"


def test_padding_is_counted():
    """Rows of 5, 3 and 3 positions, 5 wide: 11 of 15 are real, 4/15 = 26.7 % are not."""
    sequences = collate(encoded((6, 3), (4, 2), (4, 2)), pad=PAD)
    finding = checks.padding([Batch(sequences, sequences)])
    assert finding.verdict == "WARN"
    assert finding.told.startswith("26.7% of 15 positions")
    even = collate(encoded((6, 3), (6, 2)), pad=PAD)
    assert checks.padding([Batch(even, even)]).verdict == "PASS"


def test_a_length_that_cuts_is_told_with_the_one_that_does_not():
    with toy("data.max_length=45") as cfg:
        code, text = told(cfg)
    found = line(text, "lengths (student)")
    assert code == 0
    shares = re.search(r"of 24 records data.max_length=45 cuts ([\d.]+)% and leaves out ([\d.]+)%", found)
    assert found.startswith("WARN")
    assert shares is not None
    assert float(shares[1]) > 0
    remedy = re.search(r"data.max_length=(\d+) keeps all", found)
    assert remedy is not None
    longest = int(remedy[1])
    assert checks.lengths(reader(byte_tokenizer(), longest), records(24)).verdict == "PASS"
    assert checks.lengths(reader(byte_tokenizer(), longest - 1), records(24)).verdict == "WARN"


def test_a_length_that_nothing_fits_fails_and_stops_there():
    with toy("data.max_length=3") as cfg:
        code, text = told(cfg, shown=1)
    assert code == 1
    assert line(text, "lengths (student)").startswith("FAIL  lengths (student)")
    assert "cuts 0.0% and leaves out 100.0%" in text
    assert "self-test" not in text


# --- vocabularies ---


def test_an_id_without_a_row_fails_before_a_model_reads_it():
    with toy("+student.model.architecture.vocab_size=258", "alignment=none", "objective=sft") as cfg:
        code, text = told(cfg)
    assert code == 1
    found = line(text, "vocabulary (student)")
    assert found.startswith("FAIL")
    assert "id 260, but there are 258 embeddings" in found
    assert "self-test" not in text


def test_rows_of_a_padded_head_are_counted():
    with toy("+student.model.architecture.vocab_size=320") as cfg:
        code, text = told(cfg)
    assert code == 0
    assert "261 of 320 head rows belong to tokens, 59 of padding are cut" in line(text, "vocabulary (student)")


def test_ids_beyond_the_head_that_no_record_holds_are_a_warning():
    made = model()
    made.tokenizer.add_tokens(["<new>"])
    sequences = collate(encoded((6, 3)), pad=PAD)
    finding = checks.vocabulary(reader(made.tokenizer, made=made), [sequences])
    assert finding.verdict == "WARN"
    assert "reach 261, the head has 261 rows" in finding.told


def other_ids() -> LanguageModel:
    """A byte model to which `a` is what `b` is to others."""
    made = tiny(dtype="float32")
    known = json.loads(made.tokenizer.backend_tokenizer.to_str())
    words = known["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    made.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(known)),
        eos_token=made.tokenizer.eos_token,
        chat_template=made.tokenizer.chat_template,
    )
    return made


def test_two_tokenizers_under_alignment_same_fail_and_are_examined_all_the_same():
    teacher = {**node("teacher"), "model": {"_target_": "tests.test_doctor.other_ids"}}
    with toy(student=node("student"), teacher=teacher) as cfg:
        code, text = told(cfg, shown=1)
    assert code == 1
    assert line(text, "alignment").startswith("FAIL")
    assert "disagree on 'a'" in line(text, "alignment") or "disagree on 'b'" in line(text, "alignment")
    assert text.count("predicted at") == 2
    assert line(text, "rows").startswith("FAIL")
    assert line(text, "self-test").startswith("PASS")


def test_sequences_beyond_the_models_positions_fail():
    with toy("student.model.architecture.max_position_embeddings=32") as cfg:
        code, text = told(cfg)
    assert code == 1
    assert line(text, "positions (student)").startswith("FAIL")
    assert line(text, "positions (student)").endswith("set data.max_length=32")
    assert line(text, "positions (teacher)").startswith("PASS")


@pytest.mark.parametrize(("licence", "verdict"), [("Apache-2.0", "PASS"), (None, "WARN"), ("CC BY-NC 4.0", "WARN")])
def test_licences_are_told(licence, verdict, subject):
    finding = checks.licences(altered(subject, f"teacher.licence={licence or 'null'}"))
    assert finding.verdict == verdict
    assert finding.told == f"skill CC0-1.0, teacher {licence or 'unknown'}"


# --- the self-test can fail ---


def test_a_loss_that_is_not_zero_at_equality_fails(subject, monkeypatch):
    monkeypatch.setattr(subject.parts.module, "objective", {"sft": Term(cross_entropy, kind="divergence")})
    finding = shift.shift_self_test(subject.parts, subject.parts.data.train[:2])
    assert finding.verdict == "FAIL"


def test_a_teacher_that_is_read_one_position_off_fails(subject, monkeypatch):
    """The defect itself, in the module's own path: the value that the test calls `off` becomes the value."""
    observe = shift.Distillation.observe

    def moved(module: Any, batch: Batch) -> dict[str, Any]:
        return observe(module, replace(batch, teacher=shift.one_off(batch.teacher)))

    monkeypatch.setattr(shift.Distillation, "observe", moved)
    assert shift.shift_self_test(subject.parts, subject.parts.data.train[:2]).verdict == "FAIL"


def test_a_student_that_says_the_same_everywhere_tells_nothing(subject):
    parts = copy.deepcopy(subject.parts)
    for parameter in parts.module.student.parameters():
        parameter.data.zero_()
    assert shift.shift_self_test(parts, parts.data.train[:2]).verdict == "WARN"


def test_the_self_test_leaves_the_student_as_it_was(subject):
    student = subject.parts.module.student
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    modes = [module.training for module in student.modules()]
    assert shift.shift_self_test(subject.parts, subject.parts.data.train[:2]).verdict == "PASS"
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in student.named_parameters())
    assert [module.training for module in student.modules()] == modes


# --- nothing is made for a diagnosis ---


def test_a_teacher_is_prepared_only_if_the_cache_has_it(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_CACHE", str(tmp_path))
    with composed(["teacher=tiny", "student=tiny", "skill=spell_backward"]) as cfg:
        given, [finding] = from_cache(cfg)
        assert (finding.verdict, finding.check) == ("WARN", "prepared teacher")
        assert "not in the cache" in finding.told
        assert given.teacher.model == cfg.teacher.model
        assert given.teacher.prepare is None
        assert cfg.teacher.prepare is not None
        assert list(tmp_path.iterdir()) == []

        folder = tmp_path / "prepared" / identity(_recipe(cfg, "teacher"))
        export(tiny(dtype="float32"), folder, "")
        given, findings = from_cache(cfg)
        assert findings == []
        assert given.teacher.model.source.address == f"local:{folder}"


def test_the_teacher_writes_nothing():
    with toy("augmentation=labeling") as cfg:
        given, [finding] = without_teachers_text(cfg)
        assert list(given.augmentation.stages) == []
        assert len(cfg.augmentation.stages) == 1
        assert finding.verdict == "WARN"
        assert without_teachers_text(given) == (given, [])


# --- memory ---


def test_tied_weights_count_once_and_adapters_alone_are_trained(subject):
    """64 wide, 192 inside, 2 layers, 261 ids, in float32; the head is the embeddings.

    Embeddings 261 x 64 = 16704; a layer 4 x 64 x 64 + 3 x 64 x 192 + 2 x 64 = 53376; the last norm 64;
    beside the weights, two buffers of rotary frequencies with 8 numbers each.
    """
    weights = 4 * (16704 + 2 * 53376 + 64)
    sizes = {item.name: item.size for item in memory.estimate(subject)}
    assert sizes["student"] - weights in (0, 4 * 8, 2 * 4 * 8)
    assert sizes["gradients"] == weights
    assert sizes["AdamW"] == 2 * weights
    assert sizes["last.ckpt"] == 3 * weights
    items = [memory.Item("a", 3, ""), memory.Item("b", 4, "", held=False)]
    assert memory.peak(items) == 3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_activations_are_those_that_a_longer_row_keeps(attention):
    """Counted at 32, 64 and 128 tokens, told for 200: also where attention keeps a square."""
    student = tiny(dtype="float32")
    student.network.config._attn_implementation = attention
    expected = memory.saved_bytes(student, 200, "32-true")
    assert memory.activations(student, memory.Load(1, 200), "32-true") == pytest.approx(expected, rel=0.02)
    twice = memory.activations(student, memory.Load(2, 200), "32-true")
    assert twice == pytest.approx(2 * expected, rel=0.02)
    if attention == "eager":
        assert expected > 2.5 * memory.saved_bytes(student, 100, "32-true")


def test_the_heaviest_micro_batch_is_bounded_by_tokens_and_by_the_window(subject, monkeypatch):
    encoder = subject.parts.encoder
    longest = max(len(row.ids) - 1 for r in subject.parts.data.train for row in encoder.encode(r) or ())
    assert 40 < longest < 128
    assert memory.heaviest(subject) == memory.Load(128 // longest, longest)
    wide = altered(subject, "data.max_tokens=99999")
    assert memory.heaviest(wide) == memory.Load(5, longest)  # optim.window
    assert memory.heaviest(altered(wide, "trainer.devices=2")) == memory.Load(3, longest)  # its larger half
    assert memory.heaviest(altered(subject, "data.max_tokens=9")) == memory.Load(1, longest)  # a row is never split
    monkeypatch.setattr(subject.parts.module, "rollout", OnPolicy(samples=4, max_new_tokens=9))
    assert memory.heaviest(altered(wide, "data.max_length=100")) == memory.Load(20, 99)


def test_what_does_not_fit_fails_and_names_the_largest(subject):
    items = [memory.Item("activations", 70, ""), memory.Item("student", 30, "")]
    assert memory.check_room(items, 1000, subject).verdict == "PASS"
    assert memory.check_room(items, 110, subject).verdict == "WARN"
    finding = memory.check_room(items, 90, subject)
    assert finding.verdict == "FAIL"
    assert finding.remedy == "most of it is activations: lower data.max_tokens"
    two = altered(subject, "trainer.devices=2")  # both on this machine
    assert memory.check_room(items, 190, two).verdict == "FAIL"


def test_a_containers_limit_counts(tmp_path):
    assert memory._container_room(tmp_path) == []
    (tmp_path / "memory.current").write_text("30\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._container_room(tmp_path) == []
    (tmp_path / "memory.max").write_text("100\n")
    assert memory._container_room(tmp_path) == [70]


def test_the_resident_peak_is_seen_after_it_is_gone():
    before = resident()
    with ResidentPeak() as grown:
        block = torch.ones(50 * 2**20 // 4)
        del block
    assert 45 * 2**20 < grown.size - before < 80 * 2**20


def test_the_estimate_is_within_a_factor_of_two_of_a_real_run():
    """A process of its own, some 250 MiB: what Python and its libraries take apart from that matters less."""
    sizes = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 5}
    student = [f"student.model.architecture.{name}={value}" for name, value in sizes.items()]
    few = ["skill=spell_backward", "skill.train=50", "skill.validation=10", "checkpoint.records=2"]
    size = ["optim.window=8", "data.max_tokens=2048"]
    command = [sys.executable, "-m", "kd.doctor", "-n", "0", "--measure", *TINY, *size, *student, *few]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    estimated, measured = (
        int(re.search(rf"{name} peak +([\d,]+) MiB", done.stdout)[1].replace(",", ""))  # type: ignore[index]
        for name in ("estimated", "measured")
    )
    assert estimated > 200
    assert 0.5 < measured / estimated < 2


# --- the command line ---


def test_a_config_that_cannot_be_run_is_one_line(capsys):
    assert main(["objective=rlk"]) == 1
    assert capsys.readouterr().out.startswith("FAIL  config  ")
    nowhere = [f"teacher.model.source.{key}" for key in ("address=local:nowhere", "member=null", "sha256=null")]
    assert main(["student=tiny", "skill=spell_backward", "skill.train=9", *nowhere]) == 1
    assert capsys.readouterr().out.startswith("FAIL  config  local:nowhere does not exist")


def test_a_missing_conf_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="conf/ is found beside kd/"), composed([], tmp_path / "conf"):
        pass


def test_the_gravest_verdict_counts():
    made = partial(Finding, check="", told="")
    assert worst([]) == "PASS"
    assert worst([made("WARN"), made("PASS")]) == "WARN"
    assert worst([made("PASS"), made("FAIL"), made("WARN")]) == "FAIL"


@pytest.mark.archive
def test_the_default_passes(capsys):
    code = main(["-n", "1"])
    out = capsys.readouterr().out
    assert code == 0, out
    assert not re.search("^FAIL", out, re.MULTILINE)
    assert line(out, "padding").startswith("PASS")
    assert line(out, "chat template (student)").startswith("PASS")
    assert line(out, "self-test").startswith("PASS")
    assert "'<|im_end|>'" in line(out, "end token")
