"""Work in portions: everything is done once, in order, and what does not fit is done in halves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uturn.errors import MemoryLimitError
from uturn.portions import Portion, lacks_memory

WORDS = "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you"
"""What PyTorch says on a CPU."""


@given(st.integers(0, 60), st.integers(1, 40), st.integers(1, 40))
def test_everything_is_done_once_and_in_order_whatever_fits(
    count: int, most: int, fits: int
) -> None:
    done, tried = list[int](), list[int]()

    def work(part: range) -> None:
        tried.append(len(part))
        if len(part) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        done.extend(part)

    portion = Portion(most)
    portion.through(count, work)
    assert done == list(range(count))
    assert portion.most <= most
    failures = [size for size in tried if size > fits]
    assert failures == sorted(set(failures), reverse=True)  # no size fails twice
    assert not failures or 2 * portion.most >= fits  # nothing smaller than need be


def test_too_little_for_one_is_told_and_other_errors_pass(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def never(part: range) -> None:
        raise RuntimeError(WORDS)

    def broken(part: range) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(MemoryLimitError, match="too little memory for a single picture"):
        Portion(4).through(9, never)
    assert capsys.readouterr().err.splitlines() == [
        "out of memory with 4 pictures at a time; going on with 2",
        "out of memory with 2 pictures at a time; going on with 1",
    ]
    with pytest.raises(RuntimeError, match="mat1"):
        Portion(4).through(9, broken)


def test_what_pytorch_says_where_memory_lacks() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert lacks_memory(raised.value)
    assert lacks_memory(MemoryError())
    assert not lacks_memory(RuntimeError("not implemented"))
