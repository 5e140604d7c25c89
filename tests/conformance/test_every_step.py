"""What every step of the table must be: declared in its own file, and imported without what it works with."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fluxscope.steps
from fluxscope.steps.table import STEPS

FOLDER = Path(fluxscope.steps.__file__).parent
HEAVY = {"torch", "diffusers", "transformers", "matplotlib", "zarr", "scipy"}


def source_of(step) -> ast.Module:
    return ast.parse((FOLDER / f"{step.module.rpartition('.')[2]}.py").read_text())


@pytest.mark.parametrize("module", ["fluxscope.commands.main", *(step.module for step in STEPS)])
def test_importing_a_step_imports_nothing_heavy(module):
    code = f"import sys, {module}; print(*{HEAVY} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_a_step_is_declared_at_the_top_of_its_own_file(step):
    body = source_of(step).body
    assigned = [ast.unparse(node.targets[0]) if isinstance(node, ast.Assign) else "" for node in body]
    functions = [getattr(node, "name", "") for node in body]
    assert assigned.count("STEP") == 1
    assert functions.count("run") == 1
    assert assigned.index("STEP") < next(i for i, name in enumerate(functions) if name)


def test_the_table_lists_every_file_once_in_order():
    assert [step.number for step in STEPS] == list(range(1, len(STEPS) + 1))
    assert len({step.name for step in STEPS}) == len({step.module for step in STEPS}) == len(STEPS)
    others = {"__init__", "step", "table", "pipeline"}
    files = {path.stem for path in FOLDER.glob("*.py")} - others
    assert {step.module for step in STEPS} == {f"fluxscope.steps.{name}" for name in files}


def test_every_file_that_a_step_reads_is_made_by_one_before_it():
    made = {"pictures", "overlays", "best_demos"}  # folders, by what lies in them
    for step in STEPS:
        assert set(step.reads) <= made, step.name
        made |= {*step.makes}
