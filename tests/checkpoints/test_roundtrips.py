"""Random numbers go through every layout and come back bit for bit: a copy, a rename or a cut has no rounding error."""

import gzip
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer, default_bpe
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from emit import checkpoints
from emit.checkpoints import recognise
from emit.errors import InputError
from emit.files import sha256
from emit.networks.controlnet import ControlNet
from emit.networks.unet import UNetConfig


def command(monkeypatch, *arguments):
    """Run `python -m emit.checkpoints` in this process."""
    monkeypatch.setattr(sys, "argv", ["emit.checkpoints", *map(str, arguments)])
    runpy.run_module("emit.checkpoints", run_name="__main__")


def test_single_file_with_header(tmp_path, small, header, same):
    path = tmp_path / "model.safetensors"
    checkpoints.write_single(path, small, header)
    found = checkpoints.read(path)
    same(found.parts, small)
    assert (found.layout, found.version, found.dtype, found.prediction) == ("single", "emit", "float32", "eps")
    assert (found.header, found.config, found.dropped, found.files) == (header, header["config"], [], [path])
    assert path.stat().st_mode & 0o777 == 0o644  # others can read it


def test_text_names_follow_the_version(tmp_path, small, header, same):
    path, text = tmp_path / "text.safetensors", {"text": small["text"]}
    checkpoints.write_single(path, text, header)
    query = load_file(path)["cond_stage_model.transformer.text_model.encoder.layers.1.self_attn.k_proj.weight"]
    joined = small["text"]["transformer.resblocks.1.attn.in_proj_weight"]
    assert torch.equal(query, joined[16:32])  # q, k, v in this order, 16 rows each
    header["config"]["version"] = "sd2"
    checkpoints.write_single(path, text, header)
    assert "cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight" in load_file(path)
    same(checkpoints.read(path).parts, text)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapped", [True, False], ids=["state_dict", "bare"])
@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])
def test_pickles_are_known_by_content(tmp_path, small, same, zipped, wrapped, name):
    parts = {"controlnet": small["controlnet"]}
    tensors = {f"control_model.{name}": tensor for name, tensor in small["controlnet"].items()}
    content = {"state_dict": tensors, "epoch": 3} if wrapped else tensors
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
    found = checkpoints.read(tmp_path / name)
    same(found.parts, parts)
    assert found.dropped == (["entry epoch"] if wrapped else [])


def test_safetensors_under_another_name(tmp_path, small, header, same):
    checkpoints.write_single(tmp_path / "model.ckpt", small, header)
    same(checkpoints.read(tmp_path / "model.ckpt").parts, small)


def test_folder(tmp_path, small, header, same):
    left = checkpoints.write_diffusers(tmp_path, small, header["config"], header)
    assert left == ["hed", "hed_v11"]
    found = checkpoints.read(tmp_path)
    same(found.parts, {part: own for part, own in small.items() if part not in left})
    assert (found.layout, found.version, found.prediction, found.header) == ("diffusers", "emit", "eps", header)
    attention = load_file(tmp_path / "vae/diffusion_pytorch_model.safetensors")
    assert attention["decoder.mid_block.attentions.0.to_q.weight"].shape == (16, 16)
    level_2 = attention["decoder.up_blocks.0.resnets.0.conv1.weight"]  # three levels: up_blocks.0 runs first, at level 2
    assert torch.equal(level_2, small["vae"]["decoder.up.2.block.0.conv1.weight"])
    same(checkpoints.read(tmp_path / "unet").parts, {"unet": small["unet"]})
    same(checkpoints.read(tmp_path / "vae/diffusion_pytorch_model.safetensors").parts, {"vae": small["vae"]})


def strip_headers(folder):
    """Turn our folder into a foreign one: the same tensors without our header."""
    for file in folder.rglob("*.safetensors"):
        tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
        save_file(tensors, file)


