"""Which model this is, by content: what the cache of scores and the table's digests go by."""

import hashlib
import json

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from kd.models.language_model import LanguageModel
from kd.teachers.ensemble import Ensemble

# Fields of a transformers config that say where a model came from, not what it computes.
_ORIGIN = ("_name_or_path", "architectures", "transformers_version", "use_cache")


def weights_digest(module: nn.Module) -> str:
    """sha256 over names, dtypes, shapes and bytes of the state dict, wherever the tensors lie.

    Tied weights are read once. About a second per gigabyte.
    """
    whole = hashlib.sha256()
    seen: dict[tuple, str] = {}
    for name, tensor in sorted(module.state_dict().items()):
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() == 0 or place not in seen:
            seen[place] = hashlib.sha256(_bytes(tensor)).hexdigest()
        line = [name, str(tensor.dtype), list(tensor.shape), seen[place]]
        whole.update(json.dumps(line).encode())
    return whole.hexdigest()


def model_digest(model: LanguageModel | Ensemble) -> str:
    """sha256 over the weights and the network's config: equal weights compute other things under another config.

    (Two models drawn from one seed that differ in `rope_theta` alone have the same weights.) Of an ensemble: over its
    members' digests and how they are combined.
    """
    if isinstance(model, Ensemble):
        members = [[name, model_digest(member)] for name, member in model.parts.items()]
        return hashlib.sha256(json.dumps([model.combine, model.weights, members]).encode()).hexdigest()
    config = model.network.config.to_dict()
    fields = {name: value for name, value in config.items() if name not in _ORIGIN}
    text = json.dumps([weights_digest(model.network), fields], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over what decides which ids a conversation becomes: vocabulary, rules, special tokens, chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = {} if backend is None else json.loads(backend.to_str())
    for of_a_batch in ("padding", "truncation"):
        rules.pop(of_a_batch, None)
    words = sorted(tokenizer.get_vocab().items())
    content = [words, rules, tokenizer.eos_token, tokenizer.bos_token, tokenizer.chat_template]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)  # without copies where it lies on the CPU already
    return flat.view(torch.uint8).numpy().data
