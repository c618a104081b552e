"""Bad files and flags: one line and exit code 2, or the same result as before; no traceback, hang or silent acceptance.

Every reader meets good files of which one was changed: its function in a process of one file's changes, or the program itself.
A change may take 30 seconds and 2 GB.
"""

import collections
import fnmatch
import json
import os
import shutil

import pytest

pytest.importorskip("h5py")
from harness import PACKAGED, SCRIPTS
from inputs import SECONDS, Program, child, examine, keep, write_good

pytestmark = pytest.mark.slow
TARGETS = {  # file that is changed: its reader
    "bad/folders/images/p1.png": "folders",
    "bad/folders/images/p2.jpg": "folders",
    "bad/folders/images/p3.tif": "folders",
    "bad/folders/images/p4.bmp": "folders",
    "bad/folders/images/p5.tif": "folders",
    "bad/folders/masks/p1.png": "folders",
    "bad/folders/prompts.csv": "folders",
    "bad/nnunet/dataset.json": "nnunet",
    "bad/nnunet/splits_final.json": "nnunet",
    "bad/nnunet/imagesTr/a.nii.gz": "nnunet",
    "bad/nnunet/labelsTr/a.nii.gz": "nnunet",
    "bad/volume/ct.nii": "volume",
    "bad/volume/seg.nii": "volume",
    "fine/set.json": "set",
    "fine/splits.json": "set",
    "made/fold0/manifest.jsonl": "generated",
    "made/fold0/ledger.json": "generated",
    "made/fold0/images/*_000.png": "generated",
    "made/fold0/masks/*_000.png": "generated",
    "made/ledger/*.npy": "generated",
    "pre/model.safetensors": "model",
    "pre/hed.safetensors": "hed",
    "bad/hed.pt": "pt",
    "bad/hed_legacy.pt": "legacy",
    "bad/hed.h5": "h5",
    "bad/diffusers/unet/config.json": "diffusers",
    "bad/diffusers/scheduler/scheduler_config.json": "diffusers",
    "bad/diffusers/vae/diffusion_pytorch_model.safetensors": "diffusers",
    "seg/baseline/fold0_seed0/segmenter.safetensors": "segmenter",
    "seg/baseline/fold0_seed0/scores.json": "scores",
    "bad/run/config.json": "run",
    "bad/run/log.jsonl": "run",
    "bad/run/state.pt": "run",
    "bad/sampled.png": "sampled",
}
PROGRAMS = SCRIPTS | PACKAGED
FINE = {  # target and change that need not be refused: why
    "bad/folders/*: a palette without colours": "read as grey levels",
    "bad/folders/images/p?.tif: Lab": "another picture",
    "bad/folders/images/p?.tif: colours of 0": "another picture: its white is 0",
    "bad/folders/images/p?.tif: strips of 0": "another picture: the file says that its pixels begin with its first byte",
    "bad/folders/images/p?.tif: samples of *": "the entry is not there",
    "bad/folders/prompts.csv: a zero byte": "a letter of a prompt",
    "bad/nnunet/dataset.json: name *": "of the folder; any text is a name",
    "bad/nnunet/dataset.json: modality.0 outside": "any word but CT, US and PET stands for MR",
    "bad/nnunet/dataset.json: labels.0 missing": "background needs no name",
    "bad/nnunet/dataset.json: labels.? outside": "any text is a name",
    "bad/nnunet/dataset.json: numTraining *": "not read",
    "bad/nnunet/splits_final.json: 0 missing": "one fold less",
    "*.nii*: NaN scale": "by the standard there is no scale then",
    "*.nii*: endless scale": "as above",
    "*.nii*: a header of another size": "nibabel goes by the magic word",
    "bad/nnunet/imagesTr/*: fractions": "a volume of fractions",
    "bad/volume/ct.nii: fractions": "as above",
    "bad/volume/ct.nii: a huge scale": "a volume of huge numbers",
    "fine/set.json: set.* missing": "None, as before",
    "fine/set.json: run.real_cases missing": "as above",
    "fine/set.json: run.left_out *": "as above: nothing is left out",
    "fine/set.json: run.hint *": "a set of emit.dataset; the generator asks for stage 2's",
    "fine/set.json: *.seed *": "any number is a seed",
    "fine/set.json: set.validation a fraction": "any share is one",
    "fine/splits.json: 0 missing": "one fold less; a run that has begun refuses it",
    "made/fold0/manifest.jsonl: half": "a kill cut the last line off",
    "made/fold0/manifest.jsonl: last line cut": "as above",
    "made/fold0/manifest.jsonl: line 1 case outside": "any text is a name; a case without images is refused when it is drawn",
    "made/fold0/manifest.jsonl: line 1 prompt outside": "any text is a prompt",
    "made/fold0/manifest.jsonl: line 1 tissue*": "a remark in the report",
    "made/fold0/manifest.jsonl: line 1 compat*": "none",
    "made/fold0/ledger.json: ancestry emptied": "the report says: unknown",
    "made/fold0/ledger.json: ancestry.0 missing": "cannot be told: a generator may come from any weights",
    "made/fold0/ledger.json: ancestry.0.stage outside": "any text is a name",
    "bad/sampled.png: settings.*": "another picture is asked for, by value or by default",
    "bad/run/log.jsonl: *": "curves alone; a kill may cut its last line",
    "bad/run/config.json: settings.device *": "may change",
    "bad/run/config.json: settings.save_every *": "may change",
    "bad/run/config.json: settings.resume *": "may change",
    "bad/run/config.json: code*": "a remark",
    "bad/run/config.json: torch*": "a remark",
    "bad/run/config.json: inputs.*.path *": "files may be moved",
    "bad/run/config.json: inputs.* missing": "an input that is new, as the generator's later folds are",
    "seg/*/scores.json: a link to *": "the arm is scored anew",
    "seg/*/scores.json: * a fraction": "a number that was edited cannot be told from the first",
    "seg/*/scores.json: * negative": "as above",
    "seg/*/scores.json: * huge": "as above",
    "seg/*/scores.json: * endless": "as above",
    "seg/*/scores.json: *.? missing": "as above",
    "seg/*/scores.json: * emptied": "as above",
    "seg/*/scores.json: * outside": "any text is a name",
    "seg/*/scores.json: *.case other kind": "volumes have texts, generated images numbers",
    "seg/*/segmenter.safetensors: own header config.* missing": "the default, as before",
    "seg/*/segmenter.safetensors: own header reading.layout *": "not read",
    "seg/*/segmenter.safetensors: own header reading.labels *": "not read",
    "seg/*/segmenter.safetensors: own header reading.window null": "percentiles",
    "seg/*/segmenter.safetensors: own header reading.values.0 *": "background may have any value",
    "seg/*/segmenter.safetensors: own header classes.0 outside": "any text is a name",
    "seg/*/segmenter.safetensors: own header ancestry*": "not read by emit.predict",
    "*.safetensors: own header an empty object": "as a public file: what it has seen is unknown",
    "*.safetensors: own header ancestry missing": "as above",
    "*.safetensors: own header ancestry emptied": "as above",
    "*.safetensors: own header ancestry.0 missing": "as above",
    "*.safetensors: own header ancestry.0.stage outside": "any text is a name",
}
UNREAD = ("seed", "hint", "hed_size", "classes", "reading", "sampling", "negative", "precision", "weights", "synthetic", "vary")
UNREAD = (*UNREAD, "texture", "run_seed", "source", "edge_agreement")  # how the image was made
FINE |= {f"made/fold0/manifest.jsonl: line 1 {name}*": "not read" for name in UNREAD}


