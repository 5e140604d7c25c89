"""Every setting against values that no setting may take, and every value that is taken against TOML."""

import json
import math
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fluxscope.errors import ConfigError
from fluxscope.fields import LONGEST_TEXT, MOST_ITEMS
from fluxscope.settings.config import make_config, settings_table
from fluxscope.settings.load import load_config

TABLE = settings_table()
NUMBERS = {name for name, each in TABLE.items() if each.kind in (int, float)}
WHOLE = {name for name, each in TABLE.items() if each.kind is int}
TEXTS = {name for name, each in TABLE.items() if each.kind is str}
LISTS = {name for name, each in TABLE.items() if each.kind is tuple}
NESTED = {"a": {"b": [1]}}

HOSTILE = [
    *((name, value) for name in TABLE for value in (object(), 1j, b"x", NESTED, {1, 2}, [[1]], [{}])),
    *((name, None) for name, each in TABLE.items() if not each.optional),
    *(
        (name, value)
        for name in sorted(NUMBERS)
        for value in (math.nan, math.inf, -math.inf, True, "x", "1", 10**30, -(10**30), 10**5000, [1], 1e300)
    ),
    *((name, value) for name in sorted(WHOLE) for value in (1.5, 2.0, -1, 2**60)),
    *(
        (name, value)
        for name in sorted(TEXTS)
        for value in (3, True, ["x"], "a\0b", "\x1b[2J", "a\nb", "\ud800", "x" * (LONGEST_TEXT + 1))
    ),
    *(
        (name, value)
        for name in sorted(LISTS)
        for value in (3, True, "a\0b", "\ud800", (1,) * (MOST_ITEMS + 1))
    ),
    *(
        (name, value)
        for name in sorted(LISTS)
        if TABLE[name].item in (int, float)
        for value in ("x", "1,nan", "²", (math.nan,), (math.inf,), (True,), ("x",), (10**30,), "1,,x", [None])
    ),
    *((name, "") for name in ("steer_strengths", "steer_scales", "demo_strengths", "out_dir", "model_id")),
    *((name, ()) for name in ("steer_strengths", "steer_scales", "demo_strengths")),
    *(("demo_strengths", value) for value in ("-8", (2, -4), (0,), "4,0")),
    *(("patch_size", value) for value in (0, 8, 32, 17)),
    *(
        (name, value)
        for name in ("images_subdir", "overlays_subdir")
        for value in ("", ".", "..", "../pics", "/tmp", "a/../../b", "C:\\x", "..\\x")
    ),
    *(
        (name, value)
        for name in ("device", "sae_device", "clip_device")
        for value in ("gpu", "cuda:", "cuda:x")
    ),
    *(("steer_steps", value) for value in ("5-3", "²", "x", "-1", "1-", "0-5-9", "")),
    *(("base_seed", value) for value in (-1, 2**53)),
    *(("clip_percentile", value) for value in (-0.1, 100.1)),
]


