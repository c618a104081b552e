"""What everything stands on: errors, seeds, whole files."""

import errno
import hashlib
import os
import re
import signal
import sys
import tomllib
from pathlib import Path
from typing import Literal

import pytest
import torch

from emit import commands, errors
from emit.errors import SIGNALS, InputError, asked_to_stop, deferred, program, run
from emit.files import find_misfit, read_json, sha256, write_atomic
from emit.seeds import SeededNoise, generator, seed_from

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def handlers():
    """Give the signals back to pytest."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    errors._Deferred.signal = None
    for number, handler in before.items():
        signal.signal(number, handler)


def test_input_error_is_one_line_and_exit_code_2_and_other_errors_are_not_hidden(capsys, handlers):
    def main(error):
        raise error

    with pytest.raises(SystemExit) as stopped:
        run(lambda: main(InputError("a.png: is\n  broken; remove it")))
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: a.png: is broken; remove it\n"
    with pytest.raises(ZeroDivisionError):
        run(lambda: main(ZeroDivisionError()))


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_exit_code_128_and_its_number_and_says_how_to_go_on(number, capsys, monkeypatch, handlers):
    monkeypatch.setattr("sys.argv", ["train_x.py", "--out", "a b"])
    monkeypatch.setattr("sys.orig_argv", ["python3", "train_x.py", "--out", "a b"])
    for again, words in (("--resume", " --resume"), ("", "")):
        with pytest.raises(SystemExit) as stopped:
            run(lambda: os.kill(os.getpid(), number), again)
        assert stopped.value.code == 128 + number
        assert capsys.readouterr().err == f"\nstopped by {number.name}; go on with: python train_x.py --out 'a b'{words}\n"


def test_under_torchrun_one_process_says_how_to_go_on(capsys, monkeypatch, handlers):
    monkeypatch.setattr("sys.argv", ["train_x.py"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, words in (("0", "go on with: the same torchrun command and --resume"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit):
            run(lambda: os.kill(os.getpid(), signal.SIGTERM))
        said = capsys.readouterr().err
        assert words in said and bool(said) == (rank == "0")


def test_a_signal_waits_for_the_step_and_a_second_one_does_not(handlers):
    done = []

    def main():
        with deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append(asked_to_stop())
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("not reached")

    with pytest.raises(SystemExit) as stopped:
        run(main)
    assert stopped.value.code == 143 and done == [signal.SIGTERM]


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["train_seg.py"], ["python", "train_seg.py"]),
        (["/usr/bin/emit-seg"], ["emit-seg"]),
        (["-m", "emit.generate"], ["python", "-m", "emit.generate"]),
    ],
)
def test_a_program_knows_how_it_was_called(monkeypatch, words, shown):
    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python3", *words, "--x", "1"])
    monkeypatch.setattr(sys, "argv", ["/x/name.py", "--x", "1"])
    assert program() == shown


def test_every_installed_command_has_a_main():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert len(scripts) >= 8
    for target in scripts.values():
        module, _, name = target.partition(":")
        assert module == "emit.commands" and callable(getattr(commands, name))


def test_a_seed_is_the_head_of_a_sha256_and_tells_its_parts_apart():
    digest = hashlib.sha256(b"a\x1f1").hexdigest()
    assert seed_from("a", 1) == int(digest[:16], 16) // 2 == 4742018630964328543
    seeds = {seed_from(*parts) for parts in [("a", 1), ("a", 2), ("a1",), (1, "a"), ("a", 1, ""), ("a", 11), ("a1", 1)]}
    assert len(seeds) == 7 and all(0 <= seed < 2**63 for seed in seeds)


def test_generator_repeats_and_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    first, again, other = (torch.randn(4, generator=generator(*parts)) for parts in [("a", 1), ("a", 1), ("a", 2)])
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeded_noise_is_the_same_in_any_batch_and_standard_normal():
    together, alone = SeededNoise([5, 6, 7], (2, 3)), SeededNoise([6], (2, 3))
    for _ in range(3):  # each call moves on by the same amount in both
        assert torch.equal(together()[1:2], alone())
    assert not torch.equal(together()[0], together()[0])
    noise = SeededNoise(range(100), (1000,))()
    assert abs(noise.mean()) < 0.013  # four standard errors of 1e5 draws: 4 / sqrt(1e5)
    assert abs(noise.var() - 1) < 0.018  # 4 sqrt(2 / 1e5)


def test_sha256_of_a_known_text_and_of_a_missing_file(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")  # the example of FIPS 180-2, appendix B.1
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(InputError, match=r"nothing\.bin: cannot be read"):
        sha256(tmp_path / "nothing.bin")


KINDS = {  # of JSON: values that fit, and what is said of one that does not
    str: (["x"], 5, "it is 5, not str"),
    int: ([0, 10**30], True, "it is True, not int"),
    float: ([0, 0.5], "x", "it is 'x', not float"),
    bool: ([True], 1, "it is 1, not bool"),
    str | None: (["x", None], [], r"it is \[\], not str | None"),
    range(3): ([0, 2], 3, r"it is 3, not range\(0, 3\)"),
    (None, range(3)): ([1, None], 1.0, "it is 1.0, not"),
    tuple[float, ...]: ([[], [1]], [1, "x"], r"it\[1\] is 'x', not float"),
    dict[str, list[int]]: ([{}, {"a": [1]}], {"a": ["x"]}, r"a\[0\] is 'x', not int"),
    Literal["a", "b"]: (["a"], "c", "it is 'c', not"),
    Path: (["x"], None, "it is None, not Path"),
}


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_value_that_is_not_of_a_kind_is_named(kind):
    good, bad, said = KINDS[kind]
    assert [find_misfit(value, kind) for value in good] == [None] * len(good)
    assert re.match(said, find_misfit(bad, kind))
    assert find_misfit([{"a": good[0], "more": 1}], [{"a": kind}]) is None  # an object may hold more
    assert find_misfit([{"a": bad}], [{"a": kind}]).startswith("a") and "it[0] is 5, not" in find_misfit([5], [{"a": kind}])


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": "x"}', b"\xff", b"[" * 10**5, b"1" * 5000])
def test_a_bad_json_file_is_one_line(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=r"x.json: (is damaged|cannot be read) \(.*\); copy"):
        read_json(tmp_path / "x.json", {"a": int})
    os.mkfifo(tmp_path / "pipe")
    for name in ("none.json", "pipe", "."):
        with pytest.raises(InputError, match="cannot be read"):
            read_json(tmp_path / name, dict)


def test_write_atomic_creates_a_file_and_replaces_it_at_once(tmp_path):
    path = tmp_path / "new" / "file.txt"

    def write(temporary):
        assert temporary.parent == path.parent  # the same disk: the last step is a rename
        temporary.write_text("half")
        assert not path.exists() or path.read_text() == "first"
        temporary.write_text(text)

    for text in ("first", "second"):
        write_atomic(path, write)
        assert path.read_text() == text
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]
    with pytest.raises(InputError, match="could not be written"):
        write_atomic(path / "inside.txt", write)  # that is no folder


@pytest.mark.parametrize(
    "failure, seen, words",
    [
        (OSError(errno.ENOSPC, "No space left on device"), InputError, "No space left on device.*free space"),
        (RuntimeError("[enforce fail]\nunexpected pos"), InputError, "enforce fail. unexpected pos.*free space"),
        (ValueError("a fault of ours"), ValueError, "a fault of ours"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_write_atomic_keeps_the_old_file_when_writing_fails(tmp_path, failure, seen, words):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("ha")
        raise failure

    with pytest.raises(seen, match=words):
        write_atomic(path, write)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]
