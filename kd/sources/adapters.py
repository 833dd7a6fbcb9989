"""A model and a PEFT adapter of it, folded into one checkpoint."""

import json
from pathlib import Path
from typing import Any

ADAPTER = "adapter_config.json"


def holds_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter that PEFT saved."""
    return (folder / ADAPTER).is_file()


def base_named(folder: Path) -> str:
    """The model that an adapter's own configuration names: the hub's `org/name`, or the path of a folder."""
    named = json.loads((folder / ADAPTER).read_text(encoding="utf-8")).get("base_model_name_or_path") or "BASE"
    return f"local:{named}" if Path(named).expanduser().exists() else str(named)


def write_merged(base: Path, adapter: Path, folder: Path, name: str) -> None:
    """Write the model of `base` with the adapter's update in its weights, and its tokenizer, to `folder`.

    The update is added in the dtype that the checkpoint is stored in. A tokenizer that lies beside the adapter replaces
    that of the model, whose embeddings grow where it has more tokens.

    name: the adapter's address, for errors.

    Raises:
        ValueError: PEFT cannot put the adapter on this model, or some of its weights have no place there.
    """
    import torch  # these imports take seconds, and a data file needs none of them
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils.save_and_load import load_peft_weights
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with torch.device("cpu"):  # configurations are checked on the device "meta"
        own_tokenizer = (adapter / "tokenizer_config.json").is_file()
        tokenizer = AutoTokenizer.from_pretrained(adapter if own_tokenizer else base)
        network: Any = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
        if own_tokenizer and len(tokenizer) > network.get_input_embeddings().num_embeddings:
            network.resize_token_embeddings(len(tokenizer))
        try:
            adapted = PeftModel.from_pretrained(network, str(adapter))
            if strange := sorted(load_peft_weights(str(adapter)).keys() ^ get_peft_model_state_dict(adapted).keys()):
                raise ValueError(f"{len(strange)} weights have no counterpart, the first is {strange[0]}")
            merged = adapted.merge_and_unload(safe_merge=True)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"the adapter {name} does not fit the model in {base} ({reason}); name its own base"
            ) from None
        merged.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
