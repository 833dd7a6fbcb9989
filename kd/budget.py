"""What a run has spent. Methods are compared at equal budget, so everything that costs is counted."""

from dataclasses import dataclass

from kd.models.language_model import LanguageModel
from kd.types import Sequences


@dataclass
class Budget:
    """Over all ranks. Tokens are real ones: padding is paid for, but teaches nothing.

    tokens: read by the student while training (forward and backward), prompts included.
    rows: loss rows, those that met the head. padded: positions of padding beside them.
    teacher_tokens: read by the teacher. generated_tokens: written by the student.
    student_flops: 6 per weight and token, plus attention, plus 6 per head weight and loss row; no padding, no
    recomputation, so that the same work counts the same however it is implemented.
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
    config = model.network.config.get_text_config()
    embedding = model.network.get_input_embeddings().weight.numel()
    head = model.network.get_output_embeddings().weight
    tied = head.data_ptr() == model.network.get_input_embeddings().weight.data_ptr()
    backbone = sum(p.numel() for p in model.network.parameters()) - embedding - (0 if tied else head.numel())
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    lengths = sequences.lengths
    attention = 4 * config.num_hidden_layers * config.num_attention_heads * width * int((lengths**2).sum()) // 2
    return 6 * backbone * int(lengths.sum()) + 3 * attention + 6 * head.numel() * int(sequences.mask.sum())
