"""Every file name of the output tree, one property each.

The root of an output folder holds the run's first site; `layer_05/`, `double.7.attn/` and the like hold the
same names for further sites of the same images. Pictures, prompts' images and token-level codes are shared
and lie at the root. The names are fixed: docs/disk-format.md lists them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fluxscope.errors import ConfigError, RunDirError
from fluxscope.files import inside, refuse_links
from fluxscope.run.records import RunLog
from fluxscope.settings.config import Config
from fluxscope.settings.saes import block_of


@dataclass(frozen=True)
class RunDir:
    """The files of one site of a run.

    Attributes:
        root: the output folder (`out_dir`); all paths inside files are relative to it.
        site: the site that the files are about.
        first_site: the site whose files lie at the root.
        numbered: older scripts know the site by its block's number, 5 or 15.
    """

    root: Path
    site: str
    first_site: str
    numbered: bool = False
    images_subdir: str = "images"
    overlays_subdir: str = "overlays"

    @classmethod
    def of(cls, config: Config, site: str | None = None) -> RunDir:
        """The files of a site (default: the one that the run is about).

        Raises:
            RecordError: run_log.json is none.
            RunDirError: it names no site, or a folder of the run lies outside of it.
        """
        root = Path(config.out_dir)
        site = config.site if site is None else site
        first = first_site(root, config)
        numbered = config.number_of(site) is not None
        files = cls(root, site, first, numbered, config.images_subdir, config.overlays_subdir)
        files.check_inside()
        return files

    def check_inside(self) -> None:
        """Raise RunDirError where a file or folder of the run lies elsewhere, by its name or a link."""
        for folder in (self.images, self.overlays):
            try:
                inside(self.root, folder.relative_to(self.root).as_posix())
            except ValueError as error:
                raise RunDirError(
                    f"the run's folder {folder} is one {error}",
                    "Set images_subdir and overlays_subdir to names inside the output folder.",
                ) from None
        refuse_links(self.root, [each for each in self.known if each.is_symlink()])

    @property
    def known(self) -> list[Path]:
        """Every file and folder that has a fixed name."""
        own = {name for name, kind in vars(RunDir).items() if isinstance(kind, property)}
        found = [getattr(self, name) for name in sorted(own - {"known", "folders", "homes"})]
        return [each for each in found if isinstance(each, Path)] + self.folders

    @property
    def layer(self) -> int:
        """The number of the site's block."""
        return block_of(self.site)

    @property
    def name(self) -> str:
        """The site in words: "layer 5" where scripts know it by that number."""
        return f"layer {self.layer}" if self.numbered else self.site

    @property
    def key(self) -> str:
        """The site as keys and file names of the layer comparison have it."""
        return f"layer{self.layer}" if self.numbered else self.site

    @property
    def home(self) -> Path:
        """The folder of this site's own files."""
        own = f"layer_{self.layer:02d}" if self.numbered else self.site
        return self.root if self.site == self.first_site else self.root / own

    @property
    def homes(self) -> list[Path]:
        """The folders of all sites that the output folder has files of, the root first."""
        found = {path.parent for path in self.root.glob("*/run_log.json") if is_home(path.parent.name)}
        numbered = {path for path in self.root.glob("layer_[0-9][0-9]") if path.is_dir()}
        return [self.root, *sorted(found | numbered)]

    @property
    def folders(self) -> list[Path]:
        """The folders that hold a run's files, beside the root itself; of all sites."""
        names = ("steering", "best_demos", "steering_grids")
        homes = self.homes
        of_sites = [home / name for home in homes for name in (self.overlays_subdir, *names)]
        shared = [self.images, self.codes, self.activations, self.layer_comparison, self.prompt_embeddings]
        shared += [self.site_map_pictures, self.atlas]
        return [*shared, *homes[1:], *of_sites]

    # --- shared by all sites ---
    @property
    def step_log(self) -> Path:
        """What each piece of work was made from and what it made, of all layers: see run/freshness.py."""
        return self.root / "step_log.json"

    @property
    def images(self) -> Path:
        return self.root / self.images_subdir

    @property
    def codes(self) -> Path:
        return self.root / "codes.zarr"

    @property
    def activations(self) -> Path:
        return self.root / "activations"

    @property
    def clip_embeddings(self) -> Path:
        return self.root / "clip_embeddings.npy"

    @property
    def clip_tiles(self) -> Path:
        return self.root / "clip_tiles.npy"

    @property
    def clip_image_ids(self) -> Path:
        return self.root / "clip_image_ids.npy"

    @property
    def clip_prompt_idx(self) -> Path:
        return self.root / "clip_prompt_idx.npy"

    @property
    def clip_seeds(self) -> Path:
        return self.root / "clip_seeds.npy"

    @property
    def clip_meta(self) -> Path:
        return self.root / "clip_meta.json"

    @property
    def layer_comparison(self) -> Path:
        return self.root / "layer_comparison"

    def compared_s(self, key: str) -> Path:
        """A site's S, under the name that the comparison has for it."""
        return self.layer_comparison / f"S_{key}.npy"

    @property
    def comparison_summary(self) -> Path:
        return self.layer_comparison / "comparison_summary.json"

    @property
    def comparison(self) -> Path:
        return self.layer_comparison / "comparison.json"

    @property
    def atlas(self) -> Path:
        """The page of all that the run holds."""
        return self.root / "atlas"

    # --- site-map ---
    @property
    def site_map(self) -> Path:
        """Where the model decides what: how often copies at every site bring about a change."""
        return self.root / "site_map.json"

    @property
    def site_map_pictures(self) -> Path:
        return self.root / "site_map"

    def site_map_picture(self, pair: int, which: str) -> Path:
        """A picture of a pair without any copy: which is "source" or "donor"."""
        return self.site_map_pictures / f"pair_{pair:04d}_{which}.png"

    # --- step 1 ---
    @property
    def prompt_embeddings(self) -> Path:
        """What the text encoders made of each prompt; it may be deleted at any time."""
        return self.root / "prompt_embeddings"

    @property
    def s_matrix(self) -> Path:
        return self.home / "S_matrix.npy"

    @property
    def manifest(self) -> Path:
        return self.home / "manifest.jsonl"

    @property
    def run_log(self) -> Path:
        return self.home / "run_log.json"

    # --- step 2 ---
    @property
    def alive_features(self) -> Path:
        return self.home / "alive_features.npy"

    @property
    def activation_freq(self) -> Path:
        return self.home / "activation_freq.npy"

    @property
    def topk_per_feature(self) -> Path:
        return self.home / "topk_per_feature.npz"

    @property
    def feature_stats(self) -> Path:
        return self.home / "feature_stats.npz"

    @property
    def feature_analysis_summary(self) -> Path:
        return self.home / "feature_analysis_summary.json"

    # --- step 4 ---
    @property
    def selected_features(self) -> Path:
        return self.home / "selected_features.json"

    @property
    def feature_scores(self) -> Path:
        return self.home / "feature_scores.npz"

    @property
    def names(self) -> Path:
        """What features could be called, as `fluxscope name` found."""
        return self.home / "names.json"

    @property
    def steps_profile(self) -> Path:
        return self.home / "steps_profile.json"

    # --- steps 5 and 6 ---
    @property
    def overlays(self) -> Path:
        return self.home / self.overlays_subdir

    @property
    def overlay_summary(self) -> Path:
        return self.overlays / "overlay_summary.json"

    def overlay(self, feature: int, image_id: int) -> Path:
        return self.overlays / f"feature_{feature}" / f"image_{image_id:06d}_feature_{feature}.png"

    def tokenmap(self, feature: int, image_id: int) -> Path:
        return self.overlays / f"feature_{feature}" / f"image_{image_id:06d}_feature_{feature}_tokenmap.npy"

    @property
    def contact_sheet(self) -> Path:
        return self.home / "contact_sheet.png"

    @property
    def contact_sheet_comparison(self) -> Path:
        return self.home / "contact_sheet_comparison.png"

    # --- step 8 ---
    @property
    def decoder_directions(self) -> Path:
        return self.home / "decoder_directions.png"

    @property
    def decoder_similarity_matrix(self) -> Path:
        return self.home / "decoder_similarity_matrix.png"

    @property
    def decoder_stats(self) -> Path:
        return self.home / "decoder_stats.json"

    # --- steps 7, 10 and 11 ---
    @property
    def steering(self) -> Path:
        return self.home / "steering"

    @property
    def steering_summary(self) -> Path:
        return self.steering / "steering_summary.json"

    def steered(self, feature: int, image_id: int, what: str) -> Path:
        """A picture of step 7: what is "scale_2.0", "strength_-4.0", "steering_grid" or "strength_grid"."""
        return self.steering / f"feature_{feature}" / f"image_{image_id:06d}_{what}.png"

    @property
    def best_demos(self) -> Path:
        return self.home / "best_demos"

    @property
    def best_demo_candidates(self) -> Path:
        return self.best_demos / "best_demo_candidates.json"

    @property
    def best_demo_ids(self) -> Path:
        return self.best_demos / "best_demo_ids.json"

    def demo(self, feature: int, image_id: int, strength: float) -> Path:
        """A picture of step 10; a strength of 0 is the baseline."""
        sign = "pos" if strength > 0 else "neg"
        name = f"{sign}_{shown(abs(strength), 0)}" if strength else "baseline"
        return self.best_demos / f"feature_{feature}" / f"{image_id:06d}_{name}.png"

    @property
    def steering_grids(self) -> Path:
        return self.home / "steering_grids"

    @property
    def steering_grids_summary(self) -> Path:
        return self.steering_grids / "steering_grids_summary.json"

    @property
    def steering_contact_sheet(self) -> Path:
        return self.steering_grids / "steering_contact_sheet.png"

    def demo_grid(self, feature: int, demo: int) -> Path:
        return self.steering_grids / f"grid_f{feature}_d{demo}.png"

    def demo_strip(self, feature: int, demo: int, image_id: int) -> Path:
        """The grid's pictures side by side, without labels."""
        return (
            self.steering_grids / f"feature_{feature}" / f"feature_{feature}_demo_{demo}_img_{image_id}.png"
        )

    def image(self, image_id: int, prompt_idx: int, rep_idx: int, seed: int) -> Path:
        return self.images / f"img_{image_id:06d}_p{prompt_idx:04d}_r{rep_idx}_seed{seed}.png"

    def relative(self, path: Path) -> str:
        """The path as files record it: relative to the output folder, with forward slashes."""
        return path.relative_to(self.root).as_posix()


def first_site(root: Path, config: Config) -> str:
    """The site whose files lie at the root: as run_log.json says, or the one that a new run is about.

    Raises:
        RunDirError: run_log.json names no site.
    """
    log = root / "run_log.json"
    if not log.is_file():
        return config.site
    recorded = RunLog.read(log)
    block = config.active_layer if recorded.layer_index is None else recorded.layer_index
    numbered = config.site if block is None else config.numbered_site(block)
    site = recorded.site or numbered  # runs of other programs name no site
    if not is_home(site):
        raise RunDirError(f"{log} names no site that there can be", "Choose a new folder with --out-dir.")
    return site


def is_home(name: object) -> bool:
    """Whether a folder of this name holds the files of a site."""
    try:
        return isinstance(name, str) and (name.startswith("layer_") or block_of(name) >= 0)
    except ConfigError:
        return False


def shown(number: float, decimals: int) -> str:
    """A number in a file's name: with so many decimals, or with all that it has where they are more."""
    short = f"{number:.{decimals}f}"
    return short if float(short) == number else f"{number:g}"
