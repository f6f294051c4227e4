"""Files of prompts: the same pictures from one run, from parts, and from runs that were killed."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from bksdm.cli.output_pattern import OutputPattern
from bksdm.cli.prompt_file import KEYS
from bksdm.runtime.generation_config import OPTIONS, GenerationConfig
from bksdm.runtime.images import read_parameters
from bksdm.runtime.pipeline import TextToImage

unix = pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
TEXT = "a dog\n\n a fox, 日本\r\na cat\na bee\na pig\na bus\na car\n"


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def draw_lines(run, tiny_bundle):
    """Run ``bksdm generate --prompts`` on the tiny bundle."""

    def call(path, output, *words):
        return run(
            "generate", "--prompts", path, "--model", tiny_bundle, "-s", 1, "-o", output, *words
        )

    return call


def contents(folder):
    """Every file of a folder, hidden ones too."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def manifest(folder):
    rows = (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(row) for row in rows]


def test_every_line_is_a_picture_of_its_own_seed(draw_lines, lines, tmp_path, run, tiny_bundle):
    folder = tmp_path / "a" / "b"
    code, out, err = draw_lines(lines, folder, "--seed", 5)
    # The second line is empty, and counts.
    names = [f"0000{n}.png" for n in (1, 3, 4, 5, 6, 7, 8)]
    assert (code, out.split()) == (0, [str(folder / name) for name in names])
    assert err == "7 drawn, 0 already there\n"
    assert sorted(contents(folder)) == [*names, "manifest.jsonl"]
    for entry, name in zip(manifest(folder), names, strict=True):
        assert entry["file"] == name
        assert entry["sha256"] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
        config = GenerationConfig.from_dict(entry["options"])
        assert config.seed == 5 + entry["line"] - 1
        found = read_parameters(folder / name)
        assert (found["prompt"], found["seed"]) == (config.prompt, str(config.seed))
        assert (found["model"], found["model_digest"]) == (entry["model"], entry["model_digest"])
    assert manifest(folder)[1]["options"]["prompt"] == "a fox, 日本"
    alone = tmp_path / "x.png"
    words = ["a fox, 日本", "--seed", 7, "--model", tiny_bundle, "-s", 1, "-o", alone]
    assert run("generate", *words)[0] == 0
    assert alone.read_bytes() == (folder / names[1]).read_bytes()


