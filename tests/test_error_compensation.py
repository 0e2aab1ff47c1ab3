"""Error compensation held against the quadratic form it minimises, and the searches around it."""

import math
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest

from tolpack.calibration.token_order import order_tokens
from tolpack.codecs.code_entropy import code_bytes, gaussian_bytes
from tolpack.compress.chunks import chunks_by_step
from tolpack.compress.entropy.compensated_table import CompensatedTable, dropped_terms
from tolpack.compress.entropy.compensation_matrices import (
    compensation_matrix,
    error_compensations,
    remaining_metric,
)
from tolpack.compress.entropy.layer_basis import (
    LayerBasis,
    finest_scales,
    mean_pays,
    row_scales,
)
from tolpack.compress.entropy.loss_measure import Loss
from tolpack.compress.entropy.quantizers import (
    BasisQuantizer,
    direct_quantizer,
    layer_step,
    layer_steps,
    weighted_projection,
    whitened_basis,
)
from tolpack.compress.entropy.rank_choice import Component, choose_components
from tolpack.compress.entropy.slot_sample import FrequencySteps, SlotSample, sample_slots
from tolpack.compress.entropy.step_search import search_loss, search_size
from tolpack.errors import ConfigError
from tolpack.runtime.progress import Reporter
from tolpack.runtime.scratch import Scratch, in_memory
from tolpack.sources.open_source import open_source

HIDDEN = 6


def random_metric(size, seed):
    """A positive definite matrix with eigenvalues over two orders of magnitude."""
    factor = np.random.default_rng(seed).standard_normal((size, size))
    vectors = np.linalg.qr(factor)[0]
    return (vectors * np.geomspace(1, 100, size)) @ vectors.T


class Model:
    """Metrics of three layers, cut from one joint matrix."""

    def __init__(self, scratch, joint):
        def block(row, column):
            part = joint[row * HIDDEN : (row + 1) * HIDDEN, column * HIDDEN : (column + 1) * HIDDEN]
            return scratch.spill(part.copy())

        self.metrics = [block(n, n) for n in range(3)]
        self.crossed = [[block(n, m) for m in range(n + 1, 3)] for n in range(3)]


@pytest.fixture
def compensated(tmp_path):
    """A joint metric of three layers, and its error compensation without damping."""
    joint = random_metric(3 * HIDDEN, 0)
    scratch = Scratch(tmp_path, 2**40)
    return joint, error_compensations(Model(scratch, joint), (0, 1, 2), HIDDEN, 0.0, scratch)


def test_what_remains_is_the_least_that_layers_above_can_leave(compensated):
    """The metric left is the minimum of the joint form over the other layers' errors."""
    joint, found = compensated
    error = np.random.default_rng(1).standard_normal(HIDDEN)
    passed_on = -error @ found[0].load_matrix()
    whole = np.concatenate([error, passed_on])
    least = error @ found[0].metric.load() @ error
    assert whole @ joint @ whole == pytest.approx(least, rel=1e-5)
    for seed in range(5):
        other = np.random.default_rng(seed).standard_normal(2 * HIDDEN) * 0.1
        worse = np.concatenate([error, passed_on + other])
        assert worse @ joint @ worse > least
    assert found[0].above == (1, 2)
    assert found[2].above == ()
    assert found[2].matrix is None
    np.testing.assert_allclose(found[2].metric.load(), joint[2 * HIDDEN :, 2 * HIDDEN :])


def test_dropped_layers_take_up_nothing(tmp_path):
    """Only kept layers make up for errors."""
    scratch = Scratch(tmp_path, 2**40)
    joint = random_metric(3 * HIDDEN, 0)
    found = error_compensations(Model(scratch, joint), (0, 2), HIDDEN, 0.0, scratch)
    assert {layer: one.above for layer, one in found.items()} == {0: (2,), 2: ()}


