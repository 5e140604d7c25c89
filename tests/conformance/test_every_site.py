"""Every kind of site, from the name a user gives to what lies on the disk, held against plain hooks."""

from contextlib import ExitStack

import numpy as np
import pytest
import torch

from fluxscope.models.sites import SITES
from fluxscope.run.activations import ActivationStore
from fluxscope.run.codes import CodeStore
from fluxscope.run.manifest import load_manifest
from fluxscope.run.rundir import RunDir
from fluxscope.sae.formats import load
from fluxscope.settings.config import make_config
from tests.conftest import run_steps

SMALL = {"max_prompts": 1, "num_inference_steps": 3, "target_step_number": 2, "capture_steps": (3,)}
STEPS = (1, 2)
TOKENS = {"image": 64, "text": 20}
BLOCKS = ("transformer_blocks", "single_transformer_blocks")


def named(kind, block):
    return kind.pattern.replace("L", str(block))


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """A run that listens at every kind of site: raw in block 0, with an SAE in block 1."""
    path = make_config().layer15_sae_path
    sites = [named(kind, 0) for kind in SITES] + [f"{named(kind, 1)}={path}" for kind in SITES]
    folder = tmp_path_factory.mktemp("sites") / "run"
    config = make_config(out_dir=str(folder), sites=",".join(sites), **SMALL)
    run_steps(config, "1")
    return config


@pytest.fixture(scope="module")
def plain(collected, model):
    """What passes every kind of site, by plain hooks on the plain pipeline: {(kind, block): a tensor a step}.

    A block's outputs are read where they go: at the inputs of the next block, which name their streams.
    """
    records, _ = load_manifest(RunDir.of(collected).manifest, collected.out_dir)
    prompt = records[0]["prompt"]
    embedding, pipe = model.encode([prompt])[prompt], model.pipe
    transformer, heard = pipe.transformer, {}

    def note(pattern, block, x):
        heard.setdefault((pattern, block), []).append(x.clone())

    with ExitStack() as hooks:
        for block in (0, 1):
            hook_outputs(hooks, transformer.transformer_blocks[block], block, note)
            hook_inputs(hooks, transformer.transformer_blocks[block + 1], "double.L", block, note)
        hook_inputs(hooks, transformer.single_transformer_blocks[1], "single.L", 0, note)
        pipe(
            prompt_embeds=embedding.tokens.expand(2, -1, -1),
            pooled_prompt_embeds=embedding.pooled.expand(2, -1),
            generator=[torch.Generator().manual_seed(row["seed"]) for row in records],
            height=128,
            width=128,
            num_inference_steps=3,
            guidance_scale=3.5,
            output_type="latent",
        )
    return heard


def hook_inputs(hooks, after, pattern, block, note):
    """Read both streams at the inputs of the block after."""

    def read(module, args, kwargs):
        note(pattern, block, kwargs["hidden_states"])
        note(f"{pattern}.context", block, kwargs["encoder_hidden_states"])

    hooks.callback(after.register_forward_pre_hook(read, with_kwargs=True).remove)


def hook_outputs(hooks, module, block, note):
    """Listen at the submodules of a double block."""
    for name in ("ff", "ff_context"):
        listen = lambda _, __, out, name=name: note(f"double.L.{name}", block, out)  # noqa: E731
        hooks.callback(getattr(module, name).register_forward_hook(listen).remove)

    for name in ("k", "v"):
        listen = lambda _, __, out, name=name: note(f"double.L.{name}_context", block, out)  # noqa: E731
        projection = getattr(module.attn, f"add_{name}_proj")
        hooks.callback(projection.register_forward_hook(listen).remove)

    def attention(_, __, out):
        by_tokens = {x.shape[1]: x for x in out}  # image and text differ in their number of tokens
        note("double.L.attn", block, by_tokens[TOKENS["image"]])
        note("double.L.attn_context", block, by_tokens[TOKENS["text"]])

    hooks.callback(module.attn.register_forward_hook(attention).remove)


@pytest.mark.parametrize("kind", SITES, ids=lambda kind: kind.pattern)
def test_raw_activations_are_what_passes_there(collected, plain, kind):
    for step in STEPS:
        folder = RunDir.of(collected).activations / named(kind, 0) / f"step_{step}"
        stored = ActivationStore(folder).read(range(2)).float().numpy()
        assert stored.shape == (2, TOKENS[kind.stream], 128)
        passed = plain[kind.pattern, 0][step].numpy()
        np.testing.assert_allclose(stored, passed, rtol=2e-3, atol=2e-3 * np.abs(passed).max())


@pytest.mark.parametrize(
    "kind", [k for k in SITES if k.blocks == "transformer_blocks"], ids=lambda kind: kind.pattern
)
def test_codes_are_the_sae_s_of_what_passes_there(collected, plain, kind):
    sae, _ = load(collected.layer15_sae_path)
    for step in STEPS:
        store = CodeStore(RunDir.of(collected).codes, named(kind, 1), step)
        assert (store.n_images, store.n_tokens) == (2, TOKENS[kind.stream])
        dense = sae.encode(plain[kind.pattern, 1][step]).flatten(0, 1).detach()
        torch.testing.assert_close(store.images(0, 2).to_dense(), dense, rtol=1e-3, atol=1e-3)


def test_the_last_block_has_codes_too(collected):
    """No further block reads its output by name, so only their number is checked."""
    for name, stream in (("single.1", "image"), ("single.1.context", "text")):
        store = CodeStore(RunDir.of(collected).codes, name, 1)
        assert (store.n_images, store.n_tokens) == (2, TOKENS[stream])
        assert store.nnz > 0
