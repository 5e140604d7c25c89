"""Hostile options of the commands: each is one clear error, before anything is loaded or written."""

import pytest
from click.testing import CliRunner
from typer.main import get_command

from fluxscope.commands.main import build_app
from fluxscope.commands.steering import request_of
from fluxscope.commands.training import SweepOptions, TrainOptions
from fluxscope.errors import ConfigError
from fluxscope.steps.pipeline import parse_pipeline_steps

STEER = ["steer", "--prompt", "a red circle", "--feature", "5", "--strength", "2"]
NO_NUMBERS = ["nan", "inf", "-inf", "x", "²", "1e999", "9" * 5000, "1;2", ","]
HOSTILE = [
    *(
        ["run", f"--steps={text}"]
        for text in ["²", "5-3", "1-", "-1", "0", "12", "1-99999999999", "1,,2", "9" * 5000]
    ),
    *([*STEER, f"--feature={text}"] for text in [*NO_NUMBERS, "1.5", "-1", "9" * 12]),
    *([*STEER, f"--strength={text}"] for text in [*NO_NUMBERS, "1e7", "1,2,3"]),
    *(
        [*STEER, f"--region={text}"]
        for text in ["nan,0,1,1", "0,0,1", "0,0,inf,1", "-1,0,9,9", "0.5,0,9,9", "1e9,0,1,1"]
    ),
    *([*STEER, f"--seed={text}"] for text in ["-1", str(2**53)]),
    *([*STEER, f"--prompt={text}"] for text in ["a\x1bb", "x" * 5000, "\udcff"]),
    *([*STEER, f"--steer-strengths={text}"] for text in ["", "nan", "-"]),
    *([*STEER, f"--denoise-steps={text}"] for text in ["5-3", "²", "0-99999"]),
    *(["find-demos", f"--demo-strengths={text}"] for text in ["", "-8", "0", "inf"]),
    ["find-demos", "--demo-percentile-low=95", "--demo-percentile-high=70"],
    *(["train", f"--lr={text}"] for text in ["inf", "nan", "0", "-1"]),
    *(["train", f"--pictures={text}"] for text in ["-1", "0", "9" * 20]),
    *(["train", f"--training-steps={text}"] for text in ["-1", "0"]),
    *(["train", f"--stamp={text}"] for text in ["../x", "/x", "..", "", "a/b", "a b", "x" * 200]),
    *(["train", f"--k={text}"] for text in [*NO_NUMBERS, "0", "-1"]),
    *(["train", f"--layers={text}"] for text in ["x", "-1", "1.5", ""]),
    *(["train", f"--expansion={text}"] for text in ["0", "-1", "99999"]),
    ["train", "--whitening=x"],
]


@pytest.fixture(scope="module")
def command_line():
    return get_command(build_app())


@pytest.mark.parametrize(
    "arguments", HOSTILE, ids=lambda arguments: ascii(" ".join(arguments[:1] + arguments[-1:])[:40])
)
def test_a_hostile_option_is_refused_in_two_lines(command_line, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(command_line, arguments)
    lines = result.stderr.strip().split("\n")
    assert result.exit_code == 1, result.output
    assert lines[0].startswith("error: ") and len(lines) <= 2
    assert all(line.isprintable() for line in lines)
    assert not any(tmp_path.rglob("*.png")) and not any(tmp_path.rglob("*.npy"))


@pytest.mark.parametrize("kind", [TrainOptions, SweepOptions])
def test_training_options_have_bounds(kind):
    for wrong in ({"lr": float("inf")}, {"pictures": 0}, {"stamp": "../x"}, {"seed": -1}, {"wandb": ""}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            kind(**wrong)
    assert kind(lr=1, pictures=3).lr == 1.0


def test_lists_of_steps_mean_what_they_say():
    def numbers(text):
        return [step.number for step in parse_pipeline_steps(text)]

    assert numbers("1-4,8") == [1, 2, 3, 4, 8]
    assert numbers(" 8 , 1 - 3,2") == [1, 2, 3, 8]


def test_a_request_is_what_was_asked_for():
    request = request_of("12,40", "2,-1.5", "", "", "a red circle", 7, "0,0,16,32")
    assert (request.features, request.kind, request.amounts) == ((12, 40), "add", (2.0, -1.5))
    assert (request.prompt, request.seed, request.region) == ("a red circle", 7, (0, 0, 16, 32))
