"""Step 2: which features are alive, how often and how strongly they fire, and on which images most."""

from __future__ import annotations

from fluxscope.files import save_npy, save_npz
from fluxscope.measures.stats import feature_stats
from fluxscope.run.context import Context
from fluxscope.run.matrices import load_s
from fluxscope.run.records import FeatureAnalysis
from fluxscope.steps.step import Step

STEP = Step(
    number=2,
    name="analyze",
    module=__name__,
    summary="Find alive, dead, rare and common features.",
    reads=("s_matrix",),
    makes=(
        *("alive_features", "activation_freq", "topk_per_feature"),
        *("feature_stats", "feature_analysis_summary"),
    ),
    settings=("eps_alive", "top_k_per_image"),
)


def run(context: Context) -> str:
    config, files = context.config, context.files
    s = load_s(files)
    stats = feature_stats(s, config.eps_alive, config.top_k_per_image)
    save_npy(files.alive_features, stats.alive)
    save_npy(files.activation_freq, stats.frequency)
    save_npz(
        files.topk_per_feature,
        top_idx=stats.top_idx,
        top_scores=stats.top_scores,
        k=len(stats.top_idx),
        eps=stats.eps,
    )
    save_npz(
        files.feature_stats,
        frequency=stats.frequency,
        mean_when_active=stats.mean,
        std_when_active=stats.std,
        max=stats.maximum,
    )
    counts = stats.counts
    names = ("alive_features", "activation_freq", "topk_per_feature", "feature_stats")
    FeatureAnalysis(
        num_images=s.shape[0],
        hidden_dim=s.shape[1],
        eps_alive=config.eps_alive,
        **counts,
        top_k=len(stats.top_idx),
        files={name: files.relative(getattr(files, name)) for name in names},
    ).write(files.feature_analysis_summary)
    return f"{counts['num_alive_features']} of {s.shape[1]} features alive on {s.shape[0]} pictures"
