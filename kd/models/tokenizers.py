"""A tokenizer that needs no training (bytes, and the special tokens of a conversation), and other chat templates."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from kd.components.choices import choices, content
from kd.components.signatures import suggestion
from kd.models.vision import attach_processor, read_tokenizer, with_images
from kd.sources.addresses import keys_of, model_folder

PAD, END = "<|pad|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """256 bytes and five special tokens; every text round-trips."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (PAD, END, *ROLES)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def tokenizer_of_bytes(
    architecture: Mapping[str, Any], chat_template: str | None = None, template_kwargs: Mapping[str, Any] | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer over bytes for an architecture, with what images need where it has a `vision_config`."""
    words: PreTrainedTokenizerBase = byte_tokenizer()
    if architecture.get("vision_config") is not None:
        words = with_images(words, architecture)
    return set_template(words, chat_template, template_kwargs)


def load_tokenizer(
    folder: Path, chat_template: str | None = None, template_kwargs: Mapping[str, Any] | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint; that of a vision-language model has its processor of images (`kd.data.images`).

    Raises ValueError where either cannot be read.
    """
    tokenizer = set_template(read_tokenizer(folder), chat_template, None)
    attach_processor(folder, tokenizer, own_template=chat_template is not None)
    return set_template(tokenizer, None, template_kwargs)


def tokenizers_of(*, student: str | None, teacher: str | None) -> dict[str, PreTrainedTokenizerBase]:
    """The tokenizers of models by role, without their weights; None leaves a role out.

    student, teacher: a file of `conf/student` or `conf/teacher`, or an address. A student that takes its tokenizer from
        its teacher has that of `teacher`, or of the default teacher.

    Raises:
        ValueError: there is no such file, or it names no tokenizer.
    """
    named = {role: name for role, name in (("student", student), ("teacher", teacher)) if name is not None}
    whole = OmegaConf.create({"teacher": _node("teacher", teacher or "smollm2_135m")})
    whole.student = _node("student", student or "tiny")
    return {role: _tokenizer(f"--{role} {name}", whole[role]) for role, name in named.items()}


def _node(role: str, name: str) -> Any:
    known = choices(role)
    if name in known:
        return content(role, name)
    if ":" not in name:
        raise ValueError(f"--{role} {name}: conf/{role} has no {name}.yaml; {suggestion(name, known)}")
    return {"model": {"source": name}}


def _tokenizer(where: str, node: Any) -> PreTrainedTokenizerBase:
    model = OmegaConf.to_container(node.get("model") or OmegaConf.create({}), resolve=True)
    assert isinstance(model, dict)
    source = model.get("tokenizer") or model.get("source")
    if source is None:
        raise ValueError(f"{where} names no model with a tokenizer of its own; give another file, or an address")
    template = model.get("chat_template"), model.get("template_kwargs")
    if source == "bytes":
        return tokenizer_of_bytes(model.get("architecture") or {}, *template)
    return load_tokenizer(model_folder(**keys_of(source)), *template)


def set_template(
    tokenizer: PreTrainedTokenizerBase, chat_template: str | None, template_kwargs: Mapping[str, Any] | None
) -> PreTrainedTokenizerBase:
    """The tokenizer with another template, and with variables of the template (`enable_thinking: false`) set in it.

    The variables become the template's defaults, so that the exported tokenizer writes the same conversations.

    Raises:
        ValueError: variables without a template, or values that a template cannot be given.
    """
    if chat_template is not None:
        tokenizer.chat_template = template_text(chat_template)
    if not template_kwargs:
        return tokenizer
    if not isinstance(tokenizer.chat_template, str):
        raise ValueError(
            f"template_kwargs={dict(template_kwargs)} are variables of a chat template, and the tokenizer has none; "
            "set chat_template, or leave template_kwargs out"
        )
    defaults = "".join(
        f"{{%- if {name} is not defined %}}{{% set {name} = {_literal(name, value)} %}}{{% endif -%}}"
        for name, value in sorted(template_kwargs.items())
    )
    tokenizer.chat_template = defaults + tokenizer.chat_template
    return tokenizer


def template_text(template: str) -> str:
    """The Jinja text itself, or that of the file it names. Raises ValueError if it is neither."""
    path = Path(template).expanduser() if "{" not in template else None
    if path is None or path.is_file():
        return template if path is None else path.read_text(encoding="utf-8")
    raise ValueError(
        f"chat_template={template} is neither a file nor a template (it has no braces); give the path of a Jinja file"
    )


def _literal(name: str, value: Any) -> str:
    if value is None or (isinstance(value, bool | int | float | str) and name.isidentifier()):
        return repr(value)
    raise ValueError(
        f"template_kwargs.{name}={value!r} is no truth value, number or text under a name that a template can use; "
        "set it in the chat template itself"
    )
