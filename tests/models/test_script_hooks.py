"""The hooks that scripts import, in a plain FluxPipeline call."""

import pytest
import torch
from diffusers import FluxPipeline
from torch import nn

from fluxscope.errors import FluxscopeError
from fluxscope.models.script_hooks import (
    EncodeDecodeSteeringHook,
    FeatureSteeringHook,
    MultiFeatureSteeringHook,
    StepActivationCatcher,
)
from fluxscope.sae import TopKSparseAutoencoder
from fluxscope.shapes.shipped import FLUX_SHAPES, resolve

PROMPT = "a large red circle on a white background"
STEPS = 4


@pytest.fixture(scope="module")
def pipe():
    pipe = FluxPipeline.from_pretrained(resolve(FLUX_SHAPES), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def sae():
    torch.manual_seed(0)
    return TopKSparseAutoencoder(128, 256, 8).eval().requires_grad_(False)


def generate(pipe, n=1, cfg=1.0):
    return pipe(
        [PROMPT] * n,
        negative_prompt=["a small blue star"] * n if cfg > 1 else None,
        true_cfg_scale=cfg,
        height=128,
        width=128,
        num_inference_steps=STEPS,
        max_sequence_length=20,
        generator=[torch.Generator().manual_seed(1) for _ in range(n)],
        output_type="latent",
    ).images


def listened(pipe, module, hook, **options):
    """What leaves the module at every forward, the hook's changes included."""
    heard = []
    handles = [
        module.register_forward_hook(hook.hook_fn),
        module.register_forward_hook(lambda m, a, output: heard.append(output)),
    ]
    try:
        latents = generate(pipe, **options)
    finally:
        for handle in handles:
            handle.remove()
    return latents, heard


@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_steering_acts_in_its_steps_alone_also_with_two_forwards_a_step(pipe, sae, cfg):
    module = pipe.transformer.transformer_blocks[18].ff  # nothing comes after it in a step
    nothing = FeatureSteeringHook(sae, 3, 0.0, (0, STEPS - 1), 64)
    _, plain = listened(pipe, module, nothing, cfg=cfg)
    hook = FeatureSteeringHook(sae, 3, 25.0, (1, 1), 64)
    _, steered = listened(pipe, module, hook, cfg=cfg)
    per_step = 2 if cfg > 1 else 1
    assert len(plain) == len(steered) == STEPS * per_step
    unit = sae.decoder.weight[:, 3] / sae.decoder.weight[:, 3].norm()
    for call, (a, b) in enumerate(zip(plain, steered, strict=True)):
        if call // per_step < 1:
            assert torch.equal(a, b)
        elif call // per_step == 1:
            torch.testing.assert_close(b - a, (25.0 * unit).expand_as(a), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_the_catcher_keeps_the_first_forward_of_its_step(pipe, cfg):
    module = pipe.transformer.transformer_blocks[15].ff
    catcher = StepActivationCatcher(2)
    _, heard = listened(pipe, module, catcher, cfg=cfg)
    assert torch.equal(catcher.captured, heard[4 if cfg > 1 else 2])
    catcher.reset()
    assert catcher.captured is None
    _, again = listened(pipe, module, catcher, cfg=cfg)
    assert torch.equal(catcher.captured, again[4 if cfg > 1 else 2])


def test_the_whole_batch_is_steered(pipe, sae):
    module = pipe.transformer.transformer_blocks[18].ff
    _, plain = listened(pipe, module, FeatureSteeringHook(sae, 3, 0.0, (0, 0), 64), n=3)
    _, steered = listened(pipe, module, FeatureSteeringHook(sae, 3, 30.0, (0, 0), 64), n=3)
    moved = (steered[0] - plain[0]).norm(dim=-1)
    torch.testing.assert_close(moved, torch.full((3, 64), 30.0), rtol=1e-3, atol=1e-3)


def test_a_scale_of_one_changes_nothing_and_others_do(pipe, sae):
    module = pipe.transformer.transformer_blocks[15].ff
    plain = generate(pipe)
    catcher = StepActivationCatcher(1)
    listened(pipe, module, catcher)
    active = int(sae.encode(catcher.captured).sum((0, 1)).argmax())
    same, _ = listened(pipe, module, EncodeDecodeSteeringHook(sae, active, 1.0, (0, STEPS - 1), 64))
    other, _ = listened(pipe, module, EncodeDecodeSteeringHook(sae, active, 30.0, (0, STEPS - 1), 64))
    assert torch.equal(plain, same)
    assert not torch.equal(plain, other)


def test_several_features_are_added_up(sae):
    module = nn.Identity()
    hook = MultiFeatureSteeringHook(sae, {1: 2.0, 5: -3.0}, (0, 0), 4)
    module.register_forward_hook(hook.hook_fn)
    unit = nn.functional.normalize(sae.decoder.weight, dim=0)
    x = torch.randn(2, 4, 128)
    torch.testing.assert_close(module(x) - x, (2 * unit[:, 1] - 3 * unit[:, 5]).expand_as(x))


def test_without_a_timestep_calls_are_counted_until_reset(sae):
    module = nn.Identity()
    hook = FeatureSteeringHook(sae, 1, 5.0, (1, 2), 4)
    module.register_forward_hook(hook.hook_fn)
    x = torch.zeros(1, 4, 128)
    assert [bool((module(x) != 0).any()) for _ in range(4)] == [False, True, True, False]
    hook.reset()
    assert [bool((module(x) != 0).any()) for _ in range(2)] == [False, True]


def test_an_unnormalised_direction_is_the_decoders_column(sae):
    module = nn.Identity()
    longer = TopKSparseAutoencoder(128, 256, 8).requires_grad_(False)
    longer.decoder.weight.mul_(3)
    module.register_forward_hook(FeatureSteeringHook(longer, 1, 2.0, (0, 0), 4, False).hook_fn)
    x = torch.zeros(1, 4, 128)
    torch.testing.assert_close(module(x), (2 * longer.decoder.weight[:, 1]).expand_as(x))


def test_blocks_and_attention_keep_their_text(pipe, sae):
    for path, image in (("transformer_blocks.3", 1), ("transformer_blocks.3.attn", 0)):
        module = pipe.transformer.get_submodule(path)
        _, plain = listened(pipe, module, FeatureSteeringHook(sae, 1, 0.0, (0, 0), 64))
        _, steered = listened(pipe, module, FeatureSteeringHook(sae, 1, 9.0, (0, 0), 64))
        assert torch.equal(plain[0][1 - image], steered[0][1 - image])
        assert not torch.equal(plain[0][image], steered[0][image])


def test_in_a_joint_sequence_the_image_comes_last(sae):
    module = nn.Identity()
    module.register_forward_hook(FeatureSteeringHook(sae, 1, 5.0, (0, 0), 4).hook_fn)
    out = module(torch.zeros(1, 7, 128))
    assert (out[:, :3] == 0).all() and (out[:, 3:] != 0).any(-1).all()


def test_bad_arguments_are_clear_errors(sae):
    with pytest.raises(FluxscopeError, match="there is no feature 999"):
        FeatureSteeringHook(sae, 999, 1.0, (0, 5), 64)
    with pytest.raises(FluxscopeError, match="step_range"):
        EncodeDecodeSteeringHook(sae, 1, 1.0, (5, 2), 64)
    with pytest.raises(FluxscopeError, match="cannot be steered by nan"):
        FeatureSteeringHook(sae, 1, float("nan"), (0, 5), 64)
    module = nn.Identity()
    module.register_forward_hook(FeatureSteeringHook(sae, 1, 1.0, (0, 5), 64).hook_fn)
    with pytest.raises(FluxscopeError, match="3 tokens pass, the image has 64"):
        module(torch.zeros(1, 3, 128))


def test_no_hook_is_left_in_the_process(pipe, sae):
    """The step is read from the transformer's own call: no hook but the script's own is registered."""
    hook = FeatureSteeringHook(sae, 1, 1.0, (0, 5), 64)
    listened(pipe, pipe.transformer.transformer_blocks[15].ff, hook)
    for hooks in ("_global_forward_hooks", "_global_forward_pre_hooks"):
        assert not getattr(nn.modules.module, hooks)
    assert not pipe.transformer._forward_pre_hooks
