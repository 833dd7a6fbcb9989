"""The key of the config that lowers what takes most memory in a phase."""

from collections.abc import Mapping

from kd.composition.sections import prepared_roles
from kd.doctor.workload import Workload

OF_WEIGHTS = ("student", "gradients", "AdamW", "buckets")
OF_TOKENS = ("activations", "head", "layer")
ON_ONE = ("prepare", "elicit", "evaluate")  # phases of one device, whatever the trainer's


def remedy(work: Workload, phase: str, parts: Mapping[str, int]) -> str:
    """A key, by the largest part of the phase for which there is one."""
    for part in sorted(parts, key=lambda name: -parts[name]):
        alone = phase.partition(" ")[0] in ON_ONE
        if parts[part] and (found := _on_one(work, phase, part) if alone else _on_all(work, part)):
            return f"most of it is {part}: {found}"
    return "take a GPU with more memory"


def _on_one(work: Workload, phase: str, part: str) -> str | None:
    """The key for a phase in which one device holds whole models."""
    name, _, role = phase.partition(" ")
    if name == "prepare":
        return _of_preparation(work, role, part)
    if part == "teacher" and (dtype := _half_teacher(work)):
        return dtype
    if name == "elicit":
        return "teacher=endpoint, a server with the teacher" if part == "teacher" else _batches(work, "elicit", part)
    if part in ("student", "teacher", "AdamW"):
        return "evaluation=none, and evaluate the exported student by itself (docs/scale.md)"
    return _batches(work, "evaluate", part) or (_tokens(work) if part in OF_TOKENS else None)


def _of_preparation(work: Workload, role: str, part: str) -> str | None:
    if part == "activations":
        return _checkpointing(work, role) or f"data.max_length={work.length // 2}"
    return f"{role}.prepare=null with a checkpoint that is tuned already" if part in OF_WEIGHTS else None


def _on_all(work: Workload, part: str) -> str | None:
    """The key for training, and for the rollout's generation."""
    layout, student = work.layout, work.config["student"]["model"]
    several, divides = layout.devices > 1, layout.moments > 1
    if part == "teacher":
        divided = "trainer=fsdp" if several else "targets.cached=true, which reads the teacher before"
        offloaded = None if layout.offloads else "trainer.sharding.offload_teacher=true"
        return _half_teacher(work) or (offloaded if layout.teacher > 1 else divided)
    if part in OF_WEIGHTS:
        fewer = None if student.get("lora") else "student=lora, or trainer=fsdp on several devices"
        more = f"trainer.devices={2 * layout.here}, or trainer.num_nodes" if layout.sharded else "trainer=fsdp"
        return more if divides or several else fewer
    if part == "activations":
        return _checkpointing(work, "student") or _tokens(work)
    if part == "gathered" and not layout.reshards:
        return "trainer.sharding.reshard_after_forward=true"
    if part == "decoder":
        return "generator=vllm, a server beside the run"
    if part == "engine":
        return f"generator.memory={work.engine_share / 2:g}"
    return _tokens(work) if part in OF_TOKENS else _batches(work, "generate", part)


def _half_teacher(work: Workload) -> str | None:
    node = work.config["teacher"].get("model")
    whole = isinstance(node, Mapping) and node.get("dtype", "float32") == "float32"
    return "teacher.model.dtype=bfloat16" if whole and not work.own else None


def _checkpointing(work: Workload, role: str) -> str | None:
    node = prepared_roles(work.config)[role].get("model") or {}
    if node.get("gradient_checkpointing"):
        return None
    return f"{'' if 'gradient_checkpointing' in node else '+'}{role}.model.gradient_checkpointing=true"


def _tokens(work: Workload) -> str:
    if work.load.rows > work.rows // work.window:
        return f"data.max_tokens={work.load.rows // 2 * work.length}"
    return f"data.max_length={work.length // 2}"


def _batches(work: Workload, phase: str, part: str) -> str | None:
    """The key of what is generated at a time."""
    if part not in ("cache", "logits", "prompts"):
        return None
    evaluated = int(work.config["evaluation"].get("batch_size") or 1)
    sizes = {"generate": ("rollout.batch_size", work.batch), "evaluate": ("evaluation.batch_size", evaluated)}
    if phase == "elicit":
        most = max(work.elicited(), key=lambda one: one.batch)
        sizes["elicit"] = (f"augmentation.stages.{most.stage}.batch_size", most.batch)
    key, size = sizes[phase]
    return f"{key}={size // 2}" if size > 1 else None
