"""Which features matter to a number that one denoising step gives: gradient x code.

    a_tf = z_tf (dL/dx_t . W_dec_f)

x_t is the activation of token t, z its code, L any number that follows from the step's velocity. To first
order a_tf is what L would lose if feature f were taken out of token t, so one backward pass tells of all
features of all sites what ablating them one by one would tell (attribution patching: Syed et al. 2023, arXiv
2310.10348; with the features of SAEs: Marks et al. 2024, arXiv 2403.19647).

    call = call_of(model, [prompt], [seed], step=6)               # what the transformer was given there
    asked = call.told(call_of(model, [target], [seed], step=6))    # the same latents, another prompt
    wished = velocity(model, asked) - velocity(model, call)
    found = attribution(model, call, {site: sae}, lambda v: (v * wished).sum())
    found[site.name]                                              # (b f)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor, nn

from fluxscope.models.hooks import Clock, Hook
from fluxscope.models.model import Model
from fluxscope.models.sites import VELOCITY, Site
from fluxscope.models.spec import Embedding, PictureSpec
from fluxscope.sae import LinearSae, SparseCodes, encode_sparse
from fluxscope.sae.kernels import gather_dot

Number = Callable[[Tensor], Tensor]
"""A number of a velocity (b t c), differentiable."""


@dataclass(frozen=True, eq=False)
class Call:
    """What a model's transformer was given in one step of a run; it can be given it again.

    Attributes:
        arguments, keywords: of the transformer, batches of b rows.
        step: counted from 0.
        text_tokens: of each prompt.
    """

    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    step: int
    text_tokens: int

    def told(self, other: Call) -> Call:
        """The same latents and noise level, told of the prompts of another call of the same step."""
        assert (self.step, self.text_tokens) == (other.step, other.text_tokens)
        latents = self.keywords["hidden_states"]
        return replace(self, keywords={**other.keywords, "hidden_states": latents})


def call_of(
    model: Model,
    prompts: Sequence[str] | Sequence[Embedding],
    seeds: Sequence[int],
    step: int,
    *hooks: Hook,
    spec: PictureSpec | None = None,
) -> Call:
    """Denoise up to a step, counted from 0, and keep what the transformer is given in it, for the prompts.

    Args:
        hooks: what acts on the way there; it must act in no later step.
    """
    return calls_of(model, prompts, seeds, [step], *hooks, spec=spec)[step]


def calls_of(
    model: Model,
    prompts: Sequence[str] | Sequence[Embedding],
    seeds: Sequence[int],
    steps: Sequence[int],
    *hooks: Hook,
    spec: PictureSpec | None = None,
) -> dict[int, Call]:
    """The same for several steps of one run."""
    listener = _Listener(steps)
    model.sample(prompts, seeds, *hooks, listener, spec=spec, stop_after=max(steps))
    return listener.calls


def velocity(model: Model, call: Call, *hooks: Hook) -> Float[Tensor, "b t c"]:
    """What the transformer gives for a call, while hooks act in its step."""
    with torch.inference_mode(False), torch.no_grad():
        return forward(model, call, *hooks)


def forward(model: Model, call: Call, *hooks: Hook) -> Float[Tensor, "b t c"]:
    """The same where gradients are asked for, if they are."""
    transformer = model.transformer
    with ExitStack() as attached:
        for hook in hooks:
            attached.enter_context(hook.attached(transformer, Clock(call.step, call.text_tokens)))
        output = transformer(*call.arguments, **call.keywords)
    return VELOCITY.get(output, call.text_tokens)


def gradients(
    model: Model, call: Call, sites: Sequence[Site], number: Number, *hooks: Hook
) -> tuple[float, dict[str, Float[Tensor, "b _ d"]], dict[str, Float[Tensor, "b _ d"]]]:
    """The number, and by the sites' names the activations that pass and the number's gradient there.

    A site's gradient counts every way from it to the velocity, also those through later sites.
    """
    leaves = _Leaves(sites, call.step)
    with torch.inference_mode(False), torch.enable_grad():
        value = number(forward(model, call, leaves, *hooks))
        found = torch.autograd.grad(value, [leaves.added[site.name] for site in sites])
    by_site = {site.name: gradient for site, gradient in zip(sites, found, strict=True)}
    return float(value.detach()), leaves.passed, by_site


def attribution(
    model: Model,
    call: Call,
    saes: Mapping[Site, LinearSae],
    number: Number,
    tokens: Bool[Tensor, " t"] | None = None,
) -> dict[str, Float32[Tensor, "b f"]]:
    """Each feature's share in a number of one step, by the sites' names: a_tf, summed over tokens.

    Args:
        tokens: those that count; None for all.
    """
    _, passed, found = gradients(model, call, list(saes), number)
    result = {}
    for site, sae in saes.items():
        codes = encode_sparse(sae, passed[site.name].to(sae.pre_bias.device))
        shares = shares_of(codes, found[site.name].to(sae.pre_bias.device), sae)
        result[site.name] = _summed(codes, shares, passed[site.name].shape[:2], tokens)
    return result


def shares_of(
    codes: SparseCodes, gradient: Float[Tensor, "b t d"], sae: LinearSae
) -> Float32[Tensor, " nnz"]:
    """a_tf of every entry of sparse codes: the code times the gradient along the decoder's direction."""
    along = gather_dot(
        gradient.flatten(0, 1).float().contiguous(),
        sae.decoder.weight.detach().float().T.contiguous(),
        codes.feature.long(),
        codes.indptr,
    )
    return codes.value * along


