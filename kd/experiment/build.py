"""The training of a composed config: build the parts, fit, stop and resume."""

import copy
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedTokenizerBase

from kd.components.instantiation import instantiate
from kd.composition.groups import reads_given
from kd.data.blocks import Blocks, blocks
from kd.data.references import prompted, with_reference
from kd.data.sequences import Encoder, pad_id
from kd.data.windows import Data
from kd.experiment.compatibility import check_zeros
from kd.experiment.elicitation import Elicited, elicit
from kd.experiment.identity import load_skill
from kd.experiment.loading import device, kept_teacher, load_student
from kd.experiment.monitor import monitored
from kd.models.language_model import WHOLE_ROWS, LanguageModel
from kd.progress import remark
from kd.runs.folder import RunFolder
from kd.runs.metrics_log import TidyLogger
from kd.schedules import Schedule
from kd.seeding import seeded
from kd.signals import introduce, of_role
from kd.skills.records import held, load
from kd.teachers.ensemble import Ensemble
from kd.teachers.interface import Teacher
from kd.teachers.white_box import WhiteBox
from kd.training.budget import Budget, Limits
from kd.training.callbacks import Saving, read_checkpoint
from kd.training.finiteness import NotFinite
from kd.training.module import Distillation
from kd.training.optimization import Optimization
from kd.training.terms import Term
from kd.training.trainer import audits, loggers, sharding_of, trainer_of
from kd.types import Record, Skill


@dataclass
class Parts:
    """The parts of a run, before the first step."""

    module: Distillation
    data: Data
    skill: Skill
    teacher: LanguageModel | Ensemble | None  # also there when only the evaluation needs it
    encoder: Encoder
    elicited: Elicited


def build(cfg: DictConfig) -> Parts:
    """Load skill, teacher and student, and assemble them. Random weights depend on the seed and a name only."""
    skill = load_skill(cfg.skill)
    elicited = elicit(cfg)
    train = _train(cfg, elicited.records)
    validation = load(skill, "validation")[: cfg.checkpoint.records]
    teacher = kept_teacher(cfg)
    if teacher is not None and sharding_of(cfg) is None:
        teacher.to(device(cfg))
    student = load_student(cfg)
    _ = student.packs  # found out before it is copied, outside of any step
    if teacher is not None:
        teacher.bind(student)
    words = None if teacher is None or teacher.tokenizer is None else teacher  # one that gives text alone has no ids
    alignment, encoder = _aligned(cfg, student, words)
    models = (student, teacher, alignment)
    objective = {str(name): _term(node, cfg.seed, str(name), *models) for name, node in cfg.objective.items()}
    reference = WhiteBox(copy.deepcopy(student)) if _asked_for("reference", objective) else None
    module = Distillation(
        student,
        teacher,
        objective,
        instantiate(cfg.rollout),
        alignment,
        encoder,
        Optimization(**cfg.optim),
        reference=reference,
        reward=_reward(cfg.reward, objective),
        limits=Limits(**cfg.budget),
        sharding=sharding_of(cfg),
        seed=cfg.seed,
        reduction=cfg.reduction,
        log_every=cfg.log_every,
    )
    if reads_packed(module):
        encoder.max_padding = 1.0
    data = _data(cfg, module, train, validation, encoder, left_out=elicited.left_out)
    _check_validation(cfg.checkpoint, data)
    spent = elicited.spent
    module.budget.teacher_tokens, module.budget.generated_tokens = spent.teacher_tokens, spent.generated_tokens
    module.budget.student_flops, module.budget.judge_flops = spent.decoding_flops, spent.judge_flops
    module.budget.money = spent.money
    if found := held(data.train, encoder.student):
        rank_zero_only(remark)(f"text: {found}")
    if teacher is not None:
        audited = data.validation[: max((audit.records for audit in audits(cfg)), default=0)]
        read = data.met() if module.teacher_fields else []
        teacher.check([*data.train, *data.validation], read, audited, encoder)
        module.budget.teacher_tokens += teacher.tokens(read, encoder)
    for name, share in module.limits.shares(module.budget).items():
        if share >= 1:
            raise ValueError(
                f"budget.{name}={cfg.budget[name]} is used up {share:.1f} times by what was read and generated before "
                "the first step (an augmentation, cached targets); raise it"
            )
    return Parts(module, data, skill, None if teacher is None else teacher.system, encoder, elicited)


