import re

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from kd.experiment.export import card, differences, export, licences
from kd.models.language_model import LanguageModel
from kd.models.merging import merged
from kd.models.networks import pretrained
from tests.chats import gemma
from tests.tiny import tiny
from tests.training.test_module import LORA

TEXT = "what is exported says what was trained"


def logits(network, tokenizer) -> torch.Tensor:
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    with torch.no_grad():
        return network.eval()(ids).logits


def adapted(path, **lora):
    """A checkpoint with adapters that have learnt something."""
    model = tiny()
    model.network.save_pretrained(path)
    model.tokenizer.save_pretrained(path)
    student = pretrained(source={"address": f"local:{path}"}, dtype="float64", lora={**LORA, **lora})
    torch.manual_seed(0)
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return student


def loaded(path):
    network = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    return network, AutoTokenizer.from_pretrained(path)


def test_a_student_comes_back_as_it_was(tmp_path):
    model = tiny()
    export(model, tmp_path / "student", "# card")
    network, tokenizer = loaded(tmp_path / "student")
    torch.testing.assert_close(logits(network, tokenizer), logits(model.network, model.tokenizer))
    assert (tmp_path / "student/README.md").read_text() == "# card"
    assert tokenizer.chat_template == model.tokenizer.chat_template


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["embed_tokens", "v_proj"]},
        {"use_dora": True},
    ],
    ids=["linear", "head", "embeddings", "dora"],
)
def test_adapters_are_exported_merged(tmp_path, lora):
    student = adapted(tmp_path / "base", **lora)
    expected = logits(student.network, student.tokenizer)
    base, tokenizer = loaded(tmp_path / "base")
    assert (expected - logits(base, tokenizer)).abs().max() > 0.01  # adapters have an effect
    export(student, tmp_path / "student", "")
    network, tokenizer = loaded(tmp_path / "student")
    torch.testing.assert_close(logits(network, tokenizer), expected, atol=1e-5, rtol=1e-5)
    assert not (tmp_path / "student/adapter_config.json").exists()
    assert not any("lora" in name for name, _ in network.named_parameters())


def test_merging_leaves_the_student_as_it_is(tmp_path):
    """It may still be trained or resumed."""
    student = adapted(tmp_path / "base")
    before = {name: p.clone() for name, p in student.state_dict().items()}
    flags = {name: p.requires_grad for name, p in student.named_parameters()}
    merged(student)
    assert all(torch.equal(p, before[name]) for name, p in student.state_dict().items())
    assert flags == {name: p.requires_grad for name, p in student.named_parameters()}


def test_merging_agrees_with_peft(tmp_path):
    student = adapted(tmp_path / "base")
    ours = merged(student).network
    base, tokenizer = loaded(tmp_path / "base")
    theirs = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **LORA))
    state = {f"base_model.model.{name}": value for name, value in student.network.state_dict().items()}
    theirs.load_state_dict(state)
    torch.testing.assert_close(logits(ours, tokenizer), logits(theirs.merge_and_unload(), tokenizer))


def test_the_card_shows_scores_and_agreement():
    def score(value):
        return {"value": value, "n": 9, "low": None, "high": None}

    kl = {"before": score(2.0), "after": {"value": 0.25, "n": 640, "low": 0.2, "high": 0.3}}
    agreement = {"top1": {"after": score(0.5), "sft": None}, "forward_kl": kl, "reverse_kl": {"after": score(0.75)}}
    results = {"scores": {"toy": {"accuracy": {"after": score(0.125)}}}, "agreement": agreement}
    text = card(config(), results, skill_licence="MIT", data="toy")
    rows = [line for line in text.splitlines() if line.endswith(("| 9 |", "| 640 |"))]
    assert rows == [
        "| toy | accuracy | after | 0.125 |  | 9 |",
        "|  | top-1 agreement with the teacher | after | 0.500 |  | 9 |",
        "|  | forward KL(teacher ‖ student), nats | before | 2.000 |  | 9 |",
        "|  | forward KL(teacher ‖ student), nats | after | 0.250 | 0.200 to 0.300 | 640 |",
        "|  | reverse KL(student ‖ teacher), nats | after | 0.750 |  | 9 |",
    ]
    assert "KL(" not in card(config(), {**results, "agreement": None}, skill_licence="MIT", data="toy")


WHERE = {"address": "hub:org/name@main"}


