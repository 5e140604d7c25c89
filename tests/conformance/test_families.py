"""Every family of models: loading, pictures, capture at every site, edits that do nothing, going on."""

import json
import shutil
from contextlib import ExitStack

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from fluxscope.errors import FluxscopeError
from fluxscope.models.capture import Capture
from fluxscope.models.denoising import denoising_of
from fluxscope.models.donors import Donor
from fluxscope.models.edits import Change, Edit, Scope
from fluxscope.models.families import FAMILIES, default_settings, family_of
from fluxscope.models.model import open_model
from fluxscope.models.sites import SITES, VELOCITY, parse_site
from fluxscope.models.spec import PictureSpec, ResumePoint
from fluxscope.run.manifest import load_manifest
from fluxscope.run.rundir import RunDir
from fluxscope.sae import TopKSparseAutoencoder
from fluxscope.sae.formats import load, save
from fluxscope.settings.config import make_config, settings_table
from fluxscope.shapes.shipped import CLIP_SHAPES
from tests.conftest import run_steps
from tests.tiny_models import TINY, save_tiny

SPEC = PictureSpec(height=64, width=96, steps=3, guidance=4.0)
PROMPTS, SEEDS = ["a red circle", "a large blue square on black"], [1, 2]
TEXT_TOKENS = 12
LOOKS = [(size, colour) for size in ("large", "small") for colour in ("red", "blue", "black")]
PIPELINES = [pipeline for family in FAMILIES for pipeline in family.pipelines]


@pytest.fixture(scope="module", params=PIPELINES)
def tiny(request, tmp_path_factory):
    """A tiny model of each pipeline class, opened from its folder."""
    folder = save_tiny(request.param, tmp_path_factory.mktemp("tiny") / request.param)
    return open_model(str(folder), "cpu", "float32")


@pytest.fixture(scope="module")
def rows(tiny):
    embedded = tiny.encode(PROMPTS, TEXT_TOKENS)
    return [embedded[prompt] for prompt in PROMPTS]


def test_every_pipeline_class_of_every_family_is_tried():
    assert sorted(TINY) == sorted(PIPELINES)


def test_pictures_are_those_of_the_pipeline_itself(tiny, rows):
    """Both passes of a guided model, its own noise, its own decoding."""
    whole = getattr(diffusers, tiny.pipeline).from_pretrained(tiny.model_id, dtype=torch.float32)
    whole.set_progress_bar_config(disable=True)
    more = {"_auto_resize": False, "max_area": 64 * 96} if tiny.pipeline == "FluxKontextPipeline" else {}
    theirs = whole(
        prompt=PROMPTS,
        height=SPEC.height,
        width=SPEC.width,
        num_inference_steps=SPEC.steps,
        guidance_scale=SPEC.guidance,
        max_sequence_length=TEXT_TOKENS,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type="np",
        **more,
    ).images
    ours = tiny.decode(tiny.sample(rows, SEEDS, spec=SPEC), SPEC)
    assert ours.shape == (2, SPEC.height, SPEC.width, 3)
    assert (torch.from_numpy(theirs * 255).round() - ours).abs().max() <= 1
    assert ours.float().std() > 1


def test_a_picture_depends_on_its_own_prompt_and_seed_alone(tiny, rows):
    together = tiny.sample(rows, SEEDS, spec=SPEC)
    torch.testing.assert_close(
        together[1:], tiny.sample(rows[1:], SEEDS[1:], spec=SPEC), rtol=1e-4, atol=1e-4
    )
    assert not torch.allclose(together[:1], tiny.sample(rows[:1], [3], spec=SPEC), atol=0.1)
    assert not torch.allclose(together[:1], tiny.sample(rows[1:], SEEDS[:1], spec=SPEC), atol=1e-4)


