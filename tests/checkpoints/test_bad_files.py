"""What is not a whole, known model is refused in one line with exit code 2; nothing is executed, nothing written."""

import io
import json
import os
import pickle
import runpy
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


def changed(tensors, name, value=None, new_name=None):
    """Return tensors with one of another value, under another name, or (neither given) without it."""
    out = {key: tensor for key, tensor in tensors.items() if key != name}
    if value is not None or new_name:
        out[new_name or name] = tensors[name] if value is None else value
    return out


WEIGHT = "control_model.input_blocks.0.0.weight"
BAD_TENSORS = {  # one fault each, and words of the message
    "missing": (lambda t: changed(t, WEIGHT), r"input_blocks\.0\.0\.weight is missing"),
    "bias missing": (lambda t: changed(t, "control_model.zero_convs.2.0.bias"), r"1 missing \(zero_convs\.2\.0\.bias\)"),
    "renamed": (
        lambda t: changed(t, "control_model.zero_convs.2.0.bias", new_name="control_model.zero_convs.2.1.bias"),
        r"1 missing \(zero_convs\.2\.0\.bias\), 1 unknown \(zero_convs\.2\.1\.bias\); expected \d+ known tensors",
    ),
    "prefix lost": (
        lambda t: changed(t, WEIGHT, new_name="input_blocks.0.0.weight"),
        r"1 unknown names beside controlnet \(input_blocks\.0\.0\.weight, \.\.\.\)",
    ),
    "misshapen": (
        lambda t: changed(t, "control_model.zero_convs.1.0.weight", torch.zeros(8, 8)),
        r"1 misshapen \(zero_convs\.1\.0\.weight \(8, 8\) for \(8, 8, 1, 1\)\)",
    ),
    "empty": (lambda t: changed(t, "control_model.zero_convs.1.0.bias", torch.zeros(0)), r"1\.0\.bias is empty"),
    "wider than what follows": (
        lambda t: changed(t, "control_model.time_embed.0.weight", torch.zeros(32, 64)),
        r"misshapen \(input_blocks",
    ),
    "NaN": (
        lambda t: changed(t, "control_model.zero_convs.1.0.bias", torch.tensor([0, 1, 2, 3, 4, 5, 6, float("nan")])),
        r"zero_convs\.1\.0\.bias holds NaN or infinity",
    ),
    "infinity": (
        lambda t: changed(t, "control_model.zero_convs.1.0.bias", torch.tensor([0.0] * 7 + [float("-inf")])),
        r"zero_convs\.1\.0\.bias holds NaN or infinity",
    ),
    "integers": (
        lambda t: changed(t, "control_model.zero_convs.1.0.bias", torch.arange(8)),
        r"zero_convs\.1\.0\.bias is of torch\.int64",
    ),
    "two text encoders": (
        lambda t: {**t, "cond_stage_model.transformer.text_model.x": t[WEIGHT] + 2, "cond_stage_model.model.y": t[WEIGHT] + 1},
        r"1 unknown names beside text, controlnet \(cond_stage_model\.model\.y, \.\.\.\)",
    ),
    "another model": (lambda t: {"features.0.weight": torch.zeros(2)}, r"1 unknown names \(features\.0\.weight, \.\.\.\)"),
    "a buffer of no schedule": (lambda t: {**t, "betas_prev": torch.zeros(2)}, "1 unknown names beside controlnet"),
    "nothing": (lambda t: {"betas": torch.zeros(2)}, "none of the names of a known part"),
    "SD-XL": (
        lambda t: {"model.diffusion_model.label_emb.0.0.weight": torch.zeros(2), "conditioner.embedders.0.x": torch.zeros(2)},
        "an SD-XL",
    ),
    "SD-XL ControlNet": (lambda t: {**t, "control_model.label_emb.0.0.weight": torch.zeros(2)}, "an SD-XL"),
    "SD-XL diffusers": (lambda t: {"add_embedding.linear_1.weight": torch.zeros(2)}, "an SD-XL"),
    "SD 3": (lambda t: {"model.diffusion_model.joint_blocks.0.x": torch.zeros(2)}, "a Stable Diffusion 3 model"),
    "SD 3 diffusers": (lambda t: {"transformer_blocks.0.attn.add_k_proj.weight": torch.zeros(2)}, "a Stable Diffusion 3"),
    "Flux": (lambda t: {"model.diffusion_model.double_blocks.0.x": torch.zeros(2)}, "a Flux model"),
    "LoRA": (lambda t: {"lora_unet_down_blocks_0_attentions_0.lora_up.weight": torch.zeros(2)}, "a LoRA"),
    "LoRA peft": (lambda t: {"unet.down_blocks.0.attn1.to_q.lora_A.weight": torch.zeros(2)}, "a LoRA"),
    "LoRA diffusers": (lambda t: {"unet.mid.attn1.processor.to_q_lora.down.weight": torch.zeros(2)}, "a LoRA"),
}
BAD_BYTES = {
    "empty": (b"", "an empty file"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4265146304\n", "a Git-LFS pointer"),
    "page": (b"<!DOCTYPE html><html><body>403</body></html>", "a text file"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "a file of unknown kind"),
    "pickled list": (pickle.dumps([1, 2]), "damaged or unknown pickle"),
    "header only": ((10**6).to_bytes(8, "little") + b"{", "a damaged or truncated safetensors file"),
}


def refuse(path, words):
    with pytest.raises(InputError, match=words) as caught:
        checkpoints.read(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    assert any(remedy in message for remedy in ("expected", "fetch", "take a file", "write the file anew"))
    return message


@pytest.mark.parametrize("fault", BAD_TENSORS)
def test_tensors(tmp_path, small, fault):
    make, words = BAD_TENSORS[fault]
    save_file(make(prefixed(small)), tmp_path / "bad.safetensors")
    refuse(tmp_path / "bad.safetensors", words)


@pytest.mark.parametrize("fault", BAD_BYTES)
def test_bytes(tmp_path, fault):
    content, words = BAD_BYTES[fault]
    (tmp_path / "model.ckpt").write_bytes(content)
    refuse(tmp_path / "model.ckpt", words)


def test_no_file_and_no_weights(tmp_path):
    refuse(tmp_path / "nowhere.ckpt", r"cannot be read \(No such file")
    refuse(tmp_path, "a folder without weights")
    (tmp_path / "text_encoder_2").mkdir()
    refuse(tmp_path, "an SD-XL folder")


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_truncated(tmp_path, small, kind, share):
    path = tmp_path / "model.ckpt"
    if kind == "safetensors":
        save_file(prefixed(small), path)
    else:
        torch.save(prefixed(small), path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refuse(path, "damaged")


def setting(part, name, value):
    """Return a change of a header: another value of one size."""
    return lambda header: header["config"][part].update({name: value})


BAD_HEADERS = {  # one fault each, and words of the message
    "no list": (lambda h: h.update(ancestry={}), "its header is damaged"),
    "no format": (lambda h: h.pop("format"), "written before formats had numbers, .*; write the file anew"),
    "format": (lambda h: h.update(format=1), "written in format 1, this version reads format 2; write the file anew"),
    "config": (lambda h: h.update(config=3), "no valid sizes"),
    "prediction": (lambda h: h["config"].update(prediction="x0"), "no valid sizes: prediction x0;"),
    "prediction unknown": (lambda h: h["config"].update(prediction="unknown"), "no valid sizes: prediction unknown;"),
    "version": (lambda h: h["config"].update(version="sd3"), "no valid sizes: version sd3;"),
    "another setting": (lambda h: h["config"].update(vea=1), "no valid sizes: vea 1;"),
    "size missing": (lambda h: h["config"]["vae"].pop("scale"), "no valid sizes: vae scale;"),
    "size unknown": (setting("text", "depth", 3), "no valid sizes: text depth;"),
    "width of 0": (setting("unet", "model_channels", 0), "no valid sizes: unet model_channels 0;"),
    "half a width": (setting("unet", "model_channels", 8.5), "no valid sizes: unet model_channels 8.5;"),
    "text": (setting("unet", "channel_mult", "122"), "no valid sizes: unet channel_mult 122;"),
    "text in a list": (setting("unet", "channel_mult", [1, "2"]), r"no valid sizes: unet channel_mult \[1, '2'\];"),
    "number for a list": (setting("unet", "channel_mult", 1), "no valid sizes: unet channel_mult 1;"),
    "list for a number": (setting("vae", "groups", [4]), r"no valid sizes: vae groups \[4\];"),
    "number for a truth": (setting("unet", "linear_projections", 1), "no valid sizes: unet linear_projections 1;"),
    "truth for a number": (setting("text", "layers", True), "no valid sizes: text layers True;"),
    "nothing": (setting("vae", "groups", None), "no valid sizes: vae groups None;"),
}
BAD_HEADERS |= {
    f"scale {scale}": (setting("vae", "scale", scale), f"no valid sizes: vae scale {scale};")
    for scale in (0, -0.5, float("nan"), float("inf"), "big", True, None)
}


@pytest.mark.parametrize("fault", BAD_HEADERS)
def test_headers(tmp_path, small, header, fault):
    change, words = BAD_HEADERS[fault]
    change(header)
    save_file(prefixed(small), tmp_path / "bad.safetensors", {"emit": json.dumps(header)})
    refuse(tmp_path / "bad.safetensors", words)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_damaged_header(tmp_path, small, text):
    save_file(prefixed(small), tmp_path / "bad.safetensors", {"emit": text})
    refuse(tmp_path / "bad.safetensors", "its header is damaged")


def test_torchscript_is_not_run(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps({}))
        archive.writestr("model/version", "3\n")
        archive.writestr("model/constants.pkl", pickle.dumps(()))
    refuse(tmp_path / "model.pt", "TorchScript")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_would_run_code(tmp_path, zipped):
    trace = tmp_path / "trace"
    torch.save(Bomb(trace), tmp_path / "bomb.ckpt", _use_new_zipfile_serialization=zipped)
    message = refuse(tmp_path / "bomb.ckpt", "a pickle without a state dict")
    assert f"{os.system.__module__}.system, not executed" in message
    assert not trace.exists()


def test_a_plain_pickle_that_would_run_code(tmp_path):
    trace = tmp_path / "trace"
    (tmp_path / "bomb.pth").write_bytes(pickle.dumps(Bomb(trace)))
    refuse(tmp_path / "bomb.pth", "pickle")
    assert not trace.exists()


def test_a_bomb_in_the_place_of_a_tensor(tmp_path, small):
    trace = tmp_path / "trace"
    torch.save({**prefixed(small), "more": Bomb(trace)}, tmp_path / "bomb.ckpt")
    refuse(tmp_path / "bomb.ckpt", "'more' in its state dict is no tensor")
    assert not trace.exists()


def test_the_bomb_is_armed(tmp_path):
    """Without the restricted unpickler the trace appears: the tests above can fail."""
    trace = tmp_path / "trace"
    buffer = io.BytesIO()
    torch.save(Bomb(trace), buffer)
    buffer.seek(0)
    torch.load(buffer, weights_only=False)
    assert trace.exists()


@pytest.fixture
def lightning(monkeypatch):
    """A class that only the writer of the file has: pickled by name, with state, as Lightning's callbacks are."""
    module = types.ModuleType("a_training_library")

    class Callback:
        def __init__(self):
            self.best = 0.5

        def __call__(self):
            return self

    Callback.__module__, Callback.__qualname__ = module.__name__, "Callback"
    module.Callback = Callback
    monkeypatch.setitem(sys.modules, module.__name__, module)
    yield Callback
    assert module.__name__ not in sys.modules  # it was gone when the file was read


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_lightning_pickle_gives_its_tensors(tmp_path, small, same, lightning, monkeypatch, zipped):
    trace, path = tmp_path / "trace", tmp_path / "v1-5-pruned.ckpt"
    half = {f"model.diffusion_model.{name}": tensor.half() for name, tensor in small["unet"].items()}
    content = {"state_dict": half, "callbacks": {lightning: lightning()}, "hook": Bomb(trace), "epoch": 7}
    content["state_dict"]["model_ema.num_updates"] = torch.tensor(7)
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    monkeypatch.delitem(sys.modules, "a_training_library")
    found = checkpoints.read(path)
    same(found.parts, {"unet": {name: tensor.half() for name, tensor in small["unet"].items()}})
    system = f"class {os.system.__module__}.system, not executed"
    classes = ["class a_training_library.Callback, not executed", system]
    assert found.dropped == ["model_ema.num_updates", *classes, "entry callbacks", "entry hook", "entry epoch"]
    assert found.dtype == "float16"
    assert not trace.exists()


@pytest.mark.parametrize("command", ["inspect", "export"])
def test_command_line_stops_with_code_2(tmp_path, small, command, monkeypatch, capsys):
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(2)}, tmp_path / "bad.safetensors")
    to = ["--to", "single", str(tmp_path / "out.safetensors")] if command == "export" else []
    monkeypatch.setattr(sys, "argv", ["emit.checkpoints", command, str(tmp_path / "bad.safetensors"), *to])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("emit.checkpoints", run_name="__main__")
    out, err = capsys.readouterr()
    assert stopped.value.code == 2 and out == ""
    assert err.count("\n") == 1 and err.startswith(f"error: {tmp_path / 'bad.safetensors'}: a LoRA; expected")
    assert [file.name for file in tmp_path.iterdir()] == ["bad.safetensors"]


BAD_CONFIGS = [([1], "holds no JSON object"), ({"norm_num_groups": "4"}, "no valid sizes: vae groups 4;")]
BAD_CONFIGS += [({"scaling_factor": scale}, f"no valid sizes: vae scale {scale};") for scale in (0, float("nan"))]


@pytest.mark.parametrize(("content", "words"), BAD_CONFIGS)
def test_bad_json_in_a_folder(tmp_path, small, header, content, words):
    checkpoints.write_diffusers(tmp_path, {"vae": small["vae"]}, header["config"])
    save_file({name: tensor.clone() for name, tensor in small["vae"].items()}, tmp_path / "vae/diffusion_pytorch_model.safetensors")
    (tmp_path / "vae/config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"config\.json: {words}"):
        checkpoints.read(tmp_path)