def test_foreign_folder_gives_sizes_from_its_configs(tmp_path, small, header):
    header["config"]["prediction"] = "v"
    checkpoints.write_diffusers(tmp_path, small, header["config"])
    strip_headers(tmp_path)
    found = checkpoints.read(tmp_path)
    assert found.header == {}
    assert json.loads(json.dumps(found.config)) == {**header["config"], "version": "emit"}
    assert found.prediction == "v"


def test_head_size_comes_back_from_heads_per_level(tmp_path, small, header):
    header["config"]["unet"].update(heads=None, head_size=4)
    checkpoints.write_diffusers(tmp_path, {"unet": small["unet"]}, header["config"])
    assert json.loads((tmp_path / "unet/config.json").read_text())["attention_head_dim"] == [2, 4, 4]
    strip_headers(tmp_path)
    sizes = checkpoints.read(tmp_path).config["unet"]
    assert (sizes["heads"], sizes["head_size"]) == (None, 4)


def test_old_attention_names_and_fp16_variant(tmp_path, small, header, same):
    checkpoints.write_diffusers(tmp_path, {"vae": small["vae"]}, header["config"])
    file = tmp_path / "vae/diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in load_file(file).items():
        for new_name, old_name in old.items():
            name = name.replace(f"attentions.0.{new_name}.", f"attentions.0.{old_name}.")
        tensors[name] = tensor.half()
    assert "encoder.mid_block.attentions.0.proj_attn.bias" in tensors
    tensors["encoder.mid_block.attentions.0.key.weight"] = tensors["encoder.mid_block.attentions.0.key.weight"][..., None, None]
    file.unlink()
    save_file(tensors, tmp_path / "vae/diffusion_pytorch_model.fp16.safetensors")
    found = checkpoints.read(tmp_path)
    same(found.parts, {"vae": {name: tensor.half() for name, tensor in small["vae"].items()}})
    assert found.dtype == "float16"


def make_shards(folder, tensors):
    names = sorted(tensors)
    halves = {"a-00001-of-00002.safetensors": names[::2], "a-00002-of-00002.safetensors": names[1::2]}
    for file, some in halves.items():
        save_file({name: tensors[name] for name in some}, folder / file)
    index = {"weight_map": {name: file for file, some in halves.items() for name in some}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return sorted(folder / file for file in halves)


def test_shards_and_a_missing_one(tmp_path, small, header, same):
    checkpoints.write_diffusers(tmp_path, {"unet": small["unet"]}, header["config"])
    file = tmp_path / "unet/diffusion_pytorch_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    file.unlink()
    files = make_shards(tmp_path / "unet", tensors)
    found = checkpoints.read(tmp_path)
    same(found.parts, {"unet": small["unet"]})
    assert found.files == files
    files[1].unlink()
    with pytest.raises(InputError, match=r"unet/.*index\.json: 1 of 2 shards missing \(a-00002-of-00002\.safetensors\)"):
        checkpoints.read(tmp_path)
    save_file({"conv_in.bias": tensors["conv_in.bias"]}, files[1])
    with pytest.raises(InputError, match="tensors not as listed"):
        checkpoints.read(tmp_path)


def test_hed_under_either_prefix_and_in_fp16(tmp_path, small, same):
    for part in ("hed", "hed_v11"):
        other = {name.replace("module", "net"): tensor.half() for name, tensor in small[part].items()}
        torch.save(other, tmp_path / f"{part}.pth")
        half = {part: {name: tensor.half() for name, tensor in small[part].items()}}
        same(checkpoints.read(tmp_path / f"{part}.pth").parts, half)
    assert checkpoints.read(tmp_path / "hed.pth").dtype == "float16"


def test_ema_on_request_only(tmp_path, small, same, monkeypatch, capsys):
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in small["unet"].items()}
    averages = {name: tensor + 1 for name, tensor in small["unet"].items()}
    tensors |= {"model_ema.diffusion_model" + name.replace(".", ""): tensor for name, tensor in averages.items()}
    more = {"model_ema.decay": torch.tensor(0.9), "model_ema.diffusion_modelmore": torch.zeros(2)}
    save_file({**tensors, **more}, tmp_path / "ema.safetensors")
    trained, found = (checkpoints.read(tmp_path / "ema.safetensors", ema) for ema in (False, True))
    same(trained.parts, {"unet": small["unet"]})
    same(found.parts, {"unet": averages})
    assert (trained.ema, found.ema, found.dropped) == (False, True, list(more))
    for ema, words in ((), "as trained; --ema takes their moving average"), (["--ema"], "their moving average (--ema)"):
        command(monkeypatch, "inspect", tmp_path / "ema.safetensors", *ema)
        assert f"weights     {words}\n" in capsys.readouterr().out
    emaonly = write_public(tmp_path / "only.safetensors", small, {"model_ema.decay": torch.tensor(0.9)})
    assert checkpoints.read(emaonly).ema is None
    command(monkeypatch, "inspect", emaonly)
    assert "weights" not in capsys.readouterr().out