def test_a_dropped_layer_is_compensated_on_both_sides(tmp_path):
    """Folding leaves the least of the joint form that the layers around can leave."""
    scratch = Scratch(tmp_path, 2**40)
    joint = random_metric(3 * HIDDEN, 0)
    model = Model(scratch, joint)
    table = np.random.default_rng(0).standard_normal((4, 3, HIDDEN)).astype(np.float32)
    np.save(tmp_path / "t.npy", table)
    folded = CompensatedTable(
        open_source(tmp_path / "t.npy"), dropped_terms(model, (0, 2), 3, 0.0, scratch)
    )
    rows = [folded.field_rows(n)(np.arange(4)) - table[:, n] for n in (0, 2)]
    error = np.concatenate([rows[0], -table[:, 1], rows[1]], axis=1)
    least = remaining_metric(model, 1, (0, 2), 0.0, compensation_matrix(model, 1, (0, 2), 0.0))
    expected = np.einsum("ti,ij,tj->t", table[:, 1], least, table[:, 1])
    np.testing.assert_allclose(np.einsum("ti,ij,tj->t", error, joint, error), expected, rtol=1e-4)


def test_metrics_of_distant_layers_follow_from_the_chain(tmp_path):
    """Where only neighbours were measured, the others are those of a Markov chain."""
    scratch = Scratch(tmp_path, 2**40)
    model = Model(scratch, random_metric(3 * HIDDEN, 0))
    model.crossed = [row[:1] for row in model.crossed]
    first, last = model.crossed[0][0].load(), model.crossed[1][0].load()
    chain = first @ np.linalg.inv(model.metrics[1].load()) @ last
    by_hand = np.linalg.solve(model.metrics[2].load(), chain.T).T
    np.testing.assert_allclose(compensation_matrix(model, 0, (2,), 0.0), by_hand, atol=1e-8)


def test_without_a_model_every_direction_counts_alike(tmp_path):
    """A bare table has no metrics: nothing is compensated for."""
    found = error_compensations(None, (0, 1), 4, 0.1, Scratch(tmp_path, 2**30)).values()
    assert all(one.matrix is None and (one.metric.load() == np.eye(4)).all() for one in found)


def test_damping_keeps_a_metric_of_few_samples_invertible(tmp_path):
    """A metric of rank one gets a share of its mean eigenvalue on its diagonal."""
    scratch = Scratch(tmp_path, 2**40)
    vector = np.random.default_rng(0).standard_normal(3 * HIDDEN)
    found = error_compensations(
        Model(scratch, np.outer(vector, vector)), (0, 1, 2), HIDDEN, 0.1, scratch
    )
    assert all(np.linalg.eigvalsh(one.metric.load())[0] > 0 for one in found.values())


@pytest.mark.parametrize("seed", range(3))
def test_plain_rounding_under_a_metric(seed):
    """Values come back as whole steps; the loss is what is left of each value's own error, and
    less than that of rounding each value by itself.
    """
    metric = random_metric(40, seed)
    quantizer = direct_quantizer(metric, 127)
    rows = np.random.default_rng(seed).standard_normal((500, 40)).astype(np.float32)
    steps = np.full(500, 0.5, np.float32)
    stored, error = quantizer.quantize(rows.copy(), steps)
    step = np.float32(layer_step(0.5, quantizer.unit))
    codes = stored / step
    assert np.abs(codes - np.rint(codes)).max() < 1e-4
    np.testing.assert_allclose(rows + error, stored, atol=1e-5)
    compensated = np.einsum("ti,ij,tj->t", error, metric, error).mean()
    plain = np.rint(rows / step) * step - rows
    assert compensated < 0.7 * np.einsum("ti,ij,tj->t", plain, metric, plain).mean()
    left = np.linalg.norm(error @ np.linalg.inv(quantizer.factor.astype(np.float64)), axis=1)
    assert np.square(left).mean() == pytest.approx(compensated, rel=1e-3)


def test_plain_rounding_cuts_what_is_out_of_range():
    """A value beyond the largest code gets that code, and the values behind make up for it."""
    quantizer = direct_quantizer(random_metric(8, 0), 3)
    stored, error = quantizer.quantize(np.full((1, 8), 100, np.float32), np.ones(1, np.float32))
    assert np.abs(stored).max() <= 3 * layer_step(1, quantizer.unit) * 1.0001
    assert np.isfinite(error).all()


def test_the_basis_makes_the_metric_the_identity():
    """In the whitened basis an error of coefficients costs its square, and energies fall."""
    metric = random_metric(12, 3)
    rows = np.random.default_rng(0).standard_normal((400, 12)) @ random_metric(12, 4)
    mean = rows.mean(0)
    found = whitened_basis(rows.T @ rows / 400, mean, metric)
    np.testing.assert_allclose(found.rows @ metric @ found.rows.T, np.eye(12), atol=1e-8)
    coefficients = (rows - mean) @ np.linalg.inv(found.rows)
    covariance = coefficients.T @ coefficients / 400
    np.testing.assert_allclose(covariance, np.diag(found.values), atol=1e-6 * found.values[0])
    assert (np.diff(found.values) <= 0).all()


