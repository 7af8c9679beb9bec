"""Reference values for internal/stats, from packages that the field uses.

    uv venv --python 3.12 a && uv pip install --python a --no-deps --require-hashes -r requirements-py312.txt
    uv venv --python 3.10 b && uv pip install --python b --no-deps --require-hashes -r requirements-py310.txt
    a/bin/python reference.py gbstats ssrm savvi tea_tasting scipy
    b/bin/python reference.py confseq confseq_betting obp

writes reference/<name>.json (obp: ../statcsv/testdata/obp.json). Each file names the package's version. Two
environments, because the packages' own pins exclude each other; --no-deps, because ssrm-test's pin (numpy < 2) is
older than what it needs in fact. confseq is built from its source: it needs a C++ compiler and Boost's headers.
obp imports torch for policies that are not used here: a mock stands in for it.
"""

import importlib.metadata
import json
import math
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent


def units(seed, n, rate, lift, pre=True):
    """(m, d, m', d') of n users whose rates differ and persist; one impression at least in both periods."""
    rng = np.random.default_rng(seed)
    own = rate * rng.gamma(2.0, 0.5, n).clip(max=3)
    d = 1 + rng.geometric(0.15, n)
    p = 1 + rng.geometric(0.2, n) if pre else np.zeros(n, dtype=int)
    m = rng.binomial(d, np.minimum(own * lift, 1))
    q = rng.binomial(p, np.minimum(own, 1)) if pre else np.zeros(n, dtype=int)
    return m.astype(float), d.astype(float), q.astype(float), p.astype(float)


def sums(u):
    m, d, q, p = u
    return {
        "n": len(m), "m": m.sum(), "d": d.sum(), "mm": (m * m).sum(), "dd": (d * d).sum(), "md": (m * d).sum(),
        "pre_m": q.sum(), "pre_d": p.sum(), "pre_mm": (q * q).sum(), "pre_dd": (p * p).sum(), "pre_md": (q * p).sum(),
        "m_pre_m": (m * q).sum(), "m_pre_d": (m * p).sum(), "d_pre_m": (d * q).sum(), "d_pre_d": (d * p).sum(),
    }


def pairs():
    """Arms to compare: even and uneven, small and large, with and without an effect."""
    for seed, na, nb, rate, lift in [
        (1, 500, 500, 0.05, 1.0), (2, 5000, 5000, 0.03, 1.05), (3, 9000, 1000, 0.02, 1.2),
        (4, 40, 60, 0.2, 0.7), (5, 20000, 20000, 0.04, 1.1), (6, 300, 3000, 0.1, 1.02),
    ]:
        a, b = units(10 * seed, na, rate, 1.0), units(10 * seed + 1, nb, rate, lift)
        yield a, b, sums(a), sums(b)


