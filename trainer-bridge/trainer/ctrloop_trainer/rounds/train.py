"""The rounds job: sample, render, let the reward model rank, learn by DPO and PCPO on a LoRA, measure, gate, choose.

All arms start from the same base, see the same products and use the same seeds. The reference is the base (epoch 0)
in every epoch. Leaves in out:
- arms/<arm>/epoch-N/: PEFT adapters; adapter/: the one that ships; merged/: the same as a full model, if asked for
- samples.jsonl: every arm's descriptions of the report's products, epoch 0 included; gate-samples.jsonl: the gates'
- probe.json: the golden answer
- metrics.json: figures and gates of every epoch on the gates' products, and of the chosen one on the report's
- state/: what a killed job goes on from
"""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from .. import resume, weights
from ..digest import dir_digest
from ..errors import NoEvidenceError
from ..placement import Placement
from ..progress import Progress, write_json, write_lines
from ..prompt.model import Prompting, PromptModel
from ..render import Renderer
from ..spec import Spec, derive, hyper
from . import adapter, gates, probe, settings
from .held import Held, halves
from .learn import BrokenCheckpointError, Learner
from .settings import Hyper
from .shop import Shop

ARTIFACT = "adapter"


class Rounds:
    """The arms of one job over one shop."""

    def __init__(self, spec: Spec, h: Hyper, out: Path, renderer: Renderer, progress: Progress):
        self.spec, self.h, self.out, self.progress = spec, h, out, progress
        self.base_digest = dir_digest(Path(spec.base))
        self.shop = Shop.open(spec, renderer)
        progress.check_interrupted()
        for_gates, for_report = halves(self.shop.held)
        base = self.load_base()
        self.held = Held(base, self.shop, h, spec.seed, for_gates)
        progress.check_interrupted()
        self.report = Held(base, self.shop, h, spec.seed, for_report, "report")
        progress.check_interrupted()

    def load_base(self) -> PromptModel:
        """A fresh copy of the base, with every plain view registered."""
        v = PromptModel.load(Path(self.spec.base), Placement.of(self.spec))
        v.name = self.spec.base_name or v.name
        self.shop.show(v)
        return v

    def adapted(self) -> PromptModel:
        """The base with a fresh LoRA on the language side, the same one for every arm."""
        v = self.load_base()
        adapter.attach(v, self.h.rank, self.h.dropout, derive(self.spec.seed, "adapter"))
        return v

    def learner(self, arm: str) -> Learner:
        """An arm's model at its last checkpoint, or at the base."""
        h = settings.arm_hyper(self.h, arm)
        file = self.out / "state" / f"{arm}.pt"
        learner = Learner(self.adapted(), self.shop, h, self.spec.seed, file, self.progress, arm)
        learner.restore()
        return learner

    def _forget(self, arm: str, why: object) -> None:
        """Removes what there is of an arm. It is made again from its start, to the same bits: with an epoch or a
        checkpoint missing in between, going on would give something else."""
        self.progress.log(stage="started over", arm=arm, why=str(why))
        shutil.rmtree(self.out / "arms" / arm, ignore_errors=True)
        for file in (self.out / "state").glob(f"{arm}*"):
            if file.name == f"{arm}.pt" or file.name.removeprefix(f"{arm}-").removesuffix(".json").isdigit():
                file.unlink()

    # ---- one arm

    def run_arm(self, arm: str) -> list[dict[str, Any]]:
        """All epochs of an arm; finished ones are read back. Returns their metrics."""
        try:
            return self._run_arm(arm)
        except BrokenCheckpointError as e:
            self._forget(arm, e)
            return self._run_arm(arm)

    def _run_arm(self, arm: str) -> list[dict[str, Any]]:
        done = self._finished(arm)
        learner: Learner | None = None
        while len(done) < self.h.epochs and not self._stopped(arm, done):
            self.progress.check_interrupted()
            if learner is None:
                learner = self.learner(arm)
                at = learner.running.epoch if learner.running else 0
                if at not in (len(done), len(done) + 1):
                    raise BrokenCheckpointError(f"{len(done)} epochs are done and the checkpoint is of epoch {at}")
            try:
                done.append(self._epoch(arm, learner, len(done) + 1))
            except NoEvidenceError as e:
                if not done:
                    raise
                self.progress.log(stage="stopped", arm=arm, epoch=len(done), why=str(e))
                break
        return done

    def _epoch(self, arm: str, learner: Learner, epoch: int) -> dict[str, Any]:
        start = time.monotonic()
        trained = learner.epoch(epoch)
        weights.check_made(learner.parameters.items(), f"arm {arm} after epoch {epoch}")
        figures, texts = self.held.figures(learner.v, epoch)
        metrics = {"arm": arm, **figures, **trained, "epoch_seconds": round(time.monotonic() - start, 1)}
        metrics["gates"] = gates.judge(metrics, self.held.base_figures, self.h)
        self._keep(learner.v, arm, metrics, texts, self.report.write(learner.v))
        self.progress.log(stage="epoch", **{k: x for k, x in metrics.items() if k != "gates"})
        return metrics

    def _stopped(self, arm: str, done: list[dict[str, Any]]) -> bool:
        # The other arms are there to be compared with, so they run as long as they were told to.
        stop = arm == settings.main_arm(self.h) and gates.exhausted(done, self.h.patience)
        if stop:
            self.progress.log(stage="stopped", arm=arm, epoch=len(done), why=f"gates: {gates.failed(done[-1])}")
        return stop

    def folder(self, arm: str, epoch: int) -> Path:
        """Where an epoch's adapter lies."""
        return self.out / "arms" / arm / f"epoch-{epoch}"

    def _record(self, arm: str, epoch: int) -> Path:
        return self.out / "state" / f"{arm}-{epoch}.json"

    def _keep(self, v: PromptModel, arm: str, metrics: dict[str, Any], texts: list[str], reported: list[str]) -> None:
        """Writes the epoch's folder and record; the folder appears last, and whole: it says that the epoch is done."""
        final = self.folder(arm, metrics["epoch"])
        tmp = final.with_name(f".{final.name}.tmp")
        shutil.rmtree(tmp, ignore_errors=True)
        tmp.mkdir(parents=True)
        adapter.save(v, tmp, self.base_digest)
        write_json(self._record(arm, metrics["epoch"]), {"metrics": metrics, "gates": texts, "report": reported})
        os.replace(tmp, final)

    def _finished(self, arm: str) -> list[dict[str, Any]]:
        done: list[dict[str, Any]] = []
        while len(done) < self.h.epochs and self.folder(arm, len(done) + 1).is_dir():
            try:
                done.append(json.loads(self._record(arm, len(done) + 1).read_text())["metrics"])
            except (OSError, ValueError, KeyError) as e:
                raise BrokenCheckpointError(f"the record of epoch {len(done) + 1} cannot be read: {e!r}") from e
        return done

    # ---- results

    def finish(self, arms: dict[str, list[dict[str, Any]]]) -> None:
        """Chooses the epoch to ship; writes adapter/, merged/, probe.json, samples.jsonl, metrics.json."""
        main = settings.main_arm(self.h)
        at, passed = gates.choose(arms[main])
        best = arms[main][at]
        chosen = self.folder(main, best["epoch"])
        shutil.rmtree(self.out / "adapter", ignore_errors=True)
        shutil.copytree(chosen, self.out / "adapter")
        v = self.adapted()
        adapter.load(v, chosen)
        candidates = self.held.asks[:: self.h.held_samples][: self.h.probes]
        write_json(self.out / "probe.json", probe.make(v, [(a, self.shop.plain[a.image]) for a in candidates]))
        write_lines(self.out / "samples.jsonl", self._all_samples(arms, self.report, "report"))
        write_lines(self.out / "gate-samples.jsonl", self._all_samples(arms, self.held, "gates"))
        # Of the chosen epoch on products that did not choose it.
        reported = {"base": self.report.base_figures, "chosen": self.report.figures(v, best["epoch"])[0]}
        digests = {"adapter_digest": dir_digest(self.out / "adapter")}
        if self.h.merge:
            shutil.rmtree(self.out / "merged", ignore_errors=True)
            adapter.merge(v, self.out / "merged")
            digests["merged_digest"] = dir_digest(self.out / "merged")
        told = {"kind": "rounds", "arm": main, "epoch": best["epoch"], "passed": passed, "gates": best["gates"]}
        epochs = [m for arm in arms.values() for m in arm]
        told |= {**digests, "base": self.held.base_figures, "epochs": epochs, "report": reported}
        write_json(self.out / "metrics.json", told)

    def _all_samples(self, arms: dict[str, list[dict[str, Any]]], held: Held, whose: str) -> list[dict[str, Any]]:
        def lines(arm: str, epoch: int, texts: list[str]) -> list[dict[str, Any]]:
            rows = zip(held.rows, texts, strict=True)
            return [{"arm": arm, "epoch": epoch, "product": p.id, "text": t} for p, t in rows]

        out = []
        for arm, epochs in arms.items():
            out += lines(arm, 0, held.base_texts)
            for m in epochs:
                out += lines(arm, m["epoch"], json.loads(self._record(arm, m["epoch"]).read_text())[whose])
        return out


def parents(spec: Spec) -> dict[str, str | None]:
    """Folders that the job was made from, by role."""
    return {"base": spec.base, "reward_model": spec.reward_model, "referee_model": spec.referee_model}


def run(spec: Spec, out: Path, progress: Progress) -> None:
    """The job: see the module's text for what it leaves in out."""
    h: Hyper = hyper(Hyper, spec.hyper)
    settings.check(h)
    resume.claim(out / "spec.json", spec, [out / "state", out / "arms"])
    with Renderer(spec.renderer, px=Prompting.view_of(Path(spec.base))) as renderer:
        rounds = Rounds(spec, h, out, renderer, progress)
        progress.log(stage="epoch", arm="base", **rounds.held.base_figures)
        rounds.finish({arm: rounds.run_arm(arm) for arm in settings.arm_names(h)})
