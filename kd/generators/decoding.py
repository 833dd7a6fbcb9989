"""Decoding with one language model, which reads prompts and then one token after another, with a cache."""

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from kd.data.images import view_of
from kd.kernels.logits import HeadLogits, finish
from kd.kernels.packed import Product
from kd.models.language_model import LanguageModel
from kd.types import Pixels


class LogitsHead:
    """The head of a model: from last hidden states to logits of the first `vocabulary` ids, in float32 or wider."""

    def __init__(self, model: LanguageModel, vocabulary: int, *, pack: bool):
        head = model.head()
        cut = head._replace(weight=head.weight[:vocabulary], bias=None if head.bias is None else head.bias[:vocabulary])
        self.head = HeadLogits(cut.weight[:0], cut).cast().head  # in autocast's dtype where that is on
        self.product = Product(self.head.weight, self.head.bias, pack=pack)

    def __call__(self, hidden: Float[Tensor, "b D"]) -> Float[Tensor, "b V"]:
        """One row of logits for each hidden state."""
        logits = finish(self.product(hidden), self.head)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


class Decoder(ABC):
    """Rows of text and the model's cache of them. `start` makes rows, `keep` removes or repeats some.

    Padding is there only where prompts of different lengths are read together: on the left, or after a beginning that
    all of them share and that was read once.
    """

    def __init__(self, logits_head: LogitsHead, device: torch.device):
        self.logits_head, self.device = logits_head, device
        self.used = 0  # positions that have been read, padding included
        self.shared = 0  # of these, the positions of the shared beginning
        self.padding: Int[Tensor, " b"] | None = None  # where there is any
        self.images: dict[str, Tensor] = {}  # of the prompts, until these are read

    def start(self, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "b V"]:
        """Reads the prompts, one row each, and returns the logits of the next tokens."""
        width = max(map(len, prompts))
        missing = [width - len(prompt) for prompt in prompts]
        self.padding = torch.tensor(missing, device=self.device) if any(missing) else None
        rows = [[0] * padding + list(prompt) for padding, prompt in zip(missing, prompts, strict=True)]
        tokens = torch.tensor(rows, device=self.device)
        self.images = self._shown(tokens, [{} if view is None else view.pixels() for view in map(view_of, prompts)])
        return self._read(tokens)

    def step(self, ids: Int[Tensor, " b"]) -> Float[Tensor, "b V"]:
        """Reads one more token in each row, and returns the logits of the next tokens."""
        return self._read(ids[:, None])

    def keep(self, rows: Int[Tensor, " c"]) -> None:
        """Replaces row i by row `rows[i]`."""
        if self.padding is not None:
            self.padding = self.padding[rows]

    def _shown(self, tokens: Int[Tensor, "b t"], pixels: Sequence[Pixels]) -> dict[str, Tensor]:
        """The network's inputs for the prompts' images; none in a model of text."""
        return {}

    @abstractmethod
    def copy(self) -> "Decoder":
        """An independent decoder that has read the same tokens."""

    def _read(self, tokens: Int[Tensor, "b t"]) -> Float[Tensor, "b V"]:
        self.used += tokens.shape[1]
        return self.logits_head(self._hidden(tokens))

    def _places(self, length: int) -> Int[Tensor, "b t"] | None:
        """Positions of the last `length` tokens of each row, negative in padding; None where there is no padding."""
        if self.padding is None:
            return None
        column = torch.arange(self.used - length, self.used, device=self.device)
        place = column - self.padding[:, None]
        return torch.where(column < self.shared, column, place.masked_fill(place < self.shared, -1))

    @abstractmethod
    def _hidden(self, tokens: Int[Tensor, "b t"]) -> Float[Tensor, "b D"]:
        """Reads the tokens, which `used` counts already, and returns the last position's hidden states."""


