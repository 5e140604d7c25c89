"""What every step of the table must be: declared in its own file, and imported without what it works with."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fluxscope.steps
from fluxscope.steps.table import STEPS
from tests.conformance.settings_read import RUN_DIR, Sources, settings_read

FOLDER = Path(fluxscope.steps.__file__).parent
WHOSE_FILES = {"out_dir", "images_subdir", "overlays_subdir", "active_layer", "active_site", "patch_size"}
"""Settings that say where the files are, which the key of a step holds by what lies there; and a constant."""

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


def undeclared_and_unread(step, sources):
    read, places = (settings_read(sources, start) for start in ((step.module, "run"), RUN_DIR))
    declared = set(step.settings)
    return read - declared - WHOSE_FILES, declared - read - places


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_a_step_declares_the_settings_that_it_reads_and_no_others(step):
    assert undeclared_and_unread(step, Sources()) == (set(), set())


FIRST_LINE = "config, files = context.config, context.files"


@pytest.mark.parametrize(
    ("module", "line", "read", "steps"),
    [
        ("steps.analyze", FIRST_LINE, "config.base_seed", {"analyze"}),
        ("steps.analyze", FIRST_LINE, "context.config.n_image_tokens", {"analyze"}),
        ("steps.analyze", FIRST_LINE, "getattr(config, 'rank_by')", {"analyze"}),
        ("run.context", "assert config.clip_model_id is not None", "config.exact", {"clip-embed", "select"}),
        (
            "run.steering",
            "np.random.default_rng(0)",
            "self.context.config.min_prompts",
            {"steer", "find-demos"},
        ),
        ("run.collection", "config.max_sequence_length is not None", "config.alpha_scale", {"collect"}),
    ],
)
def test_a_read_that_is_not_declared_is_found_wherever_it_is(module, line, read, steps):
    """One more line in a step, or in what it calls."""
    text = (FOLDER.parent / f"{module.replace('.', '/')}.py").read_text()
    (before,) = (each for each in text.splitlines() if line in each)
    indent = before[: len(before) - len(before.lstrip())]
    mutant = Sources({f"fluxscope.{module}": text.replace(before, f"{before}\n{indent}_ = {read}")})
    assert {step.name for step in STEPS if undeclared_and_unread(step, mutant)[0]} == steps


def test_a_declared_setting_that_nothing_reads_is_found():
    text = (FOLDER / "analyze.py").read_text().replace("config.eps_alive", "0.0")
    mutant = Sources({"fluxscope.steps.analyze": text})
    assert undeclared_and_unread(STEPS[1], mutant)[1] == {"eps_alive"}
