"""Random numbers go through every layout and come back bit for bit: a copy, a rename or a cut has no rounding error."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer, default_bpe
from safetensors.torch import load_file, save_file

from emit import checkpoints
from emit.checkpoints.sizes import PUBLIC, network
from emit.errors import InputError
from emit.files import sha256
from tests.checkpoints.conftest import SIZES


def halved(parts):
    return {part: {name: tensor.half() for name, tensor in own.items()} for part, own in parts.items()}


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt"])
def test_single_file_with_header(tmp_path, small, header, same, name):
    checkpoints.write_single(tmp_path / name, small, header)
    found = checkpoints.read(tmp_path / name)
    same(found.parts, small)
    assert (found.sizes, found.prediction) == ({part: SIZES[part] for part in small}, "eps")
    assert json.loads(json.dumps([found.header, found.config])) == [header, header["config"]]
    assert (found.dropped, found.ema) == ([], None)
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o644  # others can read it


def test_text_names_follow_the_version(tmp_path, small, header, same):
    path, text = tmp_path / "text.safetensors", {"text": small["text"]}
    checkpoints.write_single(path, text, header)
    key = load_file(path)["cond_stage_model.transformer.text_model.encoder.layers.1.self_attn.k_proj.weight"]
    assert torch.equal(key, small["text"]["transformer.resblocks.1.attn.in_proj_weight"][16:32])  # q, k, v; 16 rows each
    header["config"]["text"]["quick_gelu"] = False
    checkpoints.write_single(path, text, header)
    assert "cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight" in load_file(path)
    same(checkpoints.read(path).parts, text)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapped", [True, False], ids=["state_dict", "bare"])
def test_pickles(tmp_path, small, same, zipped, wrapped):
    tensors = {f"control_model.{name}": tensor for name, tensor in small["controlnet"].items()}
    content = {"state_dict": tensors, "epoch": 3} if wrapped else tensors
    torch.save(content, tmp_path / "model.ckpt", _use_new_zipfile_serialization=zipped)
    same(checkpoints.read(tmp_path / "model.ckpt").parts, {"controlnet": small["controlnet"]})


@pytest.mark.parametrize("part", ["hed", "hed_v11"])
def test_hed_of_any_widths(tmp_path, random, same, part):
    parts = {part: random[part]}
    torch.save(halved(parts)[part], tmp_path / "hed.pth")
    same(checkpoints.read(tmp_path / "hed.pth").parts, halved(parts))
    checkpoints.write_single(tmp_path / "hed.safetensors", parts, {})
    found = checkpoints.read(tmp_path / "hed.safetensors")
    same(found.parts, parts)
    assert found.sizes == {part: (2, 3, 4, 5, 6)}
    with pytest.raises(InputError, match=f"diffusers has no place for {part}; write a single file"):
        checkpoints.write_diffusers(tmp_path / "folder", parts, {})


def test_folder(tmp_path, small, header, same):
    checkpoints.write_diffusers(tmp_path, small, header["config"], header)
    found = checkpoints.read(tmp_path)
    same(found.parts, small)
    assert (found.prediction, found.header) == ("eps", header)
    vae = load_file(tmp_path / "vae/diffusion_pytorch_model.safetensors")
    assert vae["decoder.mid_block.attentions.0.to_q.weight"].shape == (16, 16)
    level_2 = vae["decoder.up_blocks.0.resnets.0.conv1.weight"]  # three levels: up_blocks.0 runs first, at level 2
    assert torch.equal(level_2, small["vae"]["decoder.up.2.block.0.conv1.weight"])
    for place, part in ("unet", "unet"), ("vae/diffusion_pytorch_model.safetensors", "vae"):
        same(checkpoints.read(tmp_path / place).parts, {part: small[part]})


def strip_headers(folder):
    """Turn our folder into a foreign one: the same tensors without our header."""
    for file in folder.rglob("*.safetensors"):
        save_file({name: tensor.clone() for name, tensor in load_file(file).items()}, file)


@pytest.mark.parametrize("heads", [{"heads": 4, "head_size": None}, {"heads": None, "head_size": 4}], ids=["heads", "size"])
def test_foreign_folder_gives_sizes_from_its_configs(tmp_path, small, header, monkeypatch, heads):
    monkeypatch.undo()  # the sizes are not public
    header["config"]["unet"] |= heads
    header["config"]["prediction"] = "v"
    checkpoints.write_diffusers(tmp_path, small, header["config"])
    expected = {"heads": [4, 4, 4], "size": [2, 4, 4]}["heads" if heads["heads"] else "size"]
    assert json.loads((tmp_path / "unet/config.json").read_text())["attention_head_dim"] == expected
    strip_headers(tmp_path)
    found = checkpoints.read(tmp_path)
    assert found.header == {} and json.loads(json.dumps(found.config)) == header["config"]


def test_old_attention_names_and_fp16_variant(tmp_path, small, header, same):
    checkpoints.write_diffusers(tmp_path, {"vae": small["vae"]}, header["config"])
    file = tmp_path / "vae/diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in load_file(file).items():
        for new_name, old_name in old.items():
            name = name.replace(f"attentions.0.{new_name}.", f"attentions.0.{old_name}.")
        tensors[name] = tensor.half()
    key = "encoder.mid_block.attentions.0.key.weight"
    tensors[key] = tensors[key][..., None, None]  # some are still convolutions
    file.unlink()
    save_file(tensors, tmp_path / "vae/diffusion_pytorch_model.fp16.safetensors")
    same(checkpoints.read(tmp_path).parts, halved({"vae": small["vae"]}))


def write_public(path, small, more=()):
    """Write UNet and autoencoder as a public file does, without our header."""
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in small["unet"].items()}
    tensors |= {f"first_stage_model.{name}": tensor for name, tensor in small["vae"].items()}
    save_file({**tensors, **dict(more)}, path)
    return path


def test_ema_on_request_only(tmp_path, small, same, command):
    averages = {name: tensor + 1 for name, tensor in small["unet"].items()}
    used = {"model_ema.diffusion_model" + name.replace(".", ""): tensor for name, tensor in averages.items()}
    more = {"model_ema.decay": torch.tensor(0.9), "model_ema.diffusion_modelmore": torch.zeros(2)}
    path = write_public(tmp_path / "ema.safetensors", small, used | more)
    trained, found = (checkpoints.read(path, ema) for ema in (False, True))
    same(trained.parts, {"unet": small["unet"], "vae": small["vae"]})
    same(found.parts, {"unet": averages, "vae": small["vae"]})
    assert (trained.ema, found.ema, found.dropped) == (False, True, list(more))
    assert "weights     as trained; --ema takes their moving average\n" in command("inspect", path)
    assert "weights     their moving average (--ema)\n" in command("inspect", path, "--ema")
    used.popitem()
    with pytest.raises(InputError, match=r"unet does not fit: .*Missing"):
        checkpoints.read(write_public(path, small, used), ema=True)
    emaonly = write_public(tmp_path / "only.safetensors", small, {"model_ema.decay": torch.tensor(0.9)})
    assert checkpoints.read(emaonly).ema is None and "weights" not in command("inspect", emaonly)
    checkpoints.write_single(path, {"controlnet": small["controlnet"]}, {"config": {"prediction": "eps"}})
    for without in (emaonly, path):
        with pytest.raises(InputError, match="holds no EMA"):
            checkpoints.read(without, ema=True)


def test_fill_casts_assigns_is_strict_and_leaves_the_file_alone(tmp_path, small, header):
    path = tmp_path / "model.safetensors"
    checkpoints.write_single(path, halved({"controlnet": small["controlnet"]}), header)
    before = sha256(path)
    for dtype in (torch.float32, torch.float16):
        found = checkpoints.read(path).parts["controlnet"]
        module = checkpoints.fill(network("controlnet", SIZES["controlnet"]).to(dtype), found, path, "controlnet")
        weight = module.input_blocks[0][0].weight
        assert weight.dtype == dtype and weight.requires_grad
        assert torch.equal(weight.detach().half(), small["controlnet"]["input_blocks.0.0.weight"].half())
        with torch.no_grad():
            weight.add_(1)  # where nothing was cast this is a page of the mapped file
        assert sha256(path) == before
    bias = "time_embed.0.bias"
    missing = {name: tensor for name, tensor in found.items() if name != bias}
    more, misshapen = {**found, "more": torch.zeros(1)}, {**found, bias: found[bias][:3]}
    for bad, words in (missing, "Missing"), (more, "Unexpected"), (misshapen, "size mismatch"):
        with pytest.raises(InputError, match=f"here: controlnet does not fit: .*{words}"):
            checkpoints.fill(module, bad, "here", "controlnet")


def test_writing_refuses_what_is_not_finite_and_keeps_the_old_file(tmp_path, small, header):
    path = tmp_path / "model.safetensors"
    checkpoints.write_single(path, {"vae": small["vae"]}, header)
    before = sha256(path)
    broken = small["unet"] | {"out.2.bias": torch.full((4,), float("nan"))}
    with pytest.raises(InputError, match=r"out\.2\.bias holds NaN"):
        checkpoints.write_single(path, {"unet": broken}, header)
    with pytest.raises(InputError, match=r"out\.2\.bias holds NaN"):
        checkpoints.write_diffusers(tmp_path / "folder", {"vae": small["vae"], "unet": broken}, header["config"])
    assert sha256(path) == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_command_line_exports_there_and_back(tmp_path, small, header, ledger, same, command):
    ledger.write(tmp_path)
    first, folder, second = tmp_path / "first.safetensors", tmp_path / "folder", tmp_path / "second.safetensors"
    checkpoints.write_single(first, small, header)
    command("export", first, "--to", "diffusers", folder)
    assert command("export", folder, "--to", "single", second) == f"{second}: unet, vae, text, controlnet\n"
    found = checkpoints.read(second)
    same(found.parts, small)
    assert found.header == header
    assert first.read_bytes() == second.read_bytes()


def test_command_line_inspects(tmp_path, small, header, command):
    path = tmp_path / "model.safetensors"
    header["ancestry"].append({"stage": "fine-tuning", "cases": 1_350_000, "hashes": "e" * 64})
    checkpoints.write_single(path, {"vae": small["vae"]}, header)
    printed = [" ".join(line.split()) for line in command("inspect", path).splitlines()]
    assert printed == [
        "version sd1",
        "prediction eps",
        f"part vae: {len(small['vae'])} tensors, {sum(t.numel() for t in small['vae'].values()):,} parameters, float32",
        "sizes VAEConfig(channels=8, channel_mult=(1, 2, 2), num_res_blocks=1, z_channels=4, groups=4, scale=0.5)",
        "dropped 0",
        f"sha256 {sha256(path)}",
        "ancestry pre-training: 1,200 cases",
        "ancestry fine-tuning: 1,350,000 cases",
    ]


def test_prediction_of_a_second_version_must_be_given(tmp_path, small, command, monkeypatch, capsys):
    monkeypatch.setitem(PUBLIC, "sd2", PUBLIC["sd1"])  # then it shows no more than that it is one of the two
    path = write_public(tmp_path / "model.safetensors", small)
    assert checkpoints.read(path).prediction is None
    assert "prediction  not stated: --prediction eps or v\n" in command("inspect", path)
    for layout in ("diffusers", "single"):
        with pytest.raises(SystemExit) as stopped:
            command("export", path, "--to", layout, tmp_path / layout)
        assert stopped.value.code == 2 and "--prediction eps or v" in capsys.readouterr().err
        assert not (tmp_path / layout).exists()
        command("export", path, "--to", layout, tmp_path / layout, "--prediction", "v")
        assert checkpoints.read(tmp_path / layout).prediction == "v"


def test_a_first_version_predicts_eps_unless_the_user_says_otherwise(tmp_path, small):
    path = write_public(tmp_path / "model.safetensors", small)
    assert [checkpoints.read(path, prediction=asked).prediction for asked in (None, "v", "eps")] == ["eps", "v", "eps"]


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
    with pytest.raises(InputError, match=r"folder: its scheduler says sample; give"):
        checkpoints.read(folder)


@pytest.mark.parametrize("part", ["unet", "controlnet"])
def test_nothing_is_written_without_a_prediction(tmp_path, small, header, part):
    del header["config"]["prediction"]
    for write, given in (checkpoints.write_single, header), (checkpoints.write_diffusers, header["config"]):
        with pytest.raises(InputError, match="not known what the UNet predicts; give it: --prediction eps or v"):
            write(tmp_path / "model", {part: small[part]}, given)
    assert not list(tmp_path.iterdir())
    checkpoints.write_single(tmp_path / "vae.safetensors", {"vae": small["vae"]}, header)


@pytest.mark.parametrize("version", ["sd1", "sd2"])
def test_a_whole_folder_has_open_clips_tokenizer(tmp_path, small, header, version):
    pad = {"sd1": 49407, "sd2": 0}[version]
    header["config"]["text"].update(pad=pad)
    checkpoints.write_diffusers(tmp_path, small, header["config"])
    assert json.loads((tmp_path / "model_index.json").read_text())["tokenizer"] == ["transformers", "CLIPTokenizer"]
    folder = tmp_path / "tokenizer"
    vocabulary, settings, special = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("vocab", "tokenizer_config", "special_tokens_map")
    )
    expected = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    assert vocabulary == {expected.get(word, word): place for word, place in SimpleTokenizer().encoder.items()}
    assert (vocabulary["!"], vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]) == (0, 49406, 49407)
    merges = gzip.decompress(Path(default_bpe()).read_bytes()).decode().splitlines()
    assert (folder / "merges.txt").read_text().splitlines() == ["#version: 0.2", *merges[1 : 49152 - 256 - 2 + 1]]
    assert (settings["model_max_length"], settings["tokenizer_class"]) == (77, "CLIPTokenizer")
    for stated in (settings["pad_token"], special["pad_token"]):
        assert vocabulary[stated["content"] if version == "sd2" else stated] == pad


def test_equal_models_are_equal_files(tmp_path, small, header):
    for name in ("one", "two", "three", "four"):  # safetensors shuffles metadata of several entries
        checkpoints.write_single(tmp_path / name, {"vae": small["vae"]}, header)
    assert len({(tmp_path / name).read_bytes() for name in ("one", "two", "three", "four")}) == 1
