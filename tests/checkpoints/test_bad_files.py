"""What is not a whole, known model is refused in one line with exit code 2; nothing is executed, nothing written."""

import json
import os
import pickle
import sys
import types
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from emit import checkpoints
from emit.errors import InputError


class Bomb:
    """Pickles to a call of os.system that leaves a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def prefixed(small):
    return {f"control_model.{name}": tensor for name, tensor in small["controlnet"].items()}


BIAS, WEIGHT = "control_model.zero_convs.1.0.bias", "control_model.zero_convs.1.0.weight"
BAD_TENSORS = {  # one fault each, as a change of a ControlNet's tensors, and words of the message
    "missing": (lambda t: t.pop(BIAS), r'Missing key\(s\) in state_dict: "zero_convs\.1\.0\.bias"'),
    "renamed": (lambda t: t.update({"control_model.x": t.pop(BIAS)}), r'Missing.*1\.0\.bias".*Unexpected key.*"x"'),
    "one more": (lambda t: t.update({"control_model.x": t[BIAS] + 1}), r'Unexpected key\(s\) in state_dict: "x"'),
    "prefix lost": (lambda t: t.update({"zero_convs": t.pop(BIAS)}), r"holds controlnet and 1 unknown names \(zero_convs\)"),
    "misshapen": (lambda t: t.update({WEIGHT: torch.zeros(8, 8)}), r"size mismatch for zero_convs\.1\.0\.weight"),
    "empty": (lambda t: t.update({BIAS: torch.zeros(0)}), r"size mismatch for zero_convs\.1\.0\.bias"),
    "NaN": (lambda t: t.update({BIAS: torch.tensor(7 * [0.0] + [float("nan")])}), r"1\.0\.bias holds NaN or infinity"),
    "infinity": (lambda t: t.update({BIAS: torch.tensor(7 * [0.0] + [float("-inf")])}), r"1\.0\.bias holds NaN or infinity"),
    "integers": (lambda t: t.update({BIAS: torch.arange(8)}), r"1\.0\.bias is of torch\.int64"),
    "two text encoders": (
        lambda t: t.update({f"cond_stage_model.{prefix}.y": torch.ones(1) for prefix in ("transformer.text_model", "model")}),
        r"holds text, controlnet and 1 unknown names \(cond_stage_model\.model\.y\)",
    ),
    "a buffer of no schedule": (lambda t: t.update(betas_prev=torch.zeros(2)), "holds controlnet and 1 unknown names"),
    "another model": (lambda t: (t.clear(), t.update({"x": torch.zeros(2)})), r"no known part and 1 unknown names \(x\)"),
    "nothing": (lambda t: (t.clear(), t.update(betas=torch.zeros(2))), "no known part and 0 unknown names"),
    "no text encoder of CLIP": (
        lambda t: (t.clear(), t.update({"text_model.encoder.layers.0.self_attn.q_proj.bias": torch.zeros(2)})),
        r"text has no valid sizes: transformer\.resblocks\.0\.attn\.k_proj\.bias is missing",
    ),
    "HED without a score": (
        lambda t: (t.clear(), t.update({"moduleVggOne.0.bias": torch.zeros(2)})),
        r"hed has no valid sizes: moduleScoreOne\.weight is missing",
    ),
}


def refuse(path, words):
    with pytest.raises(InputError, match=words) as caught:
        checkpoints.read(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < 700
    assert any(remedy in message for remedy in ("expected", "fetch", "take a file", "write the file anew", "give"))


@pytest.mark.parametrize("fault", BAD_TENSORS)
def test_tensors(tmp_path, small, fault):
    change, words = BAD_TENSORS[fault]
    tensors = prefixed(small)
    change(tensors)
    save_file(tensors, tmp_path / "bad.safetensors")
    refuse(tmp_path / "bad.safetensors", words)


def test_no_file_no_weights_and_another_file(tmp_path):
    """Cut, noisy and foreign files of every kind: tests/reliability/test_bad_inputs.py."""
    path = tmp_path / "model.ckpt"
    refuse(path, r"cannot be read \(No such file")
    refuse(tmp_path, "a folder without weights")
    path.write_bytes(pickle.dumps([1, 2]))
    refuse(path, "cannot be read")
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4265146304\n")
    refuse(path, "a Git-LFS pointer")


def setting(part, name, value):
    """Return a change of a header: another value of one size."""
    return lambda header: header["config"][part].update({name: value})


BAD_HEADERS = {  # one fault each, and words of the message; every value of another kind: tests/reliability/test_bad_inputs.py
    "no format": (lambda h: h.pop("format"), "written before formats had numbers, .*; write the file anew"),
    "format": (lambda h: h.update(format=1), "written in format 1, this version reads format 2; write the file anew"),
    "prediction": (lambda h: h["config"].update(prediction="x0"), "its header says x0; give a file that says eps or v"),
    "size missing": (lambda h: h["config"]["vae"].pop("scale"), "vae has no valid sizes: no scale;"),
    "size unknown": (setting("vae", "depth", 3), "vae has no valid sizes: .*'depth'"),
    "text": (setting("vae", "channel_mult", "122"), "vae has no valid sizes"),
    "a million layers": (lambda h: h["config"]["vae"].update(num_res_blocks=10**6), "vae has no valid sizes: num_res_blocks is"),
    "other sizes": (setting("vae", "channels", 16), "vae does not fit: .*size mismatch"),
}
BAD_HEADERS |= {
    f"scale {scale}": (setting("vae", "scale", scale), "vae has no valid sizes") for scale in (0, float("nan"), float("inf"))
}


@pytest.mark.parametrize("fault", BAD_HEADERS)
def test_headers(tmp_path, small, header, fault):
    change, words = BAD_HEADERS[fault]
    change(header)
    tensors = {f"first_stage_model.{name}": tensor for name, tensor in small["vae"].items()}
    save_file(tensors, tmp_path / "bad.safetensors", {"emit": json.dumps(header)})
    refuse(tmp_path / "bad.safetensors", words)


def test_torchscript_is_not_run(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps({}))
        archive.writestr("model/version", "3\n")
        archive.writestr("model/constants.pkl", pickle.dumps(()))
    refuse(tmp_path / "model.pt", "TorchScript")


PLAIN = {"repeated": torch.zeros(1).expand(10**6, 10**6), "meta": torch.empty(2, device="meta"), "sparse": torch.eye(2).to_sparse()}


@pytest.mark.parametrize("kind", PLAIN)
def test_a_tensor_whose_numbers_are_not_there(tmp_path, small, kind):
    torch.save(prefixed(small) | {"more": PLAIN[kind]}, tmp_path / "model.ckpt")
    refuse(tmp_path / "model.ckpt", "more is no plain tensor")


def test_a_packed_archive_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", bytes(10**7))
    refuse(tmp_path / "model.pt", "a packed archive")


def write_bomb(kind, path, content):
    if kind == "plain":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain"])
def test_a_pickle_that_would_run_code(tmp_path, small, kind):
    """The bomb in the place of the state dict and of a tensor; it is armed: PyTorch's own reader sets it off."""
    trace = tmp_path / "trace"
    for content in (Bomb(trace), {**prefixed(small), "more": Bomb(trace)}):
        write_bomb(kind, tmp_path / "bomb.ckpt", content)
        refuse(tmp_path / "bomb.ckpt", "cannot be read" if kind == "plain" else "without a state dict of tensors")
    assert not trace.exists()
    if kind != "plain":
        torch.load(tmp_path / "bomb.ckpt", weights_only=False)
        assert trace.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_may_have_a_wrong_name(tmp_path, small, same, legacy):
    torch.save(prefixed(small), tmp_path / "x.safetensors", _use_new_zipfile_serialization=not legacy)
    same(checkpoints.read(tmp_path / "x.safetensors").parts, {"controlnet": small["controlnet"]})


