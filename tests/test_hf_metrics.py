"""Models of transformers as what calibration and evaluation run, against their stock classes."""

import numpy as np
import pytest
import saved_tables
import torch
from torch.nn import functional as F

import tolpack
from tolpack.calibration.calibrate import CalibrationInputs, calibrate
from tolpack.calibration.loss_metrics import measure_loss_metrics, sample_text
from tolpack.errors import CheckpointError, ConfigError
from tolpack.evaluation.evaluator import evaluate
from tolpack.evaluation.subject import open_subject
from tolpack.runtime.progress import Reporter
from tolpack.sources.open_source import open_tables
from tolpack.workspace.resources import Resources
from tolpack.workspace.workspace import open_workspace

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

NAMES = ["gemma3n", "gemma4", "qwen4_exp", "qwen4_exp_two"]
TOKENS = 48  # rows of Gemma's tables, fewer than its token ids
QWEN = {
    **saved_tables.QWEN, "num_hidden_layers": 4, "indexer_n_heads": 2, "indexer_kv_heads": 1,
    "indexer_head_dim": 8, "indexer_budget": 64, "indexer_compress_ratio": 4,
    "layer_types": ["linear_attention"] * 3 + ["indexed_attention"],
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Name → stock model in float32 and its folder; no weight is left at a constant."""
    return saved_tables.save_models(tmp_path_factory.mktemp("models"), qwen=QWEN, noise=0.2)


@pytest.fixture(params=NAMES)
def pair(request, saved):
    """The stock model, and the same model as calibration runs it."""
    from tolpack.hf.language_model import open_model

    stock, folder = saved[request.param]
    return stock, open_model(folder)


@pytest.fixture
def windows():
    return torch.from_numpy(np.random.default_rng(1).integers(0, TOKENS, (2, 10)))


class Log(Reporter):
    """Keeps what was said."""

    def __init__(self):
        self.said = []
        self.say = self.said.append


def short_windows(folder, tmp_path):
    """The same model with a window of 8 tokens, of which it samples a short text."""
    tensors, config = saved_tables.read(folder)
    return saved_tables.write(tmp_path / "short", tensors, {**config, "max_position_embeddings": 8})


def stock_nll(stock, windows):
    """Negative log-likelihoods from the logits of the stock model."""
    logits = stock(input_ids=windows[:, :-1]).logits
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction="none")


def table_of(stock):
    """The stock model's first table."""
    names = ("embed_tokens_per_layer", "ngram_embedding")
    return next(m for n, m in stock.named_modules() if n.endswith(names))


def stock_gradients(stock, windows):
    """Ids and stored rows as the stock table is asked, and gradients of the summed loss there."""
    seen = []

    def observe(module, inputs, output):
        rows = F.embedding(inputs[0], module.weight).detach().requires_grad_()
        seen.append((inputs[0], rows))
        return rows * float(getattr(module, "scalar_embed_scale", 1.0))

    hook = table_of(stock).register_forward_hook(observe)
    with torch.enable_grad():
        loss = stock_nll(stock, windows).sum()
    hook.remove()
    ids, rows = seen[0]
    return ids, rows.detach(), torch.autograd.grad(loss, rows)[0]


def test_logits_are_those_of_the_stock_model(pair, windows):
    """Bit for bit with a whole window, and closely with a cache, token by token."""
    stock, model = pair
    expected = stock(input_ids=windows).logits
    assert torch.equal(model(windows), expected)
    cache = model.new_cache()
    steps = [model(windows[:, n : n + 1], cache) for n in range(windows.shape[1])]
    torch.testing.assert_close(torch.cat(steps, 1), expected, atol=1e-4, rtol=1e-4)


def test_losses_are_those_of_the_stock_model(pair, windows, monkeypatch):
    """Also where the head works on a few positions at a time, with soft-capped logits."""
    from tolpack.hf import language_model

    stock, model = pair
    expected = stock_nll(stock, windows).view(2, 9)
    torch.testing.assert_close(model.nll(windows), expected)
    monkeypatch.setattr(language_model, "_LOGIT_BYTES", 16 * 64 * 4)
    torch.testing.assert_close(model.nll(windows), expected)


def test_gradients_are_those_of_stored_rows(pair, windows):
    """They equal torch's own through the stock model, before the multiplier, field by field."""
    stock, model = pair
    ids, rows, expected = stock_gradients(stock, windows)
    assert torch.equal(model.row_ids(windows[:, :-1]), ids)
    widths = list(model.widths)
    found = list(model.row_gradients(windows, [lambda one: one] * len(widths)))
    assert [field for field, _, _ in found] == list(reversed(range(len(widths))))
    for field, gradient, own in found:
        torch.testing.assert_close(gradient, expected.split(widths, -1)[field])
        assert torch.equal(own, rows.split(widths, -1)[field])
    assert all(own is None for _, _, own in model.row_gradients(windows))


def test_gradients_with_changed_rows(pair, windows):
    """They are those of a memory with the changed rows, and finite differences agree."""
    _, model = pair
    changes = [None] * len(model.widths)
    changes[-1] = lambda rows: 0.5 * rows
    last = len(changes) - 1

    def halved(field, ids):
        return model.memory(field, ids) * (0.5 if field == last else 1.0)

    for one, other in zip(
        model.row_gradients(windows, changes), model.with_memory(halved).row_gradients(windows)
    ):
        torch.testing.assert_close(one[1], other[1])
        assert torch.equal(one[2], model.memory(one[0], model.row_ids(windows[:, :-1])))

    def moved(size):
        def memory(field, ids):
            return halved(field, ids) + size * direction[field]

        return model.with_memory(memory).nll(windows).double().sum()

    gradients = [g for _, g, _ in reversed(list(model.row_gradients(windows, changes)))]
    direction = [gradient / torch.cat(gradients, -1).norm() for gradient in gradients]
    slope = sum((g * d).sum() for g, d in zip(gradients, direction))
    assert float(moved(5e-3) - moved(-5e-3)) / 1e-2 == pytest.approx(float(slope), rel=0.03)


def test_metrics_are_mean_products_of_gradients(pair):
    """Per token: of all rows that a token reads, and between fields up to the reach."""
    stock, model = pair
    ids = np.random.default_rng(2).integers(0, TOKENS, 25)
    found = measure_loss_metrics(model, ids, 8, reach=1)
    flat = []
    for start in (0, 8, 16):
        window = torch.from_numpy(ids[start : start + 9])[None]
        flat.append(stock_gradients(stock, window)[2].flatten(0, -2))
    flat = torch.cat(flat).double().split(list(model.widths), -1)
    for field, metric in enumerate(found.metrics):
        expected = (flat[field].T @ flat[field] / 24).numpy()
        np.testing.assert_allclose(metric.load(), expected, atol=1e-4 * abs(expected).max())
        for other, crossed in enumerate(found.crossed[field], field + 1):
            expected = (flat[field].T @ flat[other] / 24).numpy()
            np.testing.assert_allclose(crossed.load(), expected, atol=1e-4 * abs(expected).max())


def test_rows_of_ngrams_are_those_of_the_hash(saved):
    """A window is a text of its own: its first tokens have no tokens before them."""
    from tolpack.hf.language_model import open_model

    for name in ("qwen4_exp", "qwen4_exp_two"):
        folder = saved[name][1]
        for table in open_tables(folder):
            ids = np.random.default_rng(3).integers(0, 64, (3, 9))
            found = open_model(folder, table).row_ids(torch.from_numpy(ids))
            assert found.tolist() == [table.ngrams.rows(one).tolist() for one in ids]


def test_a_source_is_asked_for_distinct_rows_only(saved, windows):
    """Whatever a text repeats is read once a call, and nothing else of the table is read."""
    from tolpack.hf.language_model import open_model

    folder, asked = saved["gemma3n"][1], []
    (table,) = open_tables(folder)
    field_rows = table.field_rows

    def recording(field):
        rows = field_rows(field)
        return lambda ids: asked.append(ids) or rows(ids)

    table.field_rows = recording
    open_model(folder, table).nll(windows)
    assert len(asked) == len(table.fields)
    for ids in asked:
        assert ids.tolist() == sorted(set(windows[:, :-1].flatten().tolist()))


def test_costs_follow_from_a_short_run(pair):
    """Multiply-adds are about the weights, and a longer window keeps about that much memory."""
    stock, model = pair
    weights = sum(p.numel() for n, p in stock.named_parameters() if "embed" not in n)
    assert 0.3 * weights < model.macs_per_token < 3 * weights
    own = {p.untyped_storage().data_ptr() for p in stock.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.arange(128)[None] % TOKENS
    hook = table_of(stock).register_forward_hook(lambda m, i, out: out.detach().requires_grad_())
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
        stock.model(input_ids=ids)
    hook.remove()
    assert 0.5 < model.activation_bytes / (sum(kept.values()) / 128) < 2


def test_fingerprint_tells_weights_tables_and_settings_apart(saved, tmp_path):
    """A bit of a weight or of a table, and a setting, change it; reading it again does not."""
    from tolpack.hf.language_model import open_model

    tensors, config = saved_tables.read(saved["gemma3n"][1])
    prints = set()
    for number, change in enumerate(["", "embed_tokens.weight", saved_tables.PLE, "rms_norm_eps"]):
        found = {name: one.clone() for name, one in tensors.items()}
        for name in found:
            if change and name.endswith(change):
                found[name][3, 3] += 1
        more = {change: 1e-3} if change == "rms_norm_eps" else {}
        folder = saved_tables.write(tmp_path / str(number), found, {**config, **more})
        prints.add(open_model(folder).fingerprint())
        assert open_model(folder).fingerprint() in prints
    assert len(prints) == 4


def test_layers_of_one_row_compensate(saved, tmp_path):
    """Vectors of a Gemma row are measured together, and a row of an n-gram has but one field."""
    text = tmp_path / "ids.npy"
    np.save(text, np.random.default_rng(7).integers(0, TOKENS, 60))
    reaches = {}
    for name in ("gemma3n", "gemma4", "qwen4_exp"):
        (table,) = open_tables(saved[name][1])
        with open_workspace([table], tmp_path, Resources(threads=1), Reporter()) as workspace:
            model = calibrate(table, CalibrationInputs(text), 2, workspace).model
        reaches[name] = [len(above) for above in model.crossed]
    assert reaches == {"gemma3n": [2, 1, 0], "gemma4": [2, 1, 0], "qwen4_exp": [0]}


@pytest.mark.parametrize(
    "name, settings",
    [
        ("gemma3n", {"max_ppl_increase": "3%"}),
        ("gemma3n", {"rank": "auto", "max_relative_error": "10%"}),
        ("qwen4_exp", {"max_relative_error": "10%"}),
    ],
)
def test_auto_build_is_shaped_by_measured_losses(saved, tmp_path, name, settings):
    """A text gives metrics and counts, and the pack reads as another one than without losses."""
    folder, log, text = saved[name][1], Log(), tmp_path / "ids.npy"
    np.save(text, np.random.default_rng(4).integers(0, TOKENS, 200))
    found = tolpack.build(
        folder, tmp_path / "p.tolpack", bits="auto", calibrate=text, reporter=log, **settings
    )
    assert not any("cannot be run" in line for line in log.said)
    (score,) = evaluate(folder, [found.path], text, context=40).packs
    assert abs(score.ppl_increase_pct) < 10
    alone = tolpack.build(
        table_alone(folder, tmp_path), tmp_path / "q.tolpack", bits="auto", calibrate=text,
        rank=settings.get("rank", "none"), max_relative_error="10%",
    )  # fmt: skip
    assert found.path.read_bytes() != alone.path.read_bytes()


def test_auto_build_without_a_text_samples_one(saved, tmp_path):
    """Also from a model with more token ids than rows, which sampled texts contain."""
    from tolpack.hf.language_model import open_model

    folder, log = short_windows(saved["gemma3n"][1], tmp_path), Log()
    assert sample_text(open_model(folder), 8).max() >= TOKENS
    tolpack.build(folder, tmp_path / "p", bits="auto", max_relative_error="10%", reporter=log)
    assert any("sampled from the model itself" in line for line in log.said)


def test_counts_of_ngram_rows(saved, tmp_path):
    """With a text they are those of the hash; a sampled text is too short to tell."""
    (table,) = open_tables(short_windows(saved["qwen4_exp"][1], tmp_path))
    text = tmp_path / "ids.npy"
    ids = np.random.default_rng(5).integers(0, 64, 200)
    np.save(text, ids)
    with open_workspace([table], tmp_path, Resources(threads=1), Reporter()) as workspace:
        stats = calibrate(table, CalibrationInputs(text), 0, workspace)
        assert stats.counts.sum() == 200 * table.ngrams.heads
        assert stats.model is not None
        assert calibrate(table, CalibrationInputs(), 0, workspace).counts is None


@pytest.mark.parametrize("name", NAMES)
def test_lossless_packs_change_no_loss(saved, tmp_path, name):
    """The baseline is the stock model's perplexity, and the pack's is the same number."""
    stock, folder = saved[name]
    text = tmp_path / "ids.npy"
    ids = np.random.default_rng(6).integers(0, TOKENS, 65)
    np.save(text, ids)
    pack = tolpack.build(folder, tmp_path / "p.tolpack", bits="lossless").path
    found = evaluate(folder, [pack], text, context=32)
    stacked = torch.from_numpy(np.stack([ids[:33], ids[32:]]))
    assert found.baseline.nll_nats == pytest.approx(float(stock_nll(stock, stacked).mean()))
    assert found.packs[0].nll_nats == found.baseline.nll_nats
    assert found.packs[0].read_bytes_per_token > 0


def test_pack_of_one_of_several_tables(saved, tmp_path):
    """It replaces its table, and the others stay as they are."""
    _, folder = saved["qwen4_exp_two"]
    pack = tolpack.build(folder, tmp_path / "p.tolpack", bits="lossless").path
    subject = open_subject(folder)
    with tolpack.open(pack, table="layer.2") as opened:
        model = subject.with_pack(opened, pack)
        ids = torch.arange(12)[None]
        assert torch.equal(model(ids), subject.model(ids))


def test_packs_of_other_models_are_refused(saved, tmp_path):
    """The message names the file and both shapes."""
    pack = tolpack.build(saved["qwen4_exp"][1], tmp_path / "p.tolpack", bits="lossless").path
    with tolpack.open(pack) as opened, pytest.raises(ConfigError, match=r"p\.tolpack.*of another"):
        open_subject(saved["gemma3n"][1]).with_pack(opened, pack)


def table_alone(folder, tmp_path):
    """A folder of the table and its configuration alone."""
    tensors, config = saved_tables.read(folder)
    table = ("embed_tokens_per_layer.", ".ple_embedding.")
    kept = {name: one for name, one in tensors.items() if any(part in name for part in table)}
    return saved_tables.write(tmp_path / "alone", kept, config)


def test_a_table_alone_is_built_without_losses(saved, tmp_path):
    """The build says why, and counts the text's tokens; it cannot be evaluated."""
    folder = table_alone(saved["gemma3n"][1], tmp_path)
    log, text = Log(), tmp_path / "ids.npy"
    np.save(text, np.arange(TOKENS))
    tolpack.build(folder, tmp_path / "p", bits="auto", calibrate=text, reporter=log)
    assert any("cannot be run (no weights of one" in line for line in log.said)
    with pytest.raises(CheckpointError, match="no model that can be run"):
        open_subject(folder)


def test_missing_weights_are_named(saved, tmp_path):
    """A build goes on without losses and says which tensor is missing."""
    tensors, config = saved_tables.read(saved["gemma3n"][1])
    del tensors["model.layers.1.self_attn.q_proj.weight"]
    folder, log = saved_tables.write(tmp_path / "part", tensors, config), Log()
    tolpack.build(folder, tmp_path / "p", bits="auto", reporter=log)
    assert any("lacks 1 tensor" in one and "layers.1.self_attn.q_proj" in one for one in log.said)
    with pytest.raises(CheckpointError, match="lacks 1 tensor"):
        open_subject(folder)


def test_without_transformers(saved, tmp_path, monkeypatch):
    """A text that could be used names the remedy; without one the build says it and goes on."""
    import importlib.util

    find, log, text = importlib.util.find_spec, Log(), tmp_path / "ids.npy"
    absent = lambda name, *more: None if name == "transformers" else find(name, *more)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", absent)
    np.save(text, np.arange(TOKENS))
    folder = saved["gemma3n"][1]
    with pytest.raises(ConfigError, match=r"pip install 'tolpack\[hf\]'"):
        tolpack.build(folder, tmp_path / "p", bits="auto", calibrate=text)
    tolpack.build(folder, tmp_path / "p", bits="auto", reporter=log)
    assert any("tolpack[hf]" in line for line in log.said)
    with pytest.raises(ConfigError, match=r"pip install 'tolpack\[hf\]'"):
        open_subject(folder)


def test_too_little_memory_for_the_model(saved, tmp_path):
    """The build says how much more it takes, and goes on without losses."""
    log = Log()
    tolpack.build(
        saved["gemma3n"][1], tmp_path / "p", bits="auto", reporter=log, max_memory="950MB",
        threads=1,
    )  # fmt: skip
    assert any("give more --max-memory" in line for line in log.said)


def test_windows_begin_with_the_leading_token(saved, windows, tmp_path):
    """As the stock model reads them behind it; its own row counts as asked for."""
    from tolpack.hf.language_model import open_model

    stock, folder = saved["gemma3n"]
    tensors, config = saved_tables.read(folder)
    begun = saved_tables.write(tmp_path / "begun", tensors, {**config, "bos_token_id": 3})
    (begun / "tokenizer_config.json").write_text('{"add_bos_token": true}', encoding="utf-8")
    model, leading = open_model(begun), torch.full((2, 1), 3)
    fed = torch.cat([leading, windows], 1)
    with torch.no_grad():
        logits = stock(input_ids=fed[:, :-1]).logits[:, 1:]
        losses = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction="none")
        assert torch.allclose(model.nll(windows).flatten(), losses, atol=1e-5)
        assert torch.allclose(model(windows[:, :-1]), logits, atol=1e-5)
        cache = model.new_cache()
        steps = [model(one, cache) for one in windows[:, :-1].split(3, 1)]
        assert torch.allclose(torch.cat(steps, 1), logits, atol=1e-5)
    assert torch.equal(model.row_ids(windows), fed)
    plain = open_model(folder)
    assert model.fingerprint() != plain.fingerprint()
    for _, gradient, _ in model.row_gradients(windows):
        assert gradient.shape[:2] == (2, 10)
