"""Invented scores of packs, like those of a study of a small model, for reports of them."""

from dataclasses import replace
from pathlib import Path

from tolpack.evaluation.experiment_runner import SweepResult
from tolpack.evaluation.recommend import recommend
from tolpack.evaluation.scores import Baseline, Evaluation, PackScore
from tolpack.evaluation.sweep import mark_front
from tolpack.evaluation.sweep_grid import PackOptions
from tolpack.report.report_subject import ReportSubject
from tolpack.report.sweep_page import sweep_page

FFN_BYTES, FP16_BYTES = 9_440_000, 33_554_432
# Options, bytes, mean KL divergence in nats, increase of perplexity in percent, bytes read a token.
SETTINGS = (
    ({"bits": 16}, 33_608_512, 1.1e-8, 0.0, 4096),
    ({"bits": 8}, 17_631_000, 1.5e-5, 0.005, 2176),
    ({"bits": 4}, 9_110_000, 0.0046, 0.114, 1120),
    ({"rank": "75%", "bits": 4}, 7_180_000, 0.0121, 0.823, 840),
    ({"rank": "50%", "bits": 4}, 4_780_000, 0.0351, 2.395, 560),
    ({"rank": "25%", "bits": 4}, 2_400_000, 0.151, 11.91, 288),
    ({"rank": "auto", "bits": 4, "size": "7180000"}, 7_170_000, 0.0066, 0.31, 861),
    ({"rank": "auto", "bits": 4, "size": "4780000"}, 4_779_000, 0.0312, 2.11, 571),
    ({"rank": "auto", "bits": 4, "size": "2400000"}, 2_399_000, 0.153, 12.3, 290),
    ({"bits": "auto", "max_kld": "0.002"}, 2_710_000, 0.0018, 0.091, 10_930),
    ({"bits": "auto", "max_kld": "0.008"}, 1_912_000, 0.0071, 0.402, 7_410),
    ({"bits": "auto", "max_kld": "0.03"}, 1_380_000, 0.0268, 1.71, 5_120),
    ({"rank": "auto", "bits": "auto", "max_kld": "0.002"}, 2_230_000, 0.0019, 0.113, 9_870),
    ({"rank": "auto", "bits": "auto", "max_kld": "0.008"}, 1_512_000, 0.0075, 0.433, 6_020),
    ({"rank": "auto", "bits": "auto", "max_kld": "0.03"}, 1_083_000, 0.0277, 1.94, 4_410),
    ({"rank": "auto", "bits": "auto", "drop": "auto", "max_kld": "0.008"}, 1_502_000, 0.0076,
     0.441, 6_010),
    ({"rank": "auto", "bits": "auto", "drop": "auto", "max_kld": "0.03"}, 1_071_000, 0.0279,
     1.96, 4_390),
)  # fmt: skip
SUBJECT = ReportSubject(
    Path("models/memoryllm-11m"), (Path("held-out.txt"),),
    "tolpack eval models/memoryllm-11m --tokenizer models/tokenizer.json --text held-out.txt "
    "--calibrate training-text.txt --sweep 'rank=none,25%,50%,75%,auto bits=4,8,16' "
    "--sweep 'rank=none,auto bits=auto max-kld=0.002,0.008,0.03' --report report.html",
    "tolpack build models/memoryllm-11m --calibrate training-text.txt "
    "--tokenizer models/tokenizer.json",
)  # fmt: skip


def baseline(tokens=332_165, texts=()):
    """Return the checkpoint's own score."""
    whole = Baseline(16_139.93, 101.09, 4.941, tokens, FFN_BYTES)
    by_text = tuple(replace(whole, text=name, tokens=tokens // len(texts)) for name in texts)
    return replace(whole, by_text=by_text)


def score(size, kl_nats, increase, read, *, macs=0, path="", texts=(), kind=""):
    """Return a pack's score."""
    whole = PackScore(
        path, 16_139.93 * (1 + increase / 100), 101.3, 4.94, 332_165, FFN_BYTES, size,
        FP16_BYTES / size, 16 * size / FP16_BYTES, increase, 0.01 + 0.05 * increase, kl_nats,
        0.01 * kl_nats, 0.7 * kl_nats, 5 * kl_nats, 40 * kl_nats, 100 - 12 * kl_nats**0.35, 0.09,
        read, 41_216, macs, kind=kind,
    )  # fmt: skip
    by_text = tuple(
        replace(whole, text=name, kl_mean_nats=kl_nats * (1 + n)) for n, name in enumerate(texts)
    )
    return replace(whole, by_text=by_text)


def results(texts=()):
    """Return the results of `SETTINGS`, with their front marked."""
    found = []
    for given, size, kl_nats, increase, read in SETTINGS:
        options = PackOptions(**given)
        macs = 0 if options.rank == "none" else 412_672
        own = score(size, kl_nats, increase, read, macs=macs, texts=texts)
        found.append(SweepResult(options, own, 1.0, 1.0))
    return mark_front(found)


def report(*, tokens=332_165, texts=(), warnings=()):
    """Return the report of a sweep."""
    swept = results(texts)
    evaluation = Evaluation(256, baseline(tokens, texts), ())
    return sweep_page(SUBJECT, evaluation, swept, (), recommend(swept, 100), warnings)


def pack_report(texts=()):
    """Return the report of three packs."""
    fixed = {"kind": "fixed bits, no basis", "texts": texts}
    packs = (
        score(9_110_000, 0.0046, 0.114, 1120, path="a.tolpack", **fixed),
        score(17_631_000, 1.5e-5, 0.005, 2176, path="c.tolpack", **fixed),
        score(4_780_000, 0.0351, 2.395, 560, path="b.tolpack", macs=412_672, texts=texts,
              kind="fixed bits, uniform rank"),
    )  # fmt: skip
    return sweep_page(SUBJECT, Evaluation(256, baseline(1_024, texts), packs), (), (), ())