def _train(cfg: DictConfig, records: Sequence[Record]) -> list[Record]:
    """The training records; prompts alone have an empty response, which a rollout that generates replaces.

    Raises ValueError for a prompt alone where the rollout reads the records' own responses.
    """
    rollout: Any = OmegaConf.to_container(cfg.rollout, resolve=True)
    if not reads_given("rollout", rollout):
        return [prompted(record) for record in records]
    if bare := next((record for record in records if not record.responses), None):
        count = len(records) - with_reference(records)
        raise ValueError(
            f"{count} of {len(records)} training records are prompts without a response (the first is {bare.id}), and "
            f"rollout {str(rollout['_target_']).rpartition('.')[2]} reads the records' own responses; take a rollout "
            "that generates (rollout=on_policy or rollout=teacher), or augmentation=labeling"
        )
    return list(records)


def _aligned(cfg: DictConfig, student: LanguageModel, words: Teacher | None) -> tuple[Any, Encoder]:
    """The alignment of both models' tokens, and what encodes records for them. `words`: a teacher that reads tokens.

    Raises ValueError where the alignment cannot serve the two, or a term cannot bear what it leaves out.
    """
    alignment = instantiate(cfg.alignment)
    if words is not None:
        alignment.check(student.tokenizer, words.tokenizer, (student.vocabulary, words.vocabulary))
        if alignment.summary:
            rank_zero_only(remark)(f"alignment: {alignment.summary}")
        check_zeros(alignment, {name: instantiate(node.loss, _convert_="all") for name, node in cfg.objective.items()})
    theirs = None if words is None else words.tokenizer
    return alignment, Encoder(student.tokenizer, theirs, max_length=cfg.data.max_length, max_tokens=cfg.data.max_tokens)


def reads_packed(module: Distillation) -> bool:
    """Return whether no model reads padding. Hidden states are compared with it; a reward model may read with it."""
    fields = module.student_fields | module.teacher_fields
    reward, teacher = module.models.reward, module.models.teacher
    models = (module.student, None if reward is None else reward.model)
    return (
        not fields & {*WHOLE_ROWS, "hidden"}
        and all(model.packs for model in models if model)
        and (teacher is None or teacher.reads_packed())
    )


def _data(
    cfg: DictConfig,
    module: Distillation,
    train: list[Record],
    validation: Sequence[Record],
    encoder: Encoder,
    left_out: int,
) -> Data:
    """The windows that the module will read."""
    return Data(
        train,
        validation,
        encoder,
        window=cfg.optim.window,
        steps=cfg.optim.steps,
        seed=cfg.seed,
        workers=cfg.data.workers,
        uses=module.rollout.uses,
        ahead=module.rollout.ahead,
        plain=_plain(cfg, encoder.student) if "lm" in module.demands else None,
        every_turn=cfg.data.loss_on == "all",
        left_out=left_out,
        even=module.sharding is not None,
    )


def _check_validation(checkpoint: DictConfig, data: Data) -> None:
    """Raises ValueError where the best checkpoint is asked for and no validation record can determine it."""
    if checkpoint.use == "best" and not data.references:
        raise ValueError(
            "checkpoint.use=best chooses by validation records, but there are none; raise the skill's number of "
            "validation records (skill.validation), or take checkpoint.use=last"
        )


def _term(node: DictConfig, seed: int, name: str, student: LanguageModel, teacher: Any, alignment: Any) -> Term:
    """The term of a node. Its projections are made now, for no layer may be lazy under DDP; errors name the term."""
    with seeded(seed, "objective", name):
        parts = instantiate(node, _convert_="all")
        introduce(parts["loss"], student, teacher, alignment)
        if isinstance(parts.get("weight"), Mapping):
            parts["weight"] = Schedule.of(parts["weight"])
        return Term(**parts)


def _reward(node: DictConfig, objective: Mapping[str, Term]) -> Any:
    """The reward of generated responses, or None; one that learns with the objective is bound to its terms."""
    if node._target_ is None:
        return None
    reward = instantiate(node, _convert_="all")
    reward.bind({name: term.loss for name, term in objective.items()})
    return reward


def _plain(cfg: DictConfig, tokenizer: PreTrainedTokenizerBase) -> Blocks:
    """The corpus in blocks for the stream `lm`."""
    cut = blocks(instantiate(cfg.corpus).texts(), tokenizer, cfg.data.lm_length + 1)  # the first id has no label
    return Blocks(cut, pad=pad_id(tokenizer), size=cfg.data.lm_window, max_tokens=cfg.data.max_tokens, seed=cfg.seed)


