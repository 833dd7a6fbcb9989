import copy

import pytest
import torch
from torch import nn

from kd.models.digests import model_digest, weights_digest
from kd.models.networks import scratch


class Parts(nn.Module):
    def __init__(self, **tensors: torch.Tensor):
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


BASE = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1.5)}


@pytest.mark.parametrize(
    "change",
    [
        {"a": BASE["a"].reshape(3, 2)},
        {"a": BASE["a"].to(torch.bfloat16)},
        {"a": BASE["a"].view(torch.int32)},  # the same bytes
        {"a": BASE["a"] + torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1e-6]])},
        {"b": torch.tensor(1.25)},
        {"b": torch.tensor([1.5])},
        {"c": torch.zeros(0)},
    ],
)
def test_every_difference_shows(change):
    assert weights_digest(Parts(**{**BASE, **change})) != weights_digest(Parts(**BASE))


def test_names_show():
    assert weights_digest(Parts(a=BASE["a"], d=BASE["b"])) != weights_digest(Parts(**BASE))


def test_where_and_how_it_lies_in_memory_does_not_show():
    turned = BASE["a"].t().contiguous().t()  # the same values, column by column
    assert not turned.is_contiguous()
    expected = weights_digest(Parts(**BASE))
    assert weights_digest(Parts(b=BASE["b"].clone(), a=turned)) == expected
    assert weights_digest(copy.deepcopy(Parts(**BASE))) == expected


def test_views_of_one_storage_are_distinguished():
    both = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert weights_digest(Parts(x=both, y=both.t())) == weights_digest(Parts(x=both.clone(), y=both.t().clone()))
    assert weights_digest(Parts(x=both, y=both.t())) != weights_digest(Parts(x=both, y=both))


def tiny(**fields):
    torch.manual_seed(0)
    return scratch(
        architecture={
            "model_type": "llama",
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            **fields,
        }
    )


def test_equal_weights_under_another_config_are_another_model():
    model, other = tiny(), tiny(rope_parameters={"rope_type": "default", "rope_theta": 100.0})
    assert weights_digest(model.network) == weights_digest(other.network)
    assert model_digest(model) != model_digest(other)
    assert model_digest(model) == model_digest(tiny())


def test_a_model_that_was_saved_is_the_same(tmp_path):
    model = tiny()
    model.network.save_pretrained(tmp_path)
    again = copy.deepcopy(model)
    again.network = type(model.network).from_pretrained(tmp_path)
    assert model_digest(again) == model_digest(model)


def test_a_step_of_training_makes_another_model():
    model = tiny()
    before = model_digest(model)
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    assert model_digest(model) != before
