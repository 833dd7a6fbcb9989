"""Images in prompts: places in texts, files and pixels, and the ids that stand for an image in a model's tokens.

A record keeps its images apart from its texts, in which U+FFFC, the object replacement character, stands for each. A
vision-language model's processor (of transformers) is attached to its tokenizer. One token of the template per image
becomes the ids that the processor writes for it, and a prompt with images keeps them as its `view`.
"""

import base64
import hashlib
import io
import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase

from kd.types import Image, Message, Pixels

PLACE = "\N{OBJECT REPLACEMENT CHARACTER}"
OF_TOKENS = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"}  # a processor's other outputs
KEPT = 256 << 20  # bytes of pixels that each processor keeps
_KEY = "kd_vision"


class Vision:
    """A vision-language model's processor of images. What it makes of an image depends on that image alone."""

    def __init__(self, processor: Any):
        self.processor = processor
        self._ids: dict[Image, tuple[int, ...]] = {}
        self._pixels: OrderedDict[tuple[Image, ...], Pixels] = OrderedDict()
        self._size, self._lock = 0, Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Vision":
        return self

    @cached_property
    def token(self) -> int:
        """The id that the template writes for an image."""
        return int(self.processor.tokenizer.convert_tokens_to_ids(self.processor.image_token))

    @cached_property
    def settings(self) -> str:
        """Everything that its outputs depend on, as text."""
        ids = [self.ids(drawn(np.zeros((size, size, 3), dtype=np.uint8))) for size in (8, 1000)]
        return json.dumps([self.processor.image_processor.to_dict(), ids], sort_keys=True, default=str)

    def ids(self, image: Image) -> tuple[int, ...]:
        """The ids that stand for the image."""
        if image not in self._ids:
            self._ids[image] = tuple(self._processed((image,))["input_ids"][0].tolist())
        return self._ids[image]

    def pixels(self, images: tuple[Image, ...]) -> Pixels:
        """The network's inputs for a prompt's images; the last ones made are kept."""
        with self._lock:
            if images in self._pixels:
                self._pixels.move_to_end(images)
                return self._pixels[images]
        found = {name: x for name, x in self._processed(images).items() if name not in OF_TOKENS}
        with self._lock:
            if images not in self._pixels:
                self._pixels[images] = found
                self._size += _bytes(found)
            while self._size > KEPT:
                self._size -= _bytes(self._pixels.popitem(last=False)[1])
        return found

    def _processed(self, images: tuple[Image, ...]) -> Mapping[str, Tensor]:
        text = self.processor.image_token * len(images)
        shown = [decoded(image) for image in images]
        return self.processor(text=[text], images=[shown], add_special_tokens=False, return_tensors="pt")


@dataclass(frozen=True, eq=False)
class View:
    """A prompt's images as a model reads them."""

    images: tuple[Image, ...]
    vision: Vision

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of the images' content."""
        return digest(self.images)

    def pixels(self) -> Pixels:
        """The network's inputs."""
        return self.vision.pixels(self.images)


class Prompt(tuple[int, ...]):
    """The ids of a prompt with images."""

    view: View

    def __new__(cls, ids: Iterable[int], view: View) -> "Prompt":
        """The ids with their view."""
        made = super().__new__(cls, ids)
        made.view = view
        return made


def view_of(prompt: Sequence[int]) -> View | None:
    """The view of a prompt; None where it has no images."""
    return prompt.view if isinstance(prompt, Prompt) else None


def seen(view: View | None) -> list[str]:
    """The digest of a view in a list, for keys of what depends on it; empty where there is no image."""
    return [] if view is None else [view.digest]


def attach(tokenizer: PreTrainedTokenizerBase, processor: Any) -> None:
    """Makes `processor` that of the tokenizer's model, with this tokenizer and its template.

    Raises ValueError for a tokenizer without a chat template: nothing else writes where an image stands.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            f"the vision-language model of {type(processor).__name__} has no chat template, which writes where an "
            "image stands; set chat_template of the model"
        )
    processor.tokenizer, processor.chat_template = tokenizer, tokenizer.chat_template
    vars(tokenizer)[_KEY] = Vision(processor)


def vision_of(tokenizer: PreTrainedTokenizerBase) -> Vision | None:
    """The processor of images that belongs to a tokenizer; None for that of a model of text alone."""
    return vars(tokenizer).get(_KEY)


def digest(images: Sequence[Image]) -> str:
    """16 hexadecimal digits of the content of several images, in their order."""
    return hashlib.sha256(" ".join(image.digest for image in images).encode()).hexdigest()[:16]


def settings_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The settings of a tokenizer's processor of images, as text; None where it has none."""
    vision = vision_of(tokenizer)
    return None if vision is None else vision.settings


