"""Imports, once for many, what nearly every run imports, in the process that is then forked for each job of a sweep.

Nothing is computed and no device is initialised (`hydra_plugins.kd_launcher.fork_server` states why); a run that needs
more imports it itself. `hydra/launcher/process.yaml` names this module.
"""

from importlib import import_module

OF_RUNS = (
    *("kd.experiment.run", "kd.experiment.build", "kd.experiment.checks", "kd.experiment.disclosure"),
    *("kd.experiment.export", "kd.experiment.scores", "kd.experiment.task_scores", "kd.experiment.judges"),
    *("kd.skills.reasoning_gym", "kd.skills.gsm_symbolic", "kd.skills.dataset", "reasoning_gym.factory"),
    *("kd.rollouts.offline", "kd.rollouts.on_policy", "kd.rollouts.mixed"),
    *(f"transformers.models.{name}.modeling_{name}" for name in ("llama", "qwen2", "qwen3")),
    *("pyarrow.pandas_compat", "torch.utils.serialization.config", "rich._emoji_codes"),
)

for name in OF_RUNS:
    import_module(name)
