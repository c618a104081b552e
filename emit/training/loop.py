"""How a training run survives: steps, order, draws, accumulation, clipping, EMA, log, checkpoint, resume.

    run = Run(folder, {"controlnet": controlnet}, RunSettings(lr=1e-5, steps=1000, batch=16))
    for step, batch in run.steps(data):
        loss = ...                                   # noise and timesteps from run.rng, forward under run.autocast()
        run.update(loss, edge_agreement=agreement)   # extra numbers go to the log
    run.finish()

The batch of step k depends on (seed, k) alone and its draws on (seed, rank, k): a resumed run is the uninterrupted one.
state.pt is written after the body of the loop has ended, so what the body wrote at a step (samples, selected weights) is
there before the state that says so; a kill in between repeats the steps since the last state.
"""

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from tqdm import tqdm

from emit.errors import InputError, Stopped, asked_to_stop, deferred
from emit.files import write_atomic, write_text
from emit.seeds import generator
from emit.training import distributed
from emit.training.order import Order, prefetch
from emit.training.settings import RunSettings

LOG_EVERY = 20  # [choice] steps between lines of the log
CLIP = 1.0  # [choice] largest gradient norm: no step runs away
WEIGHT_DECAY = 0.01  # AdamW's own default (1711.05101)


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
    """One training run in one folder: log.jsonl and state.pt (tensors and plain numbers: weights, AdamW, EMA, step).

    settings: RunSettings. Its batch is the number of samples of one optimiser step; `accumulate` cuts it into that many
    forward passes, and the processes of torchrun share it, so neither changes what is learned. Losses must be means over
    their samples. precision "bf16": run.autocast() computes in bfloat16; weights, average and optimiser stay float32.
    modules: name -> module, already on its device. parameters: what is trained (None: all that require a gradient).
    clip: largest gradient norm (inf: no limit). Raises InputError for a used folder without resume and for resume with
    other settings; resume in an empty folder starts.
    """

    def __init__(
        self,
        folder: Path,
        modules: dict[str, torch.nn.Module],
        settings: RunSettings,
        *,
        parameters: list | None = None,
        shuffle: bool = True,
        name: str = "train",
        log_every: int = LOG_EVERY,
        clip: float = CLIP,
        weight_decay: float = WEIGHT_DECAY,
        workers: int = 1,
    ):
        self.folder, self.modules, self.name = Path(folder), dict(modules), name
        check_run(self.folder, settings)
        kept = ("lr", "batch", "seed", "ema", "warmup", "schedule", "accumulate", "precision")
        self.settings = {key: getattr(settings, key) for key in kept}
        self.settings |= dict(clip=clip, weight_decay=weight_decay, shuffle=shuffle, ranks=distributed.ranks())
        if settings.schedule == "cosine":  # only then does their number change the earlier steps
            self.settings |= dict(steps=settings.steps)
        self.lr, self.batch, self.seed, self.accumulate = (settings.lr, settings.batch, settings.seed, settings.accumulate)
        self.total, self.warmup, self.schedule = settings.steps, settings.warmup, settings.schedule
        self.clip, self.log_every, self.save_every, self.workers = clip, log_every, settings.save_every, workers
        self.named = self._name_parameters(parameters)
        self.parameters = list(self.named.values())
        self.device = self.parameters[0].device
        distributed.copy_from_first([p.data for p in self.parameters])
        self.optimizer = torch.optim.AdamW(self.parameters, lr=self.lr, weight_decay=weight_decay, fused=True)
        self.decay = settings.ema
        self.ema = [p.detach().clone() for p in self.parameters] if settings.ema else None
        in_bf16 = settings.precision == "bf16"
        self._autocast = {"device_type": self.device.type, "dtype": torch.bfloat16, "enabled": in_bf16}
        self.step = self.done = 0  # the step being computed; how many are complete
        self.part = 0  # which forward pass of this step
        self.rng, self.samples = None, None
        self.hashes = None  # content hashes of the pictures that were read, where the data counts them
        self.loss = torch.zeros((), device=self.device)
        self.sums = {}  # name -> [sum, count] since the last line of the log
        self._open_folder(settings.resume)

    # ---- what a script calls

    def steps(self, data) -> Iterator[tuple[int, Any]]:
        """Yield (step, batch) for each forward pass still to do; the body must call update once for each.

        data: __len__ and batch(indices, rng); rng is a generator of that batch alone, so working ahead changes nothing.
        """
        if len(data) == 0:
            raise InputError(f"{self.folder}: there is nothing to train on; the training set is empty")
        if self.samples not in (None, len(data)):
            raise InputError(
                f"{self.folder}: the run began on {self.samples} samples and there are now {len(data)}; "
                "resume with the same data or choose another folder"
            )
        self.samples = len(data)
        self._share_hashes(data)
        first = self.done
        batches = prefetch(lambda job: data.batch(*job), self._jobs(first), self.workers)
        pause = 0.2 if sys.stderr.isatty() else 30  # seconds between lines; the second keeps log files short
        hidden = distributed.rank() > 0
        bar = tqdm(total=self.total, initial=first, desc=self.name, disable=hidden, mininterval=pause)
        self.clock = (time.perf_counter(), first)
        with contextlib.closing(batches), bar:
            for step in range(first, self.total):
                self.step, self.rng = step, generator(self.seed, distributed.rank(), step)
                with deferred():  # a signal waits until the step and its state are whole
                    for part in range(self.accumulate):
                        self.part = part
                        yield step, next(batches)
                    if self.done != step + 1:
                        raise RuntimeError("the loop's body must call run.update(loss) once for each batch")
                    stop = distributed.highest(asked_to_stop() or 0, self.device)  # all processes end at one step
                    if stop or self.done % self.save_every == 0 or self.done == self.total:
                        self._save()
                if stop:
                    raise Stopped(stop)
                bar.set_postfix_str(f"loss {self.loss_value:.4g}", refresh=False)
                bar.update()

    def update(self, loss: torch.Tensor, **logged):
        """Backward; after the last forward pass of the step: clip, AdamW, EMA, log.

        logged: further numbers (0-dimensional tensors or floats; None or nan: nothing to report at this step).
        A loss or gradient that is not finite stops the run before anything is changed or saved.
        """
        (loss / self.accumulate).backward()
        self.loss += loss.detach().float() / self.accumulate
        self._note(logged)
        if self.part + 1 < self.accumulate:
            return
        distributed.average_gradients(self.parameters)
        distributed.average([self.loss])
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.loss_value, norm = torch.stack([self.loss, norm]).tolist()
        if not (math.isfinite(self.loss_value) and math.isfinite(norm)):
            raise InputError(
                f"{self.folder}: loss {self.loss_value} and gradient norm {norm} at step {self.step}, "
                "state.pt stays as last saved; start anew with a lower learning rate, more warm-up or float32"
            )
        rate = learning_rate(self.step, self.lr, self.total, self.warmup, self.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.loss.zero_()
        self.done = self.step + 1
        if self.ema is not None:
            torch._foreach_lerp_(self.ema, self._weights(), 1 - ema_decay(self.done, self.decay))
        self._note({"loss": self.loss_value, "gradient_norm": norm})
        if self.done % self.log_every == 0 or self.done == self.total:
            self._write_log(rate)

    def due(self, every: int) -> bool:
        """Return whether this is the last forward pass of every `every`-th step (0: never), before or after update."""
        return every > 0 and (self.step + 1) % every == 0 and self.part + 1 == self.accumulate

    def autocast(self):
        """Return the context for forward passes: bfloat16 where precision is "bf16", else nothing."""
        return torch.autocast(**self._autocast)

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

    def _name_parameters(self, parameters):
        trainable = [p for m in self.modules.values() for p in m.parameters() if p.requires_grad]
        wanted = {id(p) for p in (trainable if parameters is None else list(parameters))}
        named = {}
        for module_name, module in self.modules.items():
            named |= {f"{module_name}.{key}": p for key, p in module.named_parameters() if id(p) in wanted}
        if not named or len(named) != len(wanted) or not all(p.requires_grad for p in named.values()):
            raise ValueError("the trained parameters must be some, all in the modules, all requiring a gradient")
        return named

    def _weights(self):
        return [p.detach() for p in self.parameters]

    def _buffers(self):
        return {
            f"{module_name}.{key}": buffer for module_name, module in self.modules.items() for key, buffer in module.named_buffers()
        }

    def _swap(self):
        if self.ema is not None:
            for place, parameter in enumerate(self.parameters):
                parameter.data, self.ema[place] = self.ema[place], parameter.data

    def _jobs(self, first):
        """Yield (indices, rng) of each of this process's forward passes from step `first` on."""
        order = Order(self.samples, self.seed, self.settings["shuffle"])
        rank, ranks = distributed.rank(), distributed.ranks()
        for step in range(first, self.total):
            indices = order.at(step * self.batch, self.batch)
            for part in range(self.accumulate):
                mine = distributed.split_batch(indices, part * ranks + rank, self.accumulate * ranks)
                yield mine, generator("data", self.seed, rank, step, part)

    def _note(self, values):
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                value = value.detach().item()
            if value is not None and math.isfinite(value):
                total, count = self.sums.get(name, (0.0, 0))
                self.sums[name] = [total + value, count + 1]

    def _write_log(self, rate):
        """Append one line: means since the last line; learning rate and speed now."""
        now, (before, steps_before) = time.perf_counter(), self.clock
        speed = (self.done - steps_before) * self.batch / (now - before)
        self.clock = (now, self.done)
        means = {name: total / count for name, (total, count) in self.sums.items()}
        line = {"step": self.step, "loss": means.pop("loss"), "lr": rate, **means, "images_per_second": round(speed, 2)}
        self.sums = {}
        if distributed.rank() == 0:
            with open(self.folder / "log.jsonl", "a") as file:
                file.write(json.dumps(line) + "\n")

    # ---- the folder

    def _open_folder(self, resume):
        state, log = self.folder / "state.pt", self.folder / "log.jsonl"
        if not resume and (state.exists() or (log.exists() and log.stat().st_size > 0)):
            raise InputError(f"{self.folder}: already holds a run; go on with --resume or choose another folder")
        if resume and state.exists():
            self._load(state)
        distributed.barrier()  # nobody looks any more: now rank 0 may change the folder
        if distributed.rank() > 0:
            return
        write_lines(log, read_lines(log, self.done))

    def _share_hashes(self, data):
        """Keep the data's hashes in the state from now on; those of the state join them."""
        counted, before = getattr(data, "hashes", None), self.hashes
        if counted is not None and before is not None:
            counted.copy_(torch.where(counted == 0, before, counted))
        self.hashes = counted

    def _save(self):
        if self.hashes is not None:
            distributed.join(self.hashes, self.device)
        if distributed.rank() > 0:
            return
        state = {
            "step": self.done,
            "settings": self.settings,
            "samples": self.samples,
            "weights": dict(zip(self.named, self._weights(), strict=True)),
            "buffers": self._buffers(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema,
            "sums": self.sums,
            "hashes": self.hashes,
        }
        write_atomic(self.folder / "state.pt", lambda temporary: torch.save(state, temporary))

    def _load(self, path):
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except (OSError, EOFError, RuntimeError, UnpicklingError) as error:
            raise InputError(f"{path}: is no state of a run or is damaged; start anew in another folder") from error
        for name, new in self.settings.items():
            old = state["settings"].get(name)
            if old != new:
                remedy = "resume with the first run's settings or choose another folder"
                raise InputError(f"{path}: {name} was {old} and is now {new}; {remedy}")
        _copy_into(dict(zip(self.named, self._weights(), strict=True)), state["weights"], path)
        _copy_into(self._buffers(), state["buffers"], path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema, self.sums, self.samples, self.done = state["ema"], state["sums"], state["samples"], state["step"]
        self.hashes = None if state["hashes"] is None else state["hashes"].cpu()


def _copy_into(targets, saved, path):
    same = targets.keys() == saved.keys() and all(saved[name].shape == targets[name].shape for name in saved)
    if not same:
        raise InputError(f"{path}: holds another model's weights; resume with the same sizes or choose another folder")
    for name, target in targets.items():
        target.copy_(saved[name])


def read_lines(path, before_step=math.inf):
    """Return the lines of a .jsonl file (dicts; [] where there is none) whose "step" is below before_step.

    A line that a kill cut off ends the file.
    """
    lines = []
    for text in Path(path).read_text().splitlines() if Path(path).exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return [line for line in lines if line.get("step", -1) < before_step]


def write_lines(path, lines):
    """Replace a .jsonl file by these lines."""
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