def gbstats():
    from gbstats.frequentist.tests import SequentialConfig, SequentialTwoSidedTTest
    from gbstats.models.statistics import RatioStatistic, RegressionAdjustedStatistic, SampleMeanStatistic

    def ratio(s):
        return RatioStatistic(
            n=s["n"], m_statistic=SampleMeanStatistic(n=s["n"], sum=s["m"], sum_squares=s["mm"]),
            d_statistic=SampleMeanStatistic(n=s["n"], sum=s["d"], sum_squares=s["dd"]), m_d_sum_of_products=s["md"])

    def adjusted(s):
        return RegressionAdjustedStatistic(
            n=s["n"], post_statistic=SampleMeanStatistic(n=s["n"], sum=s["m"], sum_squares=s["mm"]),
            pre_statistic=SampleMeanStatistic(n=s["n"], sum=s["pre_m"], sum_squares=s["pre_mm"]),
            post_pre_sum_of_products=s["m_pre_m"], theta=0)

    def result(test):
        r = test.compute_result()
        return {"expected": r.expected, "low": r.ci[0], "high": r.ci[1], "p": r.p_value, "se": r.uplift.stddev}

    ratios, means = [], []
    for _, _, a, b in pairs():
        for alpha, nstar in [(0.05, 5000), (0.01, 500), (0.1, 50000)]:
            case = {"control": a, "treatment": b, "alpha": alpha, "nstar": nstar}
            for kind in ["absolute", "relative"]:
                config = SequentialConfig(alpha=alpha, sequential_tuning_parameter=nstar, difference_type=kind)
                case[kind] = result(SequentialTwoSidedTTest(ratio(a), ratio(b), config))
            ratios.append(case)
    # A mean is a ratio whose denominator is 1 for every unit, in both periods; m is scaled to be at most that.
    scale = {"m": 64, "pre_m": 64, "mm": 64**2, "pre_mm": 64**2, "m_pre_m": 64**2}
    one = {"d": "n", "dd": "n", "md": "m", "pre_d": "n", "pre_dd": "n", "pre_md": "pre_m", "m_pre_d": "m", "d_pre_m": "pre_m", "d_pre_d": "n"}
    for _, _, a, b in pairs():
        for s in (a, b):
            s.update({k: s[k] / v for k, v in scale.items()})
            s.update({k: s[v] for k, v in one.items()})
        config = SequentialConfig(alpha=0.05, sequential_tuning_parameter=5000, difference_type="absolute")
        test = SequentialTwoSidedTTest(adjusted(a), adjusted(b), config)
        means.append({"control": a, "treatment": b, "absolute": result(test), "theta": test.stat_a.theta})
    return {"ratios": ratios, "adjusted_means": means}


COUNTS = [
    ([[5000, 5000]], [0.5, 0.5]), ([[5100, 4900]], [0.5, 0.5]), ([[10, 0], [7, 3]], [0.5, 0.5]),
    ([[900, 95], [880, 120]], [0.9, 0.1]), ([[40, 38, 22], [400, 420, 180]], [0.4, 0.4, 0.2]),
    ([[51000, 49000]], [0.5, 0.5]), ([[0, 1]], [0.99, 0.01]),
]


def ssrm():
    np.Inf = np.inf  # the name is gone from numpy 2, and ssrm-test 0.1.5 uses it
    from ssrm_test import ssrm_test

    out = []
    for batches, shares in COUNTS:
        for prior in [1.0, 100.0, 10000.0]:
            steps = ssrm_test.sequential_posteriors(
                np.array(batches), np.array(shares), dirichlet_probability=np.array(shares), dirichlet_concentration=prior)
            out.append({"batches": batches, "shares": shares, "prior": prior, "log_bayes_factors": [
                s["log_marginal_likelihood_M1"] - s["log_marginal_likelihood_M0"] for s in steps if "log_marginal_likelihood_M1" in s][-len(batches):]})
    return {"cases": out}


def savvi():
    from savvi.multinomial import Multinomial

    out = []
    for batches, shares in COUNTS:
        for k in [1, 100]:
            test = Multinomial(0.05, np.array(shares), k)
            odds = []
            for x in batches:
                test.update(np.array(x))
                odds.append(test.odds)
            out.append({"batches": batches, "shares": shares, "prior": k, "odds": odds})
    return {"cases": out}