def _summed(
    codes: SparseCodes, shares: Float[Tensor, " nnz"], shape: Sequence[int], tokens: Bool[Tensor, " t"] | None
) -> Float32[Tensor, "b f"]:
    """Sums over the tokens that count, a row for each row of the batch."""
    token = codes.token()
    if tokens is not None:
        shares = shares * tokens.to(shares.device)[token % shape[1]]
    place = token // shape[1] * codes.n_features + codes.feature.long()
    sums = shares.new_zeros(shape[0] * codes.n_features).index_add_(0, place, shares)
    return sums.view(shape[0], codes.n_features)


@final
class _Leaves(Hook):
    """Adds nothing to what passes, so that the gradient with respect to it can be asked for.

    Attributes:
        passed, added: by the sites' names.
    """

    def __init__(self, sites: Sequence[Site], step: int) -> None:
        super().__init__(sites, [step])
        self.passed: dict[str, Tensor] = {}
        self.added: dict[str, Tensor] = {}

    def act(self, site: Site, step: int, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        self.passed[site.name] = x.detach()
        self.added[site.name] = torch.zeros_like(x, requires_grad=True)
        return x + self.added[site.name]


@final
class _Listener(Hook):
    """Keeps what the transformer is given in steps."""

    def __init__(self, steps: Sequence[int]) -> None:
        super().__init__([], steps)
        self.calls: dict[int, Call] = {}

    def act(self, site: Site, step: int, x: Float[Tensor, "b t d"]) -> None:
        raise AssertionError("it listens at no site")

    @contextmanager
    def attached(self, transformer: nn.Module, clock: Clock) -> Iterator[None]:
        def hear(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            step = clock.step
            if (
                step in self.steps and step not in self.calls
            ):  # with true guidance, the prompt's pass is first
                kept = {name: _kept(value) for name, value in keywords.items()}
                self.calls[step] = Call(tuple(map(_kept, arguments)), kept, step, clock.text_tokens)

        handle = transformer.register_forward_pre_hook(hear, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


def _kept(value: Any) -> Any:
    """A copy that gradients can be taken of."""
    with torch.inference_mode(False):
        return value.clone() if isinstance(value, Tensor) else value
