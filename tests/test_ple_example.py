"""The example that trains a small Gemma 3n, and the curve that is measured on it."""

import contextlib
import io
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

transformers = pytest.importorskip("transformers")
pytest.importorskip("gguf")

from ple_curve import batches, divergence, mean_and_error  # noqa: E402

import tolpack  # noqa: E402

EXAMPLE = Path(__file__).parent.parent / "examples" / "train_ple_model.py"
SIZES = ["--hidden", "16", "--layers", "4", "--intermediate", "16", "--ple-width", "8",
         "--context", "16", "--batch", "2", "--steps", "3"]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Train three steps on a made-up text, and return the folder and what was printed."""
    folder = tmp_path_factory.mktemp("ple")
    words = ["<pad>", *(f"w{number}" for number in range(60))]
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "words.json"))
    drawn = np.random.default_rng(0).integers(1, 61, 2000)
    (folder / "text.txt").write_text(" ".join(words[n] for n in drawn))
    arguments = [EXAMPLE, "--text", folder / "text.txt", "--tokenizer", folder / "words.json",
                 "--out", folder / "model", *SIZES]  # fmt: skip
    printed, threads = io.StringIO(), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", [str(argument) for argument in arguments])
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    torch.set_num_threads(threads)
    return folder / "model", json.loads(printed.getvalue())


def test_transformers_opens_the_folder(model):
    """The saved model is a Gemma 3n with the table's shape that was asked for."""
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model[0], dtype=torch.float32)
    assert loaded.get_per_layer_input_embeddings().weight.shape == (61, 4 * 8)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert transformers.AutoTokenizer.from_pretrained(model[0]).encode("w3 w1") == [4, 2]


def test_perplexity_is_measured_on_the_saved_weights(model):
    """What was measured while training is what the rounded weights in the folder have."""
    found = model[1]
    assert found["held_out_ppl_saved"] == pytest.approx(found["held_out_ppl"], rel=0.01)
    assert found["held_out_ppl_without_table"] > 1


def test_tolpack_packs_the_table(model, tmp_path):
    """A lossless pack holds the rows that the model looks up."""
    tolpack.build(model[0], tmp_path / "model.tolpack", bits="lossless")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model[0], dtype=torch.float32)
    wanted = loaded.model.get_per_layer_inputs(torch.arange(61)).detach().numpy()
    with tolpack.open(tmp_path / "model.tolpack") as pack:
        assert np.array_equal(pack.rows(np.arange(61)), wanted)


def test_divergence_is_that_of_the_definition():
    """The sum without negative terms is ``Σ p log(p / q)`` in float64."""
    logits = torch.randn(2, 5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own, other = torch.log_softmax(logits, dim=2)
    wanted = (own.exp() * (own - other)).sum(1)
    assert torch.allclose(divergence(own.exp(), own - other), wanted, rtol=1e-9)


def test_every_token_after_the_first_is_scored_once():
    """Windows follow each other, and the last one may be shorter."""
    ids = np.arange(40)
    pairs = list(batches(ids, 16))
    assert torch.cat([inputs.flatten() for inputs, _ in pairs]).tolist() == list(range(39))
    assert torch.cat([targets for _, targets in pairs]).tolist() == list(range(1, 40))


def test_standard_error_is_over_windows():
    """Of windows of equal length it is the standard deviation of their means over √windows."""
    values = np.random.default_rng(0).standard_normal(160)
    means = values.reshape(10, 16).mean(axis=1)
    mean, error = mean_and_error(values, 16)
    assert mean == pytest.approx(means.mean())
    assert error == pytest.approx(means.std(ddof=1) / np.sqrt(10))
