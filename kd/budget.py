"""What the training of a run has spent, for comparisons at equal budget.

Not counted yet: what an augmentation has the teacher write, and the FLOPs of reading while generating.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from kd.models.language_model import LanguageModel
from kd.types import Sequences


@dataclass
class Budget:
    """Over all ranks. Tokens are real ones: padding is paid for, but teaches nothing.

    tokens: read by the student while training (forward and backward), prompts included.
    rows: loss rows, those that met the head. padded: positions of padding beside them.
    teacher_tokens: read by the teacher. generated_tokens: written by the student.
    student_flops: 6 per weight and token (4 if it is frozen: no gradient of its own), the head's per loss row instead,
    plus causal attention; no padding, no recomputation: the same work counts the same however it is implemented.
    """

    tokens: int = 0
    rows: int = 0
    padded: int = 0
    teacher_tokens: int = 0
    generated_tokens: int = 0
    student_flops: int = 0
    seconds: float = 0.0


def training_flops(model: LanguageModel, sequences: Sequences) -> int:
    """FLOP of one forward and backward pass over the real tokens and loss rows of `sequences`."""
    network: Any = model.network
    lengths = sequences.lengths
    config = network.config.get_text_config()
    embedding, head = network.get_input_embeddings().weight, network.get_output_embeddings().weight
    apart = {embedding.data_ptr(), head.data_ptr()}  # one is looked up, the other met by loss rows only
    backbone = sum(_passes(p) * p.numel() for p in network.parameters() if p.data_ptr() not in apart)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 4 * config.num_hidden_layers * config.num_attention_heads * width * int((lengths**2).sum()) // 2
    rows = int(sequences.mask.sum())
    return backbone * int(lengths.sum()) + 3 * attention + _passes(head) * head.numel() * rows


def _passes(weight: nn.Parameter) -> int:
    return 6 if weight.requires_grad else 4