@pytest.mark.parametrize(("name", "value"), HOSTILE, ids=lambda part: str(type(part).__name__))
def test_no_setting_takes_a_hostile_value(name, value):
    with pytest.raises(ConfigError) as caught:
        make_config(**{name: value})
    said = caught.value.message + caught.value.hint
    assert name in said
    assert said.isprintable()
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"demo_percentile_low": 95.0, "demo_percentile_high": 70.0},
            "95 is not below demo_percentile_high 70",
        ),
        ({"demo_percentile_low": 80.0, "demo_percentile_high": 80.0}, "80 is not below"),
        ({"images_subdir": "pics", "overlays_subdir": "./pics"}, "are both 'pics'"),
        (
            {"num_inference_steps": 5, "target_step_number": 14},
            "target_step_number 14 is not among the 5 steps",
        ),
        ({"capture_steps": (0,)}, "capture_steps 0 is not among"),
        ({"patch_grid": (0, 8)}, "at least 1"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        make_config(**wrong)


def values(each):
    """Values that may suit a setting, and many that nearly do."""
    bounds = each.metadata
    if "choices" in bounds:
        return st.sampled_from(bounds["choices"])
    low, high = bounds.get("low"), bounds.get("high")
    number = {
        int: st.integers(max(low or 0, 0), 2**40 if high is None else high),
        float: st.floats(-1e3 if low is None else low, 1e3 if high is None else high),
    }
    plain = {
        **number,
        bool: st.booleans(),
        str: st.one_of(
            st.sampled_from(
                ["auto", "cpu", "cuda:1", "0-5", "all", "double.{layer}.ff", "a b", "é", '"', "\\"]
            ),
            st.text(min_size=1, max_size=20),
        ),
    }
    if each.kind is tuple:
        return st.lists(plain[each.item], max_size=4).map(tuple)
    if each.kind is dict:
        return st.none()
    return plain[each.kind]


def as_toml(config):
    """The settings as a TOML file; None, which TOML lacks, is left out."""
    lines = []
    for name, each in TABLE.items():
        value = getattr(config, name)
        if isinstance(value, dict):
            pairs = ", ".join(f"{json.dumps(key)} = {quoted(text)}" for key, text in value.items())
            lines.append(f"{name} = {{{pairs}}}")
        elif isinstance(value, tuple):
            lines.append(f"{name} = [{', '.join(quoted(item) for item in value)}]")
        elif value is not None:
            lines.append(f"{name} = {quoted(value)}")
        else:
            assert each.optional
    return "\n".join(lines)


def quoted(value):
    """A number, a text or a switch in TOML."""
    return json.dumps(value, ensure_ascii=False)


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_every_accepted_value_survives_a_file(tmp_path_factory, data):
    name = data.draw(st.sampled_from(sorted(TABLE)))
    value = data.draw(values(TABLE[name]))
    try:
        config = make_config(**{name: value})
    except ConfigError:
        assume(False)
    file = tmp_path_factory.getbasetemp() / "settings.toml"
    file.write_text(as_toml(config), encoding="utf-8")
    assert load_config(file) == config


@given(
    st.sampled_from(sorted(TABLE)),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.binary(max_size=4),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    ),
)
@settings(max_examples=500, deadline=None)
def test_any_value_is_taken_or_refused_in_words(name, value):
    try:
        made, said = make_config(**{name: value}), ""
    except ConfigError as error:
        made, said = None, error.message + error.hint
    assert said.isprintable()
    if made:
        assert type(getattr(made, name)) in (TABLE[name].kind, type(None))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[height]\na = 1", "height must be int, not"),
        ("height = 128.0", "height must be int, not 128.0"),
        ("height = 1979-05-27", "height must be int"),
        ("base_seed = " + "9" * 30, "base_seed is 9*, but must be at most"),
        ("base_seed = " + "9" * 5000, "not valid TOML"),
        ("height = " + "[" * 5000, "nested too deeply|not valid TOML"),
        ('"he\\u001b[2Jight" = 1', re.escape("unknown setting: he\\x1b[2Jight")),
        ("guidance_scale = nan", "finite"),
        ("steer_strengths = []", "steer_strengths is empty"),
        ("[sampling]\nheight = 128", "unknown setting: sampling"),
    ],
)
def test_hostile_files_are_refused(tmp_path, text, message):
    (tmp_path / "settings.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "settings.toml")


def test_a_file_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "settings.toml").write_bytes(b"\xef\xbb\xbfbase_seed = 7\n")
    assert load_config(tmp_path / "settings.toml").base_seed == 7


def test_a_file_of_megabytes_is_refused(tmp_path):
    (tmp_path / "settings.toml").write_text("# comment\n" * 200_000)
    with pytest.raises(ConfigError, match="too large"):
        load_config(tmp_path / "settings.toml")


PYTHON = """
from dataclasses import dataclass
from fluxscope.settings.config import Config as Base
@dataclass(frozen=True)
class Config(Base):
"""


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (f"{PYTHON}    hieght = 128", "unknown setting: hieght", "Did you mean height?"),
        (f"{PYTHON}    hieght: int = 128", "unknown setting: hieght", "Did you mean height?"),
        (f"{PYTHON}    height = 128", "height has no type in class Config", "height: ..."),
        (
            PYTHON.replace("@dataclass(frozen=True)", "") + "    height: int = 128",
            "is no dataclass",
            "@dataclass",
        ),
        (f"{PYTHON}    height: int = float('nan')", "height must be int", ""),
        ("import nowhere_at_all", "line 1 of .* fails: ModuleNotFoundError", ""),
        ("x = 1\nx = = 2", "line 2 of .* fails: SyntaxError", ""),
        ("raise SystemExit(0)", "line 1 of .* fails: SystemExit", ""),
        ("Config = 3", "defines no Config", ""),
    ],
)
def test_what_a_python_file_says_in_vain_is_refused(tmp_path, text, message, hint):
    (tmp_path / "settings.py").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(tmp_path / "settings.py")
    assert hint in caught.value.hint


def test_a_python_file_may_have_code_of_its_own(tmp_path):
    own = (
        "    base_seed: int = 9\n    _note = 3\n    @property\n    def twice(self): return 2 * self.base_seed"
    )
    (tmp_path / "settings.py").write_text(PYTHON + own)
    assert load_config(tmp_path / "settings.py").twice == 18
