"""The quality of records that a stage made: how many of their responses are right, and how much these differ."""

from collections.abc import Sequence

from kd.metrics.samples import distinct
from kd.sandbox import SandboxError
from kd.skills.scoring import scored_all
from kd.types import Record, Skill

MOST = 128  # responses that are scored, spread evenly: a verifier may execute a program for each


def quality(records: Sequence[Record], given: Sequence[Record], skill: Skill) -> dict[str, float]:
    """Numbers of the records' responses; those that cannot be had are absent.

    Args:
        records: after a stage.
        given: the skill's own, whose `meta` its verifier reads: only records that still have it are scored.

    Returns:
        score, scored: the mean of the skill's metric, and of how many responses.
        unique: different responses over all of them. distinct_2: different pairs of words over all pairs.
    """
    texts = [response.text for record in records for response in record.responses]
    if not texts:
        return {}
    found = {"unique": len(set(texts)) / len(texts), "distinct_2": distinct(texts)}
    problems = {id(record.meta): record for record in given if record.responses}  # their score may read their responses
    own = [
        (problems[id(record.meta)], response.text)
        for record in records
        if id(record.meta) in problems
        for response in record.responses
    ]
    chosen = [own[i * len(own) // MOST] for i in range(MOST)] if len(own) > MOST else own
    try:
        scores = [one.score for one in scored_all(skill, chosen, reference=lambda record: record.responses[0].text)]
    except (ValueError, SandboxError):  # the metric is none of a text alone, or nothing executes programs here
        return found
    return found | ({"score": sum(scores) / len(scores), "scored": len(scores)} if scores else {})