# --- messages and ids ---


def with_parts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages with lists of parts as their content, each place of an image as `{"type": "image"}`."""
    return [{**message, "content": list(_parts(message["content"]))} for message in messages]


def as_text_parts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages with a content that is a text as a list of that text, which templates of processors require."""
    made = []
    for message in messages:
        content = message["content"]
        listed = [{"type": "text", "text": content}] if isinstance(content, str) else content
        made.append({**message, "content": listed})
    return made


def _parts(content: str) -> Iterator[dict[str, str]]:
    for i, text in enumerate(content.split(PLACE)):
        if i:
            yield {"type": "image"}
        if text:
            yield {"type": "text", "text": text}


def places(messages: Sequence[Message]) -> int:
    """The number of places for images in the messages."""
    return sum(message["content"].count(PLACE) for message in messages)


def expanded(ids: Iterable[int], images: Iterator[Image], vision: Vision) -> list[int]:
    """The ids with those of the next image in the place of each token of an image.

    Raises ValueError where there are more such tokens than images.
    """
    found: list[int] = []
    for token in ids:
        if token != vision.token:
            found.append(token)
            continue
        if (image := next(images, None)) is None:
            raise ValueError("more places than images")
        found += vision.ids(image)
    return found


def joined(rows: Sequence[Pixels], dtype: torch.dtype) -> dict[str, Tensor]:
    """The pixels of several prompts one after another, as a network takes them; those of different sizes end in zeros.

    dtype: of the network; numbers that are no integers are given it.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    found = {}
    for name in names:
        parts = [row[name] for row in rows if name in row]
        sizes = [max(part.shape[d] for part in parts) for d in range(1, parts[0].dim())]
        whole = torch.cat([_padded(part, sizes) for part in parts])
        found[name] = whole.to(dtype) if whole.is_floating_point() else whole
    return found


def _padded(part: Tensor, sizes: Sequence[int]) -> Tensor:
    missing = [size - own for size, own in zip(sizes, part.shape[1:], strict=True)]
    return pad(part, [n for size in reversed(missing) for n in (0, size)]) if any(missing) else part


def _bytes(pixels: Pixels) -> int:
    return sum(x.numel() * x.element_size() for x in pixels.values())


# --- files ---


def drawn(pixels: np.ndarray) -> Image:
    """An image of `[H W 3]` bytes, kept as a portable pixmap, which is the same on every machine."""
    height, width, _ = pixels.shape
    return Image(f"P6 {width} {height} 255\n".encode() + pixels.astype(np.uint8).tobytes())


def decoded(image: Image) -> Any:
    """The image in RGB, as pillow has it.

    Raises ValueError where pillow is not installed, or the bytes are no image.
    """
    pillow = _pillow()
    try:
        return pillow.open(io.BytesIO(image.data)).convert("RGB")
    except OSError as error:
        raise ValueError(f"an image of {len(image.data)} bytes cannot be read ({error}); write it as PNG") from error


def _pillow() -> Any:
    try:
        from PIL import Image as pillow
    except ImportError:
        raise ValueError("images are read with pillow, which is not installed; pip install 'kd[vision]'") from None
    return pillow


def image_in(value: Any, folder: Path) -> Image:
    """The image of a column: a file's name, as seen from `folder`, its bytes, or `{bytes, path}` as `datasets` has it.

    Raises ValueError, without a subject, for a file that is not there and for what is no image.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        file = folder / Path(value).expanduser()
        if not file.is_file():
            raise ValueError(f"names the image {value}, but there is no file {file}; correct the name, or add the file")
        value = file.read_bytes()
    elif isinstance(value, _pillow().Image):
        value = drawn(np.asarray(value.convert("RGB"))).data
    if not isinstance(value, bytes):
        raise ValueError(f"has {type(value).__name__} as an image; write the name of a file")
    image = Image(value)
    try:
        decoded(image)
    except ValueError as error:
        raise ValueError(f"has an image that cannot be read: {error}") from None
    return image


def plain(images: Sequence[Image]) -> list[str]:
    """The images as texts, for JSON and checkpoints."""
    return [base64.b64encode(image.data).decode() for image in images]


def from_plain(texts: Iterable[str]) -> tuple[Image, ...]:
    """The images that `plain` wrote."""
    return tuple(Image(base64.b64decode(text)) for text in texts)
