import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fluxscope.commands.flags import NO_FLAG, SHORT_NAMES
from fluxscope.commands.main import build_app
from fluxscope.errors import MissingInputError
from fluxscope.files import read_torch_checkpoint
from fluxscope.run.rundir import RunDir
from fluxscope.settings.config import make_config, settings_table
from fluxscope.steps.pipeline import parse_pipeline_steps
from fluxscope.steps.table import STEPS
from tests.conftest import SMALL

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL_FLAGS = [
    f"{SHORT_NAMES.get(name, '--' + name.replace('_', '-'))}={value}" for name, value in SMALL.items()
]


def fluxscope(*arguments: str):
    return CliRunner().invoke(build_app(), arguments)


def script(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    """Run a script of interp_scripts/ as a user would, from another folder."""
    command = [sys.executable, str(REPOSITORY / "interp_scripts" / name), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_importing_the_command_line_imports_no_torch():
    code = (
        "import sys, fluxscope, fluxscope.commands.main;"
        "sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_version():
    assert fluxscope("--version").output.startswith("fluxscope 0.")


def test_an_unknown_command_and_a_wrong_flag_fail():
    assert fluxscope("colect").exit_code != 0
    assert "--height" in fluxscope("run", "--heigth", "3").output


def test_a_users_mistake_is_two_lines_and_no_traceback(tmp_path):
    result = fluxscope("run", "--height", "100", "--out-dir", str(tmp_path / "run"))
    assert result.exit_code == 1
    assert result.stderr == "error: height is 100, but must be a multiple of 16\n  Use 96 or 112.\n"


def test_a_step_whose_input_is_missing_names_the_step_that_makes_it(tmp_path):
    result = fluxscope("analyze", "--out-dir", str(tmp_path / "run"))
    assert result.exit_code == 1
    assert "step 2 (analyze) needs" in result.stderr
    assert "fluxscope collect" in result.stderr


def test_a_failing_step_stops_the_run_and_the_rest_is_listed(tmp_path):
    result = fluxscope("run", "--steps", "2,3", "--out-dir", str(tmp_path / "run"))
    assert result.exit_code == 1
    assert "Not run: 3 clip-embed" in result.stdout


def test_all_and_a_list_of_steps_contradict_each_other(tmp_path):
    result = fluxscope("run", "--all", "--steps", "1", "--out-dir", str(tmp_path / "run"))
    assert result.exit_code == 1
    assert result.stderr == "error: both --all and --steps are given\n  Give one of them.\n"


def test_all_stops_at_the_step_that_fails_and_lists_the_others(tmp_path, monkeypatch):
    def fail(config):
        raise MissingInputError("no distance is to be had", "Wait.")

    monkeypatch.setattr("fluxscope.steps.steer.load_distance", fail)
    flags = ["--max-prompts=1", "--num-inference-steps=2", "--target-step-number=1"]
    result = fluxscope("run", "--all", *flags, "--out-dir", str(tmp_path / "run"))
    assert result.exit_code == 1
    assert "no feature is active on enough of the 2 pictures" in result.stdout  # step 4, which goes on
    assert "no distance is to be had" in result.stderr  # step 7
    rest = ", ".join(f"{step.number} {step.name}" for step in STEPS if step.number > 7)
    assert f"Not run: {rest}\n" in result.stdout


def test_commands_that_look_at_a_run_take_its_settings(tmp_path):
    folder = str(tmp_path / "run")
    flags = ["--max-prompts=3", "--num-inference-steps=3", "--target-step-number=2", "--height=64"]
    few = ["--min-prompts=2", "--top-examples-per-feature=1", "--no-enforce-global-unique-images"]
    made = fluxscope("run", "--steps=1-4", *flags, *few, "--out-dir", folder)
    assert made.exit_code == 0, made.output
    looked = fluxscope("overlays", "--out-dir", folder)
    assert looked.exit_code == 0, looked.output
    again = fluxscope("collect", "--out-dir", folder)
    assert again.exit_code == 1
    assert "was made with height = 64, not 128" in again.stderr


def test_keep_going_goes_on_and_still_fails(tmp_path):
    result = fluxscope("run", "--steps", "2,3", "--keep-going", "--out-dir", str(tmp_path / "run"))
    assert result.exit_code == 1
    assert "2 of 2 steps failed" in result.stderr


@pytest.mark.parametrize(
    ("text", "numbers"), [("1", [1]), ("1,2,3,4", [1, 2, 3, 4]), ("3,1", [1, 3]), ("1-4, 8", [1, 2, 3, 4, 8])]
)
def test_lists_of_steps(text, numbers):
    assert [step.number for step in parse_pipeline_steps(text)] == numbers


@pytest.mark.parametrize("text", ["", "a", "0", "12", "1-", "1..3", "-1"])
def test_wrong_lists_of_steps_are_clear_errors(text, tmp_path):
    result = fluxscope("run", "--out-dir", str(tmp_path), "--steps", text or ",")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")


def test_every_step_shows_the_flags_it_depends_on_and_no_others():
    for step in STEPS:
        page = fluxscope(step.name, "--help").output
        if not step.module:
            continue
        for name in settings_table():
            shown = f"--{name.replace('_', '-')}" in re.split(r"[\s,/]+", page)
            wanted = name in step.settings or name in ("out_dir", "model_id", "active_layer", "active_site")
            assert shown == (wanted and name not in NO_FLAG), (step.name, name)


def test_fresh_steps_are_skipped_and_a_changed_setting_redoes_one(finished, tmp_path):
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(finished.out_dir, folder)
    flags = [*SMALL_FLAGS, "--out-dir", str(folder), "--steps", "1-4"]
    assert fluxscope("run", *flags).output.count("up to date") == 4
    fluxscope("run", *flags, "--layer", "5")
    assert fluxscope("run", *flags).output.count("up to date") == 4
    changed = fluxscope("run", *flags, "--top-k-per-image", "3").output
    assert "analyze        up to date" not in changed
    assert "clip-embed     up to date" in changed


@pytest.mark.parametrize(
    ("name", "step"),
    [(p.name, int(p.name[:2])) for p in sorted((REPOSITORY / "interp_scripts").glob("[0-9]*.py"))],
)
def test_the_numbered_scripts_are_the_steps(name, step):
    text = (REPOSITORY / "interp_scripts" / name).read_text()
    assert f'script("{STEPS[step - 1].name}")' in text


def test_there_is_a_script_for_every_step():
    scripts = sorted(p.name[:2] for p in (REPOSITORY / "interp_scripts").glob("[0-9]*.py"))
    assert scripts == [f"{step.number:02d}" for step in STEPS]


def test_scripts_run_from_any_folder_with_the_settings_beside_them(tmp_path):
    done = script("run_pipeline.py", "--steps", "1-2", "--max-prompts", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    again = script("02_analyze_features.py", "--top-k-per-image", "3", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    files = RunDir.of(make_config(out_dir=str(tmp_path / "interp_output")))
    assert files.topk_per_feature.is_file()


def test_doctor_says_what_is_here_and_what_a_run_needs():
    result = fluxscope("doctor")
    assert result.exit_code == 0, result.output
    for part in ("flux-shapes: 19 double and 2 single blocks", "transformer calls", "GiB are free", "LPIPS"):
        assert part in result.output


def test_doctor_counts_the_disk_that_further_sites_and_steps_take():
    def mebibytes(*flags):
        return int(re.search(r"up to (\d+) MiB", fluxscope("doctor", *flags).output)[1])

    plain, steps = mebibytes(), mebibytes("--capture-steps=1,2,3")
    assert plain < steps < mebibytes("--capture-steps=1,2,3", "--sites=single.1")


def test_doctor_names_what_is_missing_and_how_to_mend_it(tmp_path):
    result = fluxscope("doctor", "--layer15-sae-path", str(tmp_path / "no.pt"), "--prompts-path", "no.txt")
    assert result.exit_code == 1
    assert "checkpoint not found" in result.output
    assert "prompts file not found" in result.output


def test_sae_info_says_what_a_checkpoint_holds():
    path = make_config().sae_ckpt_path
    result = fluxscope("sae-info", path)
    assert result.exit_code == 0
    assert "topk" in result.output
    features, width = read_torch_checkpoint(path)["model_state_dict"]["encoder.weight"].shape
    assert str(features) in result.output
    assert str(width) in result.output
    missing = fluxscope("sae-info", "nowhere.pt")
    assert missing.exit_code == 1
    assert "not found" in missing.stderr


def test_every_public_name_is_there():
    import fluxscope

    for name in fluxscope.__all__:
        assert getattr(fluxscope, name) is not None
    with pytest.raises(AttributeError):
        _ = fluxscope.nothing


def test_flags_of_the_release_before_are_heard_hidden_and_named_anew(tmp_path):
    for command, old in (("steer", "--steps"), ("find-demos", "--steps"), ("steer-bench", "--ranges")):
        assert old not in re.split(r"[\s,/]+", fluxscope(command, "--help").output), command
    out = ["--feature", "3", "--prompt", "a red circle", "--out-dir", str(tmp_path)]
    heard = fluxscope("steer", *out, "--strength", "1", "--steps", "90-91")
    assert heard.exit_code == 1
    assert "note: --steps is now --denoise-steps\n" in heard.stderr
    assert "steps 90-91 are not among" in heard.stderr
    both = fluxscope("steer", *out, "--strength", "1", "--steps", "90-91", "--denoise-steps", "80")
    assert "steps 80 are not among" in both.stderr
    bench = fluxscope("steer-bench", *out, "--ranges", "90-91")
    assert "steps 90-91 are not among" in bench.stderr


def test_steps_of_the_pipeline_and_of_denoising_have_flags_of_their_own(tmp_path):
    flags = ["--steps", "2", "--denoise-steps", "3-4", "--out-dir", str(tmp_path)]
    result = fluxscope("run", *flags)
    assert "Not run" not in result.stdout  # a run of step 2 alone
    assert "step 2 (analyze) needs" in result.stderr


CTRL_C_WHILE_IMPORTING = """
import os, signal, sys
module, *sys.argv[1:] = sys.argv[1:]

class Stopping:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Stopping())
from fluxscope.__main__ import main
main()
"""


@pytest.mark.parametrize("module", ["typer", "fluxscope.steps.table", "fluxscope.steps.pipeline", "torch"])
def test_ctrl_c_while_the_program_starts_is_a_clear_line(tmp_path, module):
    command = [sys.executable, "-c", CTRL_C_WHILE_IMPORTING, module, "run", "--out-dir", str(tmp_path)]
    done = subprocess.run([*command, "--quiet"], capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    assert done.stderr == "\nStopped. Finished work is kept.\n  Run the same command again to go on.\n"
