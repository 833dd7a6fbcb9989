"""Language-model batches from texts: one stream of tokens, cut into blocks, some of them for each optimizer step."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from kd.data.sequences import Encoded, collate, micro_batches
from kd.seeding import permutation
from kd.types import Batch


def blocks(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> list[tuple[int, ...]]:
    """The documents, joined with the end token after each, cut into blocks of `length` ids, as pre-training does.

    Every id is in one block. The last block may be shorter; a single id that is left over has no label and is
    dropped. Text that reads like a special token ("</s>") is encoded as text. A base model's documents begin with
    its begin token if it has one, as its prompts do (`kd.data.sequences.render`).

    Raises:
        ValueError: `length` is below 2, the tokenizer has no end token, or there is no text.
    """
    if length < 2:
        raise ValueError(f"blocks of length {length} hold no label; give at least 2 tokens")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{type(tokenizer).__name__} has no end token to join documents with; set its eos_token")
    stream = [i for ids in _tokenized(texts, tokenizer) for i in (*ids, tokenizer.eos_token_id)]
    cut = [tuple(stream[start : start + length]) for start in range(0, len(stream), length)]
    if not cut or len(cut[0]) < 2:
        raise ValueError("the corpus holds no text; choose another in corpus")
    return cut if len(cut[-1]) > 1 else cut[:-1]


def lm_batch(blocks: Sequence[Sequence[int]], pad: int) -> Batch:
    """Blocks as a micro-batch in which every token but a block's first is a label.

    Student and teacher share one object, and there are no records.
    """
    sequences = collate([Encoded(tuple(block), prompt=1) for block in blocks], pad)
    return Batch(sequences, sequences)


class Blocks:
    """The blocks that each optimizer step learns from: a pure function of (seed, step), dealt to the ranks.

    Every block is seen once before any is seen again.

    Args:
        blocks: blocks of token ids, at least 2 in each.
        pad: id that fills up a shorter block.
        size: blocks per optimizer step, over all ranks.
        max_tokens: bound on a micro-batch's rows x longest row, as `data.max_tokens`.
        seed: seed of the order.
    """

    def __init__(self, blocks: Sequence[Sequence[int]], *, pad: int, size: int, max_tokens: int, seed: int):
        if not blocks or size < 1:
            raise ValueError(f"{len(blocks)} blocks of text and {size} per step give nothing to learn; raise both to 1")
        self.blocks, self.pad, self.size, self.max_tokens, self.seed = blocks, pad, size, max_tokens, seed

    def indices(self, step: int) -> list[int]:
        """Indices of the step's blocks, over all ranks."""
        n = len(self.blocks)
        positions = range(step * self.size, (step + 1) * self.size)
        return [permutation(n, self.seed, "lm order", position // n)[position % n] for position in positions]

    def at(self, step: int, rank: int = 0, ranks: int = 1) -> list[Batch]:
        """One rank's micro-batches of the step.

        Raises:
            ValueError: there are fewer blocks in a step than ranks.
        """
        if self.size < ranks:
            raise ValueError(f"{self.size} blocks of text per step are fewer than the {ranks} ranks; raise them")
        mine = [self.blocks[i] for i in self.indices(step)[rank::ranks]]
        groups = micro_batches([len(block) - 1 for block in mine], self.max_tokens)
        return [lm_batch([mine[i] for i in group], self.pad) for group in groups]


def _tokenized(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    begin = [] if tokenizer.chat_template else [tokenizer.bos_token_id]
    opening = [i for i in begin if i not in (None, tokenizer.eos_token_id)]  # an end token stands before it already
    return [[*opening, *ids] for ids in encoded]