def test_what_is_there_is_kept(draw_lines, lines, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    assert draw_lines(lines, folder)[0] == 0
    before = contents(folder)
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.delattr(TextToImage, "load")
        assert draw_lines(lines, folder) == (0, "", "0 drawn, 7 already there\n")
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    # Missing, cut off, another picture with the record of this one, no picture, and not listed.
    (folder / "00001.png").unlink()
    (folder / "00003.png").write_bytes(before["00003.png"][:-100])
    with Image.open(folder / "00004.png") as picture:
        assert picture.size == (64, 64)
    (folder / "00004.png").write_bytes(before["00005.png"])
    (folder / "00006.png").write_bytes(b"")
    rows = before["manifest.jsonl"].decode().splitlines(keepends=True)
    (folder / "manifest.jsonl").write_text("".join(rows[:-1]), encoding="utf-8")
    assert draw_lines(lines, folder)[2] == "4 drawn, 3 already there\n"
    assert contents(folder) == before
    # Other options are other pictures.
    assert draw_lines(lines, folder, "--guidance", 2)[2] == "7 drawn, 0 already there\n"
    lines.write_text(TEXT.replace("cat", "cow"), encoding="utf-8")
    assert draw_lines(lines, folder, "--guidance", 2)[2] == "1 drawn, 6 already there\n"


def test_a_jpeg_that_was_changed_is_drawn_again(draw_lines, lines, tmp_path):
    """JPEG has no checksums; the list has."""
    pattern = tmp_path / "out" / "p{line:1}.jpg"
    assert draw_lines(lines, pattern)[0] == 0
    before = contents(tmp_path / "out")
    broken = bytearray(before["p3.jpg"])
    broken[-20] ^= 1
    (tmp_path / "out" / "p3.jpg").write_bytes(broken)
    assert draw_lines(lines, pattern)[2] == "1 drawn, 6 already there\n"
    assert contents(tmp_path / "out") == before
    assert draw_lines(lines, pattern, "--quality", 50)[2] == "7 drawn, 0 already there\n"


def test_parts_make_the_same_files(draw_lines, lines, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert draw_lines(lines, whole, "-n", 2)[0] == 0
    printed = [draw_lines(lines, parts, "-n", 2, "--shard", f"{n}/3")[1] for n in (3, 1, 2)]
    assert [len(out.split()) for out in printed] == [4, 6, 4]
    assert contents(parts) == contents(whole)
    link = tmp_path / "link"
    link.symlink_to(parts)
    assert draw_lines(lines, link, "-n", 2)[2] == "0 drawn, 14 already there\n"
    assert draw_lines(lines, parts, "-n", 2, "--shard", "9/9")[2] == "0 drawn, 0 already there\n"


def test_options_of_a_line(draw_lines, tmp_path):
    rows = [
        {"prompt": "a dog", "steps": 2, "seed": 9, "cfg_scale": 2, "negative": "fog"},
        {"prompt": ["a cat", "a fox"], "num_inference_steps": 3, "size": "72x64", "count": 2},
        {"prompt": "a bee", "sampler": "Euler a", "seed": [3, 4], "num_images_per_prompt": 2},
        {"prompt": "a pig", "seed": None, "guidance_interval": [0, 0.5], "prompt_weights": True},
    ]
    path = tmp_path / "x.jsonl"
    path.write_text("\ufeff" + "\n".join(map(json.dumps, rows)), encoding="utf-8")
    code, _, err = draw_lines(path, tmp_path / "out", "--seed", 100, "--eta", 0.25)
    assert code == 0
    found = {entry["file"]: entry["options"] for entry in manifest(tmp_path / "out")}
    assert list(found) == [
        "00001.png",
        *(f"00002{n}.png" for n in ("", "-2", "-3", "-4")),
        "00003.png",
        "00003-2.png",
        "00004.png",
    ]
    first, second, third, last = (found[f"0000{n}.png"] for n in (1, 2, 3, 4))
    assert (first["num_inference_steps"], first["seed"], first["guidance_scale"]) == (2, 9, 2.0)
    assert (first["negative_prompt"], first["eta"]) == ("fog", 0.25)
    # Once, however many lines it is so of.
    assert err.count("--eta does nothing with this sampler") == 1
    assert (second["prompt"], second["seed"]) == (["a cat", "a fox"], 101)
    assert (second["width"], second["height"], second["num_inference_steps"]) == (72, 64, 3)
    assert (third["sampler"], third["seed"]) == ("euler-a", [3, 4])
    assert (last["seed"], last["guidance_interval"]) == (103, [0.0, 0.5])
    assert set(KEYS.values()) == set(OPTIONS)


def test_standard_input_and_a_picture_to_start_from(draw_lines, tmp_path, monkeypatch, tiny_bundle):
    Image.effect_noise((64, 64), 50).save(tmp_path / "in.png")
    command = [
        sys.executable,
        "-m",
        "bksdm.cli",
        "generate",
        "--prompts",
        "-",
        "--steps",
        "2",
        "--model",
        str(tiny_bundle),
        "--image",
        "in.png",
        "-o",
        "out",
    ]
    row = '{ "prompt": "a dog", "strength": 0.5}\n{"prompt": "a fox"}'
    done = subprocess.run(command, input=row, text=True, cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stdout.split()) == (0, ["out/00001.png", "out/00002.png"])
    found = read_parameters(tmp_path / "out" / "00001.png")
    assert (found["image"], found["strength"]) == ("in.png", "0.5")
    done = subprocess.run(command, input=row, text=True, cwd=tmp_path, capture_output=True)
    assert done.stderr == "0 drawn, 2 already there\n"
    # Another picture of the same name.
    Image.effect_noise((64, 64), 90).save(tmp_path / "in.png")
    done = subprocess.run(command, input=row, text=True, cwd=tmp_path, capture_output=True)
    assert done.stderr == "2 drawn, 0 already there\n"


BAD = """{"prompt": "a", "stepps": 3}
nonsense

{"prompt": "a", "steps": 0}
{"steps": 2}
{"prompt": "a", "steps": 2, "num_inference_steps": 2}
{"prompt": "a", "strength": 0.5}
[1]
{"prompt": "a", "seed": [1, 2]}
{"prompt": "a dog"}
"""


def test_bad_lines_are_refused_all_at_once(draw_lines, tmp_path, monkeypatch):
    path = tmp_path / "x.jsonl"
    path.write_text(BAD)
    monkeypatch.delattr(TextToImage, "load")
    code, out, err = draw_lines(path, tmp_path / "out", "--eta", 0.5)
    assert (code, out) == (2, "")
    assert err == (
        f"bksdm: error: {path}: line 1: unknown option 'stepps'; did you mean steps?; "
        "line 2: not valid JSON (Expecting value at column 1); "
        "line 4: num_inference_steps must be a whole number from 1 to 100000, not 0; "
        "line 5: has no prompt; line 6: num_inference_steps is given twice; and 3 more lines\n"
    )
    assert not (tmp_path / "out").exists()
    path.write_text("\n".join(BAD.splitlines()[6:]))
    err = draw_lines(path, tmp_path / "out")[2]
    assert "line 1: strength needs an image to start from; line 2: must be a JSON object" in err
    assert "line 3: seed has 2 entries, but the number of images is 1\n" in err


def test_one_file_has_lines_of_one_form(draw_lines, tmp_path):
    path = tmp_path / "x.txt"
    path.write_text('a dog\r{"prompt": "a cat"}\r')
    assert draw_lines(path, tmp_path / "out")[2] == (
        f"bksdm: error: {path}: line 2: is a JSON object, but the first line is plain text; "
        "write all in one form\n"
    )


def test_pictures_of_lines_that_are_gone_are_named(draw_lines, tmp_path):
    path, folder = tmp_path / "x.txt", tmp_path / "out"
    path.write_text("a dog\ra cat\ra cow")
    assert draw_lines(path, folder, "-n", 2)[2] == "6 drawn, 0 already there\n"
    path.write_text("a dog\n\na cow\n")
    err = draw_lines(path, folder)[2]
    assert "00001-2.png and 3 more of an earlier run are of no line of" in err
    # A run of another name does not know these.
    assert "earlier" not in draw_lines(path, folder / "p{line}.png")[2]


REFUSED = [
    (["-o", "-"], "go to a folder, not to standard output"),
    (["-o", "x.png"], "x.png is one file; name a folder, or put {line} into the name, as in x-{li"),
    (["-o", "out/{seed}.png"], "only {line} or {line:03} may be in braces, not out/{seed}.png"),
    (["-o", "{line}/x.png"], "{line} belongs to the file's name, not to {line}"),
    (["-o", "out/{line}.gif"], "the name of a picture must end in one of .png"),
    (["-o", "out/{line}"], "the name of a picture must end in one of .png"),
    (["-o", "out", "--quality", "3"], "--quality is for JPEG and WebP"),
    (["-o", "prompts.txt"], "cannot make prompts.txt: no writable folder"),
    (["-o", "out", "--shard", "0/3"], "--shard: must look like 3/8, the third of eight parts"),
    (["-o", "out", "--shard", "4/3"], "--shard: must look like 3/8, the third of eight parts"),
    (["-o", "out", "--shard", "x"], "--shard: must look like 3/8, the third of eight parts"),
    (["-o", "out", "--seed", "1,2"], "--seed takes one number with --prompts"),
    (["-o", "out", "--seed", str(2**64 - 2)], "line 4: seed must be a whole number from"),
    (["-o", "out", "--save-steps", "s"], "--save-steps and --animate are for single pictures"),
    (["-o", "out", "a dog"], "prompts come from the command or from --prompts, not from both"),
    (["-o", "out", "-p", "a dog"], "prompts come from the command or from --prompts"),
    (["-o", "out", "--prompts", "no.txt"], "no.txt: no such file"),
    (["-o", "out", "--prompts", "empty.txt"], "empty.txt: holds no prompts"),
    (["-o", "out", "--prompts", "latin.txt"], "latin.txt: line 2: not UTF-8"),
    (["-o", "out", "--prompts", "-", "--image", "-"], "standard input cannot be both --prompts"),
    (["-o", "listed"], "listed/manifest.jsonl: not a list of pictures that"),
    ([], "--prompts needs -o FOLDER, or a pattern as -o pictures/{line}.jpg"),
]


@unix
@pytest.mark.parametrize(("words", "named"), REFUSED)
def test_what_cannot_be_is_refused_before_the_work(
    run, tiny_bundle, lines, tmp_path, monkeypatch, words, named
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr(TextToImage, "load")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes(b"a dog\na na\xefve fox\n")
    (tmp_path / "listed").mkdir()
    (tmp_path / "listed" / "manifest.jsonl").write_text('{"name": "x"}\n')
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run(
        "generate", "--model", tiny_bundle, "-s", 1, "--prompts", "prompts.txt", *words
    )
    assert (code, out) == (2, "")
    assert named in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_names_by_pattern(tmp_path):
    for text, line, name in [
        ("{line}.png", 7, "00007.png"),
        ("a{line:03}b.jpg", 7, "a007b.jpg"),
        ("{line:1}.png", 12, "12.png"),
        ("{line}.png", 10**6, "1000000.png"),
    ]:
        assert OutputPattern.read(str(tmp_path / text)).path(line) == tmp_path / name
    (tmp_path / "x{.png").mkdir()
    assert OutputPattern.read(str(tmp_path / "x{.png")).path(1) == tmp_path / "x{.png" / "00001.png"


def test_the_built_in_model_is_warned_of_once(run, tmp_path):
    (tmp_path / "x.txt").write_text("a dog\na lighthouse\na pier\n")
    err = run("generate", "--prompts", tmp_path / "x.txt", "-s", 1, "-o", tmp_path / "out")[2]
    assert err.count("warning") == 1
    assert "'a lighthouse' and 1 more prompts name nothing" in err


def command(bundle, path, folder, steps, *words):
    return [
        sys.executable,
        "-m",
        "bksdm.cli",
        "generate",
        "--prompts",
        str(path),
        "--model",
        str(bundle),
        "--steps",
        str(steps),
        "-o",
        str(folder),
        *words,
    ]


@unix
def test_runs_that_are_ended_leave_whole_pictures_and_go_on(tiny_bundle, lines, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "out"
    subprocess.run(command(tiny_bundle, lines, whole, 60), check=True, capture_output=True)
    ends = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
    for number, (sent, code) in enumerate(ends.items(), 1):
        with subprocess.Popen(
            command(tiny_bundle, lines, folder, 60),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.send_signal(sent)
            process.stdout.read()
            assert process.wait(30) == code
        assert len(manifest(folder)) >= number
        for path in folder.glob("[0-9]*"):
            with Image.open(path) as picture:
                picture.load()
    done = subprocess.run(
        command(tiny_bundle, lines, folder, 60), check=True, capture_output=True, text=True
    )
    assert " 0 already there" not in done.stderr
    assert contents(folder) == contents(whole)


@unix
def test_parts_that_run_side_by_side_list_every_picture(tiny_bundle, lines, tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "out"
    subprocess.run(command(tiny_bundle, lines, whole, 1), check=True, capture_output=True)

    def part(number):
        words = command(tiny_bundle, lines, folder, 1, "--shard", f"{number}/3")
        return subprocess.run(words, capture_output=True, check=False).returncode

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(part, (1, 2, 3))) == [0, 0, 0]
    assert contents(folder) == contents(whole)


@unix
@pytest.mark.slow
def test_three_parts_killed_again_and_again_are_one_run(tmp_path):
    """60 lines with the built-in model, three processes at a time."""
    path = tmp_path / "prompts.jsonl"
    rows = [
        {"prompt": f"a {what}, {colour} background", "count": 1 + (number % 5 == 0)}
        for number, (what, colour) in enumerate(
            (what, colour)
            for what in (
                "dog",
                "cat",
                "fox",
                "bee",
                "pig",
                "owl",
                "bus",
                "car",
                "star",
                "rocket",
                "house",
                "crown",
            )
            for colour in ("black", "blue", "pink", "green", "white")
        )
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    whole, folder = tmp_path / "whole", tmp_path / "out"
    subprocess.run(command("emoji", path, whole, 3), check=True, capture_output=True)
    assert len(manifest(whole)) == 72
    chance = random.Random(0)
    left = {1, 2, 3}
    killed = 0
    while left:
        running = {
            number: subprocess.Popen(
                command("emoji", path, folder, 3, "--shard", f"{number}/3"),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for number in left
        }
        for number, process in running.items():
            # In the middle of a picture, or of the start, however fast the machine draws.
            enough = len(list(folder.glob("*.png"))) + chance.randrange(4)
            while process.poll() is None and len(list(folder.glob("*.png"))) < enough:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.3))
            if killed < 12 and process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
            if process.wait() == 0:
                left.discard(number)
    assert killed >= 6
    subprocess.run(command("emoji", path, folder, 3), check=True, capture_output=True)
    found, expected = contents(folder), contents(whole)
    assert found == expected
    assert np.all(
        [hashlib.sha256(found[e["file"]]).hexdigest() == e["sha256"] for e in manifest(folder)]
    )


def test_a_key_that_is_given_twice_is_refused(run, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a dog", "seed": 1, "seed": 2}\n')
    code, _, err = run("generate", "--prompts", file, "-o", tmp_path / "out")
    assert code == 2
    assert "seed is given twice" in err