def test_fill_casts_assigns_and_leaves_the_file_alone(tmp_path, small, header):
    path = tmp_path / "model.safetensors"
    checkpoints.write_single(path, {"controlnet": {n: t.half() for n, t in small["controlnet"].items()}}, header)
    before = sha256(path)
    for dtype in (torch.float32, torch.float16):
        found = checkpoints.read(path).parts["controlnet"]
        with torch.device("meta"):
            module = ControlNet(unet_config(header)).to(dtype)
        checkpoints.fill(module, found, path, "controlnet")
        weight = module.input_blocks[0][0].weight
        assert weight.dtype == dtype and weight.requires_grad
        assert torch.equal(weight.detach().half(), small["controlnet"]["input_blocks.0.0.weight"].half())
        with torch.no_grad():
            weight.add_(1)  # where nothing was cast this is a page of the mapped file
        assert sha256(path) == before


def unet_config(header):
    values = header["config"]["unet"]
    return UNetConfig(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def test_fill_is_strict(tmp_path, small, header):
    with torch.device("meta"):
        module = ControlNet(unet_config(header))
    good = small["controlnet"]
    bad = {name: tensor for name, tensor in good.items() if name != "time_embed.0.bias"}
    with pytest.raises(InputError, match=r"here: controlnet does not fit: 1 missing \(time_embed\.0\.bias\)"):
        checkpoints.fill(module, bad, "here", "controlnet")
    with pytest.raises(InputError, match=r"1 unknown \(more\)"):
        checkpoints.fill(module, {**good, "more": torch.zeros(1)}, "here", "controlnet")
    with pytest.raises(InputError, match=r"1 misshapen \(time_embed\.0\.bias \(3,\) for \(32,\)\)"):
        checkpoints.fill(module, {**good, "time_embed.0.bias": torch.zeros(3)}, "here", "controlnet")


def test_writing_refuses_what_is_not_whole_and_keeps_the_old_file(tmp_path, small, header):
    path = tmp_path / "model.safetensors"
    checkpoints.write_single(path, {"hed": small["hed"]}, header)
    before = sha256(path)
    broken = dict(small["unet"], **{"out.2.bias": torch.full((4,), float("nan"))})
    with pytest.raises(InputError, match=r"out\.2\.bias holds NaN"):
        checkpoints.write_single(path, {"unet": broken}, header)
    with pytest.raises(InputError, match=r"out\.2\.bias holds NaN"):
        checkpoints.write_diffusers(tmp_path / "folder", {"vae": small["vae"], "unet": broken}, header["config"])
    assert sha256(path) == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_command_line_exports_there_and_back(tmp_path, small, header, ledger, same, monkeypatch, capsys):
    ledger.write(tmp_path)
    first, folder, second = tmp_path / "first.safetensors", tmp_path / "folder", tmp_path / "second.safetensors"
    checkpoints.write_single(first, small, header)
    command(monkeypatch, "export", first, "--to", "diffusers", folder)
    command(monkeypatch, "export", folder, "--to", "single", second)
    assert "left out, for want of a place in this layout: hed, hed_v11" in capsys.readouterr().out
    found = checkpoints.read(second)
    same(found.parts, {part: small[part] for part in ("unet", "vae", "text", "controlnet")})
    made_from = [{"file": file.name, "sha256": sha256(file)} for file in [first, *checkpoints.read(folder).files]]
    assert (found.header["ancestry"], found.header["made_from"]) == (header["ancestry"], made_from)
    with safe_open(second, "pt") as opened:
        assert json.loads(opened.metadata()["emit"])["config"] == header["config"]


def test_command_line_inspects(tmp_path, small, header, monkeypatch, capsys):
    path = tmp_path / "model.safetensors"
    header |= {"made_from": [{"file": "v1-5-pruned.ckpt", "sha256": "f" * 64}], "losses": [0.5]}
    header["ancestry"].append({"stage": "fine-tuning", "cases": 1_350_000, "hashes": "e" * 64})
    checkpoints.write_single(path, {"hed": small["hed"], "vae": small["vae"]}, header)
    command(monkeypatch, "inspect", path)
    printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert printed == [
        "layout single",
        "version emit",
        "numbers float32",
        "prediction eps",
        f"part vae: {len(small['vae'])} tensors, {sum(t.numel() for t in small['vae'].values()):,} parameters",
        f"part hed: 38 tensors, {sum(tensor.numel() for tensor in small['hed'].values()):,} parameters",
        "sizes unet: Stable Diffusion 1.5's but model_channels 8, channel_mult [1, 2, 2], num_res_blocks 1, "
        "attention_levels [1, 2], heads 2, context_dim 16, groups 4, hint_channels [4, 6, 8]",
        "sizes vae: Stable Diffusion 1.5's but channels 8, channel_mult [1, 2, 2], num_res_blocks 1, groups 4, scale 0.5",
        "sizes text: Stable Diffusion 1.5's but width 16, layers 2, heads 2",
        "dropped 0",
        f"sha256 {sha256(path)} {path}",
        "ancestry pre-training: 1,200 cases",
        "ancestry fine-tuning: 1,350,000 cases",
        "made from v1-5-pruned.ckpt",
    ]


def write_public(path, small, more=()):
    """Write UNet and autoencoder as a public file does, without our header."""
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in small["unet"].items()}
    tensors |= {f"first_stage_model.{name}": tensor for name, tensor in small["vae"].items()}
    save_file({**tensors, **dict(more)}, path)
    return path


