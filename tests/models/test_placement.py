"""Where the parts of a model are: what stays loaded, what waits, and what auto chooses."""

import pytest
import torch

from fluxscope.errors import ConfigError
from fluxscope.models.families.flux1 import Flux1
from fluxscope.models.model import open_model
from fluxscope.models.placement import Placement, auto_placement, pick_placement
from fluxscope.settings.config import make_config

PROMPTS = ("a red circle", "a blue square")


@pytest.fixture
def loads(monkeypatch):
    """How often the text part and the picture part are loaded."""
    count = {"text": 0, "pictures": 0}
    for name, part in (("load_text", "text"), ("load_denoiser", "pictures")):
        own = getattr(Flux1, name)

        def counted(self, *args, own=own, part=part):
            count[part] += 1
            return own(self, *args)

        monkeypatch.setattr(Flux1, name, counted)
    return count


@pytest.mark.parametrize(("placement", "times"), [("auto", 2), ("apart", 2), ("resident", 1), ("offload", 2)])
def test_new_prompts_load_the_text_part_again_where_it_went(loads, placement, times):
    model = open_model("flux-shapes", "cpu", "float32", placement)
    for prompt in PROMPTS:
        model.encode([prompt])
        _ = model.pipe
    assert loads == {"text": times, "pictures": 1}


def test_blocks_are_offloaded_and_all_else_is_not():
    model = open_model("flux-shapes", "cpu", "float32", "offload")
    blocks = [*model.pipe.transformer.transformer_blocks, *model.pipe.transformer.single_transformer_blocks]
    assert all(block._diffusers_hook.get_hook("group_offloading") for block in blocks)
    assert not any(hasattr(part, "_diffusers_hook") for part in model.pipe.vae.modules())
    fresh = open_model("flux-shapes", "cpu", "float32")
    assert not any(hasattr(part, "_diffusers_hook") for part in fresh.pipe.transformer.modules())


GIB = 2**30


@pytest.mark.parametrize(
    ("weights", "free", "chosen"),
    [
        (22.2 * GIB, 79 * GIB, Placement.APART),
        (22.2 * GIB, 23 * GIB, Placement.OFFLOAD),
        (22.2 * GIB, 27.7 * GIB, Placement.OFFLOAD),
        (22.2 * GIB, 27.8 * GIB, Placement.APART),
    ],
)
def test_auto_takes_the_first_that_fits_what_is_free(weights, free, chosen):
    assert auto_placement(int(weights), int(free)) is chosen


def test_auto_on_a_cpu_is_apart_and_what_is_asked_for_stays():
    cpu = torch.device("cpu")
    assert pick_placement(Placement.AUTO, cpu, 2**60) is Placement.APART
    assert pick_placement(Placement.RESIDENT, cpu, 2**60) is Placement.RESIDENT
    model = open_model("flux-shapes", "cpu", "float32")
    assert model.placement is Placement.AUTO
    _ = model.pipe
    assert model.placement is Placement.APART


def test_what_is_no_placement_is_refused():
    with pytest.raises(ConfigError, match="placement"):
        make_config(placement="nowhere")
    with pytest.raises(ValueError, match="nowhere"):
        open_model("flux-shapes", "cpu", placement="nowhere")
    for placement in Placement:  # the setting's list and the type's are one
        assert make_config(placement=str(placement)).placement == placement
