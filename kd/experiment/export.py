"""The trained student as a folder that `from_pretrained` loads, with a card that states its origins; its LoRA adapter
as a folder that PEFT loads over the student's first weights.
"""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from kd.artifacts import store
from kd.data.chat_template import encode_prompt, end_id, turn_of
from kd.eval_mode import eval_mode
from kd.metrics.table import METRICS
from kd.models.language_model import LanguageModel
from kd.models.merging import merged
from kd.models.networks import FACTORED
from kd.models.vision import attach_processor, auto_model, save_tokenizer
from kd.sources.addresses import keys_of, model_folder, pinned
from kd.sources.licences import stated_licence

TEXTS = (  # on which tokenizers of one vocabulary differ: by spaces, digits, composed letters, other scripts
    "Tom has 12 apples, then 1234567.\n\nHow many?  It's 3.5€.",
    " naïve caf\u00e9 and cafe\u0301, 日本語, Привет, 🙂\u200d🙂",
    "def f(x):\n\treturn {x: 'don''t'}  # ½ ﬁ Å\n",
)
LONGEST = 64  # ids that the network is read at
PEFT_PREFIX = "base_model.model."  # of names in a PeftModel
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}  # of logits, relative to the largest; else 0.03


def export(model: LanguageModel, folder: Path, card: str) -> list[str]:
    """Weights (adapters merged), tokenizer, chat template and README.md in `folder`, which is read again.

    Returns a sentence, which is also in README.md, for each difference of what plain `transformers` reads from it.
    The end tokens of its generation settings include the template's end of a turn.
    """
    student = merged(model)
    with torch.no_grad():
        student.network.save_pretrained(folder)
    save_tokenizer(model.tokenizer, folder)
    _end_turns(student, folder)
    found = differences(model, folder)
    loading = ["", "## Loading", "", *(f"- {sentence}" for sentence in found)] if found else []
    (folder / "README.md").write_text(card + "".join(f"{line}\n" for line in loading), encoding="utf-8")
    return found


def _end_turns(model: LanguageModel, folder: Path) -> None:
    """Add the template's end of a turn to the generation settings' end tokens, so that other programs stop there."""
    settings = GenerationConfig.from_pretrained(folder) if (folder / "generation_config.json").exists() else None
    declared = None if settings is None else settings.eos_token_id
    known = declared if isinstance(declared, list) else [] if declared is None else [declared]
    if (end := end_id(model.tokenizer)) in known:
        return
    settings = settings or GenerationConfig()
    settings.eos_token_id = [*known, end] if known else end
    settings.save_pretrained(folder)


def differences(model: LanguageModel, folder: Path) -> list[str]:
    """Differences of what `AutoTokenizer` and `AutoModelForCausalLM` read in `folder` from `model`, and how to load it.

    A vision-language model is read by `AutoModelForImageTextToText`, with its processor beside the tokenizer.

    The tokenizer is tried on `TEXTS` and on a conversation, the network on their ids.
    """
    return [*_of_tokenizer(model.tokenizer, folder), *_of_network(model, folder)]


def _of_network(model: LanguageModel, folder: Path) -> list[str]:
    ours, kind = model.network, auto_model(model.network.config)
    by = f"`{kind.__name__}` of transformers {transformers.__version__}"
    try:
        read: Any = kind.from_pretrained(folder)
        read = read.to(ours.device).eval()
    except Exception as error:  # whatever the library raises, the student is trained and its weights are saved
        return [f"{by} cannot read this folder ({_first_line(error)}); load it with `{type(ours).__name__}`"]
    if (gap := difference(model, read)) is None:
        return []
    return [
        f"{by} reads a {type(read).__name__} in {read.dtype} whose logits differ by up to {gap:.3g} from those of the "
        f"trained {type(ours).__name__} in {ours.dtype}; load it with `{type(ours).__name__}.from_pretrained`"
    ]


