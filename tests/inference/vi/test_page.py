"""The page about variational inference tells the truth: its examples run, and print what it says."""

import doctest
import pathlib

import pytest

import posterity

PAGE = pathlib.Path(posterity.__file__).parent / "docs" / "variational.md"


@pytest.mark.slow
def test_the_examples_of_the_page_run():
    failed, tried = doctest.testfile(str(PAGE), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert (failed, tried > 20) == (0, True)