def test_prediction_of_a_second_version_must_be_given(tmp_path, small, monkeypatch, capsys):
    path = write_public(tmp_path / "model.safetensors", small)
    assert checkpoints.read(path).prediction == "unknown"
    command(monkeypatch, "inspect", path)
    assert "prediction  not stated: --prediction eps or v\n" in capsys.readouterr().out
    for layout in ("diffusers", "single"):
        with pytest.raises(SystemExit) as stopped:
            command(monkeypatch, "export", path, "--to", layout, tmp_path / layout)
        assert stopped.value.code == 2 and "--prediction eps or v" in capsys.readouterr().err
        assert not (tmp_path / layout).exists()
        command(monkeypatch, "export", path, "--to", layout, tmp_path / layout, "--prediction", "v")
        assert checkpoints.read(tmp_path / layout).prediction == "v"


@pytest.mark.parametrize(("asked", "expected"), [(None, "eps"), ("v", "v"), ("eps", "eps")])
def test_a_first_version_predicts_eps_unless_the_user_says_otherwise(tmp_path, small, monkeypatch, asked, expected):
    path = write_public(tmp_path / "model.safetensors", small)
    monkeypatch.setitem(recognise.PUBLIC, "sd1", checkpoints.read(path).sizes)
    assert checkpoints.read(path, prediction=asked).prediction == expected


