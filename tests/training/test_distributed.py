"""The device, what may be computed there, and hashes of several processes; test_stages.py runs two real ones."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from emit.data.augment import AUGMENTATIONS, augment
from emit.diffusion.samplers import SAMPLERS, sample
from emit.diffusion.schedule import Schedule
from emit.errors import InputError
from emit.model import EmitDiff, find_edges
from emit.networks.hed import HED
from emit.networks.segmenter import Segmenter, SegmenterConfig, dice_ce_loss
from emit.training import distributed
from emit.training.loop import Run
from emit.training.settings import RunSettings
from tests.golden.files import read_model, write_original


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:99", "cuda", "meta"])
def test_a_device_that_is_not_here(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=f"--device {device}: cannot be used here; write auto, cpu"):
        distributed.start(device)
    assert distributed.start("auto") == distributed.start("cpu") == torch.device("cpu")


def test_mps_cannot_be_shared(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="--device mps: cannot be shared by several processes; write cpu"):
        distributed.start("mps")


@pytest.mark.parametrize(
    ("device", "cuda", "mps", "processes", "chosen"),
    [
        *[("auto", 1, 1, 1, "cuda"), ("auto", 0, 1, 1, "mps"), ("auto", 0, 0, 1, "cpu"), ("auto", 0, 1, 2, "cpu")],
        *[("auto", 1, 1, 2, "cuda:1"), ("cuda", 1, 0, 1, "cuda"), ("cuda:1", 1, 0, 1, "cuda:1")],
    ],
)
def test_auto_is_cuda_then_mps_then_cpu_and_a_gpu_is_chosen_where_its_number_is_given(
    monkeypatch, device, cuda, mps, processes, chosen
):
    asked, zeros = [], torch.zeros
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: zeros(*shape))
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda *backend, **options: None)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert str(distributed.start(device)) == chosen
    assert list(map(str, asked)) == [chosen] * (chosen == "cuda:1")


class NoFloat64(TorchDispatchMode):
    """A device without float64, as mps is one: fails where an operation gives such a tensor there."""

    def __init__(self, device):
        super().__init__()
        self.where = device

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                assert (tensor.dtype, tensor.device.type) != (torch.float64, self.where), operation
        return out


def test_no_float64_of_the_schedule_leaves_the_cpu(monkeypatch):
    """The meta device, which has shapes and no numbers, stands for mps; timesteps come back from it as zeros."""
    at, schedule = Schedule.at, Schedule.scaled_linear()
    monkeypatch.setattr(Schedule, "at", lambda self, t: at(self, torch.zeros(t.shape) if isinstance(t, torch.Tensor) else t))
    z_0, rng = torch.ones(2, 4, 8, 8, device="meta"), torch.Generator().manual_seed(0)
    for prediction in ("eps", "v"):
        model = SimpleNamespace(schedule=schedule, sizes=SimpleNamespace(prediction=prediction), contexts=len)
        model.network_output = lambda z_t, t, *_: z_t + t[:, None, None, None]
        with NoFloat64("meta"):
            assert EmitDiff.losses(model, z_0, *EmitDiff.draw(model, z_0, rng), ["a", "b"]).is_meta
            assert EmitDiff.predict(model, z_0, torch.ones(2, device="meta"), None).is_meta
            for method in SAMPLERS:
                how = {"method": method, "prediction": prediction, "noise": lambda: torch.zeros_like(z_0)}
                assert sample(model.network_output, z_0, schedule, 4, **how).is_meta


def test_networks_need_no_float64(tmp_path):
    model, image = read_model(write_original(tmp_path, "sd1"), "sd1"), torch.ones(1, 3, 32, 32)
    with NoFloat64("cpu"), torch.no_grad():
        z_0 = model.vae.encode(image).sample(torch.ones(1, 4, 8, 8))
        model.network_output(z_0, torch.ones(1), model.contexts(["a"]), image).sum(), model.vae.decode(z_0)
        find_edges(HED((4, 4, 4, 4, 4)), image[:, :1])


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_segmenters_train_without_float64(tmp_path, precision):
    """Here the CPU stands for mps: step, average and every augmentation, none of which needs more than float32."""
    network = Segmenter(SegmenterConfig(1, 2, (4, 8)))
    image, mask = torch.rand(4, 1, 16, 16), torch.ones(4, 16, 16, dtype=torch.int64)
    rng, steps = torch.Generator().manual_seed(0), len(AUGMENTATIONS)
    run = Run(tmp_path, {"n": network}, RunSettings(steps=steps, batch=4, warmup=2, precision=precision))

    class Data(list):
        def batch(self, indices, rng):
            return image, mask

    with NoFloat64("cpu"):
        for (_, batch), name in zip(run.steps(Data([0] * 4)), AUGMENTATIONS, strict=True):
            image_, mask_ = augment(*batch, name, rng)
            with run.autocast():
                run.update(dice_ce_loss(network(image_), mask_))


def test_hashes_of_several_processes_are_joined_and_none_is_lost(monkeypatch):
    def gather(parts, own):
        parts[:] = own.clone(), torch.tensor([0, 0, 9])
        tensor[1] = 7  # another thread fills a place meanwhile

    tensor = torch.tensor([5, 0, 0])
    monkeypatch.setattr(distributed, "ranks", lambda: 2)
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed.dist, "all_gather_object", gather)
    distributed.join(tensor)
    assert tensor.tolist() == [5, 7, 9]