def test_the_shape_is_that_of_the_weights(tiny):
    spec, transformer = tiny.spec, tiny.transformer
    assert spec.n_double == len(transformer.transformer_blocks) == 2
    assert spec.n_single == len(transformer.single_transformer_blocks) == 2
    assert spec.width == transformer.inner_dim == 32
    assert spec.text_width == transformer.config.joint_attention_dim
    true = sum(parameter.numel() for parameter in transformer.parameters())
    assert abs(spec.parameters / true - 1) < 0.05


def streams_entering(stack, module, heard, text_tokens):
    """Hear both streams where a block reads them: apart, or as one sequence with the text first."""

    def read(module, args, kwargs):
        image, text = kwargs["hidden_states"], kwargs["encoder_hidden_states"]
        if text is None:
            text, image = image[:, :text_tokens], image[:, text_tokens:]
        heard.append({"image": image.clone(), "text": text.clone()})

    stack.callback(module.register_forward_pre_hook(read, with_kwargs=True).remove)


@pytest.mark.parametrize("kind", SITES, ids=lambda kind: kind.pattern)
def test_capture_hears_what_the_next_block_reads_or_what_the_module_gives(tiny, rows, kind):
    """Held against plain hooks on the modules. Of two passes a step ours hears the one with the prompt."""
    site, step = parse_site(kind.pattern.replace("L", "0")), 1
    heard, read, given = [], [], []
    block = getattr(tiny.transformer, kind.blocks)
    with ExitStack() as stack:
        streams_entering(stack, block[1], read, TEXT_TOKENS)
        if kind.submodule:
            module = block[0].get_submodule(kind.submodule)
            hook = module.register_forward_hook(lambda m, a, output: given.append(output))
            stack.callback(hook.remove)
        capture = Capture([site], [step], lambda site, step, x: heard.append(x.clone()))
        tiny.sample(rows, SEEDS, capture, spec=SPEC)
    passes = len(read) // SPEC.steps
    assert passes == (2 if tiny.family.needs_nothing(tiny.pipe, SPEC.guidance) else 1)
    (x,) = heard
    tokens = 24 if kind.stream == "image" else TEXT_TOKENS
    assert x.shape == (2, tokens, tiny.spec.width)
    if kind.submodule:
        output = given[step * passes]
        expected = next(o for o in output if o.shape[1] == tokens) if isinstance(output, tuple) else output
    else:
        expected = read[step * passes][kind.stream]
    assert torch.equal(x, expected)


@pytest.mark.parametrize("kind", SITES, ids=lambda kind: kind.pattern)
def test_an_edit_that_does_nothing_changes_no_bit_and_one_that_does_changes_the_picture(tiny, rows, kind):
    torch.manual_seed(0)
    sae = TopKSparseAutoencoder(tiny.spec.width, 64, 4).eval().requires_grad_(False)
    scope = Scope(parse_site(kind.pattern.replace("L", "0")), range(SPEC.steps))
    nothing = [[Change("scale", 1.0, 3), Change("add", 0.0, 4)], []]
    plain = tiny.sample(rows, SEEDS, spec=SPEC)
    assert torch.equal(tiny.sample(rows, SEEDS, Edit(sae, nothing, scope), spec=SPEC), plain)
    edit = Edit(sae, [[], [Change("add", 50.0, 4)]], scope)
    pushed = tiny.sample(rows, SEEDS, edit, spec=SPEC)
    assert set(edit.fired.values()) == {1}
    assert torch.equal(pushed[0], plain[0]) and not torch.equal(pushed[1], plain[1])


@pytest.mark.parametrize("kind", SITES, ids=lambda kind: kind.pattern)
def test_a_donor_that_is_the_same_run_changes_no_bit_and_another_changes_one_row(tiny, rows, kind):
    """Rows: the donor, its twin, the other prompt from the donor's seed, bare and with the copy."""
    batch, seeds = [rows[0], rows[0], rows[1], rows[1]], [1, 1, 1, 1]
    plain = tiny.sample(batch, seeds, spec=SPEC)
    donor = Donor([parse_site(kind.pattern.replace("L", "0"))], range(SPEC.steps), {1: 0, 3: 0})
    copied = tiny.sample(batch, seeds, donor, spec=SPEC)
    assert set(donor.fired.values()) == {1} and len(donor.fired) == SPEC.steps
    assert torch.equal(copied[:3], plain[:3])
    assert torch.equal(plain[3], plain[2]) and not torch.equal(copied[3], plain[3])


