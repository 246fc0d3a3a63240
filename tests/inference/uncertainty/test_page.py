"""The page about uncertainty tells the truth: its examples run, and print what it says."""

import doctest
import pathlib

import posterity

PAGE = pathlib.Path(posterity.__file__).parent / "docs" / "uncertainty.md"


def test_the_examples_of_the_page_run():
    failed, tried = doctest.testfile(str(PAGE), module_relative=False)
    assert (failed, tried > 20) == (0, True)