@pytest.mark.parametrize("rank", [12, 7])
def test_basis_rounding(rank):
    """Coefficients are whole steps; the error is what a reader will see; large codes are cut."""
    metric = random_metric(12, 3)
    rows = np.random.default_rng(0).standard_normal((50, 12)).astype(np.float32)
    basis = whitened_basis(np.eye(12), np.zeros(12), metric).rows[:rank].astype(np.float32)
    limits = np.full(rank, 4, np.float32)
    quantizer = BasisQuantizer(weighted_projection(basis, metric), basis, limits)
    steps = np.linspace(0.1, 3, 50).astype(np.float32)
    stored, error = quantizer.quantize(rows.copy(), steps)
    np.testing.assert_allclose(stored @ basis, rows + error, atol=1e-4)
    codes = stored / steps[:, None]
    assert np.abs(codes - np.rint(codes)).max() < 1e-4
    assert np.abs(codes).max() <= 4.0001
    assert quantizer.stored_values == rank
    if rank == 7:  # what is left out is orthogonal, under the metric, to what is kept
        left = rows - (rows @ quantizer.projection) @ basis
        assert np.abs(left @ metric @ basis.T).max() < 1e-3


def sample_of(tokens):
    """Every token stands for itself alone."""
    return SlotSample((np.arange(tokens),), np.full(tokens, 1 / tokens), np.ones(tokens))


def test_components_that_vanish_are_cut():
    """Components of zeros cost a row of the basis and give nothing; large codes get 16 bits."""
    source = np.random.default_rng(0)
    codes = np.rint(source.standard_normal((600, 10)) * np.geomspace(100, 1, 10)).astype(np.float32)
    codes[:, 7:] = 0
    steps = np.full(600, 0.01, np.float32)
    given = {3: codes}, sample_of(600), steps, {3: np.full(10, 20.0)}
    found = choose_components(*given, fixed=False, limit=127)[3]
    assert found.rank == 7
    largest = np.abs(codes).max(axis=0)
    assert found.leading == np.flatnonzero(largest > 127)[-1] + 1
    kept = choose_components(*given, fixed=True, limit=127)[3]
    assert kept.rank == 10


def test_code_bytes_are_the_entropy():
    """Two equally likely codes take a bit each, one code takes none, besides what is learnt."""
    codes = np.zeros((1024, 2), np.float32)
    codes[::2, 0] = 1
    found = code_bytes(codes, np.ones(1024))
    np.testing.assert_allclose(found, [(1024 + 10) / 8, 5 / 8])


def test_gaussian_codes_take_what_the_gaussian_reference_says():
    """Coding fine codes of a Gaussian takes a quarter of a bit more than the function allows
    (½ log2(2πe/12)), and codes of zeros take nothing.
    """
    codes = np.zeros((20_000, 2), np.float32)
    codes[:, 0] = np.rint(20 * np.random.default_rng(0).standard_normal(20_000))
    ones = np.ones(20_000)
    entropy, reference = (
        code_bytes(codes, ones) * 8 / 20_000,
        gaussian_bytes(codes, ones) * 8 / 20_000,
    )
    assert reference[0] == pytest.approx(0.5 * math.log2(1 + 12 * 400), rel=1e-2)
    assert 0.15 < entropy[0] - reference[0] < 0.55  # with what is to be learnt
    assert reference[1] == 0


def test_rows_of_a_basis_that_take_less_are_kept_longer():
    """The rank falls with what rows of the basis take, by components of the smallest gain."""
    source = np.random.default_rng(1).standard_normal((600, 60))
    codes = np.rint(source * np.geomspace(20, 0.1, 60)).astype(np.float32)
    steps = np.full(600, 0.01, np.float32)
    ranks = [
        choose_components(
            {0: codes}, sample_of(600), steps, {0: np.full(60, size)}, fixed=False, limit=127
        )[0].rank
        for size in (10.0, 400.0, 4000.0)
    ]
    assert 60 >= ranks[0] > ranks[1] > ranks[2] > 20


