"""The trained student as a folder that `from_pretrained` loads, with a card that says where it comes from."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kd.models.language_model import LanguageModel


def export(model: LanguageModel, folder: Path, card: str) -> Path:
    """Weights (adapters merged), tokenizer, chat template and README.md in `folder`."""
    network = merged(model).network
    with torch.no_grad():
        network.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def merged(model: LanguageModel) -> LanguageModel:
    """The same model with LoRA folded into its weights; the model itself when it has none."""
    if not any("lora_" in name for name, _ in model.named_parameters()):
        return model
    model = LanguageModel(copy.deepcopy(model.network), model.tokenizer)
    for name, module in list(model.network.named_modules()):
        if hasattr(module, "merge") and hasattr(module, "get_base_layer"):
            module.merge()
            _replace(model.network, name, module.get_base_layer())
    model.network._hf_peft_config_loaded = False
    return model


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, module)


def card(config: Mapping[str, Any], results: Mapping[str, Any], *, skill_licence: str, data: str) -> str:
    """Model card: teacher, data, licences, scores, config."""
    import yaml

    teacher, student = config["teacher"], config["student"]
    source = (teacher.get("model") or {}).get("source") or {"address": "none"}
    start = student["model"].get("source") or {"address": "random weights"}
    lines = [
        "---",
        "library_name: transformers",
        f"license: {(teacher.get('licence') or 'unknown').lower()}",
        "tags: [distillation]",
        "---",
        f"# {config['name']}",
        "",
        f"Distilled with kd. Teacher: `{source['address']}` (licence {teacher.get('licence') or 'none'}).",
        f"Student: `{start['address']}` by `{student['model']['_target_']}`.",
        f"Data: {data} (licence {skill_licence}). Objective: {' + '.join(config['objective'])}.",
        "",
        "## Scores on held-out problems",
        "",
        _score_table(results),
        "",
        "## Configuration",
        "",
        "```yaml",
        yaml.safe_dump(dict(config), sort_keys=False).rstrip(),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _score_table(results: Mapping[str, Any]) -> str:
    rows = ["| skill | metric | system | value | 95 % interval | n |", "|---|---|---|---|---|---|"]
    for skill, metrics in results.get("scores", {}).items():
        for metric, systems in metrics.items():
            for system, score in systems.items():
                if score is not None and score["value"] is not None:
                    interval = "" if score["low"] is None else f"{score['low']:.3f} to {score['high']:.3f}"
                    rows.append(f"| {skill} | {metric} | {system} | {score['value']:.3f} | {interval} | {score['n']} |")
    return "\n".join(rows)
