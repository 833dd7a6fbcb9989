"""Memory by phase, against values that are computed by hand, under each way of dividing models among devices.

Run: python -m pytest tests/doctor/test_phases.py
"""

from typing import Any

import pytest
from omegaconf import OmegaConf

from kd.composition.overrides import started
from kd.doctor.__main__ import main
from kd.doctor.gpus import gpu, gpus
from kd.doctor.grid import jobs
from kd.doctor.layout import Layout
from kd.doctor.memory import Load, activations_of, saved_bytes
from kd.doctor.needs import Needs, needs
from kd.doctor.phases import cache_of_token
from kd.doctor.workload import Assumed
from kd.models.networks import scratch
from kd.models.outlines import outline

SMALL = ("skill=spell_backward", "compare=null", "data.max_length=64", "data.max_tokens=512", "optim.window=64")
TINY = ("teacher=tiny", "student=tiny", "teacher.prepare=null", "trainer=cpu", *SMALL)
H100 = Assumed(gpu("h100-80"))
LLAMA = {
    **{"model_type": "llama", "hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True},
}
# conf/student/tiny.yaml over 261 ids: embedding (and head); blocks of 4 x 64 x 64 + 3 x 64 x 192 + 2 x 64; a norm
EMBEDDING, BLOCK, NORM = 261 * 64, 53376, 64
STUDENT = EMBEDDING + 2 * BLOCK + NORM
# conf/teacher/tiny.yaml: 128 wide, 384 inside, 4 blocks of 4 x 128 x 128 + 3 x 128 x 384 + 2 x 128
TEACHER_BLOCK, TEACHER_REST = 213248, 261 * 128 + 128
TEACHER = 4 * TEACHER_BLOCK + TEACHER_REST
LARGE = ("objective=sft", "data.max_tokens=65536", "optim.window=1024")
ROTARY = 200  # bytes of buffers at most


def config(*overrides: str) -> dict[str, Any]:
    with started(overrides=list(overrides)):
        (job,) = jobs(list(overrides))
        return OmegaConf.to_container(job.cfg, resolve=True)  # type: ignore[return-value]


def of(*overrides: str, trainer: dict[str, Any] | None = None) -> Needs:
    words = {word.partition("=")[0].lstrip("+"): word for word in (*TINY, *overrides)}  # the last of a key
    found = config(*words.values())
    return needs({**found, "trainer": {**found["trainer"], **(trainer or {})}}, H100)


def eight(strategy: str, **sharding: bool) -> dict[str, Any]:
    return {"strategy": strategy, "devices": 8, "sharding": sharding}


# --- layouts ---


@pytest.mark.parametrize(
    ("strategy", "divided"),
    [
        ("auto", (1, 1, 1, 1)),
        ("ddp", (1, 1, 1, 1)),
        ("fsdp2", (8, 8, 8, 8)),
        ("deepspeed_stage_1", (1, 1, 8, 1)),
        ("deepspeed_stage_2", (1, 8, 8, 1)),
        ("deepspeed_stage_3", (8, 8, 8, 1)),
    ],
)
def test_a_strategy_divides_weights_gradients_moments_and_the_teacher(strategy: str, divided: tuple[int, ...]) -> None:
    found = Layout.of({"strategy": strategy, "devices": 4, "num_nodes": 2})
    assert (found.devices, found.here) == (8, 4)
    assert (found.weights, found.gradients, found.moments, found.teacher) == divided
    assert found.buckets == (strategy in ("auto", "ddp"))


@pytest.mark.parametrize(
    ("trainer", "sentence"),
    [
        ({"devices": 0}, r"trainer.devices=0: a run has one at least"),
        ({"devices": -2}, r"trainer.devices=-2: a run has one at least"),
        ({"devices": []}, r"trainer.devices=\[\]: a run has one at least"),
        ({"devices": 1, "num_nodes": 0}, r"trainer.num_nodes=0: a run has one at least"),
    ],
)
def test_less_than_one_device_is_refused(trainer: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Layout.of(trainer)


def test_devices_that_depend_on_the_machine_count_as_one() -> None:
    found = Layout.of({"devices": "auto", "strategy": "fsdp2"})
    assert (found.devices, found.counted) == (1, False)
    assert Layout.of({"devices": 1}).counted


# --- training ---


def test_weights_gradients_and_moments_in_one_process() -> None:
    parts = of().memory["train"]
    assert STUDENT == 123520
    assert parts["gradients"] == 4 * STUDENT
    assert parts["AdamW"] == 8 * STUDENT
    assert 0 <= parts["student"] - 4 * STUDENT <= ROTARY
    assert 0 <= parts["teacher"] - 4 * TEACHER <= ROTARY
    assert parts["buckets"] == parts["gathered"] == 0


def test_replicas_hold_everything_and_a_copy_of_the_gradients() -> None:
    one, ddp = of().memory["train"], of(trainer=eight("ddp")).memory["train"]
    assert ddp["buckets"] == 4 * STUDENT
    assert [ddp[part] for part in ("student", "teacher", "gradients", "AdamW")] == [
        one[part] for part in ("student", "teacher", "gradients", "AdamW")
    ]


def test_shards_are_an_eighth_and_what_is_gathered_is_whole() -> None:
    """Of the student its ends, two blocks and a block's gradient twice; of the teacher its ends and two blocks."""
    one, parts = of().memory["train"], of(trainer=eight("fsdp2")).memory["train"]
    for part in ("student", "teacher", "gradients", "AdamW"):
        assert parts[part] == one[part] // 8
    student = (EMBEDDING + NORM) + 2 * BLOCK + 2 * BLOCK
    teacher = TEACHER_REST + 2 * TEACHER_BLOCK
    assert 0 <= parts["gathered"] - 4 * (student + teacher) <= 2 * ROTARY
    kept = of(trainer=eight("fsdp2", reshard_after_forward=False)).memory["train"]
    assert kept["gathered"] == parts["gathered"]  # two blocks are all
    offloaded = of(trainer=eight("fsdp2", offload_teacher=True)).memory["train"]
    assert offloaded["teacher"] == 0


def test_weights_are_gathered_in_the_type_that_is_computed_in() -> None:
    """bf16-mixed: two bytes of all that is gathered, four of a block's gradient when it is summed; nothing is cast."""
    found = of(trainer={**eight("fsdp2"), "precision": "bf16-mixed"})
    whole = of(trainer={**eight("ddp"), "precision": "bf16-mixed"})
    student, teacher = (EMBEDDING + NORM) + 3 * BLOCK, TEACHER_REST + 2 * TEACHER_BLOCK
    assert 0 <= found.memory["train"]["gathered"] - 2 * (student + teacher) - 4 * BLOCK <= 2 * ROTARY
    copies = 2 * (STUDENT - EMBEDDING - 5 * 64)  # of the matrices, that DDP's autocast makes
    assert whole.memory["train"]["activations"] - found.memory["train"]["activations"] > copies
    assert found.memory["train"]["AdamW"] == STUDENT  # in float32, an eighth of it


def test_text_alone_gathers_no_teacher() -> None:
    parts = of("objective=sft", trainer=eight("fsdp2")).memory["train"]
    assert 0 <= parts["gathered"] - 4 * (EMBEDDING + NORM + 4 * BLOCK) <= ROTARY
    assert parts["layer"] == 0


def test_a_term_on_attention_keeps_the_gathered_blocks_of_all_layers() -> None:
    """Of four: four blocks and a block's gradient twice, in place of two blocks; the teacher's are freed as ever."""
    layers = "student.model.architecture.num_hidden_layers=4"
    teacher = TEACHER_REST + 2 * TEACHER_BLOCK
    for objective, blocks in (("fkl", 2 + 2), ("attention_kl", 4 + 2), ("minilm", 4 + 2)):
        parts = of(layers, f"objective={objective}", trainer=eight("fsdp2")).memory["train"]
        whole = 4 * (EMBEDDING + NORM + blocks * BLOCK + teacher)
        assert 0 <= parts["gathered"] - whole <= 2 * ROTARY


def test_a_teacher_that_zero_leaves_whole_is_not_gathered() -> None:
    zero = of(trainer=eight("deepspeed_stage_3")).memory["train"]
    assert 0 <= zero["gathered"] - 4 * (EMBEDDING + NORM + 4 * BLOCK) <= ROTARY
    assert 0 <= zero["teacher"] - 4 * TEACHER <= ROTARY


def test_a_device_has_its_share_of_the_window() -> None:
    """64 records of 64 tokens: 8 of them in the 512 tokens of a micro-batch, 1 on each of 64 devices."""
    whole, shared = (of(trainer={**eight("ddp"), "devices": n}).memory["train"]["activations"] for n in (8, 64))
    assert whole == pytest.approx(8 * shared, rel=0.01)


def test_responses_to_a_prompt_are_read_together() -> None:
    """Four of 64 tokens to each prompt, of which data.max_tokens would let two be read at once."""
    base = ("rollout=on_policy", "rollout.max_new_tokens=16", "data.max_tokens=128")
    two, four = (of(*base, f"rollout.samples={n}").memory["train"]["activations"] for n in (2, 4))
    assert four == pytest.approx(2 * two, rel=0.01)


# --- generation and evaluation ---


def test_prompts_are_read_by_one_layer_at_a_time_beside_the_memory_of_their_responses() -> None:
    """16 prompts of 48 tokens: of each 4 x 192 numbers inside of a layer, and 2 x 64 beside it."""
    on_policy = ("rollout=on_policy", "rollout.max_new_tokens=16")
    one = of(*on_policy).memory["generate"]
    assert one["prompts"] == 16 * 48 * (4 * 192 + 2 * 64) * 4
    assert "logits" not in one
    several = of(*on_policy, "rollout.samples=16").memory["generate"]  # of one prompt, which is read once
    assert several["cache"] == one["cache"]
    assert several["logits"] == 3 * 16 * 261 * 4
    assert "prompts" not in several


def test_the_library_reads_a_prompt_for_each_of_its_samples() -> None:
    """4 prompts of 48 tokens with 4 samples each: 4 rows are read by our engine, 16 by the library's `generate`."""
    several = ("rollout=on_policy", "rollout.max_new_tokens=16", "rollout.samples=4")
    of_row = 48 * (4 * 192 + 2 * 64) * 4
    ours = of(*several, "rollout.batch_size=16").memory["generate"]
    assert ours["cache"] == 16 * 64 * 1024  # rows, tokens, bytes of 2 x 2 layers x 4 heads x 16 numbers
    assert "prompts" not in ours  # 4 rows of 64 x 1024 + 172032 bytes are less than 16 of 64 x 1024
    theirs = of(*several, "generator=transformers").memory["generate"]
    assert theirs["cache"] == 16 * 64 * 1024
    assert theirs["prompts"] == 16 * of_row
    assert theirs["decoder"] == 0
    beams = of(*several[:2], "generator=beam_search", "rollout.temperature=0.0").memory["generate"]
    assert beams["prompts"] == 15 * of_row  # 3 prompts of 5 beams


def test_the_samples_of_a_prompt_are_generated_together() -> None:
    """A batch of 16 has room for one prompt of 12 samples, and for a part of one of 24."""
    on_policy = ("rollout=on_policy", "rollout.max_new_tokens=16")
    for samples, rows in ((12, 12), (24, 16), (5, 15)):
        found = of(*on_policy, f"rollout.samples={samples}").memory["generate"]
        assert found["cache"] == rows * 64 * 1024
    few = ("optim.window=2", "rollout.samples=5")  # of two prompts
    assert of(*on_policy, *few).memory["generate"]["cache"] == 10 * 64 * 1024


def test_stages_and_evaluations_have_an_engine_and_samples_too() -> None:
    """Of the teacher, prompts of 32 and responses of 32 tokens; 4 layers of 4 heads of 32 numbers."""
    row, of_row = 64 * 2 * 4 * 4 * 32 * 4, 32 * (4 * 384 + 2 * 128) * 4
    sampled = ("augmentation=sampling", "skill.train=100", "augmentation.stages.sampling.samples=12")
    assert of(*sampled).memory["elicit"]["cache"] == 12 * row
    theirs = of(*sampled, "generator=transformers").memory["elicit"]
    assert (theirs["prompts"], theirs["decoder"]) == (12 * of_row, 0)
    settings = ("evaluation.batch_size=16", "evaluation.samples=12", "evaluation.temperature=1.0")
    evaluated = of(*settings, "evaluation.max_new_tokens=32").memory["evaluate"]
    assert evaluated["cache"] == 12 * row
    read = of(*settings, "evaluation.max_new_tokens=32", "evaluation.generator=${generator}", "generator=transformers")
    assert (read.memory["evaluate"]["prompts"], read.memory["evaluate"]["decoder"]) == (12 * of_row, 0)


def test_a_rollout_gathers_the_student_and_a_teacher_that_scores() -> None:
    generated = ("rollout=on_policy", "rollout.max_new_tokens=16")
    scored = (*generated, "reward=log_ratio", "objective=policy_gradient")
    both = of(*scored, trainer=eight("fsdp2")).memory["generate"]["gathered"]
    assert 0 <= both - 4 * (STUDENT + TEACHER) <= 2 * ROTARY
    zero = of(*scored, trainer=eight("deepspeed_stage_3")).memory["generate"]["gathered"]
    assert 0 <= zero - 4 * STUDENT <= ROTARY


def test_keys_and_values_of_a_token() -> None:
    """Llama 3.2 1B: keys and values of 16 layers, 8 heads, 64 wide; of 2 bytes."""
    node = {"_target_": "kd.models.networks.pretrained", "source": "hub:meta-llama/Llama-3.2-1B"}
    assert cache_of_token(outline(node), 2) == 2 * 16 * 8 * 64 * 2 == 32768


def test_generation_has_a_cache_whole_models_and_no_gradients() -> None:
    """Each of 8 devices generates 8 responses; a decoder lays out the blocks anew, and on a CPU the head."""
    on_policy = ("rollout=on_policy", "rollout.max_new_tokens=16")
    one = of(*on_policy).memory["generate"]
    assert "gradients" not in one
    assert one["cache"] == 16 * 64 * 2 * 2 * 4 * 16 * 4  # rows, tokens, keys and values, layers, heads, width, bytes
    assert one["decoder"] == 4 * (2 * BLOCK + EMBEDDING)
    sharded = of(*on_policy, trainer=eight("fsdp2")).memory["generate"]
    assert sharded["cache"] == one["cache"] // 2
    assert sharded["AdamW"] == STUDENT
    assert 0 <= sharded["gathered"] - 4 * STUDENT <= ROTARY
    assert "generate" not in of().memory


def test_an_evaluation_is_on_one_device_with_whole_models() -> None:
    settings = ("evaluation.batch_size=32", "evaluation.answers=4", "evaluation.max_new_tokens=96")
    parts = of(*settings, trainer=eight("fsdp2")).memory["evaluate"]
    assert 0 <= parts["student"] - 4 * STUDENT <= ROTARY
    assert 0 <= parts["teacher"] - 4 * TEACHER <= ROTARY
    assert parts["cache"] == 4 * (32 + 96) * 2 * 4 * 4 * 32 * 4  # of the teacher: 4 layers, 4 heads, 32 wide
    assert "evaluate" not in of("evaluation=none").memory


def test_stages_and_preparations_are_phases_of_their_own() -> None:
    found = of("augmentation=sampling", "skill.train=100", trainer=eight("fsdp2")).memory
    assert list(found) == ["elicit", "train", "evaluate"]
    assert 0 <= found["elicit"]["teacher"] - 4 * TEACHER <= ROTARY
    assert "student" not in found["elicit"]
    prepared = config(*TINY)
    prepared["teacher"]["prepare"] = {"objective": "sft", "skill": None, "steps": 3}
    parts = needs(prepared, H100).memory["prepare teacher"]
    assert parts["AdamW"] == 2 * parts["gradients"] == 8 * TEACHER


# --- activations ---


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_laid_out_network_keeps_what_a_real_one_keeps(precision: str) -> None:
    """On a CPU. Autocast included: copies of the weights, products in bfloat16, attention and residual in float32."""
    architecture = {**LLAMA, "num_hidden_layers": 2}
    node = {"_target_": "kd.models.networks.scratch", "architecture": architecture, "tokenizer": "bytes"}
    laid_out, real = outline(node).rehearsable(on_cpu=True), scratch(architecture=architecture)
    expected = saved_bytes(real, 100, precision)
    assert saved_bytes(laid_out, 100, precision) == pytest.approx(expected, rel=0.02)
    on_gpu = saved_bytes(outline(node).rehearsable(), 100, precision)
    narrower = (
        2 * 100 * (64 + 32 + 32 + 64) * 2
    )  # layers, tokens, queries, keys, values and outputs, of 2 bytes and not 4
    assert saved_bytes(laid_out, 100, precision) - on_gpu == (narrower if precision == "bf16-mixed" else 0)


def test_recomputed_layers_keep_their_inputs() -> None:
    """Of four layers: what one keeps without checkpointing, and the inputs of three, 64 numbers of 4 bytes a token."""
    load = Load(rows=3, length=100)
    networks = [scratch(architecture={**LLAMA, "num_hidden_layers": layers}) for layers in (1, 4)]
    one, four = (activations_of(network, load, "32-true") for network in networks)
    assert four.whole > 3 * one.whole
    assert four.recomputed == pytest.approx(one.whole + 3 * 300 * 64 * 4, rel=0.02)  # rotations count once
    assert not networks[1].network.is_activation_checkpointing


def test_checkpointing_is_counted_in_memory_and_in_hours() -> None:
    plain, recomputed = of(), of("+student.model.gradient_checkpointing=true")
    assert plain.activations is not None
    assert recomputed.memory["train"]["activations"] == plain.activations.recomputed
    assert plain.memory["train"]["activations"] == plain.activations.whole
    matrices = 2 * (
        STUDENT - EMBEDDING
    )  # FLOP of a token; attention 2 x 2 layers x 4 heads x 32 numbers x 64 positions / 2
    again = 64 * 64 * matrices + 64 * (2 * 2 * 4 * 32 * 64**2 // 2)
    seconds = recomputed.steps * again / (0.4 * H100.gpu.float32)
    assert 3600 * (recomputed.hours - plain.hours) == pytest.approx(seconds)
    assert recomputed.flops == plain.flops  # a budget counts the work once


# --- what does not fit ---


@pytest.mark.parametrize(
    ("overrides", "phase", "part"),
    [
        (("teacher=pretrained", "teacher.source=hub:Qwen/Qwen3-8B", "student=tiny"), "train", "teacher"),
        (LARGE, "train", "activations"),
        ((*LARGE, "+student.model.gradient_checkpointing=true"), "train", "activations"),
        (("rollout=on_policy", "rollout.batch_size=4096", "optim.window=4096"), "generate", "prompts"),
        (("rollout=on_policy", "rollout.batch_size=4096", "rollout.samples=4096"), "generate", "cache"),
        (("evaluation.batch_size=1024", "evaluation.answers=1024"), "evaluate", "cache"),
    ],
)
def test_the_key_that_is_named_lowers_what_takes_most(overrides: tuple[str, ...], phase: str, part: str) -> None:
    before = of(*overrides)
    said, _, key = before.remedies[phase].partition(": ")
    assert said == f"most of it is {part}"
    after = of(*overrides, *[key.partition(",")[0]])
    assert after.memory[phase][part] < 0.7 * before.memory[phase][part]


def test_a_phase_that_does_not_fit_is_named_with_its_key(capsys: pytest.CaptureFixture[str]) -> None:
    """8.2 billion weights of 4 bytes: 30.5 GiB, where 22 are left; 4.0 with their gradients and moments are 60."""
    models = ["teacher=pretrained", "teacher.source=hub:Qwen/Qwen3-8B", "student=pretrained"]
    models += ["student.source=hub:Qwen/Qwen3-4B", "trainer=gpu", *SMALL]
    assert main([*models, "--gpu", "rtx4090-24"]) == 0  # a dry run
    text = " ".join(capsys.readouterr().out.split())
    assert "rtx4090-24 has 24 GiB, 22 beside what PyTorch takes. TOO LARGE for it: train (" in text
    assert "evaluate (" in text
    assert "most of it is teacher: teacher.model.dtype=bfloat16" in text
    assert "Hours by phase: train" in text
    assert "on a GPU none was ever measured" in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--gpu", "h100-81"],
            f"--gpu h100-81: there is no such GPU; did you mean h100-80? there are {', '.join(gpus())}",
        ),
        (
            ["--gpu", "h100-80", "trainer.devices=0"],
            "trainer.devices=0: a run has one at least; give a number from 1 on",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*words, *TINY])
    assert str(ended.value) == sentence


def test_every_gpu_names_its_data_sheet() -> None:
    assert {"a100-40", "a100-80", "h100-80", "h200-141", "b200-180", "l40s-48", "rtx4090-24", "mi300x-192"} <= set(
        gpus()
    )
    for one in gpus().values():
        assert any(maker in one.source for maker in ("NVIDIA", "AMD"))