def tea_tasting():
    import tea_tasting as tt

    def aggregates(u):
        cols = dict(zip(["m", "d", "pm", "pd"], u))
        return tt.aggr.Aggregates(
            count_=len(u[0]), mean_={k: v.mean() for k, v in cols.items()}, var_={k: v.var(ddof=1) for k, v in cols.items()},
            cov_={(i, j): np.cov(cols[i], cols[j])[0, 1] for i in cols for j in cols if i < j})

    plain, adjusted, power, many = [], [], [], []
    for a, b, sa, sb in pairs():
        for rows, metric in [
            (plain, tt.RatioOfMeans("m", "d", use_t=False)),
            (adjusted, tt.RatioOfMeans("m", "d", "pm", "pd", use_t=False)),
        ]:
            x, y = aggregates(a), aggregates(b)
            r = metric.analyze_aggregates(x, y)
            rows.append({
                "control": sa, "treatment": sb, "absolute": r.effect_size, "se": r.effect_size / r.statistic, "relative": r.rel_effect_size,
                "z_low": r.effect_size_ci_lower, "z_high": r.effect_size_ci_upper,
                "relative_low": r.rel_effect_size_ci_lower, "relative_high": r.rel_effect_size_ci_upper,
                "theta": metric._covariate_coef(x.with_zero_div() + y.with_zero_div()) if metric.numer_covariate else 0})
        for effect in [0.02, 0.1]:
            for share in [0.5, 0.1]:
                m = tt.RatioOfMeans("m", "d", use_t=False, rel_effect_size=effect, ratio=share / (1 - share), alpha=0.05)
                power.append({"baseline": sa, "relative": effect, "share": share, "alpha": 0.05,
                              "power": m.solve_power_from_aggregates(aggregates(a), "power")[0].power})
    rng = np.random.default_rng(99)
    for k in [1, 5, 44]:
        p = np.where(rng.random(k) < 0.3, rng.random(k) ** 6, rng.random(k))
        results = {i: tt.experiment.ExperimentResult({"x": {"pvalue": float(v)}}) for i, v in enumerate(p)}
        fdr = tt.adjust_fdr(results, alpha=0.1, arbitrary_dependence=False)
        many.append({"p": p.tolist(), "adjusted": [fdr[i]["x"]["pvalue_adj"] for i in range(k)], "rejected": [int(fdr[i]["x"]["null_rejected"]) for i in range(k)]})
    return {"ratios": plain, "adjusted_ratios": adjusted, "power": power, "fdr": many}


def scipy_and_mpmath():
    import mpmath
    import scipy.integrate
    import scipy.optimize
    import scipy.stats

    mpmath.mp.dps = 16
    wilson = []
    for x, n in [(0, 10), (1, 10), (10, 100), (5, 5), (300, 100000)]:
        for alpha in [0.05, 0.01]:
            ci = scipy.stats.binomtest(x, n).proportion_ci(1 - alpha, method="wilson")
            wilson.append({"x": x, "n": n, "alpha": alpha, "low": ci.low, "high": ci.high})
    exceeds = []
    for x, n, limit in [(3, 20, 0.05), (0, 20, 0.05), (20, 20, 0.5), (40, 1000, 0.05), (700, 10000, 0.05)]:
        v = mpmath.quad(lambda q: (q / limit) ** x * ((1 - q) / (1 - limit)) ** (n - x), [limit, (limit + 1) / 10, 0.3, 0.6, 1]) / (1 - limit)
        exceeds.append({"x": x, "n": n, "limit": limit, "log_e": float(mpmath.log(v))})
    thompson = []
    for arms in [[(1, 1), (1, 1)], [(2, 60), (3, 55), (1, 20), (9, 300), (1, 1)], [(0.5, 0.5), (0.2, 3), (4, 4)],
                 [(50, 5000), (55, 5000), (60, 5000), (4, 200)], [(300, 10000), (310, 10000), (30, 900)], [(40, 20000), (41, 20000)]]:
        laws = [scipy.stats.beta(a, b) for a, b in arms]

        def share(i):
            # Over u = F_i(x) the density of arm i is 1: what is left is bounded and monotone.
            f = lambda u: math.prod(law.cdf(laws[i].ppf(u)) for j, law in enumerate(laws) if j != i)
            cuts = np.unique([0, 1e-12, 1e-9, 1e-6, 1e-4, 1e-2, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1 - 1e-4, 1 - 1e-6, 1 - 1e-9, 1 - 1e-12, 1])
            return sum(scipy.integrate.quad(f, lo, hi, epsabs=1e-13, epsrel=1e-12, limit=400)[0] for lo, hi in zip(cuts, cuts[1:]))
        thompson.append({"arms": arms, "propensities": [share(i) for i in range(len(arms))]})
    fieller = []
    for _, _, a, b in pairs():
        def moments(s):
            r = s["m"] / s["d"]
            dbar = s["d"] / s["n"]
            var = lambda k, f, g: (s[k] - s[f] * s[g] / s["n"]) / (s["n"] - 1)
            return r, (var("mm", "m", "m") - 2 * r * var("md", "m", "d") + r * r * var("dd", "d", "d")) / dbar**2 / s["n"]
        (ra, va), (rb, vb) = moments(a), moments(b)
        z = 2.5
        g = lambda t: (rb - t * ra) ** 2 - z * z * (vb + t * t * va)
        mid = rb / ra
        if ra * ra > z * z * va:
            lo = 0.0 if g(0) < 0 else scipy.optimize.brentq(g, 0, mid, xtol=1e-15, rtol=1e-15)
            hi = mid
            while g(hi) < 0:
                hi += mid
            fieller.append({"control": a, "treatment": b, "z": z, "low": lo - 1, "high": scipy.optimize.brentq(g, mid, hi, xtol=1e-15, rtol=1e-15) - 1})
    bh = []
    rng = np.random.default_rng(98)
    for k in [1, 7, 44]:
        p = rng.random(k) ** 3
        bh.append({"p": p.tolist(), "adjusted": scipy.stats.false_discovery_control(p).tolist()})
    return {"wilson": wilson, "rate_exceeds": exceeds, "thompson": thompson, "fieller": fieller, "fdr": bh, "mpmath": importlib.metadata.version("mpmath")}


