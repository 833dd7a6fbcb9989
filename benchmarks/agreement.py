"""The section `agreement` of `benchmarks.gpu`: loss, gradients, packing and text against float64 on the CPU.

A gate bounds the relative deviation in norm, of the worst tensor. Ours may also exceed it by no more than a tenth above
what `plain` does, autograd on all logits in the same precision on the same device, for then the precision is the cause.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import head, losses, training
from benchmarks.scene import Row, Scene
from benchmarks.sections import SMALL

MIDDLE = {  # heads of 64, as attention kernels want them
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
STEP_GATE = {"fp32": 1e-4, "bf16": 5e-2}  # of gradients through all layers
LOSS_GATE = {"fp32": 1e-5, "bf16": 2e-2}
TEXT_GATE = {"fp32": 1e-3, "bf16": 0.1}  # mean distance in nats of the log-probabilities of what was drawn
TENTH = 1.1
PROMPT, NEW = 12, 16
Gradients = dict[str, Tensor]


def rows(scene: Scene) -> Iterator[Row]:
    """Kernel, step and packing, generation; fp32 and bf16."""
    for precision in ("fp32", "bf16"):
        for objective in ("fkl", "rkl", "jsd"):
            name = f"{objective} head {precision}"
            yield scene.attempt(name, "ours", partial(kernel, scene, objective, precision))
        yield from step(scene, precision)
        yield scene.attempt(f"drawn text {precision}", "ours", partial(text, scene, precision))
    yield scene.attempt("greedy text fp32", "ours", partial(greedy, scene))


def kernel(scene: Scene, objective: str, precision: str) -> Row:
    """`over_chunks` in two and a half chunks: the largest of the deviations of loss and gradients, by its gate."""
    given = losses.problem(320, 500 if scene.tiny else 32000, objective, precision, device=scene.device)
    truth = losses.reference(given)
    found = {name: losses.deviations(given, losses.CONTENDERS[name], truth) for name in ("ours", "plain")}
    row = {"precision": precision, "said": found}
    return {
        **{"figure": max(found["ours"].values()), "unit": "rel", "said": found},
        "passed": head.passes(row, "ours") or head.excused(row),
    }


# ---- one step --------------------------------------------------------------------------------------------------------


def _case(scene: Scene, precision: str) -> dict[str, Any]:
    shape = {"layers": [2, 1], "size": SMALL} if scene.tiny else {"layers": [4, 3], "size": MIDDLE}
    return {**shape, "precision": precision, "objective": "fkl", "lengths": "variable", "steps": 1, "batch": 6}


def step(scene: Scene, precision: str) -> Iterator[Row]:
    """Loss and gradients of one micro-batch: read packed, read with padding, recomputed, and by `plain`."""
    case, found = _case(scene, precision), dict[str, Row]()
    loss, gradients = learnt(case, "cpu", exact=True)
    ways = {"plain": {}, "ours": {}, "ours padded": {"packs": False}, "ours recomputed": {"recomputes": True}}
    for name, changes in ways.items():
        measure = plain if name == "plain" else learnt

        def gap(measure: Any = measure, changes: Mapping[str, Any] = changes) -> Row:
            own, theirs = measure({**case, **changes}, scene.device)
            worst = max(float((theirs[n].cpu().double() - g).norm() / g.norm()) for n, g in gradients.items())
            return {"figure": worst, "unit": "rel", "loss_gap": abs(own - loss) / abs(loss)}

        row = found[name] = scene.attempt(f"step {precision}", name, gap)
        if name != "plain" and "figure" in row:
            bound = max(STEP_GATE[precision], TENTH * found["plain"].get("figure", 0.0))
            row["passed"] = row["figure"] <= bound and row["loss_gap"] <= LOSS_GATE[precision]
        yield row


def learnt(case: Mapping[str, Any], device: str, *, exact: bool = False) -> tuple[float, Gradients]:
    """Loss and gradients of the student by `Distillation`; exact: in float64, from the weights of that precision."""
    from kd.objectives.reduction import Counts, count

    module, batch = _made(case)
    module.student.__dict__["packs"] = module.student.packs and case.get("packs", True)
    teacher = module.models.teacher
    if exact:
        module.double()
        teacher.model.double()
    module.to(device)
    teacher.to(torch.device(device))
    with torch.autocast(device, torch.bfloat16, enabled=case["precision"] == "bf16" and not exact):
        loss = module.loss_of([("main", batch)], {"main": Counts(*count([batch]).tolist())})
    loss.backward()
    return float(loss), {n: p.grad for n, p in module.student.network.named_parameters() if p.grad is not None}


def plain(case: Mapping[str, Any], device: str) -> tuple[float, Gradients]:
    """The same by autograd: both models read padded rows, and all logits exist."""
    module, batch = _made(case)
    student, teacher = module.student.network.to(device), module.models.teacher.model.network.to(device)
    sequences = batch.student.to(torch.device(device))
    with torch.autocast(device, torch.bfloat16, enabled=case["precision"] == "bf16"):
        q = student(input_ids=sequences.tokens, use_cache=False).logits[sequences.mask]
        with torch.no_grad():
            p = teacher(input_ids=sequences.tokens, use_cache=False).logits[sequences.mask]
    q, p = q.float().log_softmax(-1), p.float().log_softmax(-1)
    loss = (p.exp() * (p - q)).sum(-1).mean()
    loss.backward()
    return float(loss), {n: parameter.grad for n, parameter in student.named_parameters()}


def _made(case: Mapping[str, Any]) -> tuple[Any, Any]:
    """The module, on the CPU, and one micro-batch of conversations."""
    from kd.rollouts.offline import Offline

    module = training.distillation(case, Offline(), training.words(case["size"]["vocab_size"]), max_tokens=2**20)
    module.train()
    (batch,) = module.encoder.batches(training.records(training.conversations(case)))
    return module, batch


# ---- text ------------------------------------------------------------------------------------------------------------


def greedy(scene: Scene) -> Row:
    """The share of responses that are the same ids as on the CPU in float64."""
    case = _case(scene, "fp32")
    own, truth = (
        _written(case, *where, sample=0.0) for where in ((scene.device, torch.float32), ("cpu", torch.float64))
    )
    same = sum(a.ids == b.ids for a, b in zip(own, truth, strict=True)) / len(own)
    return {"figure": same, "unit": "same", "passed": same == 1}


def text(scene: Scene, precision: str) -> Row:
    """The mean distance between the log-probabilities of the drawn ids and those in float64 on the CPU."""
    case = _case(scene, precision)
    network = training.network(case["layers"][1], case["size"], seed=1).double().eval()
    distances = list[Tensor]()
    for prompt, response in zip(_prompts(case), _written(case, scene.device, torch.float32, sample=1.0), strict=True):
        ids = torch.tensor(response.ids)
        with torch.no_grad():
            logits = network(torch.tensor([[*prompt, *response.ids]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        truth = logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]
        distances.append((response.old_logprobs.cpu().double() - truth).abs())
    mean = float(torch.cat(distances).mean())
    return {"figure": mean, "unit": "nats", "passed": mean <= TEXT_GATE[precision]}


def _written(case: Mapping[str, Any], device: str, dtype: torch.dtype, *, sample: float) -> list[Any]:
    from kd.generators.generation import write
    from kd.generators.sampling import Sampled
    from kd.models.language_model import LanguageModel

    network = training.network(case["layers"][1], case["size"], seed=1).to(device, dtype)
    model = LanguageModel(network, training.words(case["size"]["vocab_size"]))
    choose, bf16 = Sampled(sample), case["precision"] == "bf16"
    torch.manual_seed(0)
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        groups = write([model], _prompts(case), max_new_tokens=NEW, choose=choose, batch_size=3)
    return [one for group in groups for one in group]


def _prompts(case: Mapping[str, Any]) -> list[list[int]]:
    draw = torch.Generator().manual_seed(0)
    lengths = (PROMPT, PROMPT - 5, PROMPT - 1, PROMPT - 9)
    return [torch.randint(3, case["size"]["vocab_size"], (n,), generator=draw).tolist() for n in lengths]