def test_a_stated_prediction_is_not_overruled(tmp_path, small, header):
    path, folder = tmp_path / "model.safetensors", tmp_path / "folder"
    checkpoints.write_single(path, small, header)
    assert checkpoints.read(path, prediction="eps").prediction == "eps"
    with pytest.raises(InputError, match=r"safetensors: its header says eps, --prediction is v; give"):
        checkpoints.read(path, prediction="v")
    checkpoints.write_diffusers(folder, small, header["config"])
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({"prediction_type": "v_prediction"}))
    with pytest.raises(InputError, match=r"folder: its header says eps, its scheduler says v; give"):
        checkpoints.read(folder)
    strip_headers(folder)
    assert checkpoints.read(folder, prediction="v").prediction == "v"
    with pytest.raises(InputError, match=r"folder: its scheduler says v, --prediction is eps; give"):
        checkpoints.read(folder, prediction="eps")
    file.write_text(json.dumps({"prediction_type": "sample"}))
    with pytest.raises(InputError, match=r"scheduler_config\.json: prediction_type is sample; expected epsilon or v"):
        checkpoints.read(folder)


@pytest.mark.parametrize("prediction", [{}, {"prediction": "unknown"}])
def test_nothing_is_written_without_a_prediction(tmp_path, small, header, prediction):
    config = {name: value for name, value in header["config"].items() if name != "prediction"} | prediction
    for part in ("unet", "controlnet"):
        with pytest.raises(InputError, match="not known what the UNet predicts; give it: --prediction eps or v"):
            checkpoints.write_single(tmp_path / "model.safetensors", {part: small[part]}, {"config": config})
        with pytest.raises(InputError, match="not known what the UNet predicts; give it: --prediction eps or v"):
            checkpoints.write_diffusers(tmp_path / "folder", {part: small[part]}, config)
    assert not list(tmp_path.iterdir())
    checkpoints.write_single(tmp_path / "vae.safetensors", {"vae": small["vae"]}, {})


def test_a_header_above_the_formats_limit_is_named(tmp_path, small):
    path, header = tmp_path / "vae.safetensors", {"ancestry": ["x" * 101_000_000]}
    with pytest.raises(InputError, match=r"vae\.safetensors: a safetensors header holds at most 100 MB, not 101 MB; shorten"):
        checkpoints.write_single(path, {"vae": small["vae"]}, header)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("version", ["sd1", "sd2"])
def test_a_whole_folder_has_open_clips_tokenizer(tmp_path, small, header, version):
    pad = {"sd1": 49407, "sd2": 0}[version]
    header["config"]["text"].update(pad=pad)
    checkpoints.write_diffusers(tmp_path, small, header["config"])
    folder = tmp_path / "tokenizer"
    assert json.loads((tmp_path / "model_index.json").read_text())["tokenizer"] == ["transformers", "CLIPTokenizer"]
    vocabulary = json.loads((folder / "vocab.json").read_text())
    expected = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    assert vocabulary == {expected.get(word, word): place for word, place in SimpleTokenizer().encoder.items()}
    assert (vocabulary["!"], vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]) == (0, 49406, 49407)
    merges = gzip.decompress(Path(default_bpe()).read_bytes()).decode().splitlines()
    assert (folder / "merges.txt").read_text().splitlines() == ["#version: 0.2", *merges[1 : 49152 - 256 - 2 + 1]]
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    special = json.loads((folder / "special_tokens_map.json").read_text())
    assert (settings["model_max_length"], settings["tokenizer_class"]) == (77, "CLIPTokenizer")
    for stated in (settings["pad_token"], special["pad_token"]):
        assert vocabulary[stated["content"] if version == "sd2" else stated] == pad


def test_equal_models_are_equal_files(tmp_path, small, header):
    for name in ("one", "two", "three", "four"):  # safetensors shuffles metadata of several entries
        checkpoints.write_single(tmp_path / name, {"vae": small["vae"]}, header)
    assert len({(tmp_path / name).read_bytes() for name in ("one", "two", "three", "four")}) == 1
