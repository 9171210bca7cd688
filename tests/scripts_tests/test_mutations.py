"""The mutations of scripts.chaos.mutations apply to the code as it is; the script itself takes minutes."""

import ast
from contextlib import nullcontext
from pathlib import Path

import pytest

from scripts.chaos import mutations
from scripts.chaos.mutation_table import MUTATIONS, Mutation
from scripts.chaos.mutations import DETECTORS, UNCHANGED, add_result, mutate, read_results

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


def test_interrupted_run_continues_after_its_last_mutation(tmp_path, monkeypatch, capsys):
    first, second = (mutation.name for mutation in MUTATIONS[:2])
    results, ran = tmp_path / "results", []
    for name, detector in ((UNCHANGED, None), (first, "lock")):
        add_result(results, name, detector)
    for variable in ("PYTHONDONTWRITEBYTECODE", "OMP_NUM_THREADS"):
        monkeypatch.setenv(variable, "1")  # which `main` sets
    monkeypatch.setattr(mutations, "copied_tree", lambda: nullcontext(tmp_path))
    monkeypatch.setattr(mutations, "try_out", lambda copy, mutation, detectors: ran.append(mutation.name))
    assert mutations.main(["--only", first, second, "--results", str(results)]) == 1
    assert ran == [second]
    assert read_results(results) == {UNCHANGED: None, first: "lock", second: None}
    assert capsys.readouterr().out == "2 mutations, 1 detected\n"
