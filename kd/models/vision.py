"""Vision-language models: which checkpoints are, their processors, and one over bytes that needs no training."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from kd.data.images import attach, vision_of

SPECIAL = ("<fake_token_around_image>", "<global-img>", "<image>")  # of Idefics3's processor
KINDS = {"mm_token_type_ids", "token_type_ids"}  # of tokens: text, or an image
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def is_vision(config: Any) -> bool:
    """True for the config of a model that `transformers` reads with images, and not as one of text alone."""
    kind = type(config)
    images = kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and kind not in MODEL_FOR_CAUSAL_LM_MAPPING
    return images and getattr(config, "vision_config", None) is not None


def auto_model(config: Any) -> Any:
    """The class of `transformers` that makes a config's network with its head."""
    return AutoModelForImageTextToText if is_vision(config) else AutoModelForCausalLM


def check_inputs(network: PreTrainedModel) -> None:
    """Raises ValueError for a network that requires the kinds of its tokens beside them, as Qwen2.5-VL does."""
    taken = inspect.signature(getattr(network, network.base_model_prefix).forward).parameters
    if is_vision(network.config) and (kinds := sorted(KINDS & taken.keys())):
        raise ValueError(
            f"{type(network).__name__} requires {kinds[0]} beside the ids of a prompt with images, which is not "
            "supported; take an Idefics3, SmolVLM or LLaVA checkpoint"
        )


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, without its processor. Raises ValueError where there is none."""
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (ValueError, OSError, KeyError, TypeError, ImportError) as error:
        raise ValueError(
            f"{folder} holds no tokenizer that transformers can read ({_reason(error)}); copy "
            "tokenizer.json and tokenizer_config.json of the checkpoint there"
        ) from error


def attach_processor(folder: Path, tokenizer: PreTrainedTokenizerBase, *, own_template: bool = False) -> None:
    """Gives a tokenizer the processor of images of the checkpoint in `folder`, where it is a vision-language model.

    own_template: whether the tokenizer's template was set by the user; else the processor's is taken where it has one.

    Raises ValueError where the processor cannot be read.
    """
    if not (folder / "config.json").is_file() or not is_vision(config := AutoConfig.from_pretrained(folder)):
        return
    try:
        processor = AutoProcessor.from_pretrained(folder)
        settled = processor.image_processor is not None and processor.image_token is not None
    except (ValueError, OSError, KeyError, TypeError, ImportError, AttributeError) as error:
        raise ValueError(
            f"{folder} holds model_type={config.model_type!r}, a vision-language model whose processor cannot be read "
            f"({_reason(error)}); copy processor_config.json and preprocessor_config.json of the checkpoint there"
        ) from error
    if not settled:
        raise ValueError(
            f"{folder} holds model_type={config.model_type!r}, a vision-language model whose processor "
            f"({type(processor).__name__}) has no token for an image; take another checkpoint"
        )
    if processor.chat_template and not own_template:
        tokenizer.chat_template = processor.chat_template
    attach(tokenizer, processor)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path | str) -> None:
    """Saves a tokenizer, and the processor of images that belongs to it."""
    if (vision := vision_of(tokenizer)) is not None:
        vision.processor.chat_template = tokenizer.chat_template
        vision.processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def with_images(tokenizer: PreTrainedTokenizerBase, architecture: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer over bytes with the special tokens, the template and the processor for an architecture's images.

    architecture: of `model_type` idefics3 (arXiv 2408.12637). An image is resized so that its longer side is
        `vision_config.image_size` pixels, and becomes (image_size / patch_size / scale_factor)^2 tokens.

    Raises ValueError for another architecture, or sizes that do not divide.
    """
    if architecture["model_type"] != "idefics3":
        raise ValueError(
            f"architecture.model_type={architecture['model_type']} with the tokenizer over bytes: a processor of "
            "images is made for idefics3 alone; take idefics3, or the tokenizer of a checkpoint"
        )
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
    from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

    tokenizer.add_tokens([*SPECIAL], special_tokens=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    size = {"longest_edge": architecture["vision_config"]["image_size"]}
    images = Idefics3ImageProcessorPil(size=size, max_image_size=size, do_image_splitting=False)
    attach(tokenizer, Idefics3Processor(images, tokenizer, image_seq_len=_tokens_each(architecture)))
    return tokenizer


def _tokens_each(architecture: Mapping[str, Any]) -> int:
    size, patch = (architecture["vision_config"][name] for name in ("image_size", "patch_size"))
    scale = architecture.get("scale_factor", 2)
    if size % (patch * scale):
        raise ValueError(
            f"architecture.vision_config.image_size={size} is no multiple of patch_size={patch} x "
            f"scale_factor={scale}; take {max(1, size // (patch * scale)) * patch * scale}"
        )
    return (size // patch // scale) ** 2


def config_fields(
    architecture: Mapping[str, Any], fields: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """The fields of a config for this tokenizer: of a vision-language model, in its `text_config`, too."""
    vision = vision_of(tokenizer)
    if vision is None:
        return {**fields, **architecture}
    return {
        **fields,
        "image_token_id": vision.token,
        **architecture,
        "text_config": {**fields, **architecture["text_config"]},
    }


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:120]}"
