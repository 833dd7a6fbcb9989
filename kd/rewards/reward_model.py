"""A reward model that another run trained (objective=reward_model)."""

from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from kd.artifacts import verified
from kd.data.sequences import same_text
from kd.generators.account import Spent, charge
from kd.models.flops import scoring_flops
from kd.models.language_model import LanguageModel
from kd.models.networks import DType, pretrained
from kd.objectives.reward_model import at_end, ends
from kd.rewards.base import ResponseReward, finite
from kd.types import Batch, Models

HIDDEN = frozenset({"hidden"})


class RewardModel(ResponseReward):
    """r = v h of each response, with the frozen weights that `kd.objectives.reward_model` learnt.

    Its cost is charged as `judge_flops` (`kd.generators.account`).

    Args:
        folder: of a finished run of objective=reward_model, with `student/` and `objective.safetensors` in it.
        term: the objective's name for the term that learnt the head.
        dtype: of the weights here.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"rewards"})
    requires: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, *, folder: str, term: str = "reward_model", dtype: DType = "float32"):
        super().__init__()
        self.folder = Path(folder).expanduser()
        self.head = _head(self.folder, term)
        source = {"address": f"local:{self.folder / 'student'}"}
        self.model: LanguageModel = pretrained(source=source, dtype=dtype).requires_grad_(False).eval()
        self._fits = False

    @torch.no_grad()
    def __call__(self, batches: list[Batch], models: Models) -> list[Batch]:
        """The same batches with `rewards`. Raises ValueError for a student with another tokenizer."""
        self._check(models.student)
        device = next(models.student.parameters()).device
        self.model.to(device), self.head.to(device)
        return [self.give(batch, finite(self._score(batch, device), "the reward model")) for batch in batches]

    def _score(self, batch: Batch, device: torch.device) -> Float[Tensor, " B"]:
        sequences = batch.student.to(device)
        hidden = self.model(sequences, HIDDEN).hidden[-1]
        charge(Spent(judge_flops=scoring_flops(self.model, self.head, batch.student.lengths)))
        return at_end(self.head, hidden, ends(sequences.mask))

    def _check(self, student: LanguageModel) -> None:
        if self._fits:
            return
        if not same_text(self.model.tokenizer, student.tokenizer):
            raise ValueError(
                f"the reward model in {self.folder} has another tokenizer than the student, whose ids it would "
                "misread; train one from this student (objective=reward_model)"
            )
        self._fits = True


def _head(folder: Path, term: str) -> nn.Linear:
    """The scalar head that the run saved. Raises FileNotFoundError or ValueError where there is none."""
    path, key = folder / "objective.safetensors", f"{term}.head.weight"
    if missing := [f for f in (path, folder / "student" / "config.json") if not f.is_file()]:
        raise FileNotFoundError(
            f"reward.folder={folder} is no finished run of a reward model: {missing[0].relative_to(folder)} is not "
            "there; give the run folder of objective=reward_model"
        )
    verified(path, remedy="train the reward model again")
    state = load_file(path)
    if key not in state:
        names = sorted({name.partition(".")[0] for name in state if name.endswith(".head.weight")})
        raise ValueError(
            f"reward.term={term}: {path} has no {key}; terms with a head there: {', '.join(names) or 'none'}"
        )
    head = nn.Linear(state[key].shape[1], 1, bias=False)
    head.weight = nn.Parameter(state[key], requires_grad=False)
    return head
