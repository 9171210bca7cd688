"""The mutations of scripts.chaos.mutations apply to the code as it is; the script itself takes minutes."""

import ast
from pathlib import Path

import pytest

from scripts.chaos.mutation_table import MUTATIONS, Mutation
from scripts.chaos.mutations import DETECTORS, mutate

ROOT = Path(__file__).parents[2]


def test_there_are_fifty_mutations_of_different_names():
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 50


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation_applies_in_one_place_and_leaves_valid_code(mutation: Mutation):
    text = (ROOT / mutation.file).read_text(encoding="utf-8")
    assert ast.dump(ast.parse(mutate(text, mutation))) != ast.dump(ast.parse(text))


def test_text_that_is_not_there_once_is_refused():
    mutation = Mutation("twice", "a.py", "x", "y", "nothing")
    for text in ("", "x = x"):
        with pytest.raises(ValueError, match=r"^twice: its old text occurs [02] times in a\.py$"):
            mutate(text, mutation)


def test_every_test_module_of_a_detector_exists():
    paths = [argument for d in DETECTORS for argument in d.arguments if argument.startswith("tests/")]
    assert [path for path in paths if not (ROOT / path).exists()] == []
