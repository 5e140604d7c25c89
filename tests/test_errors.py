"""What is printed: text from files cannot steer the terminal."""

import json

import pytest
import torch
from typer.testing import CliRunner

from fluxscope.commands.main import build_app
from fluxscope.errors import LONGEST_LINE, FluxscopeError, clean
from fluxscope.files import write_json
from fluxscope.progress import Reporter
from fluxscope.sae.formats import load, save
from fluxscope.settings.config import make_config

RED = "\x1b[31mred\x1b[0m"
HOSTILE = [RED, "\x1b]0;title\x07", "a\rb", "a\nb", "\u202egnp", "\u2066x", "\x9b31m", "\ud800"]
HOSTILE += ["a\u2028b", "\ufeffx"]


def harmless(text):
    """Whether a terminal shows it as it is, line feeds between lines aside."""
    return text.replace("\n", "").isprintable()


@pytest.mark.parametrize("text", HOSTILE)
def test_control_and_bidirectional_characters_are_made_visible(text):
    assert harmless(clean(text)) and "\n" not in clean(text)
    assert clean(text) != text


def test_what_is_not_dangerous_stays():
    text = "naïve café, 日本語, עברית, 👩\u200d🎨 ±8 · 50%"
    assert clean(text) == text
    assert clean("x" * 200) == "x" * 200


def test_long_text_is_cut():
    assert len(clean("x" * 201)) == 200 and clean("x" * 201).endswith("x...")


@pytest.mark.parametrize("text", HOSTILE)
def test_errors_and_reports_are_clean(text, capsys):
    error = FluxscopeError(f"{text} is wrong", f"mend {text}")
    for shown in (error.message, error.hint, str(error)):
        assert harmless(shown) and "\n" not in shown
    Reporter().say(f"warning: {text}")
    out = capsys.readouterr().out
    assert harmless(out) and out.count("\n") == 1
    assert len(FluxscopeError("x" * 10**6).message) == LONGEST_LINE


def fluxscope(*arguments):
    result = CliRunner().invoke(build_app(), [str(each) for each in arguments])
    return result.output + result.stderr


def test_a_toml_key_cannot_reach_the_terminal(tmp_path):
    (tmp_path / "settings.toml").write_text(r'"\u001b[31mevil\u202e" = 1' + "\n")
    shown = fluxscope("run", "--config", tmp_path / "settings.toml")
    assert "evil" in shown and harmless(shown)


def test_a_prompt_cannot_reach_the_terminal(tmp_path):
    (tmp_path / "prompts.txt").write_text("a large \x1b[31mzzyzx\u202e circle on a white background\n" * 2)
    shown = fluxscope(
        *("run", "--steps", "1", "--prompts-path", tmp_path / "prompts.txt", "--out-dir", tmp_path / "run"),
        *("--num-inference-steps", "2", "--target-step-number", "1", "--no-compare-layers"),
    )
    assert "1 pictures" in shown or "pictures" in shown
    assert harmless(shown)


def hostile_prompt(tmp_path, evil):
    (tmp_path / "prompts.txt").write_text(f"{evil}\n", encoding="utf-8")
    flags = (
        "--num-inference-steps",
        1,
        "--target-step-number",
        1,
        "--no-compare-layers",
        "--reps-per-prompt",
        1,
    )
    return ("collect", "--prompts-path", tmp_path / "prompts.txt", "--out-dir", tmp_path / "run", *flags)


def hostile_toml_key(tmp_path, evil):
    (tmp_path / "settings.toml").write_text(f"{json.dumps(evil)} = 1\n", encoding="utf-8")
    return ("run", "--config", tmp_path / "settings.toml")


def hostile_toml_value(tmp_path, evil):
    (tmp_path / "settings.toml").write_text(f"strength_unit = {json.dumps(evil)}\n", encoding="utf-8")
    return ("run", "--config", tmp_path / "settings.toml")


def hostile_json_value(tmp_path, evil):
    write_json(
        tmp_path / "run" / "run_log.json", {"layer_index": evil, "identity": {"model_id": "flux-shapes"}}
    )
    return ("analyze", "--out-dir", tmp_path / "run")


def hostile_recorded_setting(tmp_path, evil):
    identity = {"model_id": "flux-shapes", "dtype": evil}
    write_json(tmp_path / "run" / "run_log.json", {"layer_index": 15, "identity": identity})
    return ("analyze", "--out-dir", tmp_path / "run")


def hostile_file_name(tmp_path, evil):
    name = "".join(letter for letter in evil if letter not in "/\0")[:60]
    return ("sae-info", tmp_path / name)


def hostile_checkpoint(tmp_path, evil):
    sae, info = load(make_config().sae_ckpt_path)
    path = save(tmp_path / "sae_best.pt", sae, info.config)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["config"] |= {"site": evil, evil: 1}
    torch.save(checkpoint, path)
    return ("sae-info", path)


def hostile_architecture(tmp_path, evil):
    path = hostile_checkpoint(tmp_path, "x")[1]
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["config"] |= {"architecture": evil}
    torch.save(checkpoint, path)
    return ("sae-info", path)


SOURCES = [hostile_prompt, hostile_toml_key, hostile_toml_value, hostile_json_value, hostile_recorded_setting]
SOURCES += [hostile_file_name, hostile_checkpoint, hostile_architecture]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
@pytest.mark.parametrize("evil", [*HOSTILE[:7], "evil" * 500], ids=range(8))
def test_text_of_files_reaches_the_terminal_cleaned_and_short(tmp_path, source, evil):
    shown = fluxscope(*source(tmp_path, evil))
    assert harmless(shown)
    assert "evil" * 51 not in shown
    assert "Traceback" not in shown and shown.strip()


def test_a_checkpoints_config_cannot_reach_the_terminal(tmp_path):
    sae, info = load(make_config().sae_ckpt_path)
    path = save(tmp_path / "sae_best.pt", sae, info.config)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["config"] |= {"site": RED, "model_id": "\u202e" + "m" * 500, "\x1b[2J": 1}
    torch.save(checkpoint, path)
    shown = fluxscope("sae-info", path)
    assert "red" in shown and harmless(shown)
    assert "m" * 201 not in shown
