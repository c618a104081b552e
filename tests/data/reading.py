"""What the readers' tests share."""

import numpy as np
import pytest

from emit.data.cases import read_cases
from emit.errors import InputError


def expect(values, low, high):
    """The normalisation, written out: low at -1, high at 1, clipped."""
    return np.clip(2 * (values.astype(np.float64) - low) / (high - low) - 1, -1, 1)


def check_fault(root, named, said):
    """Reading every case of root fails with one line that names the file and the remedy."""
    with pytest.raises(InputError, match=said) as caught:
        for case in read_cases(root).cases:
            case.load()
    message = str(caught.value)
    assert message.startswith(str(root)) and named in message.split(": ")[0]
    assert "\n" not in message and ";" in message
