"""The parts of the C++ library beside those of the Python package."""

from __future__ import annotations

import json
import random
import subprocess
import warnings

import numpy as np
import pytest

from bksdm.models import EMOJI
from bksdm.runtime.bundle import Bundle
from bksdm.runtime.bundle_tables import WantedTable, tables_of
from bksdm.runtime.noise import TorchCpuGenerator
from bksdm.runtime.samplers import step_table
from bksdm.runtime.tokenizer import Tokenizer, TruncationWarning

from .conftest import execute

PROMPT = """a the lighthouse at dusk painting's they're we'll I'd I'M portrait, 4k 8K!! (red:1.3)
ARTSTATION — “quoted” naïve café Ünïcödé straße İstanbul ΑΣ Σ 日本語 한국어 नमस्ते 👩🏽‍🚀 e\u0301
A\u030a \u212b ﬁ <|startoftext|> <|endoftext|> <|StartOfText|> don''t ''s !'s x'll'd 1234 ½ ² Ⅷ ٣
'S 'Re _ @@@ ..."""
WORDS = [*PROMPT.split(), "'''s", "\t\n", "\u00a0", "\u3000", "\u200b", "\x85", "\u2028"]
BLOCKS = (
    *((0x20, 0x7F), (0xA0, 0x600), (0x300, 0x370), (0x600, 0xE00), (0xE00, 0x1200)),
    *((0x1E00, 0x3000), (0x3000, 0xD800), (0xE000, 0x10000), (0x10000, 0x20000), (1, 0x110000)),
)


def texts(count, seed):
    """Return prompts, and Unicode at random: of one block, or of all."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        if number % 2:
            parts = [draw.choice(WORDS) for _ in range(draw.randrange(30))]
            found.append(draw.choice((" ", "  ", "")).join(parts))
            continue
        blocks = draw.sample(BLOCKS, 2)
        characters = [draw.randrange(*draw.choice(blocks)) for _ in range(draw.randrange(60))]
        found.append("".join(chr(x) for x in characters if not 0xD800 <= x < 0xE000))
    return found


def same_tokens(built, folder, prompts):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        wanted = Tokenizer.load(folder)(prompts)
    told = built.probe("tokens", folder, input="\0".join([*prompts, ""]).encode())
    np.testing.assert_array_equal(np.array([row.split() for row in told.splitlines()], int), wanted)


def test_the_tokenizer_on_20000_texts(built):
    same_tokens(built, EMOJI / "tokenizer", texts(20_000, seed=1))


@pytest.mark.parametrize("file", ["tokenizer.json", "vocab.json"])
def test_the_tokenizer_with_tokens_of_its_own(built, tmp_path, file):
    """Settings of every kind: added tokens, other roles, padding in front, several vectors."""
    source = json.loads((EMOJI / "tokenizer" / "tokenizer.json").read_text())
    if file == "tokenizer.json":
        (tmp_path / file).write_text(json.dumps(source))
    else:
        (tmp_path / file).write_text(json.dumps(source["model"]["vocab"]))
        merges = [m if isinstance(m, str) else " ".join(m) for m in source["model"]["merges"]]
        (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    cat = {"content": "<cat>", "lstrip": True, "rstrip": True, "normalized": False}
    settings = {
        "model_max_length": 20,
        "padding_side": "left",
        "truncation_side": "left",
        "pad_token": "!",
        "added_tokens_decoder": {
            "900": {**cat, "single_word": False, "special": False},
            "901": {"content": "<cat>_1", "single_word": False, "special": False},
            "902": {"content": "Red Apple", "normalized": True, "special": False},
        },
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    prompts = ["a  <cat>  on a RED   apple", "<cat><cat>", "<cat>_1x", "red apple" * 9, "", "a! b"]
    same_tokens(built, tmp_path, prompts)


def test_noise_of_all_shapes_in_one_stream(built):
    counts = [*range(40), 1, 15, 1, 16, 17, 4096, 3, 16385]
    seed = 2**32 + 12345
    told = built.probe("noise", seed, *counts)
    found = np.array([float.fromhex(row) for row in told.decode().split()])
    stream = TorchCpuGenerator(seed)
    wanted = np.concatenate([stream.randn((count,)) for count in counts])
    # The last bit of a logarithm and a cosine.
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sampler", ["default", "euler-a", "heun", "dpm++2m-sde"])
def test_a_table_is_read_to_the_last_bit(built, tmp_path, sampler):
    bundle = Bundle.open(EMOJI)
    path = tmp_path / "x.table"
    path.write_bytes(tables_of(bundle, WantedTable.read(f"{sampler}:6:image")))
    rows = iter(built.probe("table", path).decode().split("\n"))
    firsts = []
    for head in filter(None, rows):
        starts, first, evaluations, draws, sigma = head.split()
        name = None if sampler == "default" else sampler
        table = step_table(bundle.scheduler, 6, name, int(first))
        assert (int(evaluations), int(draws)) == (len(table), table.draws)
        assert float.fromhex(sigma) == table.init_noise_sigma
        for array in (
            *(table.timesteps, table.input_scale, table.rows, table.noise),
            *(table.levels, table.denoised, table.carried),
        ):
            found = [float.fromhex(number) for number in next(rows).split()]
            np.testing.assert_array_equal(found, array.ravel())
        firsts.append((int(first), int(starts)))
    assert firsts == [(first, 6 + (first == 0)) for first in range(7)]


def test_what_is_no_table_is_refused(built, tmp_path):
    path = tmp_path / "x.table"
    path.write_bytes(b"bksdmtbl" + bytes(8))
    done = subprocess.run(
        [built.folder / "tests" / "probe", "table", path], capture_output=True, check=False
    )
    assert done.returncode == 1
    assert b"not a table of `bksdm info --table`: its version is unknown" in done.stderr


def test_its_own_tests(built):
    execute("ctest", "--test-dir", built.folder, "--output-on-failure", "--timeout", "120")
