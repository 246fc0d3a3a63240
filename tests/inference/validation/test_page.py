"""The page about calibration tells the truth: its examples run, and print what it says."""

import doctest
import pathlib

import pytest

import posterity

PAGE = pathlib.Path(posterity.__file__).parent / "docs" / "calibration.md"


@pytest.mark.slow
def test_the_examples_of_the_page_run():
    failed, tried = doctest.testfile(str(PAGE), module_relative=False, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert (failed, tried > 15) == (0, True)