def config(**teacher) -> dict:
    student = {"model": {"_target_": "kd.models.networks.pruned", "source": WHERE}}
    return {"name": "run", "objective": {"fkl": {}}, "student": student, "teacher": {"licence": None, **teacher}}


def test_licences_of_data_teacher_and_student():
    """A student cut out of the teacher's checkpoint has its licence, unless it has its own."""
    cut = config(model={"source": WHERE}, licence="Apache-2.0")
    assert licences(cut, "toy", "CC0-1.0") == {
        "data": ("toy", "CC0-1.0"),
        "teacher": ("`hub:org/name@main`", "Apache-2.0"),
        "student, before": ("`hub:org/name@main`", "Apache-2.0"),
    }
    cut["student"]["licence"] = "MIT"
    assert licences(cut, "toy", "CC0-1.0")["student, before"] == ("`hub:org/name@main`", "MIT")
    elsewhere = config(model={"source": {"address": "hub:org/other@main"}}, licence="Apache-2.0")
    assert licences(elsewhere, "toy", "CC0-1.0")["student, before"] == ("`hub:org/name@main`", None)


def test_licences_of_an_ensemble_and_of_random_weights():
    members = {"a": {"model": {"source": WHERE}, "licence": "MIT"}, "b": {"model": {}, "licence": None}}
    made = config(members=members)
    made["student"]["model"] = {"_target_": "kd.models.networks.scratch"}
    found = licences(made, "toy", "MIT")
    assert list(found) == ["data", "teacher a", "teacher b"]
    assert found["teacher b"] == ("`random weights`", None)
    untaught = {**made, "teacher": {"model": None, "licence": None}}
    assert list(licences(untaught, "toy", "MIT")) == ["data"]


@pytest.mark.parametrize(
    ("teacher", "data", "licence"),
    [("MIT", "MIT", "mit"), ("MIT", "CC0-1.0", "other"), (None, "MIT", "unknown")],
)
def test_the_cards_licence_is_that_of_all(teacher, data, licence):
    text = card(config(model={"source": WHERE}, licence=teacher), {}, skill_licence=data, data="toy")
    assert f"\nlicense: {licence}\n" in text
    assert f"| data | toy | {data} |" in text
    assert f"| teacher | `hub:org/name@main` | {teacher or 'unknown'} |" in text
    assert f"| student, before | `hub:org/name@main` | {teacher or 'unknown'} |" in text


def test_what_the_library_reads_otherwise_is_reported_and_how_to_load_it(tmp_path):
    """Whatever tokenizer a Qwen2 has, `AutoTokenizer` reads one of its own, which composes letters: other ids."""
    model = tiny(model_type="qwen2", dtype="float32")
    [sentence] = export(model, tmp_path / "student", "# card\n")
    decomposed = "cafe\u0301"
    ours = model.tokenizer(decomposed)["input_ids"]
    assert AutoTokenizer.from_pretrained(tmp_path / "student")(decomposed)["input_ids"] != ours
    name = re.search(r"load it with `transformers\.(\w+)\.from_pretrained`", sentence)[1]
    assert getattr(transformers, name).from_pretrained(tmp_path / "student")(decomposed)["input_ids"] == ours
    assert (tmp_path / "student/README.md").read_text() == f"# card\n\n## Loading\n\n- {sentence}\n"


@pytest.mark.parametrize("damage", ["a weight", "no weights"])
def test_weights_that_come_back_otherwise_are_reported(tmp_path, damage):
    model = tiny(dtype="float32")
    assert export(model, tmp_path / "student", "") == []
    if damage == "a weight":
        other = tiny(dtype="float32")
        other.network.model.layers[0].mlp.up_proj.weight.data[0] += 1
        other.network.save_pretrained(tmp_path / "student")
    else:
        (tmp_path / "student/model.safetensors").unlink()
    [sentence] = differences(model, tmp_path / "student")
    assert "AutoModelForCausalLM" in sentence
    assert ("logits differ" if damage == "a weight" else "cannot read this folder") in sentence


def test_other_programs_stop_where_the_template_ends_a_turn(tmp_path):
    model = LanguageModel(tiny(dtype="float32", vocab_size=400).network, gemma())
    end, eos = model.tokenizer.convert_tokens_to_ids(["<end_of_turn>", "<eos>"])
    model.network.generation_config.eos_token_id = eos
    assert export(model, tmp_path / "student", "") == []
    assert GenerationConfig.from_pretrained(tmp_path / "student").eos_token_id == [eos, end]
