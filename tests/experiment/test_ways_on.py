"""Other programs load what a run exports: transformers, PEFT, lm-eval (docs/exported_student.md)."""

import json
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from kd.data.sequences import prompt_ids
from kd.experiment.export import export, export_adapter
from kd.generators.generation import generate
from tests.experiment.test_export import adapted, logits
from tests.tiny import record, tiny


def test_a_pipeline_generates_what_the_student_does(tmp_path: Path) -> None:
    """In the template, greedily, up to the end of the turn."""
    model, question = tiny(), record(0)
    export(model, tmp_path / "student", "")
    (ours,) = generate(model, [prompt_ids(question, model.tokenizer)], max_new_tokens=12, batch_size=1, temperature=0.0)
    writer = pipeline("text-generation", model=str(tmp_path / "student"), dtype=torch.float64)
    (found,) = writer([dict(m) for m in question.prompt], max_new_tokens=12, do_sample=False, return_full_text=False)
    assert found["generated_text"] == model.tokenizer.decode(ours, skip_special_tokens=True)


def test_peft_finds_the_base_of_an_adapter(tmp_path: Path) -> None:
    student = adapted(tmp_path / "base")
    export_adapter(student, tmp_path / "adapter", f"local:{tmp_path / 'base'}", "")
    read = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter"), dtype=torch.float64)
    torch.testing.assert_close(
        logits(read, student.tokenizer), logits(student.network, student.tokenizer), atol=1e-5, rtol=1e-5
    )


@pytest.mark.long
def test_lm_eval_scores_choices_as_the_student_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of one's own, offline; the sums of log-probabilities are computed here again by the plain formula."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    folder = tmp_path / "student"
    export(tiny(), folder, "")
    rows = [{"question": f"{i} + 1 =", "choices": [f" {i + 1}", f" {i + 2}"], "answer": 0} for i in range(6)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "sums.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    found = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder), "dtype": "float64"},
        tasks=[task],
        task_manager=TaskManager(include_defaults=False),
        device="cpu",
        bootstrap_iters=0,
    )
    network, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64),
        AutoTokenizer.from_pretrained(folder),
    )

    def likelihood(question: str, choice: str) -> float:
        before, ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (question, question + choice))
        with torch.no_grad():
            logprobs = network(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(float(logprobs[i - 1, ids[i]]) for i in range(len(before), len(ids)))

    right = [likelihood(r["question"], r["choices"][0]) > likelihood(r["question"], r["choices"][1]) for r in rows]
    assert found["results"]["sums"]["acc,none"] == pytest.approx(sum(right) / len(rows))