def _asked_for(role: str, objective: Mapping[str, Term]) -> bool:
    return any(of_role(role, term.wanted) for term in objective.values())


def placed(cfg: DictConfig) -> bool:
    """Return whether the whole student and teacher are put on the device beside training.

    Models that are sharded for training need not fit it, and stay in host memory where nothing is measured.
    """
    counts = (cfg.evaluation["items"], cfg.evaluation["answers"])  # `items` is a method as an attribute
    return sharding_of(cfg) is None or counts != (0, 0)


def place(cfg: DictConfig, parts: Parts) -> None:
    """Move student and teacher to the trainer's device, so that both are measured on the same one, if they are."""
    if not placed(cfg):
        return
    parts.module.student.to(device(cfg))
    if parts.teacher is not None:
        parts.teacher.to(device(cfg))


def fit(cfg: DictConfig, parts: Parts, folder: RunFolder, scores: Callback | None = None) -> None:
    """Train to the last step, from the last checkpoint if there is one.

    scores: the callback that logs the task's own scores (`kd.experiment.task_scores`).

    Raises:
        SystemExit(128 + signal): a signal stopped it; the training so far is saved then.
        NotFinite: a value of a step, or of the validation, was not finite; the last checkpoint is kept.
    """
    last = folder.checkpoints / "last.ckpt"
    resumed = last if last.exists() else None
    log, step = TidyLogger(folder.path), -1  # rows of step 0 are of a validation before it
    if resumed:
        state = read_checkpoint(last, folder.config_hash, whole=False, mmap=True)
        step = state["distillation"]["step"]
        if cfg.checkpoint.use == "best" and _has_best(state):  # found out now, not after the last step
            read_checkpoint(folder.checkpoints / "best.ckpt", folder.config_hash, whole=False, mmap=True)
        rank_zero_only(remark)(f"resumed after step {step} of {cfg.optim.steps} ({folder.path.name})")
    log.truncate_after(step)  # the rows of steps that were lost, all if nothing was saved
    saving = Saving(last, cfg.checkpoint.every)
    observed = (monitored(cfg), scores)
    trainer = trainer_of(cfg, folder, [log, *loggers(cfg, folder, parts.skill.name)], saving, parts.module, *observed)
    if resumed:  # Lightning converts after it has read the weights, which float32 would round
        trainer.precision_plugin.convert_module(parts.module)
    try:
        trainer.fit(parts.module, datamodule=parts.data, ckpt_path=resumed, weights_only=True)
    except SIGTERMException:  # it came before `saving` listened, so before the first step
        saving.received = signal.SIGTERM
    except NotFinite as error:  # on all ranks; the first one raises it
        kept = f" ({last} is kept as it was after step {max(step, saving.saved)})" if last.exists() else ""
        raise NotFinite(f"{error}{kept}") if trainer.is_global_zero else SystemExit(0) from None
    if saving.received is not None:
        step = parts.module.step_count
        rank_zero_only(remark)(f"stopped after step {step}; the same command resumes there")
        # The first rank exits with the code. When another one fails, Lightning kills all.
        raise SystemExit(128 + saving.received if trainer.is_global_zero else 0)
    if parts.module.ended:
        rank_zero_only(remark)(f"a callback ended the run at step {parts.module.step_count} of {cfg.optim.steps}")
    _check_learnt(parts.module.budget)
    if cfg.checkpoint.use == "best":
        state = read_checkpoint(folder.checkpoints / "best.ckpt", folder.config_hash)["state_dict"]
        parts.module.load_state_dict(state, strict=parts.module.strict_loading)


def _has_best(state: Mapping[str, Any]) -> bool:
    """Return whether a validation preceded a checkpoint, so that `best` belongs to it: it may not be written again."""
    return any(callback.get("best_model_score") is not None for callback in state["callbacks"].values())


def _check_learnt(spent: Budget) -> None:
    """Raises ValueError if no token of any response counted; prints how many responses had none."""
    if spent.responses and not spent.rows:
        raise ValueError(
            f"nothing was learnt: none of the {spent.responses} responses has a token that counts, for all of their "
            "positions are masked; see what the rollout keeps (rollout.margin, metric without_preference), the "
            "responses of the skill, and data.max_length"
        )
    if spent.masked:
        rank_zero_only(remark)(
            f"{spent.masked} of {spent.responses} responses had no token that counts (all positions masked)"
        )