@pytest.fixture
def lightning(monkeypatch):
    """A class that only the writer of the file has: pickled by name, with state, as Lightning's callbacks are."""
    module = types.ModuleType("a_training_library")

    class Callback:
        def __init__(self):
            self.best = 0.5

    Callback.__module__, Callback.__qualname__ = module.__name__, "Callback"
    module.Callback = Callback
    monkeypatch.setitem(sys.modules, module.__name__, module)
    yield Callback
    assert module.__name__ not in sys.modules  # it was gone when the file was read


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_a_lightning_pickle_gives_its_tensors(tmp_path, small, same, lightning, monkeypatch, kind):
    trace, path = tmp_path / "trace", tmp_path / "v1-5-pruned.ckpt"
    half = {f"model.diffusion_model.{name}": tensor.half() for name, tensor in small["unet"].items()}
    content = {"state_dict": half, "callbacks": {lightning: lightning()}, "hook": Bomb(trace), "epoch": 7}
    content["state_dict"]["model_ema.num_updates"] = torch.tensor(7)
    write_bomb(kind, path, content)
    monkeypatch.delitem(sys.modules, "a_training_library")
    found = checkpoints.read(path)
    same(found.parts, {"unet": {name: tensor.half() for name, tensor in small["unet"].items()}})
    assert found.dropped == ["model_ema.num_updates"]
    assert not trace.exists()


@pytest.mark.parametrize("order", ["inspect", "export"])
def test_command_line_stops_with_code_2(tmp_path, order, command, capsys):
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(2)}, tmp_path / "bad.safetensors")
    to = ["--to", "single", tmp_path / "out.safetensors"] if order == "export" else []
    with pytest.raises(SystemExit) as stopped:
        command(order, tmp_path / "bad.safetensors", *to)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == ""
    assert err.count("\n") == 1 and err.startswith(f"error: {tmp_path / 'bad.safetensors'}: holds no known part")
    assert [file.name for file in tmp_path.iterdir()] == ["bad.safetensors"]


BAD_CONFIGS = [([1], r"config\.json: is damaged \(it is \[1\], not dict\)"), ({"norm_num_groups": "4"}, "vae has no valid sizes")]
BAD_CONFIGS += [({"scaling_factor": scale}, "vae has no valid sizes: scale is") for scale in (0, float("nan"))]
BAD_CONFIGS += [({"layers_per_block": None}, "vae has no valid sizes"), ({"norm_num_groups": 3}, "vae has no valid sizes")]


@pytest.mark.parametrize(("content", "words"), BAD_CONFIGS)
def test_bad_json_in_a_folder(tmp_path, small, header, content, words):
    checkpoints.write_diffusers(tmp_path, {"vae": small["vae"]}, header["config"])
    save_file(small["vae"], tmp_path / "vae/diffusion_pytorch_model.safetensors")
    stated = json.loads((tmp_path / "vae/config.json").read_text())
    (tmp_path / "vae/config.json").write_text(json.dumps(stated | content if isinstance(content, dict) else content))
    with pytest.raises(InputError, match=words):
        checkpoints.read(tmp_path)
