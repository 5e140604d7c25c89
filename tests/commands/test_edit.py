"""`edit` and `steer --recipe` as a user types them, on flux-shapes in four steps."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from typer.main import get_command

from fluxscope.commands.main import build_app
from fluxscope.models.methods import learned

RED, BLUE = "a large red circle on a white background", "a large blue circle on a white background"
FEW = ["--num-inference-steps", "4", "--seed", "3"]


@pytest.fixture(scope="module")
def command_line():
    return get_command(build_app())


def typed(command_line, folder, *words, code=0):
    result = CliRunner().invoke(command_line, [*words, "--out-dir", str(folder), *FEW])
    assert result.exit_code == code, result.output
    return result


def made(folder, what):
    (path,) = folder.rglob(f"*{what}")
    return path


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


@pytest.fixture(scope="module")
def transported(command_line, tmp_path_factory):
    folder = tmp_path_factory.mktemp("transport")
    typed(command_line, folder, "edit", "--prompt", RED, "--to", BLUE, "--k", "16")
    return folder


def test_an_edit_stands_beside_its_baseline_and_control_and_its_recipe_says_all(transported):
    recipe = json.loads(made(transported, ".recipe.json").read_text())
    assert (recipe["method"], recipe["source"], recipe["target"]) == ("transport", RED, BLUE)
    assert sum(len(moves["features"]) for moves in recipe["sites"]) == 16
    assert all(len(moves["sae_sha256"]) == 64 for moves in recipe["sites"])
    baseline, edited, control = (
        pixels(made(transported, f"_{which}.png")) for which in ("baseline", "edited", "control")
    )
    assert (baseline != edited).any() and (baseline != control).any() and (edited != control).any()


def test_a_recipe_replayed_makes_the_same_picture(command_line, transported, tmp_path):
    recipe = made(transported, ".recipe.json")
    typed(command_line, tmp_path, "steer", "--recipe", str(recipe))
    for which in ("baseline", "edited"):
        once, again = (pixels(made(folder, f"_{which}.png")) for folder in (transported, tmp_path))
        assert np.abs(once - again).max() <= 1


def test_recipes_are_composed(command_line, transported, tmp_path):
    """Codes carried over, and another velocity in the right half."""
    recipe = made(transported, ".recipe.json")
    region, both = tmp_path / "region", tmp_path / "both"
    typed(
        command_line,
        region,
        *("edit", "--prompt", RED, "--to", "a large red circle on a black background"),
        *("--region", "64,0,128,128", "--noise", "1-0"),
    )
    other = made(region, ".recipe.json")
    assert json.loads(other.read_text())["region"]["rows"] == ["....####"] * 8
    typed(command_line, both, "steer", "--recipe", str(recipe), "--recipe", str(other))
    together, plain = pixels(made(both, "_edited.png")), pixels(made(both, "_baseline.png"))
    right, colour = pixels(made(region, "_edited.png")), pixels(made(transported, "_edited.png"))
    assert (
        right[:, 96:].mean() < plain[:, 96:].mean() - 30
        and together[:, 96:].mean() < plain[:, 96:].mean() - 30
    )
    for one in (right, colour):
        assert np.abs(together - one).mean() > 2


def test_a_feature_says_where(command_line, tmp_path):
    typed(command_line, tmp_path, "edit", "--prompt", RED, "--to", BLUE, "--where", "feature:745")
    recipe = json.loads(made(tmp_path, ".recipe.json").read_text())
    assert recipe["method"] == "detector" and recipe["window"] == [0.95, 0.0]
    (moves,) = recipe["sites"]
    assert moves["site"] == "double.5.attn" and moves["features"][0]["feature"] == 745
    assert moves["features"][0]["natural"] > 0


def test_amounts_are_learned_and_replayed(command_line, tmp_path, monkeypatch):
    """A fit of few iterations; the region is found, the largest amount told."""
    monkeypatch.setattr(learned, "USUAL", learned.Fitting((3, 3), batch=2))
    once, again = tmp_path / "once", tmp_path / "again"
    typed(command_line, once, "edit", "--prompt", RED, "--to", BLUE, "--method", "learned", "--k", "2")
    recipe = json.loads(made(once, ".recipe.json").read_text())
    assert (recipe["method"], recipe["found_by"], recipe["keep_norm"]) == ("push", "learned", True)
    moves = [(each["site"], move) for each in recipe["sites"] for move in each["features"]]
    assert 1 <= len({(site, move["feature"]) for site, move in moves}) <= 2
    assert recipe["made_with"]["largest_amount"] == max(abs(move["amount"]) for _, move in moves)
    assert "#" in "".join(recipe["region"]["rows"]) and "." in "".join(recipe["region"]["rows"])
    typed(command_line, again, "steer", "--recipe", str(made(once, ".recipe.json")))
    assert np.abs(pixels(made(once, "_edited.png")) - pixels(made(again, "_edited.png"))).max() <= 1


def test_features_of_the_text_stream_make_it_the_other_prompt_s_picture(command_line, tmp_path):
    """With 16 features the picture goes most of the way to that of the other prompt; the control does not."""
    typed(command_line, tmp_path, "edit", "--prompt", RED, "--to", BLUE, "--at", "double.0.context")
    recipe = json.loads(made(tmp_path, ".recipe.json").read_text())
    (moves,) = recipe["sites"]
    assert moves["site"] == "double.0.context" and len(moves["features"]) == 16
    other = tmp_path / "other"
    typed(command_line, other, "edit", "--prompt", BLUE, "--to", RED, "--at", "double.0.context")
    baseline, edited, control = (
        pixels(made(tmp_path / "steering", f"_{which}.png")) for which in ("baseline", "edited", "control")
    )
    goal = pixels(made(other, "_baseline.png"))
    far = np.abs(goal - baseline).mean()
    assert np.abs(edited - goal).mean() < 0.5 * far < np.abs(control - goal).mean()


HOSTILE = [
    (["--at", "double.0.context", "--region", "0,0,64,64", "--method", "transport"], "region of the picture"),
    (["--at", "double.0.context", "--method", "shift"], "pass those of the text"),
    (["--at", "double.0.context", "--method", "learned"], "pass those of the text"),
    (["--at", "double.7.ff"], "no SAE is set for double.7.ff"),
    (["--at", "attn"], "no SAE is set for attn"),
    (["--at", "double.5.attn", "--where", "feature:3"], "detector has no use for --at"),
    (["--method", "learned", "--where", "feature:5"], "learned has no use for --where"),
    (["--method", "learned", "--noise", "0.2-0.1"], "no step lies between"),
    (["--to", RED], "equal to the source"),
    (["--to", f" {RED}"], "equal to the source"),
    (["--to", ""], "a prompt is empty"),
    (["--where", "5"], "--where cannot be '5'"),
    (["--where", "feature:x"], "--where cannot be"),
    (["--where", "feature:99999"], "there is no feature 99999"),
    (["--where", "feature:5", "--region", "0,0,9,9"], "said in two ways where"),
    (["--where", "feature:5", "--method", "transport"], "transport has no use for --where"),
    (["--method", "detector"], "needs to know where"),
    (["--method", "magic"], "--method cannot be"),
    (["--region", "0,0,0,5"], "no box inside a picture"),
    (["--k", "0"], "--k"),
    (["--k", "many"], "--k"),
    (["--dose", "0"], "changes nothing"),
    (["--dose", "nan"], "--dose"),
    (["--noise", "0.2-0.8"], "no window of noise levels"),
    (["--noise", "0.2-0.1"], "no step lies between"),
]


@pytest.mark.parametrize(("words", "complaint"), HOSTILE, ids=[" ".join(words) for words, _ in HOSTILE])
def test_what_cannot_be_done_is_one_clear_error_and_leaves_nothing(command_line, tmp_path, words, complaint):
    asked = ["edit", "--prompt", RED, *([] if "--to" in words else ["--to", BLUE]), *words]
    result = typed(command_line, tmp_path, *asked, code=1)
    lines = result.stderr.strip().split("\n")
    error = next(line for line in lines if line.startswith("error: "))
    assert complaint in error and all(line.isprintable() for line in lines)
    assert not list(tmp_path.rglob("*.png")) and not list(tmp_path.rglob("*.json"))


def test_a_damaged_or_foreign_recipe_is_refused(command_line, transported, tmp_path):
    recipe = json.loads(made(transported, ".recipe.json").read_text())
    for change, complaint in (
        ({"model": "FLUX.1-dev"}, "is for FLUX.1-dev, not for flux-shapes"),
        ({"sites": [recipe["sites"][0] | {"sae_sha256": "0" * 64}]}, "is for another SAE of"),
        ({"method": 3}, "method"),
    ):
        path = tmp_path / "a.json"
        path.write_text(json.dumps(recipe | change))
        result = typed(command_line, tmp_path / "out", "steer", "--recipe", str(path), code=1)
        assert complaint in result.stderr
        assert not list((tmp_path / "out").rglob("*.png"))
    result = typed(command_line, tmp_path / "out", "steer", "--recipe", str(path), "--feature", "3", code=1)
    assert "says itself what is changed" in result.stderr
