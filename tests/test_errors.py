"""What a person is told of errors that nobody foresaw."""

import numpy as np
import pytest
import torch

from rerun_loader_sam.errors import UserError, describe

TOO_MUCH = 1 << 60


def test_what_was_foreseen_is_said_as_it_is_on_one_line() -> None:
    assert describe(UserError("a.jpg is\nbroken;  left alone")) == "a.jpg is broken; left alone"


def test_what_was_not_is_a_fault_of_ours() -> None:
    assert describe(KeyError("width")) == "internal error, KeyError: 'width'; please report it"


def test_a_shortage_of_memory_is_none() -> None:
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(TOO_MUCH, np.uint8)
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(TOO_MUCH, dtype=torch.uint8)
    for error in (of_numpy.value, of_torch.value, MemoryError(), RuntimeError("can't start new thread")):
        text = describe(error)
        assert text.startswith("this machine is short of memory")
        assert "\n" not in text
