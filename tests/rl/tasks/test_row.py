import pytest
from hypothesis import given
from hypothesis import strategies as st

from samepath.rl.tasks.row import Task, TaskRow, canonical_text


def task(num_rows, seed=0):
    rows = [TaskRow(row_id=f"train-{i}", question="", text=str(i), dataset="d", row=i) for i in range(num_rows)]
    return Task(name="d", train=rows, held_out=[], seed=seed)


def order(num_rows, seed, start, stop):
    built = task(num_rows, seed)
    return [built.train_row(i).row for i in range(start, stop)]


@given(st.integers(1, 40), st.integers(0, 2**40), st.integers(0, 10**6))
def test_train_row_every_epoch_is_a_permutation(num_rows, seed, epoch):
    assert sorted(order(num_rows, seed, epoch * num_rows, (epoch + 1) * num_rows)) == list(range(num_rows))


def test_train_row_order_is_the_same_in_every_version():
    # Ranks of the raw bits of PCG64(SeedSequence([7, epoch])), in units of 10¹⁸, which NumPy never changes:
    # epoch 0: 11.5, 16.6, 14.3, 4.2, 5.5; epoch 1: 14.2, 2.1, 3.5, 3.0, 8.0.
    assert order(5, 7, 0, 10) == [3, 4, 0, 2, 1, 1, 3, 2, 4, 0]


def test_train_row_epochs_and_seeds_differ():
    assert len({tuple(order(20, seed, start, start + 20)) for seed in (0, 1) for start in (0, 20, 40)}) == 6


def test_train_row_negative_index_is_refused():
    with pytest.raises(IndexError, match="got -1"):
        task(3).train_row(-1)


def test_canonical_text_only_white_space_is_evened_out():
    assert canonical_text(" 1 +\n\t2\u00a0= ") == "1 + 2 ="
    assert canonical_text("a+b") != canonical_text("b+a")
