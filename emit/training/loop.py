"""How a training run survives: steps, order, draws, accumulation, clipping, EMA, log, checkpoint, resume.

    run = Run(folder, {"controlnet": controlnet}, RunSettings(lr=1e-5, steps=1000, batch=16))
    for step, batch in run.steps(data):
        loss = ...                                   # noise and timesteps from run.rng, forward under run.autocast()
        run.update(loss, edge_agreement=agreement)   # extra numbers go to the log
    run.finish()

The batch of step k depends on (seed, k) alone and its draws on (seed, rank, k): a resumed run is the uninterrupted one.
state.pt is written after the loop's body has ended, so what it wrote (samples, selected weights) is there before the state.
"""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from tqdm import tqdm

from emit.errors import InputError, Stopped, asked_to_stop, deferred
from emit.evaluation.figures import costing_nothing, save_curves
from emit.files import append_line, check_file, check_zip, find_misfit, parse_json, read_text, write_atomic, write_text
from emit.seeds import generator
from emit.training import distributed
from emit.training.order import choose_samples, prefetch
from emit.training.settings import RunSettings

LOG = {"step": int, "loss": float, "lr": float}  # what is read of a line of log.jsonl
STATE = {"weights": dict[str, torch.Tensor], "buffers": dict[str, torch.Tensor], "ema": (None, list[torch.Tensor])}
STATE |= {"optimizer": dict, "sums": dict[str, list[float]], "hashes": (None, torch.Tensor)}  # of state.pt, and "step"
LOG_EVERY = 20  # [choice] steps between lines of the log
CLIP = 1.0  # [choice] largest gradient norm: no step runs away
PROBES = ("hint_true", "hint_zero", "hint_other", "prompt_wrong", "prompt_empty")
PANELS = {"loss": "loss", "lr": "learning rate"} | dict.fromkeys(PROBES, "loss of the probes") | {"dice": "validation Dice"}


def learning_rate(step, lr, steps, warmup=0, schedule="constant"):
    """Return the learning rate of step 0 .. steps - 1.

    Warm-up: lr (step + 1) / warmup for the first warmup steps. Then constant, or cosine (SGDR, 1608.03983, Eq. 5, one
    period): lr (1 + cos(pi (step - warmup) / (steps - warmup))) / 2.
    """
    if step < warmup:
        return lr * (step + 1) / warmup
    if schedule == "constant":
        return lr
    return lr * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def ema_decay(updates, decay):
    """Return the weight of the old average at update 1, 2, ...: min(decay, (1 + n) / (10 + n)) [SD 1.5].

    The small first values let the average leave the initial weights quickly.
    """
    return min(decay, (1 + updates) / (10 + updates))


def check_run(folder, settings):
    """Refuse settings that a Run in this folder would refuse: for scripts that train several parts one after another."""
    pieces = settings.accumulate * distributed.ranks()
    if settings.batch % pieces:
        raise InputError(f"{folder}: batch must be a multiple of accumulate x processes = {pieces}; change one of them")
    if settings.warmup >= settings.steps:
        raise InputError(f"{folder}: warmup must be from 0 to steps - 1 = {settings.steps - 1}; change one of them")


def room_needed(trained, saved):
    """Return the bytes that runs of the modules `trained` and weight files of the modules `saved` take on the disk.

    A state holds weights, average and AdamW's two; the largest counts twice, as the old one stays until the new is whole.
    """
    states = [16 * sum(parameter.numel() for parameter in module.parameters()) for module in trained]
    return sum(states) + max(states) + 4 * sum(p.numel() for module in saved for p in module.parameters())


