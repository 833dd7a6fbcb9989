"""A GGUF file, converted to a checkpoint."""

import io
from contextlib import redirect_stderr
from pathlib import Path

from kd.progress import phase, size


def check_gguf(source: str, path: Path) -> None:
    """Raises ValueError if a file of `source` is not a GGUF file."""
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ValueError(f"{path.name} of {source} is not a GGUF file; set member to the model's .gguf inside")


def write_converted(gguf: Path, folder: Path) -> None:
    """Write the model, its generation config, and the tokenizer with its chat template.

    Weights are read into memory whatever the caller's default device is: `from_pretrained` refuses the device "meta",
    on which configurations are checked.
    """
    import torch  # these imports take seconds, and a data file needs none of them
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    what = f"convert {gguf.name} ({size(gguf.stat().st_size)}), once"
    with phase(what), redirect_stderr(io.StringIO()), torch.device("cpu"):  # a bar of tensors, beside ours
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.float32,
            # without it the weights stay in quantised blocks, which save_pretrained refuses
            quantization_config=GgufConfig(gguf_file=gguf.name, dequantize=True),
        )
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