def difference(model: LanguageModel, read: nn.Module) -> float | None:
    """The largest difference of the logits of `read`, in eval mode, from those of `model` on `TEXTS`.

    None: it is within the tolerance of the model's dtype.
    """
    ours = model.network
    known = [i for text in TEXTS for i in model.tokenizer(text)["input_ids"] if i < model.vocabulary][:LONGEST]
    ids = torch.tensor([known], device=ours.device)
    with eval_mode([ours]):
        expected, found = (network(ids, use_cache=False).logits.double() for network in (ours, read))
    gap = (expected - found).abs().max().item()
    return None if gap <= TOLERANCE.get(ours.dtype, 0.03) * expected.abs().max().item() else gap


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:120]}"


def _of_tokenizer(ours: PreTrainedTokenizerBase, folder: Path) -> list[str]:
    by = f"`AutoTokenizer` of transformers {transformers.__version__}"
    try:
        read = AutoTokenizer.from_pretrained(folder)
        attach_processor(folder, read)
        if _written(ours) == _written(read):
            return []
        fact = f"{by} reads a {type(read).__name__}, which writes other ids than the student was trained on"
    except Exception as error:  # see above
        fact = f"{by} cannot read this folder ({_first_line(error)})"
    kinds: list[Any] = [type(ours), PreTrainedTokenizerFast]
    for kind in kinds:
        if _written(ours) == _written(kind.from_pretrained(folder)):
            return [f"{fact}; load it with `transformers.{kind.__name__}.from_pretrained`"]
    return [f"{fact}; no class of transformers reads it back, so take the tokenizer of the checkpoint it came from"]


def _written(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """Ids of all texts, alone and as a conversation, and the ids of special tokens."""
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    chats = [encode_prompt([{"role": "user", "content": text}], tokenizer) for text in TEXTS]
    return [special, turn_of(tokenizer), chats, [tokenizer(text)["input_ids"] for text in TEXTS]]


def rehearse(model: LanguageModel, folder: Path, card: str, checkpoints: int) -> None:
    """Write all of an export but the weights to a temporary folder, so that it cannot fail after the training.

    folder: where the run writes. checkpoints: the bytes that its checkpoints take there at most.

    Raises:
        ValueError: a configuration or a tokenizer that transformers would not save, or too little space on the disk.
    """
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    free = shutil.disk_usage(folder).free
    if free < weights + checkpoints:
        raise ValueError(
            f"{folder} has {free / 1e9:.1f} GB free, but checkpoints ({checkpoints / 1e9:.1f} GB) and the exported "
            f"student ({weights / 1e9:.1f} GB) need more; free some space, or set run.root to another disk"
        )
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export.") as place:
        try:
            model.network.config.save_pretrained(place)
            if model.network.can_generate():
                model.network.generation_config.save_pretrained(place)
            save_tokenizer(model.tokenizer, place)
        except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"the student could not be exported at the end: {reason}; mend the files of its checkpoint "
                "(config.json, generation_config.json, tokenizer)"
            ) from None
        (Path(place) / "README.md").write_text(card, encoding="utf-8")


def export_objective(stateful: nn.Module, path: Path) -> None:
    """Save the state of an objective's terms (projections, mixtures, buffers) in `path`; no file if there is none."""
    state = {name: value.detach().cpu().contiguous() for name, value in stateful.state_dict().items()}
    if state:
        store(path, lambda partial: save_file(state, partial), kind="objective")