def test_scales_of_a_basis_follow_what_its_rows_are_multiplied_by():
    """Rows of large coefficients have fine scales, within what 8 bits allow, and the decoded basis
    is within some scales of the basis; bytes fall with coarser scales.
    """
    rng, metric = np.random.default_rng(0), random_metric(24, 1)
    rows = rng.standard_normal((6, 24)).astype(np.float32)
    sizes = np.array([30.0, 1, 0.3, 0.2, 0.15, 0])
    scales = row_scales(rows, sizes, metric)
    assert (np.diff(scales[2:]) > 0).all()
    assert (scales >= finest_scales(rows)).all()
    assert (scales <= 2.1 * np.sqrt(np.square(rows).mean(axis=1))).all()
    basis = LayerBasis(
        np.zeros(24, np.float32), in_memory(np.vstack([rows, rng.standard_normal((18, 24))])
        .astype(np.float32)), lambda: metric, Scratch(Path("."), 1 << 20),
    )  # fmt: skip
    coded = basis.coded(Component(6, 0, scales))
    assert (basis.row_bytes(scales)[1:] <= basis.row_bytes(finest_scales(rows))[1:]).all()
    error = (coded.decoded - rows).astype(np.float64)
    plain = (np.rint(rows / scales[:, None]) * scales[:, None] - rows).astype(np.float64)
    cost = [np.einsum("ij,jk,ik->i", e, metric, e)[1:5].sum() for e in (error, plain)]
    assert cost[0] < cost[1]


@pytest.mark.parametrize(("distance", "rows", "pays"), [
    (0.0, 10**6, False), (1.0, 1000, False), (1.0, 10**6, True), (5.0, 500, False),
    (20.0, 1000, True), (1e6, 1, True),
])  # fmt: skip
def test_a_mean_is_taken_out_where_it_pays(distance, rows, pays):
    """A section for a mean is worth it for many rows, or where the mean is far beyond the rows."""
    metric = random_metric(12, 3)
    mean = np.linspace(-1, 1, 12)
    mean *= distance / math.sqrt(mean @ np.linalg.inv(np.eye(12)) @ mean)
    assert mean_pays(np.eye(12) + np.outer(mean, mean), mean, metric, rows) is pays


def test_a_step_is_said_in_four_digits():
    """Rounders take the very float32 numbers that a reader makes of the header's short steps."""
    steps = np.float32([0.0123456, 7.0, 0.0123456, 3.3333e-9])
    found = layer_steps(steps, 1.2345678)
    said = [layer_step(float(step), 1.2345678) for step in steps]
    assert [repr(step) for step in said] == ["0.01524", "8.642", "0.01524", "4.115e-09"]
    assert found.dtype == np.float32
    assert found.tolist() == np.float32(said).tolist()


def test_steps_fall_with_frequency():
    """Counts raised by an eighth of their mean decide on steps; without counts all are alike."""
    counts = np.array([1000] * 64 + [248] * 64 + [0] * 64)
    order = order_tokens(counts, 192)
    chunks = chunks_by_step(order, 16, 1000, 1000)
    assert [(plan.first_slot, plan.rows) for plan in chunks] == [(0, 64), (64, 64), (128, 64)]
    steps = FrequencySteps(order, chunks).of_slots(np.array([0, 64, 128]), 1.0)
    mean = 1248 / 3
    raised = np.array([1000, 248, 0]) + 1 + mean / 8
    expected = ((mean + 1 + mean / 8) / raised) ** 0.325
    np.testing.assert_allclose(steps, expected, rtol=1e-3)
    plain = order_tokens(None, 192)
    same = FrequencySteps(plain, chunks_by_step(plain, 16, 1000, 1000)).of_slots(
        np.arange(192), 0.5
    )
    assert (same == 0.5).all()


