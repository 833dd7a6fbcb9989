import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from kd.skills import __main__ as program
from kd.skills.__main__ import build, main, members, read
from kd.types import Skill

PROCEDURAL = ("spell_backward", "chain_sum", "number_filtering", "letter_counting")


def lengths(skill, split="test"):
    """Bytes of the prompt and of the reference, the longest of each."""
    records = skill.load(split)
    prompts = (record.prompt[0]["content"] for record in records)
    answers = (record.responses[0].text for record in records)
    return max(len(p.encode()) for p in prompts), max(len(a.encode()) for a in answers)


@pytest.mark.parametrize("name", [*PROCEDURAL, "gsm_symbolic"])
def test_every_small_member_builds_and_serves_its_test_split(name):
    config = read(name, [])
    skill = build(config)
    assert isinstance(skill, Skill)
    assert isinstance(instantiate(config), type(skill))  # through Hydra too
    assert len(skill.load("test")) == config["test"] >= 200


@pytest.mark.parametrize("name", PROCEDURAL)
def test_small_skills_are_small_and_have_many_problems(name):
    skill = build(read(name, ["train=2000"]))
    prompt, answer = lengths(skill)
    assert prompt <= 128
    assert answer <= 32
    assert len(skill.load("test")) == 500
    assert len(skill.load("train")) == 2000


def test_each_file_states_what_it_is_in_its_first_line():
    for path in members().values():
        assert path.read_text().startswith("# ")
        assert {"_target_", "defaults"} & OmegaConf.load(path).keys()


def test_the_list_names_every_member(capsys):
    main([])
    printed = capsys.readouterr().out
    for name in members():
        assert name in printed
    assert "2000/100/200" in printed
    assert "template" in printed


def test_records_are_printed_in_full(capsys):
    main(["reasoning_gym", "task=chain_sum", "options.max_terms=2", "--split", "test", "-n", "2"])
    printed = capsys.readouterr().out
    assert printed.count("State the final answer to the following arithmetic problem:") == 2
    assert "chain_sum/0/test/0" in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["gsm_symbolik"], "there is no skill 'gsm_symbolik'; the nearest name is 'gsm_symbolic'"),
        (["gsm_symbolic", "trian=3"], "skill gsm_symbolic has no setting 'trian'; the nearest is 'train'"),
        (["reasoning_gym"], "skill reasoning_gym needs a value for 'task'"),
        (["reasoning_gym", "task=composite"], "it mixes other tasks"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(capsys, arguments, sentence):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert sentence in str(stop.value.code)  # Python prints it, and ends with 1


def test_a_missing_conf_folder_is_answered_with_the_way_to_install(capsys, monkeypatch, tmp_path):
    (tmp_path / "conf").mkdir()
    monkeypatch.setattr(program, "CONF", tmp_path / "conf")
    with pytest.raises(SystemExit, match=r"config\.yaml does not exist"):
        main([])