@pytest.fixture(scope="module")
def root(programs):
    for name in ("pre", "fine", "made", "seg"):
        programs.restore(name)
    write_good(programs.root)
    return programs.root


@pytest.mark.parametrize("target", TARGETS)
def test_a_bad_file_is_refused_or_changes_nothing(programs, root, target):
    path, log = sorted(root.glob(target))[0], root / "verdicts.jsonl"
    log.write_text("")
    process = programs.context.Process(target=child, args=(examine, programs.log, TARGETS[target], root, path, log))
    process.start(), process.join()
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    if os.environ.get("EMIT_RECORD"):
        with open(os.environ["EMIT_RECORD"], "a") as file:
            file.writelines(json.dumps({"target": target} | row) + "\n" for row in rows)
    found = {row["change"]: row["verdict"] for row in rows}
    accepted = {name for name, verdict in found.items() if verdict in ("same", "other")}
    fine = {name for name in accepted if any(fnmatch.fnmatch(f"{target}: {name}", pattern) for pattern in FINE)}
    print(target, collections.Counter(verdict.split(":")[0] for verdict in found.values()))
    assert process.exitcode == 0 and len(found) > 10, programs.log.read_text()[-2000:]
    assert {name: verdict for name, verdict in found.items() if verdict != "refused" and name not in fine} == {}


# ---- the programs