def confseq():
    from confseq.boundaries import normal_log_mixture, normal_mixture_bound

    out = []
    for alpha in [0.01, 0.05, 0.2]:
        for nstar in [100.0, 5000.0]:
            for n in [10.0, 1000.0, 5000.0, 1e6]:
                row = {"alpha": alpha, "nstar": nstar, "n": n}
                row["bound"] = float(normal_mixture_bound(n, alpha, nstar, alpha, False))
                row["one_sided"] = float(normal_mixture_bound(n, alpha, nstar, alpha, True))
                row["log_mixture"] = [[s, float(normal_log_mixture(s * math.sqrt(n), n, nstar, alpha, False))] for s in [0.0, 1.0, 3.0, 6.0]]
                out.append(row)
    return {"cases": out}


def confseq_betting():
    """Capital of the hedged bets on the mean of bounded values, after each value (pure Python: needs no compiler)."""
    from confseq.betting import betting_mart

    rng = np.random.default_rng(20)
    out = []
    for name, x in [
        ("coin", rng.binomial(1, 0.05, 200)), ("rare", rng.binomial(1, 0.01, 200)), ("beta", rng.beta(2, 5, 100)),
        ("nothing", np.zeros(50)), ("everything", np.ones(50)),
    ]:
        x = x.astype(float)
        row = {"name": name, "x": x.tolist(), "capital": []}
        for alpha in [0.05, 0.001]:
            for m in [0.01, 0.05, 0.3, 0.9]:
                log = np.log(betting_mart(x, m, alpha=alpha, convex_comb=True))
                after = [n for n in [1, 2, 3, 5, 10, 30, 50, 100, 200] if n <= len(x)]
                row["capital"].append({"alpha": alpha, "m": m, "after": after, "log": [float(log[n - 1]) for n in after]})
        out.append(row)
    return {"cases": out}


