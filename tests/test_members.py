"""Members of components are declared: the package looks none up by a probe, and a class that lacks one is refused.

Run: python -m pytest tests/test_members.py
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from kd.composition.check import check
from kd.composition.interfaces import INTERFACES, lacking, members
from kd.rollouts import Rollout
from kd.rollouts.offline import Offline
from kd.signals import HOOKS
from kd.types import Batch
from tests import runs

KD = Path(__file__).parents[1] / "kd"
FOREIGN = {"forward", "weight", "bias"}  # members of torch's modules that a class here has, too
OPEN = {  # probes whose name is not written there: (file, function), and of what
    ("signals.py", "hook"): "an objective; kd.signals.HOOKS lists the members",
    ("composition/terms.py", "_check_name"): "torch's ModuleDict",
    ("data/sequences.py", "_joined"): "fields of kd.types.Written, which may be None",
    ("models/flops.py", "_experts"): "a network's config",
    ("models/packing.py", "packable"): "a network's config",
    ("models/language_model.py", "_scale"): "a network's config",
    ("models/language_model.py", "_head_width"): "a network's config",
    ("composition/numbers.py", "check_heads"): "a network's config",
    ("generators/llama_decoder.py", "of"): "a network's attention",
    ("components/allowed.py", "_is_class"): "a module",
    ("components/signatures.py", "located"): "a module or class on the way to what a config names",
    ("components/signatures.py", "_bounds"): "a constraint of pydantic",
}


def files() -> list[Path]:
    return sorted(KD.rglob("*.py"))


def own_members() -> set[str]:
    """Names that some class of the package defines, in its body or on `self`."""
    found = set()
    for path in files():
        for kind in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)):
            for node in ast.walk(kind):
                if isinstance(node, ast.FunctionDef):
                    found.add(node.name)
                elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    found.add(node.target.id)
                elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                    found.add(node.attr)
                elif isinstance(node, ast.Assign):
                    found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def probes(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Calls of `hasattr`, and of `getattr` with a default, and the function that each stands in."""

    def within(node: ast.AST, function: str) -> Iterator[tuple[str, ast.Call]]:
        for child in ast.iter_child_nodes(node):
            inside = child.name if isinstance(child, ast.FunctionDef) else function
            if isinstance(child, ast.Call) and isinstance(child.func, ast.Name):
                yield from [(inside, child)] if _probes(child) else []
            yield from within(child, inside)

    return within(tree, "")


def _probes(call: ast.Call) -> bool:
    return call.func.id == "hasattr" or (call.func.id == "getattr" and len(call.args) == 3)


def test_no_member_of_ours_is_probed():
    ours, found, met = own_members() - FOREIGN, [], set()
    for path in files():
        for function, call in probes(ast.parse(path.read_text())):
            place = (str(path.relative_to(KD)), function)
            name = call.args[1].value if isinstance(call.args[1], ast.Constant) else None
            met |= {place} if name is None else set()
            if name in ours or (name is None and place not in OPEN):
                found.append(f"{place[0]}: {function} probes {name or 'a name'}")
    assert not found, "\n".join(found)
    assert met == OPEN.keys()


def test_the_search_finds_what_it_is_to_find():
    tree = ast.parse("def f(x):\n    return hasattr(x, 'spent'), getattr(x, 'uses', 1), getattr(x, 'uses'), x.uses")
    assert [(function, call.args[1].value) for function, call in probes(tree)] == [("f", "spent"), ("f", "uses")]
    assert {"state_dict", "take_report", "keeps_responses", "loss"} <= own_members()


def test_every_hook_is_one_of_an_objective():
    """A name in the list that nothing defines, and nothing sets, would be a dead one."""
    code = "".join(path.read_text() for path in files())
    defined = {name for name in HOOKS if f"def {name}(" in code or f"{name}: ClassVar" in code}
    assert defined | {"check_shapes", "check_group", "in_order", "two_sided", "fades"} == set(HOOKS)  # by decorators


# ---- classes from outside --------------------------------------------------------------------------------------------


class Bare:
    """Nothing but a call."""

    def __call__(self, window: list[Batch], *_: object) -> list[Batch]:
        return window


class Whole:
    """A rollout that inherits nothing and has everything."""

    provides: ClassVar[frozenset[str]] = Offline.provides
    requires: ClassVar[frozenset[str]] = frozenset()
    adds: ClassVar[frozenset[str]] = frozenset()
    keeps_responses, ordered, one_vocabulary, teacher_prompts, uses, samples = True, None, False, False, 1, 1
    responses_each, passes_given, sides = Rollout.responses_each, Offline.passes_given, Offline.sides
    reads_given, ahead, foresee = Offline.reads_given, 0, Rollout.foresee
    take_report, after_validation = Rollout.take_report, Rollout.after_validation
    state_dict, load_state_dict = Rollout.state_dict, Rollout.load_state_dict
    __call__ = Offline.__call__


class Forgetful(Rollout):
    """A rollout that inherits everything and does nothing."""

    provides: ClassVar[frozenset[str]] = Offline.provides
    requires: ClassVar[frozenset[str]] = frozenset()


def refusal(**nodes: object) -> str:
    with pytest.raises(ValueError, match="has no ") as error:
        check(runs.config("objective=sft", **nodes))
    return str(error.value)


def test_a_class_that_lacks_a_member_is_refused_before_it_is_made():
    place = f"{__name__}."
    told = refusal(rollout={"_target_": f"{place}Bare"})
    assert told.startswith(f"rollout: {place}Bare has no adds and no after_validation")
    assert told.endswith("; inherit kd.rollouts.Rollout, or define it")
    assert "__call__" not in told
    assert refusal(rollout={"_target_": f"{place}Forgetful"}) == f"rollout: {place}Forgetful has no __call__; define it"
    assert "inherit kd.rewards.Reward" in refusal(reward={"_target_": f"{place}Bare"})
    assert "inherit kd.alignment.Alignment" in refusal(alignment={"_target_": f"{place}Bare"})
    assert "inherit kd.teachers.interface.Teacher" in refusal(teacher={"_target_": f"{place}Bare", "prepare": None})


def test_what_has_all_members_need_not_inherit():
    assert lacking(Whole, Rollout) == []
    check(runs.config("objective=sft", rollout={"_target_": f"{__name__}.Whole"}))


@pytest.mark.parametrize("interface", sorted(set(INTERFACES.values()), key=lambda kind: kind.__name__))
def test_every_member_has_a_line(interface):
    """In its own docstring, or in the interface's."""
    for name in members(interface) - {"__call__"}:
        member = vars(interface).get(name)
        member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        own = member.__doc__ if callable(member) else None
        assert own or f"{name}:" in interface.__doc__ or name == "control_tokens", name