TWENTY, DIGIT = "9" * 20, "\u00b2"  # a superscript two is a digit, and no number
FLAGS = {  # program: flags beside good ones
    "pre": [
        "--steps 0",
        f"--batch {TWENTY}",
        "--batch 3",
        "--size 100000",
        "--size 15",
        "--lr nan",
        "--lr 0",
        f"--seed {TWENTY}",
        "--warmup 4",
        "--accumulate 3",
        "--caption-dropout 1.5",
        "--precision fp16",
        "--device cuda:99",
        "--device tpu",
        "--data nowhere",
        "--hed nowhere",
        "--vae-steps 0",
        "--weights nowhere",
        f"--vae-batch {TWENTY}",
        "--kl-weight -1",
    ],
    "set": [
        "--folds 0",
        "--folds 2000000000",
        "--folds 9",
        "--validation 1",
        "--window 5,1",
        "--labels 1",
        "--group (",
        "--group x(y)",
        "--duplicates 2",
        "--slabs 2",
        "--layout x",
        "--modality CT",
        "--axis 3",
        f"--axis {DIGIT}",
        "--splits nowhere",
        "--data x",
    ],
    "fine": [
        f"--fold {DIGIT}",
        "--fold -1",
        "--fold 2",
        "--size 33",
        "--size 0",
        "--crop 2,1",
        "--hint x",
        "--model nowhere",
        f"--hed-size {TWENTY}",
        f"--real-cases {TWENTY}",
        "--real-cases 7",
    ],
    "made": [
        "--steps 1001",
        "--steps 0",
        "--guidance inf",
        "--n 0",
        f"--n {TWENTY}",
        f"--batch {TWENTY}",
        "--sweep guidance=",
        "--sweep guidance=1,x",
        "--sweep guidance=1,1",
        "--sweep seed=1",
        "--eta 2",
        "--phrases 2",
        "--compat x",
        f"--fold {DIGIT}",
        "--spacing leading --steps 1000",
        "--vary -1",
        "--texture 2",
        "--finetuned nowhere",
        "--tissue nowhere",
    ],
    "seg": [
        "--channels 0,8",
        f"--channels {TWENTY}",
        "--channels x",
        "--arms x",
        "--patches 100",
        "--patches 0",
        "--alpha 2",
        "--keep-best 0",
        "--n 0",
        "--test nowhere",
        "--steps 1e3",
        "--sweep n=0",
        "--sweep n=x",
        f"--batch {TWENTY}",
        "--seeds 0",
        "--tolerance -1",
        "--real-cases 1",
        "--unknown 1",
        "--step 4",
        "--oracle nowhere",
        "--size 100",
    ],
}
FILES = {  # (program, flags, file that is changed): the change
    ("pre", "--resume", "pre/config.json"): b"{}",
    ("pre", "--resume", "pre/vae/state.pt"): b"PK",
    ("pre", "", "phantoms/radiology_ai/US/breast/*/*_0.png"): "a FIFO",
    ("pre", "", "phantoms/radiology_ai/CT/abd/*/*_0.png"): "a new name",
    ("set", "", "phantoms/BUSI/benign/benign (1).png"): "a FIFO",
    ("set", "", "phantoms/BUSI/benign/benign (2).png"): "a new name",
    ("set", "", "phantoms/BUSI/benign/benign (1)_mask.png"): b"BM",
    ("fine", "--resume", "fine/config.json"): b"[1, 2]",
    ("fine", "", "set/splits.json"): b'[{"train": [["a"]], "validation": 5, "test": []}]',
    ("fine", "", "pre/model.safetensors"): b"{" * 100,
    ("made", "--resume", "made/fold0/manifest.jsonl"): b"null\n",
    ("made", "", "fine/set.json"): b'{"set": {}, "run": []}',
    ("made", "", "fine/fold0/controlnet.safetensors"): b"",
    ("seg", "", "made/fold0/manifest.jsonl"): b'{"file": "../../x.png"}\n',
    ("seg", "", "made/fold0/ledger.json"): b"{}",
    ("seg", "--resume", "seg/baseline/fold0_seed0/scores.json"): b'{"rows": [1], "fidelity": 2}',
    ("seg", "--resume", "seg/config.json"): b'{"settings": [], "inputs": 3}',
}


def run(programs, name, flags, out):
    """Run a program with the words of a good run, and these; return its exit code and what it printed."""
    words = [*programs.commands[name], *flags.split(), *([] if "--resume" in flags else ["--out", str(out)])]
    process = programs.context.Process(target=child, args=(Program((PROGRAMS[name], *words)), programs.log))
    process.start(), process.join(SECONDS)
    process.kill(), process.join()
    return process.exitcode, programs.said().strip().splitlines()


def refused(code, said):
    return code == 2 and said[-1].startswith("error: ") and not any("Traceback" in line for line in said)


@pytest.mark.parametrize("name", FLAGS)
def test_bad_flags_are_refused_before_anything_is_written(programs, root, name):
    wrong, out = {}, root / "refused"
    for flags in FLAGS[name]:
        code, said = run(programs, name, flags, out)
        if not refused(code, said) or out.exists():
            wrong[flags] = code, said[-1:], sorted(map(str, out.rglob("*")))[:3]
            shutil.rmtree(out, ignore_errors=True)
    assert wrong == {}


@pytest.mark.parametrize(("name", "flags", "file"), FILES)
def test_a_program_refuses_a_bad_file(programs, root, name, flags, file):
    path, change = sorted(root.glob(file))[0], FILES[name, flags, file]
    spare = keep(path, root / "spare")
    moved = path.rename(path.with_name("two\nlines.png")) if change == "a new name" else None
    if change == "a FIFO":
        path.unlink(), os.mkfifo(path)
    elif moved is None:
        path.write_bytes(change)
    code, said = run(programs, name, flags, root / "refused")
    keep(spare, path)
    if moved:
        moved.unlink()
    shutil.rmtree(root / "refused", ignore_errors=True)
    assert refused(code, said), said[-5:]