def test_chunks_are_cut_where_it_costs_least():
    """No other way to join neighbouring octaves is cheaper; cheap rows share one chunk."""
    counts = np.sort(np.random.default_rng(3).zipf(1.5, 900).clip(max=3000))[::-1].copy()
    order = order_tokens(counts, 900)
    raised = counts + 1 + counts.mean() / 8
    edges = np.unique([0, 900, *(np.flatnonzero(np.diff(np.log2(raised) // 1)) + 1)])
    own = -0.325 * np.log(raised)

    def cost(bounds):
        parts = [own[a:b] for a, b in pairwise(bounds)]
        return sum(500 + 0.3 * 200 * len(part) * part.var() for part in parts)

    inner = edges[1:-1].tolist()
    ways = [[0, *cuts, 900] for size in range(len(inner) + 1) for cuts in combinations(inner, size)]
    found = chunks_by_step(order, 1, 200, 500)
    bounds = [*(plan.first_slot for plan in found), 900]
    assert 3 < len(bounds) < len(edges)
    assert cost(bounds) == pytest.approx(min(map(cost, ways)))
    assert len(chunks_by_step(order, 1, 1, 5000)) == 1
    assert len(chunks_by_step(order, 1, 10**6, 1)) == len(edges) - 1


@pytest.mark.parametrize("row_bytes", [0.1, 100, 10**6])
def test_chunks_cover_all_slots_and_hold_whole_frames(row_bytes):
    """Chunks follow each other; all but the last hold at least one frame, none is too long."""
    order = order_tokens(np.random.default_rng(0).zipf(1.2, 70_000).clip(max=10**6), 70_000)
    chunks = chunks_by_step(order, 16, row_bytes, 8000)
    ends = [plan.first_slot + plan.rows for plan in chunks]
    assert [0, *ends[:-1]] == [plan.first_slot for plan in chunks]
    assert ends[-1] == 70_000
    assert all(16 <= plan.rows <= 16384 for plan in chunks[:-1])


def test_a_sample_stands_for_the_whole():
    """A large table's sample has rows of every chunk, and stands for all rows and text."""
    counts = np.random.default_rng(0).zipf(1.3, 60_000).clip(max=10**5)
    order = order_tokens(counts, 60_000)
    chunks = chunks_by_step(order, 4, 8192, 8000)
    found = sample_slots(order, chunks, 8192)
    assert len(found.all_slots) < 20_000
    assert found.rows.sum() == pytest.approx(60_000)
    assert found.text.sum() == pytest.approx(1, rel=0.05)
    for plan, slots in zip(chunks, found.slots):
        assert slots.min() >= plan.first_slot
        assert slots.max() < plan.first_slot + plan.rows


@pytest.mark.parametrize("start", [0.02, 0.3, 1.0, 20.0])
@pytest.mark.parametrize("limit", [15_000, 150_000, 2_000_000])
def test_a_size_is_met_from_any_start(start, limit):
    """The size found is under the limit, and not far under it."""
    found = search_size(
        lambda step: step, lambda step: int(2e5 * step**-0.6 + 3_000), limit, start, Reporter()
    )
    assert 0.985 * limit <= int(2e5 * found**-0.6 + 3_000) <= limit


def test_a_large_size_is_met_within_three_in_a_thousand():
    """Only the pages of a small file leave more of what it may take unused."""
    for start in (0.05, 0.4, 3.0):
        size = search_size(
            lambda step: int(9e7 * step**-0.6), lambda size: size, 50_000_000, start, Reporter()
        )
        assert 0.9965 * 50_000_000 <= size <= 50_000_000


def test_a_size_that_no_step_reaches_is_refused():
    """What the coarsest pack takes is said."""
    with pytest.raises(ConfigError, match=r"--size of 1,000 bytes .* takes 3,\d\d\d bytes"):
        search_size(lambda s: s, lambda s: int(1e5 / s) + 3_000, 1_000, 1.0, Reporter())


@pytest.mark.parametrize("start", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_a_loss_is_met_though_it_is_measured_with_noise(start, noise):
    """The step found costs no more than the limit, and one a little coarser would."""

    def measure(step):
        return Loss(0.4 * step**1.7 * math.exp(noise * math.sin(1e4 * step)), 0.001)

    found, _ = search_loss(lambda step: step, measure, 1.0, start, Reporter())
    assert measure(found).value <= 1.0
    assert measure(found * 1.15).value > 1.0


def test_a_loss_below_zero_is_no_obstacle():
    """Fine steps may come out better than the model itself."""
    found, _ = search_loss(lambda s: s, lambda s: Loss(s**2 - 0.05, 0.01), 0.5, 0.01, Reporter())
    assert 0.4 <= found**2 - 0.05 <= 0.5


def test_a_loss_that_no_step_meets_is_refused():
    """What the finest step costs is said, with what to do."""
    with pytest.raises(ConfigError, match=r"--max-ppl-increase 0.1% is not met .* 5.000 %"):
        search_loss(lambda s: s, lambda _: Loss(5.0, 0.1), 0.1, 1.0, Reporter())
