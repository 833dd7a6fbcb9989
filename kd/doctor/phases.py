"""The memory of one device by phase of a run and by part, from its workload alone (docs/scale.md has the formulas)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from kd.composition.sections import Prepare
from kd.doctor.memory import LIVE_LAYER, Activations, Load, activations_of, head_pass, largest, widest
from kd.doctor.shards import gathered, narrowed, stored, trained_bytes
from kd.doctor.workload import Config, Workload, engine_of, laid_out
from kd.experiment.preparation import MAX_TOKENS
from kd.generators.llama_decoder import readable
from kd.kernels.chunks import chunk_rows
from kd.models.outlines import Outline
from kd.models.sharding import blocks

Parts = dict[str, int]  # bytes by part


@dataclass(frozen=True)
class Rows:
    """The responses that are generated at a time.

    Attributes:
        prompts, prompt: prompts that are read for them at once, and the tokens of each.
        count: responses.
        length: tokens of a prompt and its response.
        laid_out: whether the weights are laid out anew for them.
    """

    prompts: int
    prompt: int
    count: int
    length: int
    laid_out: bool = True

    @classmethod
    def of(cls, generator: Config | None, *, batch: int, samples: int, most: int, prompt: int, length: int) -> "Rows":
        """The rows of as many whole prompts as a batch has room for, `most` at most; a part of one that has more alone.

        Our engine reads a prompt once for all of its samples; the library's once for each of them, or for each beam.
        """
        of_library = engine_of(generator) == "Transformers"
        options = (generator or {}).get("options") or {}
        beams = int(options.get("num_beams") or 1) if of_library else 1
        prompts = min(most, max(1, batch // max(beams, samples)))
        count = prompts * max(beams, min(samples, batch))
        return cls(count if of_library else prompts, prompt, count, length, not of_library)


OWN, COLOCATED = {"Torch", "Transformers"}, {"Colocated"}  # engines that generate on the run's own device
DRAWN = 3  # tensors like the logits of a batch when its next tokens are chosen: logits, probabilities, a temporary


def memory_by_phase(work: Workload) -> dict[str, Parts]:
    """Bytes on one device by phase, in the order of the run, and by part; a phase that loads no model is left out."""
    found = {f"prepare {role}": _preparation(work, recipe, model) for role, recipe, model in work.preparations()}
    if parts := _elicitation(work):
        found["elicit"] = parts
    if work.writers and work.engine in OWN | COLOCATED:
        found["generate"] = _generation(work)
    found["train"] = _training(work)
    if parts := _evaluation(work):
        found["evaluate"] = parts
    return found


def host_memory(work: Workload) -> int:
    """Bytes of a machine's own memory while its processes load the models, which are divided only then."""
    if not work.layout.sharded:
        return 0
    return work.layout.here * (stored(work.student) + sum(map(stored, work.held)))


# --- phases ---


def _training(work: Workload) -> Parts:
    """A micro-batch at the end of its forward pass, in the second step or later."""
    layout, trained, load = work.layout, trained_bytes(work.student), work.load
    working = [_passing(one, load) for one in work.teachers]
    return {
        **_weights(work),
        "gradients": trained // layout.gradients,
        "AdamW": 2 * trained // layout.moments,
        "buckets": trained if layout.buckets else 0,
        "activations": kept_activations(work).taken,
        "head": head_pass(work.student, load),
        "layer": max(working, default=0) if work.reads_teacher else 0,
        "gathered": _gathered(work),
    }