def test_a_copy_of_all_that_the_last_block_gives_is_the_donor_s_picture(tiny, rows):
    """In FLUX.1 the pooled vector of the prompt reaches the output beside the blocks: the velocity is all."""
    last = tiny.spec.n_single - 1
    streams = [parse_site(f"single.{last}"), parse_site(f"single.{last}.context")]
    bare = tiny.sample(rows, [1, 1], spec=SPEC)
    for everything in ([VELOCITY], [VELOCITY] if tiny.spec.pooled_width else streams):
        latents = tiny.sample(rows, [1, 1], Donor(everything, range(SPEC.steps), {1: 0}), spec=SPEC)
        assert torch.equal(latents[0], bare[0]) and not torch.equal(bare[1], bare[0])
        assert torch.equal(latents[1], latents[0])


def test_the_schedule_told_beforehand_is_that_of_the_run(tiny, rows):
    told, calls = denoising_of(tiny, SPEC), []
    count = tiny.transformer.register_forward_hook(lambda *_: calls.append(1))
    tiny.sample(rows, SEEDS, spec=SPEC)
    count.remove()
    assert told.calls == len(calls)
    torch.testing.assert_close(torch.tensor(told.sigmas), tiny.pipe.scheduler.sigmas[:-1].cpu())


@pytest.mark.parametrize("placement", ["apart", "resident", "offload"])
def test_every_placement_gives_the_same_bits_and_hears_and_edits_the_same(tiny, rows, placement):
    placed = open_model(tiny.model_id, "cpu", "float32", placement)
    embedded = placed.encode(PROMPTS, TEXT_TOKENS)
    assert all(
        torch.equal(embedded[prompt].tokens, row.tokens) for prompt, row in zip(PROMPTS, rows, strict=True)
    )
    site = parse_site("single.0")
    sae = TopKSparseAutoencoder(tiny.spec.width, 64, 4).eval().requires_grad_(False)

    def made_by(model):
        heard = []
        capture = Capture([site], [1], lambda site, step, x: heard.append(x.clone()))
        edit = Edit(sae, [[], [Change("add", 50.0, 4)]], Scope(site, range(SPEC.steps)))
        return model.sample(rows, SEEDS, capture, edit, spec=SPEC), heard[0]

    for theirs, ours in zip(made_by(placed), made_by(tiny), strict=True):
        assert torch.equal(theirs, ours)
    assert placed.placement == placement


def test_going_on_from_the_middle_is_bit_exact_or_refused(tiny, rows):
    whole = tiny.sample(rows, SEEDS, spec=SPEC)
    begun = tiny.sample(rows, SEEDS, spec=SPEC, stop_after=0)
    assert not torch.equal(whole, begun)
    if tiny.can_resume:
        assert torch.equal(whole, tiny.sample(rows, SEEDS, spec=SPEC, start=ResumePoint(begun, 1)))
    else:
        with pytest.raises(AssertionError):
            tiny.sample(rows, SEEDS, spec=SPEC, start=ResumePoint(begun, 1))


SITES_OF_RUN = ("double.1.attn", "single.0")


