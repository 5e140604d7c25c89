"""What is printed: text from files cannot steer the terminal."""

import pytest
import torch
from typer.testing import CliRunner

from fluxscope.commands.main import build_app
from fluxscope.errors import LONGEST_LINE, FluxscopeError, clean
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


def test_a_checkpoints_config_cannot_reach_the_terminal(tmp_path):
    sae, info = load(make_config().sae_ckpt_path)
    path = save(tmp_path / "sae_best.pt", sae, info.config)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["config"] |= {"site": RED, "model_id": "\u202e" + "m" * 500, "\x1b[2J": 1}
    torch.save(checkpoint, path)
    shown = fluxscope("sae-info", path)
    assert "red" in shown and harmless(shown)
    assert "m" * 201 not in shown
