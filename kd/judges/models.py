"""The model of a judge: the run's teacher, or one of its own."""

import math
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from kd.components.choices import content
from kd.teachers.interface import Teacher

OWN = ("teacher", "source")  # keys of a judge's node that are of its model


def prompt_node(node: Mapping[str, Any]) -> dict[str, Any]:
    """A judge's node without the keys of its model."""
    return {key: value for key, value in node.items() if key not in OWN}


def teacher_node(node: Mapping[str, Any], teacher: Mapping[str, Any]) -> dict[str, Any]:
    """The node of the model of a judge's node: `teacher` or the weights at `source`, or the run's `teacher`."""
    if node.get("source") is not None:
        whole = OmegaConf.create({"teacher": {**content("teacher", "pretrained"), "source": node["source"]}})
        plain: Any = OmegaConf.to_container(whole, resolve=True)
        return plain["teacher"]
    return dict(node.get("teacher") or teacher)


def positions(teacher: Teacher) -> float:
    """The number of tokens that a teacher's network has positions for; infinite where it is not bounded."""
    networks = [] if teacher.model is None else [teacher.model.network]
    found = [getattr(one.config.get_text_config(), "max_position_embeddings", None) for one in networks]
    return float(min((count for count in found if count), default=math.inf))
