import pytest
import torch

from fluxscope.errors import ConfigError, FluxscopeError
from fluxscope.models.capture import Capture
from fluxscope.models.sites import SITES, parse_site
from fluxscope.models.spec import PictureSpec

SPEC = PictureSpec(height=128, width=128, steps=3, guidance=3.5)
TEXT_TOKENS = 20


PROMPTS = ["a large red circle on a white background", "a small blue square on a black background"]


def listen(model, names, steps):
    heard = {}
    sites = [parse_site(name) for name in names]
    capture = Capture(sites, steps, lambda s, i, x: heard.update({(s.name, i): x.clone()}))
    model.sample(PROMPTS, [1, 2], capture, spec=SPEC)
    return heard


@pytest.mark.parametrize("kind", SITES, ids=lambda kind: kind.pattern)
def test_every_kind_of_site_gives_its_stream(model, kind):
    heard = listen(model, [kind.pattern.replace("L", "1")], [0, 2])
    tokens = 64 if kind.stream == "image" else TEXT_TOKENS
    assert {step for _, step in heard} == {0, 2}
    assert all(x.shape == (2, tokens, 128) for x in heard.values())


def test_a_block_hands_its_output_to_the_next_one(model):
    """double.5's image tokens are what double.6 reads as hidden_states, whatever the order of the tuple."""
    read = {}

    def before(module, args, kwargs):
        read.setdefault(
            "image", kwargs["hidden_states"].clone() if "hidden_states" in kwargs else args[0].clone()
        )

    handle = model.transformer.transformer_blocks[6].register_forward_pre_hook(before, with_kwargs=True)
    heard = listen(model, ["double.5"], [0])
    handle.remove()
    torch.testing.assert_close(heard["double.5", 0], read["image"], rtol=0, atol=0)


def test_put_is_the_inverse_of_get():
    image, text = torch.ones(1, 2, 3), torch.zeros(1, 2, 3)
    new = torch.full((1, 2, 3), 7.0)
    for name, output in [
        ("double.3", (text, image)),
        ("double.3.attn", (image, text)),
        ("double.3.ff", image),
    ]:
        site = parse_site(name)
        assert site.get(output, 2) is image
        assert site.get(site.put(output, new, 2), 2) is new


def test_a_block_that_gives_one_tensor_has_the_text_first():
    """As FLUX.2's single blocks do, and FLUX.1's did in older diffusers."""
    text, image = torch.zeros(1, 2, 3), torch.ones(1, 4, 3)
    joint = torch.cat([text, image], dim=1)
    for name, own in [("single.0", image), ("single.0.context", text)]:
        site = parse_site(name)
        assert torch.equal(site.get(joint, 2), own)
        put = site.put(joint, own + 5, 2)
        expected = [text, image + 5] if name == "single.0" else [text + 5, image]
        assert torch.equal(put, torch.cat(expected, dim=1))


def test_hooks_are_gone_afterwards_even_when_denoising_fails(model):
    module = model.transformer.transformer_blocks[1].ff

    def fail(site, step, x):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        model.sample(PROMPTS, [1, 2], Capture([parse_site("double.1.ff")], [0], fail), spec=SPEC)
    assert not module._forward_hooks


def test_a_site_that_was_not_heard_is_an_error(model):
    with pytest.raises(FluxscopeError, match=r"nothing passed double\.1\.ff in step 6"):
        listen(model, ["double.1.ff"], [5])


@pytest.mark.parametrize("name", ["double.19.ff", "single.2"])
def test_a_block_that_the_model_lacks_is_an_error_that_lists_those_it_has(model, name):
    with pytest.raises(ConfigError) as caught:
        parse_site(name).module(model.transformer)
    assert "L from 0 to 18" in caught.value.hint
    assert "L from 0 to 1" in caught.value.hint


@pytest.mark.parametrize("name", ["double", "double.x.ff", "triple.1", "single.1.ff"])
def test_unknown_sites_are_errors_that_list_the_known_ones(name):
    with pytest.raises(ConfigError, match="unknown site") as caught:
        parse_site(name)
    assert "double.L.ff_context" in caught.value.hint


def test_spec_counts_the_parameters(model):
    spec = model.spec
    true = sum(p.numel() for p in model.transformer.parameters())
    assert (spec.width, spec.n_double, spec.guidance_embedded) == (128, 19, True)
    assert abs(spec.parameters / true - 1) < 0.05