def obp():
    from unittest.mock import MagicMock

    for name in ["torch", "torch.nn", "torch.nn.functional", "torch.optim", "torch.utils", "torch.utils.data"]:
        sys.modules[name] = MagicMock()
    torch = sys.modules["torch"]
    torch.nn.Module = sys.modules["torch.nn"].Module = torch.utils.data.Dataset = object
    import pandas as pd
    from obp import ope

    here = HERE.parent / "statcsv" / "testdata"
    out = []
    for log_name, policy_name in [("random", "bts"), ("bts", "random")]:
        log = pd.read_csv(here / f"log-{log_name}-women.csv.gz")
        policy = pd.read_csv(here / f"policy-{policy_name}-women.csv")
        n, items = len(log), int(policy.item_id.max()) + 1
        dist = np.zeros((items, 3))
        dist[policy.item_id, policy.position - 1] = policy.probability
        shown = np.bincount(log.item_id, minlength=items)
        clicked = np.bincount(log.item_id, weights=log.click, minlength=items)
        q = np.broadcast_to(((clicked + 1) / (shown + 100))[None, :, None], (n, items, 3))
        args = dict(
            reward=log.click.to_numpy(), action=log.item_id.to_numpy(), pscore=log.propensity_score.to_numpy(),
            position=(log.position - 1).to_numpy(), action_dist=np.broadcast_to(dist[None], (n, items, 3)).copy(),
            estimated_rewards_by_reg_model=q.copy())
        for clip, switch, shrink, sg in [(5, 5, 10, 0.1), (1, 2, 1, 0.5), (50, 0.5, 1000, 0.01)]:
            estimators = {
                "ips": ope.InverseProbabilityWeighting(), "clipped_ips": ope.InverseProbabilityWeighting(lambda_=clip),
                "snips": ope.SelfNormalizedInverseProbabilityWeighting(), "dm": ope.DirectMethod(), "dr": ope.DoublyRobust(),
                "sndr": ope.SelfNormalizedDoublyRobust(), "switch_dr": ope.SwitchDoublyRobust(lambda_=switch),
                "dros": ope.DoublyRobustWithShrinkage(lambda_=shrink), "sg_ips": ope.SubGaussianInverseProbabilityWeighting(lambda_=sg),
            }
            row = {"log": log_name, "policy": policy_name, "clip": clip, "switch": switch, "shrink": shrink, "sg": sg,
                   "values": {k: float(e.estimate_policy_value(**args)) for k, e in estimators.items()}}
            if clip == 5:
                row["bootstrap"] = {}
                for k, e in estimators.items():
                    ci = e.estimate_interval(**args, alpha=0.05, n_bootstrap_samples=2000, random_state=7)
                    row["bootstrap"][k] = [float(ci["95.0% CI (lower)"]), float(ci["95.0% CI (upper)"])]
            out.append(row)
    return {"cases": out}


def plain(v):
    """numpy's numbers as Python's; what JSON has no word for as its name."""
    if isinstance(v, dict):
        return {k: plain(x) for k, x in v.items()}
    if isinstance(v, (list, tuple)):
        return [plain(x) for x in v]
    if isinstance(v, np.generic):
        return plain(v.item())
    if isinstance(v, float) and not math.isfinite(v):
        return str(v)
    if isinstance(v, float) and v == int(v) and abs(v) < 2**53:
        return int(v)
    return v


SOURCES = {
    "gbstats": ("gbstats", gbstats), "ssrm": ("ssrm-test", ssrm), "savvi": ("savvi", savvi), "tea_tasting": ("tea-tasting", tea_tasting),
    "scipy": ("scipy", scipy_and_mpmath), "confseq": ("confseq", confseq), "confseq_betting": ("confseq", confseq_betting), "obp": ("obp", obp),
}

for name in sys.argv[1:]:
    package, make = SOURCES[name]
    head = {"package": package, "version": importlib.metadata.version(package), "numpy": np.__version__, "python": sys.version.split()[0]}
    target = HERE.parent / "statcsv" / "testdata" / "obp.json" if name == "obp" else HERE / "reference" / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(plain(head | make()), indent=None, separators=(",", ":")).replace('},{', '},\n{') + "\n")
    print(target.name, target.stat().st_size)