def _generation(work: Workload) -> Parts:
    """The rollout's own decoder, beside the moments; there are no gradients between two steps."""
    layout = work.layout
    found = {**_weights(work), "AdamW": 2 * trained_bytes(work.student) // layout.moments}
    if work.engine in COLOCATED:
        return {**found, "engine": int(work.engine_share * work.assumed.gpu.memory)}
    types = [work.autocast(one.network.dtype) for one in work.writers]
    generated = Rows.of(
        work.generator,
        batch=work.batch,
        samples=work.samples,
        most=-(-work.window // layout.devices),
        prompt=work.length - work.response,
        length=work.length,
    )
    decoding = _decoding(work.writers, types, generated, on_cpu=layout.on_cpu)
    return {**found, "gathered": _gathered_whole(work), **decoding}


def _elicitation(work: Workload) -> Parts:
    """The stage of the augmentation that takes most, on one device."""
    found: list[Parts] = []
    for written in work.elicited():
        weights = {"teacher": sum(map(stored, work.teachers))} if written.role == "teacher" else {}
        weights |= {"student": stored(work.student)} if written.role == "student" else {}
        types = [written.model.network.dtype]
        rows = Rows.of(
            written.generator,
            batch=written.batch,
            samples=written.samples,
            most=written.batch,
            prompt=work.length - written.response,
            length=work.length,
        )
        decoding = _decoding([written.model], types, rows, on_cpu=work.layout.on_cpu)
        found.append({**weights, **decoding})
    return max(found, key=lambda parts: sum(parts.values()), default={})


def _evaluation(work: Workload) -> Parts:
    """The whole models on the first device, one of which generates; on a CPU the moments are there still."""
    settings = work.config["evaluation"]
    if settings.get("items") == settings.get("answers") == 0:
        return {}
    models = [work.student, *work.held]
    weights = {"student": stored(work.student), "teacher": sum(map(stored, work.held))}
    moments = 2 * trained_bytes(work.student) if work.layout.on_cpu else 0
    reading = Load(max(1, work.config["data"]["max_tokens"] // work.length), work.length)
    chunk = min(chunk_rows(work.student.vocabulary, torch.float32), reading.tokens)
    logits = DRAWN * chunk * work.student.vocabulary * 4
    read = {"layer": max(_passing(one, reading) for one in models), "logits": logits}
    answers, batch = settings.get("answers"), int(settings.get("batch_size") or 1)
    samples, prompt = int(settings.get("samples") or 1), work.length - work.length // 2
    rows = Rows.of(
        settings.get("generator"),
        batch=batch,
        samples=samples,
        most=batch if answers is None else answers,
        prompt=prompt,
        length=prompt + int(settings.get("max_new_tokens") or 1),
    )
    written = [_decoding([one], [one.network.dtype], rows, on_cpu=work.layout.on_cpu) for one in models]
    most = max([read, *written], key=lambda parts: sum(parts.values()))
    return {**weights, "AdamW": moments, **most}


def _preparation(work: Workload, recipe: Mapping[str, Any], model: Outline) -> Parts:
    """The tuning of a model before the run: all of its weights, on one device."""
    weights, load = trained_bytes(model), largest(work.length, 1, recipe.get("window", Prepare.window), MAX_TOKENS)
    return {
        "student": stored(model),
        "gradients": weights,
        "AdamW": 2 * weights,
        "activations": activations_of(model.rehearsable(on_cpu=work.layout.on_cpu), load, work.precision).whole,
        "head": head_pass(model, load),
    }


# --- parts ---


def _passing(model: Outline, load: Load) -> int:
    """Bytes of a layer's working memory without gradient."""
    return LIVE_LAYER * load.tokens * widest(model) * model.network.dtype.itemsize


def _gathered(work: Workload) -> int:
    """Bytes of weights and gradients that are whole for a while in training."""
    read = work.held if work.reads_teacher else []
    return gathered(work.student, read, work.layout, work.precision, work.student_fields)


def _gathered_whole(work: Workload) -> int:
    """Bytes of the models that are whole while the rollout generates and its reward scores."""
    layout, copied = work.layout, work.own and work.config["teacher"].get("mode") != "live"
    frozen = work.teachers if copied else work.held
    read = [work.student] * layout.sharded + frozen * (work.asks_teacher and layout.teacher > 1)
    return sum(narrowed(one, work.precision, stored(one)) for one in read)


def kept_activations(work: Workload) -> Activations:
    """Bytes that the student's forward pass keeps of the largest micro-batch, with and without checkpointing.

    Sharded weights are gathered in the type that is computed in, so that autocast casts none.
    """
    student, precision = work.student, work.precision
    if work.layout.sharded and work.autocast(student.network.dtype) != student.network.dtype:
        student, precision = laid_out({**work.node, "dtype": "bfloat16"}), "32-true"
    key = student, work.load, precision, work.layout.on_cpu
    if key not in _activations:
        _activations[key] = activations_of(student.rehearsable(on_cpu=work.layout.on_cpu), work.load, precision)
    return _activations[key].under(bool(work.node.get("gradient_checkpointing")))


_activations: dict[tuple[Outline, Load, str, bool], Activations] = {}  # jobs of a grid often share a student


def _weights(work: Workload) -> Parts:
    """Weights of student and teacher on a device in training."""
    layout = work.layout
    if work.own:
        copied = trained_bytes(work.student) if work.config["teacher"].get("mode") != "live" else 0
        teacher = copied // layout.teacher
    else:
        teacher = 0 if layout.offloads else sum(map(stored, work.held)) // layout.teacher
    return {"student": stored(work.student) // layout.weights, "teacher": teacher}


def _decoding(models: list[Outline], types: list[torch.dtype], rows: Rows, *, on_cpu: bool) -> Parts:
    """Parts of a decoder, when it reads the prompts or when it chooses the last tokens, whichever takes more.

    Keys and values, its copies of the weights, and a layer's working memory, or the logits of the next tokens. Prompts
    are read in memory that is reserved for their whole responses.
    types: in which each model computes.
    """
    sizes = [dtype.itemsize for dtype in types]
    whole = sum(rows.length * cache_of_token(one, size) for one, size in zip(models, sizes, strict=True))
    copies = sum(_copies(*pair, on_cpu) for pair in zip(models, types, strict=True)) if rows.laid_out else 0
    read = [_prefilling(one, size) for one, size in zip(models, sizes, strict=True)]  # one model after the other
    reading = {"cache": rows.prompts * whole, "decoder": copies, "prompts": rows.prompts * rows.prompt * max(read)}
    logits = sum(DRAWN * rows.count * one.vocabulary * 4 for one in models)
    choosing = {"cache": rows.count * whole, "decoder": copies, "logits": logits}
    return max(reading, choosing, key=lambda parts: sum(parts.values()))


def _prefilling(model: Outline, size: int) -> int:
    """Bytes of a layer's working memory for each token of the prompts: the widest tensors (gate and up in one, the
    gate's activation, their product), and beside them what enters the layer and what attention returns."""
    return size * (LIVE_LAYER * widest(model) + 2 * model.network.config.get_text_config().hidden_size)


def cache_of_token(model: Outline, size: int) -> int:
    """Bytes of keys and values of one token, whose numbers have `size` bytes."""
    config: Any = model.network.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * size


def _copies(model: Outline, dtype: torch.dtype, on_cpu: bool) -> int:
    """Bytes of the weights that the decoder lays out anew (`kd.generators.llama_decoder`), in the type it computes in.

    The head is copied where that is another type, and on a CPU, where products are packed.
    """
    head = model.network.get_output_embeddings().weight
    layers = sum(p.numel() for block in blocks(model.network) for p in block.parameters()) if readable(model) else 0
    anew = head.numel() if on_cpu or head.dtype != dtype else 0
    return dtype.itemsize * (layers + anew)