class Run:
    """One training run in one folder: log.jsonl, curves.png, state.pt (tensors and plain numbers: weights, AdamW, EMA, step).

    modules: name -> module, already on its device; what requires a gradient is trained. `settings.batch` is the number
    of samples of one optimiser step; `accumulate` cuts it into that many forward passes, and the processes of torchrun
    share it. Neither changes the samples of a step, but the draws, which come from rank and forward pass, are others.
    Losses must be means over their samples. Raises InputError for a used folder without resume; resume in an empty
    folder starts. That settings and data stay is looked after by `save_config`.
    """

    def __init__(self, folder: Path, modules: dict, settings: RunSettings, *, shuffle=True, name=None, log_every=LOG_EVERY):
        check_run(folder, settings)
        self.folder, self.settings, self.shuffle = Path(folder), settings, shuffle
        self.name, self.log_every = name or self.folder.name, log_every
        self.modules = torch.nn.ModuleDict(modules)
        self.named = {name: p for name, p in self.modules.named_parameters() if p.requires_grad}
        self.parameters = list(self.named.values())
        self.device = self.parameters[0].device
        self.share = distributed.share(self.parameters)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=settings.lr, fused=True)
        self.ema = [p.detach().clone() for p in self.parameters] if settings.ema else None
        self.step = self.part = 0  # the step and, of it, the forward pass that are being computed
        self.done = 0  # how many steps are complete
        self.rng = None
        self.hashes = None  # content hashes of the pictures that were read, where the data counts them
        self.loss = torch.zeros((), device=self.device)
        self.sums = {}  # name -> [sum, count] since the last line of the log
        self._open_folder()

    # ---- what a script calls

    def steps(self, data) -> Iterator[tuple[int, Any]]:
        """Yield (step, batch) for each forward pass still to do; the body must call update once for each.

        data: __len__ and batch(indices, rng); rng is a generator of that batch alone, so working ahead changes nothing.
        """
        if len(data) == 0:
            raise InputError(f"{self.folder}: there is nothing to train on; the training set is empty")
        counted, before = getattr(data, "hashes", None), self.hashes
        if counted is not None and self.done:
            if before is None or (before.shape, before.dtype) != (counted.shape, counted.dtype):
                raise InputError(f"{self.folder / 'state.pt'}: counts other pictures than there are; start anew in another folder")
            counted.copy_(torch.where(counted == 0, before, counted))
        self.samples, self.hashes = len(data), counted
        first, total = self.done, self.settings.steps
        pause = 0.2 if sys.stderr.isatty() else 30  # seconds between lines; the second keeps log files short
        bar = tqdm(total=total, initial=first, desc=self.name, disable=distributed.rank() > 0, mininterval=pause)
        self.began = time.perf_counter()
        self.clock, self.next_drawing = (self.began, first), self.began + 60
        with bar, contextlib.closing(prefetch(lambda job: data.batch(*job), self._jobs())) as batches:
            for step in range(first, total):
                self.step, self.rng = step, generator(self.settings.seed, distributed.rank(), step)
                with deferred():  # a signal waits until the step and its state are whole
                    for part in range(self.settings.accumulate):
                        self.part = part
                        yield step, next(batches)
                    if self.done != step + 1:
                        raise RuntimeError("the loop's body must call run.update(loss) once for each batch")
                    asked = torch.tensor(asked_to_stop() or 0, device=self.device)
                    stop = int(distributed.reduce(asked, "MAX"))  # all processes end at one step
                    if stop or self.done % self.settings.save_every == 0 or self.done == total:
                        self._draw()  # before the state: a finished one has its curves
                        self._save()
                if stop:
                    raise Stopped(stop)
                bar.set_postfix_str(f"loss {self.loss_value:.4g}", refresh=False)
                bar.update()
                self._forecast(first)

    def update(self, loss: torch.Tensor, **logged):
        """Backward; after the last forward pass of the step: clip, AdamW, EMA, log.

        logged: further numbers (detached 0-dimensional tensors or floats; None or nan: nothing to report at this step).
        A loss or gradient that is not finite stops the run before anything is changed or saved.
        """
        settings, last = self.settings, self.part + 1 == self.settings.accumulate
        loss = loss / settings.accumulate
        (self.share(loss) if last else loss).backward()
        self.loss += loss.detach()
        self._note(logged)
        if not last:
            return
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.loss_value, norm = torch.stack([distributed.reduce(self.loss) / distributed.ranks(), norm]).tolist()
        if not (math.isfinite(self.loss_value) and math.isfinite(norm)):
            raise InputError(
                f"{self.folder}: loss {self.loss_value} and gradient norm {norm} at step {self.step}, "
                "state.pt stays as last saved; start anew with a lower learning rate, more warm-up or float32"
            )
        rate = learning_rate(self.step, settings.lr, settings.steps, settings.warmup, settings.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.loss.zero_()
        self.done = self.step + 1
        if self.ema is not None:
            with torch.no_grad():
                torch._foreach_lerp_(self.ema, self.parameters, 1 - ema_decay(self.done, settings.ema))
        self._note({"loss": self.loss_value, "gradient_norm": norm})
        if self.done % self.log_every == 0 or self.done == settings.steps:
            self._write_log(rate)

    def due(self, every: int) -> bool:
        """Return whether this is the last forward pass of every `every`-th step (0: never), before or after update."""
        return every > 0 and (self.step + 1) % every == 0 and self.part + 1 == self.settings.accumulate

    def autocast(self):
        """Return the context for forward passes: bfloat16 where precision is "bf16", else nothing."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")

    @contextlib.contextmanager
    def ema_weights(self):
        """Within this context the modules hold the averaged weights (if there is an average)."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def finish(self):
        """Leave the averaged weights (if any) in the modules; state.pt keeps both."""
        self._swap()
        self.ema = None
        distributed.barrier()

    # ---- how it is done

    def _swap(self):
        for place, parameter in enumerate(self.parameters if self.ema is not None else []):
            parameter.data, self.ema[place] = self.ema[place], parameter.data

    def _jobs(self):
        """Yield (indices, rng) of each of this process's forward passes still to do."""
        seed, batch, accumulate = self.settings.seed, self.settings.batch, self.settings.accumulate
        rank, ranks = distributed.rank(), distributed.ranks()
        size = batch // (accumulate * ranks)
        for step in range(self.done, self.settings.steps):
            for part in range(accumulate):
                start = step * batch + (part * ranks + rank) * size
                indices = choose_samples(self.samples, seed, start, size, self.shuffle)
                yield indices, generator("data", seed, rank, step, part)

    def _note(self, values):
        for name, value in values.items():
            value = math.nan if value is None else float(value)
            if math.isfinite(value):
                total, count = self.sums.get(name, (0.0, 0))
                self.sums[name] = [total + value, count + 1]

    def _write_log(self, rate):
        """Append one line: means since the last line; learning rate and speed now."""
        now, (before, steps_before) = time.perf_counter(), self.clock
        speed = (self.done - steps_before) * self.settings.batch / (now - before)
        self.clock = (now, self.done)
        means = {name: total / count for name, (total, count) in self.sums.items()}
        line = {"step": self.step, "loss": means.pop("loss"), "lr": rate, **means, "images_per_second": round(speed, 2)}
        self.sums = {}
        if distributed.rank() == 0:
            append_line(self.folder / "log.jsonl", line)

    def _forecast(self, first):
        """Say once how long the steps from `first` on take: after a second of them, or the last. The first also warms up."""
        now, total, timed = time.perf_counter(), self.settings.steps, self.done - 1 - first  # steps since self.began
        if timed == 0 and self.done < total:
            self.began = now
        elif self.began and (now - self.began > 1 or self.done == total):
            left = f"{total - first:,} of {total:,}" if first else f"{total:,}"
            work, seconds = f"{self.name}: {left} steps of {self.settings.batch} images", (now - self.began) / max(1, timed)
            forecast(work, self.device, self.settings.precision, "step", seconds, total - first)
            self.began = None

    def _draw(self):
        """Draw curves.png from the logs: at the end, and before it where the drawings take about 1 % of the time."""
        began, path, curves = time.perf_counter(), self.folder / "curves.png", {}
        if distributed.rank() > 0 or (self.done < self.settings.steps and began < self.next_drawing):
            return
        with costing_nothing(path):
            lines = read_lines(self.folder / "log.jsonl") + read_lines(self.folder / "validation.jsonl")
            for name, panel in PANELS.items():
                if points := [(line["step"], line[name]) for line in lines if name in line]:
                    curves.setdefault(panel, {})[name] = [tuple(zip(*points, strict=True))]  # one run: (steps, values)
            if curves:  # else the first line is still to come
                save_curves(path, curves)
        self.next_drawing = time.perf_counter() + 100 * (time.perf_counter() - began)

    # ---- the folder

    def _open_folder(self):
        state, log = self.folder / "state.pt", self.folder / "log.jsonl"
        if self.settings.resume:
            self._load(state)
        elif state.exists() or (log.exists() and log.stat().st_size):
            raise InputError(f"{self.folder}: already holds a run; go on with --resume or choose another folder")
        distributed.barrier()  # all have looked: now rank 0 may change the folder
        if distributed.rank() == 0:
            write_lines(log, read_lines(log, self.done, LOG))

    def _save(self):
        if self.hashes is not None:
            distributed.join(self.hashes)
        state = {
            "step": self.done,
            "weights": {name: p.detach() for name, p in self.named.items()},
            "buffers": dict(self.modules.named_buffers()),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema,
            "sums": self.sums,
            "hashes": self.hashes,
        }
        if distributed.rank() == 0:
            write_atomic(self.folder / "state.pt", lambda temporary: torch.save(state, temporary))

    @torch.no_grad()
    def _load(self, path):
        check_file(path)
        if not path.exists():
            return
        targets = self.named | dict(self.modules.named_buffers())
        try:
            check_zip(path)
            state = torch.load(path, map_location=self.device, weights_only=True)
            if fault := find_misfit(state, STATE | {"step": range(self.settings.steps + 1)}):
                raise ValueError(fault)
            saved, ema, hashes = state["weights"] | state["buffers"], state["ema"], state["hashes"]
            if {name: p.shape for name, p in targets.items()} != {name: p.shape for name, p in saved.items()}:
                raise ValueError("it holds another model's weights")
            self.optimizer.load_state_dict(state["optimizer"])
            pairs = [*zip(self.ema or (), ema or (), strict=True), *((target, saved[name]) for name, target in targets.items())]
            pairs += [(p, own[name]) for p, own in self.optimizer.state.items() for name in ("exp_avg", "exp_avg_sq")]
            if not all(own.shape == one.shape and one.isfinite().all() for own, one in pairs):
                raise ValueError("other shapes, or numbers that are not finite")
        except Exception as error:  # what a damaged file raises is anything
            words = f"is no state of this run, or is damaged ({shorten(str(error), 120)}); start anew in another folder"
            raise InputError(f"{path}: {words}") from error
        for name, target in targets.items():
            target.copy_(saved[name])
        self.ema, self.sums, self.done, self.hashes = ema, state["sums"], state["step"], None if hashes is None else hashes.cpu()


def forecast(work, device, precision, unit, seconds, count):
    """Print on stderr, once for each long stage, what it does, where, and how long: `count` units of that many seconds."""
    place = f"{distributed.ranks()} x {device.type}" if distributed.ranks() > 1 else device.type
    words = f"about {show_time(count * seconds)} at {show_time(seconds)} a {unit}"
    if distributed.rank() == 0:
        tqdm.write(f"{work} on {place} in {precision}: {words}", file=sys.stderr)


def show_time(seconds):
    """Return a duration in s, min or h."""
    return f"{seconds:.2g} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def read_lines(path, before_step=math.inf, kind=dict):
    """Return the lines of a .jsonl file ([] where there is none) whose "step" is below before_step.

    A last line that a kill cut off is left out; any other line that is not of a kind (`emit.files.find_misfit`) is an InputError.
    """
    todo, lines = "remove this line, and what it tells is done again", []
    texts = read_text(path, "remove it").splitlines(keepends=True) if os.path.lexists(path) else []
    for number, text in enumerate(texts, 1):
        with contextlib.suppress(() if text.endswith("\n") else InputError):
            lines.append(parse_json(text, kind, f"{path}: line {number}", todo))
    return [line for line in lines if line.get("step", -1) < before_step]


def write_lines(path, lines):
    """Replace a .jsonl file by these lines."""
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