def card(config: Mapping[str, Any], results: Mapping[str, Any], *, skill_licence: str, data: str) -> str:
    """Model card: teacher, data, licences, scores, config."""
    import yaml

    origins = licences(config, data, skill_licence)
    lines = [
        "---",
        "library_name: transformers",
        f"license: {_identifier(origins)}",
        "tags: [distillation]",
        "---",
        f"# {config['name']}",
        "",
        f"Distilled with kd. Objective: {' + '.join(config['objective'])}. "
        f"Student made by `{config['student']['model']['_target_']}`.",
        "",
        "## Licences",
        "",
        "The requirements and restrictions of each of these licences may hold for this model too.",
        "",
        "| of | which | licence |",
        "|---|---|---|",
        *(f"| {role} | {which} | {licence or 'unknown'} |" for role, (which, licence) in origins.items()),
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


def licences(config: Mapping[str, Any], data: str, skill_licence: str | None) -> dict[str, tuple[str, str | None]]:
    """Names and licences of data, teacher (each member of an ensemble) and the student's first weights, by role.

    A student that is cut out of a teacher's checkpoint has its licence. A teacher that was trained from random weights
    on the run's own records has theirs. None: unknown. Random weights have none.
    """
    origins = {"data": (data, skill_licence)}
    for role, node in _teachers(config).items():
        known = node.get("model") is not None
        licence = licence_of(node, config) or _trained_on(node, skill_licence) if known else node.get("licence")
        origins[role] = _which(node["model"]) if known else _elsewhere(node), licence
    if config["student"]["model"].get("source"):
        origins["student, before"] = _which(config["student"]["model"]), licence_of(config["student"], config)
    return origins


def licence_of(node: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    """The licence of the first weights of a teacher's or student's `node`: the one that the config states, that of the
    teacher in `config` with the same checkpoint, or the one in the checkpoint's own card. None: unknown, or the weights
    are random and the config states none.
    """
    source = node["model"].get("source")
    if node.get("licence") or not source:
        return node.get("licence")
    theirs = (
        other.get("licence")
        for other in _teachers(config).values()
        if (other.get("model") or {}).get("source") == source
    )
    return next(filter(None, theirs), None) or stated_licence(source)


def _trained_on(teacher: Mapping[str, Any], licence: str | None) -> str | None:
    """The licence of the run's records, where a teacher was prepared on them from random weights."""
    prepare = teacher.get("prepare")
    own = not teacher["model"].get("source") and prepare and prepare.get("skill") is None
    return licence if own else None


def _teachers(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The teacher, or each member of an ensemble, by role."""
    teacher = config["teacher"]
    members = {f"teacher {name}": member for name, member in (teacher.get("members") or {}).items()}
    own = teacher.get("model") or teacher.get("served_model") or teacher.get("file")
    return members or ({"teacher": teacher} if own else {})


def _elsewhere(node: Mapping[str, Any]) -> str:
    """The name of a teacher without weights here: a model on a server, or a file."""
    return f"`{node['served_model']}` on a server" if node.get("served_model") else f"`{node['file']['address']}`"


def _which(model: Mapping[str, Any]) -> str:
    """The address of a model's weights, with the commit that was read, and of its adapter."""
    if not model.get("source"):
        return "`random weights`"
    keys = keys_of(model["source"])
    return " + ".join(f"`{pinned(keys[key])}`" for key in ("address", "adapter") if keys.get(key))


def _identifier(origins: Mapping[str, tuple[str, str | None]]) -> str:
    """The licence for the card's front matter: the common one, else "other"; "unknown" if one is unknown."""
    found = {(licence or "unknown").lower() for _, licence in origins.values()}
    return "unknown" if "unknown" in found else found.pop() if len(found) == 1 else "other"


def _score_table(results: Mapping[str, Any]) -> str:
    """Each skill's metrics, then the agreement with the teacher."""
    agreement = {METRICS[name].description: systems for name, systems in (results.get("agreement") or {}).items()}
    rows = ["| skill | metric | system | value | 95 % interval | n |", "|---|---|---|---|---|---|"]
    for skill, metrics in (*results.get("scores", {}).items(), ("", agreement)):
        for metric, systems in metrics.items():
            for system, score in systems.items():
                if score is not None and score["value"] is not None:
                    interval = "" if score["low"] is None else f"{score['low']:.3f} to {score['high']:.3f}"
                    rows.append(f"| {skill} | {metric} | {system} | {score['value']:.3f} | {interval} | {score['n']} |")
    return "\n".join(rows)


# ---- the adapter alone ----


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
