"""Which edits of flux-shapes do what was wished and nothing else? `python benchmarks/steering_study.py`.

Methods x attributes x doses, judged by the oracle that reads pictures back, and written to
docs/studies/steering.md between its marks. Parts: `choose` picks the level of masks on scenes of its own;
`single` changes an attribute of one object; `text` and `learned` edit the same scenes in the text stream, and
by amounts that are fitted; `held-out` is `text` where a pair of shape and colour comes about that the model
never saw; `two` changes one of two objects; `equal` the left one of two equal ones, which no prompt can ask
for. Results are kept scene by scene: a study that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from fluxscope.files import append_jsonl, read_json, read_jsonl, write_json
from fluxscope.models.attribution import call_of, gradients, velocity
from fluxscope.models.capture import Capture
from fluxscope.models.cells import WHOLE
from fluxscope.models.editing import Edits, edited
from fluxscope.models.methods.choice import Differences, differences
from fluxscope.models.methods.control import control_of
from fluxscope.models.methods.detector import DECIDED, Blended, Seen
from fluxscope.models.methods.learned import learn
from fluxscope.models.methods.push import Pushed
from fluxscope.models.methods.shift import shift
from fluxscope.models.methods.transport import Carried, Transported
from fluxscope.models.model import open_model
from fluxscope.models.sites import parse_site
from fluxscope.progress import Reporter
from fluxscope.sae import LinearSae
from fluxscope.sae.formats import load
from fluxscope.shapes import oracle
from fluxscope.shapes.oracle import Reading
from fluxscope.shapes.shipped import FLUX_SHAPES, OWN_SITE, STEERING_SAES, TEXT_SAES, TEXT_SITE
from steering_baselines import components, from_prompts
from steering_report import write_page
from steering_scenes import (
    Detector,
    Scene,
    detectors,
    double_scenes,
    equal_scenes,
    is_as_told,
    object_of,
    outcome,
    single_scenes,
    tokens_of,
)

LEVELS = (0.1, 0.2, 0.3, 0.5)
DOSES = (0.5, 0.75, 1.5)
KS = (4, 16, 64)
EVERYWHERE = torch.ones(64, dtype=torch.bool)
READ_AT = [5, 8, 11, 14]
"""Steps at which features are held against truth: noise levels from 0.75 to 0.3."""
ASKED_AT = (2, 6, 12)
"""Steps at which gradients are taken."""

Cells = list[tuple[str, Edits]]


class Study:
    """The model, its SAEs and the results on disk."""

    def __init__(self, out: Path) -> None:
        self.out, self.report = out, Reporter()
        self.model = open_model(FLUX_SHAPES, "cpu", "float32", prompt_folder=out / "prompt_embeddings")
        self.spec = self.model.defaults

    @cached_property
    def saes(self) -> dict[str, LinearSae]:
        return {site: load(path)[0] for site, path in STEERING_SAES.items()}

    @cached_property
    def text_sae(self) -> LinearSae:
        return load(TEXT_SAES[TEXT_SITE])[0]

    @cached_property
    def detectors(self) -> dict[str, Detector]:
        """Found once and kept."""
        path = self.out / "detectors.json"
        if not path.is_file():
            found = detectors(self.model, self.saes[OWN_SITE], OWN_SITE, self.spec, READ_AT)
            write_json(path, {name: vars(each) for name, each in found.items()})
        kept = read_json(path)
        return {name: Detector(tuple(v["features"]), tuple(v["naturals"])) for name, v in kept.items()}

    def results(self, part: str) -> list[dict[str, Any]]:
        path = self.out / f"{part}.jsonl"
        return list(read_jsonl(path)) if path.is_file() else []

    @cached_property
    def level(self) -> float:
        """The mask's level that did best on the scenes that choose it."""
        clean = dict.fromkeys(LEVELS, 0)
        for record in self.results("choose"):
            if record["cell"].startswith("level "):
                clean[float(record["cell"].split()[1])] += record["became"] and not record["changed"]
        return max(clean, key=lambda level: clean[level])

    def run(self, part: str, scenes: Iterator[Scene], count: int, cells: Callable[..., Cells]) -> None:
        """Steer the first scenes whose own pictures, by both prompts, show what is told."""
        done = {record["seed"] for record in self.results(part)}
        made = len(done)
        with self.report.progress(part, count, "scenes") as advance:
            for _ in range(made):
                advance()
            for scene in scenes:
                if made >= count:
                    break
                if scene.seed in done:
                    continue
                records = self.tried(scene, cells)
                if records:
                    append_jsonl(self.out / f"{part}.jsonl", records)
                    made += 1
                    advance()

    def tried(self, scene: Scene, cells: Callable[..., Cells]) -> list[dict[str, Any]]:
        """A record for each cell; none where the model's own pictures are not as told."""
        self.prompts = self.model.encode([scene.source, scene.target])
        seen = [oracle.read(picture) for picture in self.pictures(scene, [("", self.told(scene))])]
        if not is_as_told(scene.source, seen[0]) or not is_as_told(scene.target, seen[1]):
            return []
        self.true = tokens_of(object_of(scene, seen[0]).mask)
        if scene.attribute != "background":
            self.true |= tokens_of(object_of(scene, seen[1], wished=True).mask)
        self.about: dict[str, Any] = {}
        wanted = cells(scene, seen[0])
        made = self.pictures(scene, wanted)
        records = []
        for (name, _), picture in zip(wanted, made[1:], strict=True):
            found = outcome(scene, seen[0], oracle.read(picture))
            about = {"seed": scene.seed, "attribute": scene.attribute, "cell": name, **self.about}
            records.append({**about, "became": bool(found.became), "changed": list(found.changed)})
        return records

    def pictures(self, scene: Scene, cells: Cells) -> Any:
        edits = [each for _, each in cells]
        return edited(self.model, self.prompts, self.spec, scene.source, scene.seed, edits).numpy()

    # --- what is tried ---
    def told(self, scene: Scene) -> Edits:
        """The target prompt from the start."""
        return [Blended(scene.target, EVERYWHERE, (8, 8), window=WHOLE)]

    def single(self, scene: Scene, before: Reading) -> Cells:
        own, donor = self.prompts[scene.source], self.prompts[scene.target]
        far = differences(self.model, own, donor, scene.seed, self.spec, self.saes)
        live = {site: each.nonzero().flatten().tolist() for site, each in far.live.items()}
        with torch.inference_mode(False):
            asked = self.by_gradient(scene)
        sites = {name: parse_site(name) for name in self.saes}

        def carried(choice: Differences, k: int) -> Transported:
            found = choice.top(k)
            return Transported(
                scene.target, tuple(Carried(sites[s], self.saes[s], fs) for s, fs in found.items())
            )

        copy = Transported(scene.target, tuple(map(Carried, sites.values())))
        every = Transported(scene.target, tuple(Carried(sites[s], sae) for s, sae in self.saes.items()))
        cells: Cells = [("target prompt", self.told(scene)), ("copy", [copy]), ("all features", [every])]
        cells += [(f"transport {k}", [carried(far, k)]) for k in KS]
        cells += [(f"transport {k} by gradient", [carried(asked, k)]) for k in (16, 64)]
        most = carried(far, 256)
        cells += [("transport 256", [most])]
        cells += [(f"transport 256 x {dose:g}", [most.dosed(dose)]) for dose in DOSES]
        cells += [
            (f"transport {k}, control", [control_of(carried(far, k), live, scene.seed)]) for k in (16, 64)
        ]
        dense = components(self.model, own, donor, scene.target, scene.seed, list(self.saes), 16)
        cells += [("PCA 16", [dense])]
        return cells + self.shifted(scene, before)

    def text(self, scene: Scene, before: Reading) -> Cells:
        """Carried over in the text stream; and its control."""
        sae, site = self.text_sae, parse_site(TEXT_SITE)
        own, donor = self.prompts[scene.source], self.prompts[scene.target]
        far = differences(self.model, own, donor, scene.seed, self.spec, {TEXT_SITE: sae})
        live = {TEXT_SITE: far.live[TEXT_SITE].nonzero().flatten().tolist()}

        def carried(k: int) -> Transported:
            return Transported(scene.target, (Carried(site, sae, far.top(k)[TEXT_SITE]),))

        few = carried(16)
        cells: Cells = [
            ("target prompt", self.told(scene)),
            ("text: copy", [Transported(scene.target, (Carried(site),))]),
            ("text: all features", [Transported(scene.target, (Carried(site, sae),))]),
        ]
        cells += [(f"text: transport {k}", [carried(k)]) for k in (1, *KS)]
        cells += [(f"text: transport 16 x {dose:g}", [few.dosed(dose)]) for dose in DOSES]
        dense = components(self.model, own, donor, scene.target, scene.seed, [TEXT_SITE], 16)
        return [
            *cells,
            ("text: transport 16, control", [control_of(few, live, scene.seed)]),
            ("text: PCA 16", [dense]),
        ]

    def learned(self, scene: Scene, before: Reading) -> Cells:
        """Amounts fitted for the picture, over the attention outputs."""
        own, wished = self.prompts[scene.source], self.prompts[scene.target]
        found = learn(self.model, own, wished, scene.seed, self.spec, self.saes, WHOLE)
        method = Pushed(self.saes, found.edits, region=found.region, keep_norm=True)
        self.about = {"largest": round(found.largest, 2), "left": round(found.left, 3)}
        cells: Cells = [("learned 16", [method])]
        cells += [(f"learned 16 x {dose:g}", [method.dosed(dose)]) for dose in DOSES]
        return [*cells, ("learned 16, control", [control_of(method, found.live, scene.seed)])]

    def shifted(self, scene: Scene, before: Reading) -> Cells:
        """Mean differences, on the object or around it; their control."""
        here = tokens_of(object_of(scene, before).mask)
        region = ~here if scene.attribute == "background" else here
        own, wished = self.prompts[scene.source], self.prompts[scene.target]
        seeds = range(scene.seed + 1, scene.seed + 5)
        found = shift(self.model, own, wished, seeds, self.spec, self.saes, WHOLE)
        few, more, every = (
            Pushed(self.saes, found.edits(k), region=region, keep_norm=True) for k in (16, 64, None)
        )
        means, affine = from_prompts(self.model, own, wished, seeds, list(self.saes), region)
        return [
            ("shift 16", [few]),
            ("shift 64", [more]),
            ("shift all", [every]),
            ("shift 64, all tokens", [replace(more, region=None)]),
            ("shift 64, control", [control_of(more, found.live, scene.seed)]),
            ("dense mean difference", [means]),
            ("affine", [affine]),
            ("affine, all tokens", [affine.all_tokens()]),
        ]

    def by_gradient(self, scene: Scene) -> Differences:
        """How far a feature's transport would take the velocity towards the target's, to first order."""
        own, donor = self.prompts[scene.source], self.prompts[scene.target]
        sites = [parse_site(site) for site in self.saes]
        heard: dict[tuple[str, int], torch.Tensor] = {}
        capture = Capture(sites, ASKED_AT, lambda s, i, x: heard.update({(s.name, i): x.clone()}))
        self.model.sample([own, donor], [scene.seed] * 2, capture, stop_after=max(ASKED_AT))
        scores = {site: torch.zeros(sae.hidden_dim) for site, sae in self.saes.items()}
        for step in ASKED_AT:
            call = call_of(self.model, [own], [scene.seed], step)
            other = call.told(call_of(self.model, [donor], [scene.seed], step))
            wished = velocity(self.model, other) - velocity(self.model, call)
            _, _, slopes = gradients(
                self.model, call, sites, lambda v, way=wished: (v * way).sum() / way.norm() ** 2
            )
            with torch.no_grad():
                for site, sae in self.saes.items():
                    mine, theirs = (sae.encode(x) for x in heard[site, step].clone())
                    scores[site] += ((theirs - mine) * (slopes[site][0] @ sae.decoder.weight)).sum(0)
        return Differences({site: each.clamp_min(0) for site, each in scores.items()}, {})

    def seen(self, scene: Scene, detector: Detector, level: float) -> Blended:
        """The target's velocity where a detector fires."""
        sae = self.saes[OWN_SITE]
        where = Seen(parse_site(OWN_SITE), sae, detector.features, detector.naturals, (8, 8), level)
        return Blended(scene.target, where, (8, 8))

    def colour_of(self, scene: Scene, before: Reading) -> Detector:
        return self.detectors[f"color: {object_of(scene, before).color}"]

    def choose(self, scene: Scene, before: Reading) -> Cells:
        detector = self.colour_of(scene, before)
        return [(f"level {level:g}", [self.seen(scene, detector, level)]) for level in LEVELS]

    def two(self, scene: Scene, before: Reading) -> Cells:
        method = self.seen(scene, self.colour_of(scene, before), self.level)
        cells: Cells = [
            ("target prompt", self.told(scene)),
            ("target prompt from 0.95", [Blended(scene.target, EVERYWHERE, (8, 8), window=DECIDED)]),
            ("oracle's mask", [Blended(scene.target, self.true, (8, 8))]),
        ]
        return cells + self.masked("features' mask", method, scene)

    def equal(self, scene: Scene, before: Reading) -> Cells:
        left = torch.zeros(8, 8, dtype=torch.bool)
        left[:, :4] = True
        here = tokens_of(object_of(scene, before).mask)
        cells: Cells = [
            ("target prompt", self.told(scene)),
            ("oracle's mask", [Blended(scene.target, self.true, (8, 8))]),
            ("left half", [Blended(scene.target, left.flatten(), (8, 8))]),
        ]
        method = self.seen(scene, self.unnamed(scene, here), self.level)
        return cells + self.masked("an unnamed feature", method, scene)

    def masked(self, name: str, method: Blended, scene: Scene) -> Cells:
        cells: Cells = [(name, [method]), (f"{name}, elsewhere", [control_of(method, {}, scene.seed)])]
        return cells + [(f"{name} x {dose:g}", [method.dosed(dose)]) for dose in DOSES]

    def unnamed(self, scene: Scene, here: torch.Tensor) -> Detector:
        """The feature that says best where the object is: what a user finds who points at it."""
        heard: list[torch.Tensor] = []
        capture = Capture([parse_site(OWN_SITE)], READ_AT, lambda s, i, x: heard.append(x[0].clone()))
        self.model.sample([self.prompts[scene.source]], [scene.seed], capture, stop_after=max(READ_AT))
        z = torch.cat([self.saes[OWN_SITE].encode(x) for x in heard]).detach()
        there = here.repeat(len(READ_AT))
        fires = z > 0
        best = int((2 * fires[there].sum(0) / (fires.sum(0) + there.sum())).argmax())
        return Detector((best,), (float(z[there][:, best][fires[there][:, best]].mean()),))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("study_output"))
    parser.add_argument("--only", help="these parts alone, with commas; page writes the page")
    parser.add_argument("--single", type=int, default=40, help="scenes of one object")
    parser.add_argument("--learned", type=int, default=40, help="of these, those with fitted amounts")
    parser.add_argument("--others", type=int, default=40, help="scenes of every other part; fewer choose")
    given = parser.parse_args()
    study = Study(given.out)
    n = given.others
    parts: dict[str, Callable[[], None]] = {
        "choose": lambda: study.run("choose", double_scenes(11), max(n // 2, 1), study.choose),
        "two": lambda: study.run("two", double_scenes(12), n, study.two),
        "equal": lambda: study.run("equal", equal_scenes(13), n, study.equal),
        "single": lambda: study.run("single", single_scenes(14), given.single, study.single),
        "text": lambda: study.run("text", single_scenes(14), given.single, study.text),
        "learned": lambda: study.run("learned", single_scenes(14), given.learned, study.learned),
        "held-out": lambda: study.run("held-out", single_scenes(15, held_out=True), n // 2, study.text),
        "page": lambda: write_page(
            {name: study.results(name) for name in parts if name != "page"}, study.level
        ),
    }
    for name in given.only.split(",") if given.only else parts:
        parts[name]()


if __name__ == "__main__":
    with torch.inference_mode():
        main()