@pytest.fixture(scope="module")
def ran(tiny, tmp_path_factory):
    """All eleven steps on a tiny model, with SAEs of random weights at a double and a single block."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "prompts.txt").write_text("\n".join(f"a {size} {colour} circle" for size, colour in LOOKS))
    paths = {}
    for site in SITES_OF_RUN:
        torch.manual_seed(1)
        sae = TopKSparseAutoencoder(tiny.spec.width, 64, 8)
        save(folder / f"{site}.pt", sae, {}, "fluxscope")
        paths[site] = str(folder / f"{site}.pt")
    config = make_config(
        model_id=tiny.model_id,
        saes=paths,
        out_dir=str(folder / "run"),
        prompts_path=str(folder / "prompts.txt"),
        clip_model_id=CLIP_SHAPES,
        **{"height": 64, "width": 96, "max_sequence_length": TEXT_TOKENS, "num_inference_steps": 3},
        **{"target_step_number": 2, "guidance_scale": 4.0, "batch_size": 4, "min_prompts": 2},
        **{"top_features": 2, "top_examples_per_feature": 1, "steer_features": 1, "steer_images": 1},
        **{"steer_steps": "1-2", "steer_scales": (0, 1), "steer_strengths": (-4, 4)},
        **{"demo_candidates": 2, "demo_finalists": 1, "demo_strengths": (4,), "dtype": "float32"},
    )
    run_steps(config, "1-11")
    return config


def test_all_eleven_steps_run_and_s_is_what_the_sae_says_of_the_activations(tiny, ran):
    """S of both sites, encoded anew from activations that are captured in a run of their own."""
    records, _ = load_manifest(RunDir.of(ran).manifest, ran.out_dir)
    assert len(records) == 12
    prompts = tiny.encode([row["prompt"] for row in records], TEXT_TOKENS)
    batch, heard = records[:4], {}
    capture = Capture(
        map(parse_site, SITES_OF_RUN), [1], lambda site, step, x: heard.update({site.name: x.clone()})
    )
    latents = tiny.sample(
        [prompts[row["prompt"]] for row in batch], [row["seed"] for row in batch], capture, spec=SPEC
    )
    for pixels, row in zip(tiny.decode(latents, SPEC).numpy(), batch, strict=True):
        assert np.array_equal(pixels, np.asarray(Image.open(row["image_path"])))
    for site in SITES_OF_RUN:
        s = np.load(RunDir.of(ran, site).s_matrix)
        sae, _ = load(ran.sae_path(site))
        expected = sae.encode(heard[site]).amax(1).detach().numpy()
        np.testing.assert_allclose(s[:4], expected, rtol=1e-4, atol=1e-5)
    files = RunDir.of(ran)
    for made in (files.contact_sheet, files.steering_summary, files.steering_grids_summary, files.comparison):
        assert made.is_file()


def test_defaults_name_settings_and_cost_no_look_at_the_hub(tiny):
    defaults = default_settings(tiny.model_id)
    assert defaults == tiny.family.default_settings(tiny.model_id)
    assert set(defaults) <= set(settings_table())


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("black-forest-labs/FLUX.1-schnell", "FLUX.1"),
        ("black-forest-labs/FLUX.2-klein-4B", "FLUX.2"),
        ("somebody/anything", "FLUX.1"),
    ],
)
def test_a_hub_name_alone_tells_the_defaults(name, family):
    expected = next(each for each in FAMILIES if each.name == family)
    assert default_settings(name) == expected.default_settings(name)


@pytest.mark.parametrize("pipeline", ["StableDiffusionPipeline", "FluxFillPipeline", "QwenImagePipeline"])
def test_a_model_of_no_known_family_is_refused_with_those_that_are_known(tmp_path, pipeline):
    index = {"_class_name": pipeline, "_diffusers_version": "0.42.1"}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(FluxscopeError, match=f"is a {pipeline}") as caught:
        open_model(str(tmp_path))
    assert all(name in caught.value.hint for name in PIPELINES)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"_class_name": 3}', "\udcff"])
def test_an_index_that_says_nothing_is_one_clear_error(tmp_path, text):
    (tmp_path / "model_index.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(FluxscopeError, match="model_index.json is missing or damaged"):
        family_of(str(tmp_path))


def test_a_transformer_of_another_family_is_refused(tiny, tmp_path):
    folder = shutil.copytree(tiny.model_id, tmp_path / "model")
    (folder / "transformer" / "config.json").write_text("{}")
    with pytest.raises(FluxscopeError):
        _ = open_model(str(folder), "cpu", "float32").pipe
