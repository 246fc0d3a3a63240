"""The page about chains on texts tells the truth: its examples run, and print what it says."""

import doctest
import pathlib

import pytest

import posterity

PAGE = pathlib.Path(posterity.__file__).parent / "docs" / "mcmc-texts.md"


@pytest.mark.slow  # half a minute of compiling
def test_the_examples_of_the_page_run():
    failed, tried = doctest.testfile(str(PAGE), module_relative=False)
    assert (failed, tried > 25) == (0, True)
