"""The step that teaches a student: distillation from one teacher or several, or fine-tuning on labels."""

from __future__ import annotations

import logging
import math
import shutil
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from greenllm import calibration, gpu, own
from greenllm.checkpoint import Checkpoint, open_checkpoint
from greenllm.distill import augment, data, labelled, recover, student
from greenllm.distill.divergence import Kind
from greenllm.distill.judge import measure, score, verdict
from greenllm.distill.pace import Pace, Schedule
from greenllm.distill.processes import meet
from greenllm.distill.pupil import Lesson, Pupil
from greenllm.distill.recover import What
from greenllm.distill.run import School, remembered, seconds_of_a_pass
from greenllm.distill.samples import Samples, Texts
from greenllm.distill.teachers import Choose, Teacher, Teachers
from greenllm.errors import GreenError
from greenllm.progress import Progress
from greenllm.step import BASE_BYTES, Context, Estimate


@dataclass(config={"extra": "forbid"})
class Distill:
    """Teach a checkpoint what a better one says; or, with labels and no teacher, fine-tune it."""

    name: ClassVar[str] = "distill"
    calibrated: ClassVar[bool] = False

    teacher: str = Field(
        "", description="dense model to learn from; several as A=WEIGHT,B; default: the model a recipe began with"
    )
    choose: Choose = Field("average", description="of several teachers: average, or for each sample the best alone")
    data: str = Field(
        "self", description="text: self (the teacher's own words), .txt, .jsonl, hub sets; A=WEIGHT,B mixes"
    )
    held_out: str = Field(
        "", description="other text, or a labelled file, to be judged on; default: a part of the data"
    )
    labels: str = Field(
        "", description="label's column (or its number) in data, a .tsv, .csv or .jsonl: classification"
    )
    groups: str = Field(
        "", description="column of labelled data that says whom a row is about: each group then counts alike"
    )
    augment: str = Field(
        "", description="noise in a copy of each row, by kind and percent: typos=5,casing,spaces,homoglyphs,width"
    )
    clean: bool = Field(True, description="drop duplicates and personal data of text first, and say how many")
    samples: int = Field(0, ge=0, description="rows to learn from at most; 0: all there are, 512 of own words")
    length: int = Field(256, ge=8, le=131072, description="tokens of a row")
    logits: float = Field(1.0, ge=0, description="weight of the teacher's predictions in the loss")
    task: float = Field(0.0, ge=0, description="weight of the task's own loss: the next token, or the label")
    hidden: float = Field(0.0, ge=0, description="weight of the (first) teacher's hidden states")
    attention: float = Field(0.0, ge=0, description="weight of its attention maps")
    layers: str = Field(
        "even", description="its layer for each layer of the student: even, last, or numbers with commas"
    )
    kind: Kind = Field("forward", description="divergence of predictions: forward or reverse KL, or js")
    temperature: float = Field(1.0, gt=0, le=100, description="of predictions, student's and teacher's")
    steps: int = Field(0, ge=0, description="updates; 0: as epochs say")
    epochs: float = Field(1.0, gt=0, description="how often each row is seen")
    minutes: float = Field(
        0.0, ge=0, description="as many steps as fit, found from the first ones; 0: as steps or epochs say"
    )
    rows: int = Field(8, ge=1, description="rows an update, over all processes")
    accumulate: int = Field(4, ge=1, description="passes that an update adds up: more need less memory")
    rate: float = Field(1e-4, gt=0, le=1, description="learning rate at its highest")
    schedule: Schedule = Field("cosine", description="of the rate, after a short rise")
    train: What = Field(
        "all", description="what learns: all weights, blocks (not embeddings and head), or adapters, merged at the end"
    )
    rank: int = Field(16, ge=1, le=4096, description="of the adapters")
    cache: str = Field(
        "", description="directory for the teacher's likeliest tokens, asked for once; empty: asked in every pass"
    )
    top: int = Field(64, ge=1, description="tokens kept there at each place")
    compute: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="type to compute in; auto: bfloat16 where the processor multiplies it"
    )
    report_to: str = Field("", description="tensorboard, wandb, … with commas; curves of TensorBoard are in OUT/runs")
    keep: Literal["better", "last"] = Field("better", description="what to keep where training made it worse")

    @property
    def lesson(self) -> Lesson:
        """What is learned from."""
        return Lesson(self.logits, self.task, self.hidden, self.attention, self.kind, self.temperature)

    @property
    def texts(self) -> Texts:
        """Where rows come from."""
        mix = data.mix_of(self.data, "data")
        noise = augment.strengths(self.augment)
        return Texts(mix, self.held_out, self.labels, self.samples, self.length, self.clean, self.groups, noise)

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse options that contradict each other, files that are not there, and teachers that are quantized."""
        del checkpoint  # in a recipe the student is still to be made
        if not (self.lesson.taught or self.task):
            raise GreenError("Every weight of the loss is 0.", "Give --logits, --task, --hidden or --attention one.")
        if self.rows % self.accumulate:
            raise GreenError(f"{self.rows} rows do not divide into {self.accumulate} passes.", "See --accumulate.")
        if self.steps and self.minutes:
            raise GreenError("Both steps and minutes are given.", "Choose one of --steps and --minutes.")
        if self.groups and not self.labels:
            raise GreenError("Groups are a column of labelled data.", "Name the label's column too: --labels.")
        sources = [*self.texts.mix, *([self.held_out] if self.held_out else [])]
        if self.labels:
            for source in sources:
                labelled.read(source, self.labels, self.groups)
        else:
            for source in sources:
                calibration.check_source(source)
        if self.teacher:
            self._teachers(None)

    def estimate(self, checkpoint: Checkpoint, tokens: int) -> Estimate:
        """Each token goes forward in teacher and student and backward in the student.

        In memory: weights, gradients and two moments, their copies to compute in, the teacher (as large as the
        student, if it is not), and what a pass keeps of each token in each block and of its predictions.
        """
        del tokens  # of calibration: there is none
        n, dtype = checkpoint.parameters, gpu.compute_type(self.compute, gpu.kind())
        rows = self.samples or sum(data.windows_in(source, self.length) for source in self.texts.mix)
        seen = self.steps * self.rows or rows * self.epochs * (2 if self.augment else 1)
        work = seen * self.length * n * (6 + 2 * self.lesson.taught)
        seconds = self.minutes * 60 or work / gpu.training_speed(dtype)
        c = checkpoint.config
        sizes = (getattr(c, k, 0) for k in ("vocab_size", "num_hidden_layers", "hidden_size"))
        vocabulary, blocks, width = map(int, sizes)
        kept = self.length * self.rows // self.accumulate * (24 * vocabulary + 60 * blocks * width)
        found = Estimate(20 + seconds, BASE_BYTES + 30 * n + kept)
        if data.SELF in self.texts.mix:
            said = own.estimate(checkpoint, self.samples or data.OWN, self.length)
            return Estimate(found.seconds + said.seconds, max(found.peak_bytes, said.peak_bytes))
        return found

    def run(self, checkpoint: Checkpoint, out: Path, context: Context) -> dict[str, Any]:
        """Train, keep whichever is better on held-out rows, and write an ordinary checkpoint.

        Raises:
            GreenError: teacher and student do not meet, data are bad, the disk is full, or the loss became NaN.
        """
        source = context.source if context.source and context.source.path != checkpoint.path else None
        school = self._school(checkpoint, source, context.work, context.seed, context.progress)
        rows, pupil, plan = self._begin(school)
        meet()
        context.progress.stage(f"learning, in {str(school.dtype).removeprefix('torch.')}", plan["steps"])
        found = self._train(school, rows, pupil, plan["steps"])
        before, after = plan["before"], measure(pupil, rows.judge, school.dtype)
        kept = "before" if self.keep == "better" and score(after) >= score(before) else "after"
        context.progress.note(verdict(before, after, kept))
        model = recover.merged(pupil.student)
        if kept == "before":
            model = student.load(checkpoint, rows.classes, context.seed)
        student.write(out, checkpoint, model, school.tokenizer_path)
        if (runs := context.work / "train" / "runs").exists():
            shutil.move(runs, out / "runs")
        return {
            "tied": checkpoint.tied, "kept": kept, "compute": str(school.dtype), **found,
            "rows": len(rows.learn["row"]), "held_out_rows": len(rows.judge["row"]),
            **{f"{k}_before": v for k, v in before.items()}, **{f"{k}_after": v for k, v in after.items()},
            "teachers": [t.name for t in school.teachers.all],
        }  # fmt: skip

    def follow(self, checkpoint: Checkpoint, work: Path, seed: int, progress: Progress) -> None:
        """Train beside the process that leads; ``work`` is its own."""
        school = self._school(checkpoint, None, work, seed, progress)
        rows, pupil, plan = self._begin(school)
        self._train(school, rows, pupil, plan["steps"])

    def _school(
        self, checkpoint: Checkpoint, source: Checkpoint | None, work: Path, seed: int, progress: Progress
    ) -> School:  # fmt: skip
        if checkpoint.quantized:
            raise GreenError(f"{checkpoint.path} is quantized; distill learns dense weights.", "Take the step tune.")
        teachers = Teachers(self._teachers(source) if self.lesson.taught else [], self.choose)
        dtype = gpu.compute_type(self.compute, gpu.kind())
        school = School(checkpoint, teachers, self.texts, self.lesson, dtype, work, seed, progress)
        school.introduce(cached=bool(self.cache))
        return school

    def _teachers(self, source: Checkpoint | None) -> list[Teacher]:
        """Those named, or the one a recipe began with; weights sum to one."""
        if self.teacher:
            mix = data.mix_of(self.teacher, "teacher")
            found = [Teacher(n, open_checkpoint(n), w / sum(mix.values())) for n, w in mix.items()]
        elif source:
            found = [Teacher(str(source.path), source)]
        else:
            raise GreenError(
                "There is no teacher.", "Name it with --teacher; or learn from labels alone: --logits 0 --task 1."
            )
        if dim := [t.name for t in found if t.checkpoint.quantized]:
            raise GreenError(f"The teacher {dim[0]} is quantized.", "Name the dense model with --teacher.")
        return found

    def _begin(self, school: School) -> tuple[Samples, Pupil, dict[str, Any]]:
        """Rows, the pupil with its adapters, and the number of steps with the loss before them."""
        rows = school.samples()
        pupil = school.pupil(rows, self.layers, self.cache, self.top)
        recover.hold_still(pupil.student, self.train)
        plan = remembered(
            school.work,
            lambda: {"steps": self._steps(pupil, rows, school), "before": measure(pupil, rows.judge, school.dtype)},
        )
        pupil.student = recover.adapt(
            pupil.student, self.train, self.rank, plan["steps"], classifier=bool(rows.classes), seed=school.seed
        )
        return rows, pupil, plan

    def _steps(self, pupil: Pupil, rows: Samples, school: School) -> int:
        if not self.minutes:
            return self.steps or max(1, math.ceil(len(rows.learn["row"]) * self.epochs / self.rows))
        one = self.accumulate * seconds_of_a_pass(pupil, rows.learn, self.rows // self.accumulate, school.dtype)
        one += sum(p.numel() for p in pupil.parameters() if p.requires_grad) / 1e9  # the update itself
        return max(1, int(60 * self.minutes / one))

    def _train(self, school: School, rows: Samples, pupil: Pupil, steps: int) -> dict[str, Any]:
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft loads it, and it advises about kernels
        from greenllm.distill.trainer import train

        pace = Pace(
            steps, self.rows, self.accumulate, self.rate, self.schedule, school.dtype, school.seed, self.report_to
        )  # fmt: skip
        return train(pupil, rows.learn, pace, school.work / "train", school.progress)
