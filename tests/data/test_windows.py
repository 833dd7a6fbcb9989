import threading
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from kd.data.sequences import Encoder
from kd.data.windows import Data, Windows
from kd.models.tokenizers import byte_tokenizer
from tests.tiny import record, records

N = 23
RECORDS = records(N)


def encoder(**changes) -> Encoder:
    return Encoder(byte_tokenizer(), None, **{"max_length": 256, "max_tokens": 200, **changes})


def windows(size: int = 4, seed: int = 0, steps: int = 100, **rank: int) -> Windows:
    return Windows(RECORDS, encoder(), size=size, seed=seed, steps=steps, **rank)


def seen(window) -> list[str]:
    """Ids of a window's records, sorted: within a window order is of no account."""
    return sorted(kept.id for batch in window.batches for kept in batch.records)


@pytest.mark.parametrize("size", [1, 4, 7, N, N + 5, 3 * N])
def test_every_record_once_per_epoch(size):
    stream = windows(size)
    drawn = [i for step in range(-(-3 * N // size)) for i in stream.indices(step)]
    for epoch in range(3):
        assert sorted(drawn[epoch * N : (epoch + 1) * N]) == list(range(N))


def test_epochs_come_in_different_orders():
    stream = windows(N)
    assert len({tuple(stream.indices(epoch)) for epoch in range(4)}) == 4


def test_a_window_holds_its_records_and_its_step():
    stream = windows(7)
    for step in (0, 3, 11):
        window = stream[step]
        assert window.step == step
        assert seen(window) == sorted(RECORDS[i].id for i in stream.indices(step))


@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (1, 2)])
def test_the_windows_of_the_next_steps_come_along_as_they_will_be(rank, ranks):
    """In the same micro-batches and order, of the same rank; none after the last step."""
    stream, apart = windows(5, steps=6, rank=rank, ranks=ranks, ahead=2), windows(5, steps=6, rank=rank, ranks=ranks)
    for step in range(6):
        later = [apart[after].batches for after in range(step + 1, min(step + 3, 6))]
        assert [[b.records for b in coming] for coming in stream[step].coming] == [
            [b.records for b in batches] for batches in later
        ]
        assert apart[step].coming == []
        assert [b.records for b in stream[step].batches] == [b.records for b in apart[step].batches]


def test_a_window_is_a_function_of_seed_and_step():
    one, again = windows(5, seed=3), windows(5, seed=3)
    one[8], one[2]  # what was asked before does not matter
    for step in (0, 4, 17):
        ours, theirs = one[step], again[step]
        assert [b.records for b in ours.batches] == [b.records for b in theirs.batches]
        assert all(
            torch.equal(a.student.tokens, b.student.tokens) for a, b in zip(ours.batches, theirs.batches, strict=True)
        )
    assert [one.indices(step) for step in range(5)] != [windows(5, seed=4).indices(step) for step in range(5)]


def test_global_random_numbers_are_neither_used_nor_moved():
    state = torch.get_rng_state()
    first = windows(5).indices(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert windows(5).indices(0) == first


@pytest.mark.parametrize("ranks", [2, 3, 5])
@pytest.mark.parametrize("size", [5, 8, 2 * N])
def test_ranks_share_a_window_without_overlap(ranks, size):
    for step in (0, 3, 7):
        whole = windows(size)[step]
        shares = [windows(size, rank=rank, ranks=ranks)[step] for rank in range(ranks)]
        assert sum((Counter(seen(share)) for share in shares), Counter()) == Counter(seen(whole))
        sizes = [len(seen(share)) for share in shares]
        assert max(sizes) - min(sizes) <= 1


def test_ranks_have_about_as_much_to_do():
    for step in range(10):
        shares = [windows(16, rank=rank, ranks=2)[step] for rank in range(2)]
        tokens = [sum(int(batch.student.lengths.sum()) for batch in share.batches) for share in shares]
        longest = max(int(batch.student.lengths.max()) for share in shares for batch in share.batches)
        assert 0 <= tokens[0] - tokens[1] <= longest


def test_records_that_do_not_fit_are_not_part_of_the_stream():
    mixed = [*RECORDS, record("long", "q" * 500)]
    stream = Windows(mixed, encoder(), size=8, seed=0, steps=9)
    assert {kept.id for kept in stream.records} == {kept.id for kept in RECORDS}


def test_no_record_fits():
    with pytest.raises(ValueError, match=r"no record of 23 fits data\.max_length=4; raise data\.max_length"):
        Windows(RECORDS, encoder(max_length=4), size=8, seed=0, steps=9)


def test_more_ranks_than_records():
    with pytest.raises(ValueError, match=r"optim\.window=2 is smaller than the 3 ranks"):
        windows(2, rank=0, ranks=3)


# --- the loader ---


def loader(workers: int = 0, start: int = 0, rank: int = 0, ranks: int = 1):
    data = Data(RECORDS, RECORDS[:7], encoder(), window=6, steps=8, seed=1, workers=workers)
    data.trainer = SimpleNamespace(
        global_rank=rank, world_size=ranks, lightning_module=SimpleNamespace(step_count=start)
    )
    return data.train_dataloader()


def stream(**settings: int) -> list[tuple[int, list[tuple[list[str], list]]]]:
    return [
        (
            window.step,
            [([kept.id for kept in batch.records], batch.student.tokens.tolist()) for batch in window.batches],
        )
        for window in loader(**settings)
    ]


def test_workers_and_resuming_change_nothing():
    whole = stream()
    assert [step for step, _ in whole] == list(range(8))
    assert stream(workers=2) == whole
    assert stream(start=5) == whole[5:]
    assert stream(workers=2, start=5) == whole[5:]


def test_its_length_is_the_whole_runs_wherever_it_starts():
    assert len(loader(start=5)) == len(loader(workers=2)) == 8


def test_threads_work_ahead_but_not_far(monkeypatch):
    made = []
    make = Windows.__getitem__
    monkeypatch.setattr(Windows, "__getitem__", lambda self, step: (made.append(step), make(self, step))[1])
    ahead = iter(loader(workers=1))
    next(ahead)
    ahead.close()  # as when a run is stopped
    assert max(made) <= 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("windows")]


def test_an_error_in_a_thread_is_the_loaders(monkeypatch):
    monkeypatch.setattr(Windows, "__getitem__", lambda self, step: 1 // (step - 3))
    ahead = iter(loader(workers=2))
    assert [next(ahead) for _ in range(3)] == [-1, -1, -1]
    with pytest.raises(ZeroDivisionError):
        next(ahead)


def test_the_loader_deals_to_ranks():
    whole = [seen(window) for window in loader()]
    shares = [[seen(window) for window in loader(rank=rank, ranks=2)] for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*shares, strict=True)] == whole


def test_validation_is_shared_among_ranks():
    found: list[str] = []
    for rank in range(2):
        data = Data(RECORDS, RECORDS[:7], encoder(), window=6, steps=8, seed=1)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        found += [kept.id for batch in data.val_dataloader() for kept in batch.records]
    assert sorted(found) == sorted(kept.id for kept in RECORDS[:7])
