"""The exceptions of this package."""

from __future__ import annotations

import inspect
import pickle

import pytest

from unfazed.concurrency._core import _errors

CLASSES = [each for _, each in inspect.getmembers(_errors, inspect.isclass) if each.__module__ == _errors.__name__]


@pytest.mark.parametrize("error_class", CLASSES)
def test_each_has_a_root_survives_pickling_and_says_what_it_was_told(error_class: type[Exception]) -> None:
    parameters = 1 if "__init__" not in vars(error_class) else len(inspect.signature(error_class).parameters)
    error = error_class(*[f"argument {number}" for number in range(parameters)])

    copy = pickle.loads(pickle.dumps(error))

    assert isinstance(error, _errors.UnfazedError)
    assert type(copy) is error_class
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
    for number in range(parameters):
        assert f"argument {number}" in str(error)


@pytest.mark.parametrize("error_class", CLASSES)
def test_each_says_in_its_docstring_when_it_is_raised(error_class: type[Exception]) -> None:
    docstring = inspect.getdoc(error_class)

    assert docstring is not None
    assert docstring.startswith(("Raised ", "Root of ", "The cause of "))