class CachedDecoder(Decoder):
    """The network's own forward, with a cache of keys and values.

    Args:
        room: tokens that a row will have at most, prompt included.
    """

    def __init__(self, model: LanguageModel, logits_head: LogitsHead, *, room: int):
        super().__init__(logits_head, model.network.device)
        self.model = model
        self.backbone: Any = getattr(model.network, model.network.base_model_prefix)
        accepted = inspect.signature(self.backbone.forward).parameters
        self.cache_name = "past_key_values" if "past_key_values" in accepted else "cache_params"  # Mamba
        self.takes_positions = "position_ids" in accepted
        self.cache: Any = _cache(model.network.config, room)

    def keep(self, rows: Int[Tensor, " c"]) -> None:
        """See `Decoder`."""
        super().keep(rows)
        self.cache.reorder_cache(rows)

    def _shown(self, tokens: Int[Tensor, "b t"], pixels: Sequence[Pixels]) -> dict[str, Tensor]:
        """See `Decoder`."""
        return {name: tensor.to(self.device) for name, tensor in self.model.images(tokens, pixels).items()}

    def copy(self) -> "CachedDecoder":
        """See `Decoder`."""
        other = copy.copy(self)
        other.cache = copy.deepcopy(self.cache)
        return other

    def _hidden(self, tokens: Int[Tensor, "b t"]) -> Float[Tensor, "b D"]:
        inputs: dict[str, Any] = {"input_ids": tokens, self.cache_name: self.cache, "use_cache": True, **self.images}
        self.images = {}
        places = self._places(self.used)
        if places is not None:  # without padding the library makes no mask
            inputs["attention_mask"] = (places >= 0).long()
            if self.takes_positions:
                inputs["position_ids"] = places[:, -tokens.shape[1] :].clamp(min=0)
        return self.backbone(**inputs).last_hidden_state[:, -1]


class Store:
    """Keys (or values) of all rows, appended in place, in memory that is reserved at the first for `room` positions.

    A tensor that grows is copied whole at every token.
    """

    def __init__(self, room: int):
        self.room, self.used = room, 0
        self.states: Tensor | None = None

    def append(self, states: Float[Tensor, "b h t d"]) -> Float[Tensor, "b h s d"]:
        """Appends the states of new positions, and returns those of all positions."""
        if self.states is None:
            self.states = self._reserved(states, len(states))
        start, self.used = self.used, self.used + states.shape[2]
        self.states[:, :, start : self.used] = states
        return states if start == 0 else self.states[:, :, : self.used]

    def keep(self, rows: Int[Tensor, " c"]) -> None:
        """Replaces row i by row `rows[i]`; rows that keep their place cost nothing."""
        assert self.states is not None
        count = len(rows)
        if count > len(self.states):
            wider = self._reserved(self.states, count)
            wider[:, :, : self.used] = self.states[rows, :, : self.used]
            self.states = wider
            return
        moved = (rows != torch.arange(count, device=rows.device)).nonzero()[:, 0]
        self.states[moved, :, : self.used] = self.states[rows[moved], :, : self.used]
        self.states = self.states[:count]

    def join(self, other: "Store", shared: int, cuts: Sequence[int], width: int, room: int) -> None:
        """Appends the rows of another store, so that all rows end at position `width`.

        shared: positions at the beginning that stay where they are. cuts: positions after these that are padding in all
            rows of this store, and of the other. room: positions that may follow.
        """
        assert self.states is not None
        assert other.states is not None
        rows, self.room = len(self.states), width + room
        wide = self._reserved(self.states, rows + len(other.states))
        known = (self.states[:, :, : self.used], other.states[:, :, : other.used])
        for part, states, cut in zip((wide[:rows], wide[rows:]), known, cuts, strict=True):
            rest = states[:, :, shared + cut :]
            start = width - rest.shape[2]
            part[:, :, :shared] = states[:, :, :shared]
            part[:, :, shared:start] = 0  # padding that is added: never attended to, but it has to be finite
            part[:, :, start:width] = rest
        self.states, self.used = wide, width

    def copy(self) -> "Store":
        """An independent store with the same states."""
        other = copy.copy(self)
        other.states = None if self.states is None else self.states.clone()
        return other

    def _reserved(self, states: Tensor, rows: int) -> Tensor:
        return states.new_empty(rows, states.shape[1], self.room, states.shape[3])


class _Reserved(DynamicLayer):
    """A plain layer of the library's cache, its memory reserved."""

    def __init__(self, room: int):
        super().__init__()
        self.stores = Store(room), Store(room)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys, self.values = (
            store.append(states) for store, states in zip(self.stores, (key_states, value_states), strict=True)
        )
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.stores[0].used

    def reorder_cache(self, beam_idx: Tensor) -> None:
        for store in self.stores if self.is_initialized else ():  # some layers use the keys of another
            store.keep(beam_idx)


def _cache(config: Any, room: int) -> DynamicCache:
    """The architecture's cache (full, sliding, recurrent layers), its plain layers with reserved memory."""
    cache = DynamicCache(config=config.get_text_config(decoder=True))
    cache.layers = [_Reserved(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
