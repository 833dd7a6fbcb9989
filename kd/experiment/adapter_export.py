"""The adapter of a student that learnt with LoRA, as a folder that PEFT loads over the student's first weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from kd.experiment.export import difference
from kd.models.language_model import LanguageModel
from kd.models.networks import FACTORED
from kd.sources.addresses import keys_of, model_folder, pinned

PEFT_PREFIX = "base_model.model."  # of names in a PeftModel


def adapter_lack(model: Mapping[str, Any]) -> str | None:
    """The reason for which the adapter of a student's node `model` is not exported alone, as a sentence."""
    if not str(model["_target_"]).endswith(".pretrained"):
        return "the adapter alone is not exported: the weights that it belongs to were cut for this run, and no address"
    start = str((model["lora"] or {}).get("init_lora_weights", True))
    if start.startswith(FACTORED):
        return f"the adapter alone is not exported: init_lora_weights={start} changes the weights that it belongs to"
    return None


def export_adapter(model: LanguageModel, folder: Path, source: str | Mapping[str, Any], card: str) -> list[str]:
    """Write the adapter of `model`, whose first weights are those of `source`, to `folder`, and read both again.

    Returns a sentence, which is also in README.md, where PEFT reads other logits from them than the model has.
    """
    folder.mkdir(parents=True)
    base, names = model_folder(**keys_of(source)), _base_names(source)
    config: Any = model.network.peft_config["default"]  # type: ignore[index, union-attr]
    config.base_model_name_or_path, config.revision, config.inference_mode = *names, True
    weights = get_peft_model_state_dict(model.network)
    state = {PEFT_PREFIX + name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    found = _differences(model, base, folder)
    front = f"library_name: peft\nbase_model: {names[0]}"
    notes = "".join(f"- {sentence}\n" for sentence in found)
    text = card.replace("library_name: transformers", front, 1) + (f"\n## Loading\n\n{notes}" if found else "")
    (folder / "README.md").write_text(text, encoding="utf-8")
    return found


def _base_names(source: str | Mapping[str, Any]) -> tuple[str, str | None]:
    """The name by which PEFT finds the base, and its revision: of the hub, or the folder on this machine."""
    keys = keys_of(source)
    scheme, _, rest = pinned(keys["address"]).partition(":")
    if scheme == "hub" and not keys.get("adapter") and not keys.get("member"):
        name, _, revision = rest.partition("@")
        return name, revision
    return str(model_folder(**keys).absolute()), None


def _differences(model: LanguageModel, base: Path, folder: Path) -> list[str]:
    network: Any = AutoModelForCausalLM.from_pretrained(base, dtype=model.network.dtype)
    read = PeftModel.from_pretrained(network, str(folder)).to(model.network.device).eval()
    with torch.no_grad():
        gap = difference(model, read)
    return (
        [] if gap is None else [f"PEFT reads logits that differ by up to {gap:.3g} from those of the trained student"]
    )
