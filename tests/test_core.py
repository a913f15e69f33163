"""Sampling, layers, backbones, evaluation and training against independent, slow, obvious versions."""
import hashlib, math, subprocess, sys
import numpy as np, pandas as pd, pytest, torch
from llmers_nb.datasets import leave_one_out, planted
from llmers_nb.sampling import Batch, ClickSampler, PairSampler, Seen, SequenceSampler, draw_negatives, windows
from llmers_nb.layers import Recommender
from llmers_nb.collaborative import BPRMF, EASE, ItemKNN, LightGCN, Pop, SimGCL
from llmers_nb.sequential import GRU4Rec, SASRec
from llmers_nb.ctr import DeepFM
from llmers_nb.evaluation import Evaluation, evaluate, history_batch, paired, rank_metrics, target_ranks, tie_order
from llmers_nb.training import fit, seeded, settings

TOY = leave_one_out(planted(seed=0))
CLICKS = leave_one_out(planted(seed=0, dislike=.5))
RANKERS = [BPRMF, LightGCN, SimGCL, SASRec, GRU4Rec]

class Scores:
    "A model that is nothing but a table of scores."
    name = 'table of scores'
    def __init__(self, S): self.S = S
    def scorer(self, b): return lambda rows: self.S[b.user[rows]].clone()

def slow_metrics(S, split, part, k):
    "One user at a time, one candidate at a time."
    tie, out = tie_order(split.training.n_items).numpy(), {}
    held = getattr(split, part)
    for u, g in held.groupby('user'):
        seen = set(split.training.train.item[split.training.train.user == u])
        if part == 'test': seen |= set(split.valid.item[split.valid.user == u])
        cand = [i for i in range(1, split.training.n_items + 1) if i not in seen]
        ranked = sorted(cand, key=lambda i: (-float(S[u, i]), tie[i]))[:k]
        hits = [n for n, i in enumerate(ranked, 1) if i in set(g.item)]
        out[u] = (float(bool(hits)), len(hits)/len(g), sum(1/math.log2(n + 1) for n in hits)/sum(1/math.log2(j + 1) for j in range(1, min(k, len(g)) + 1)), 1/hits[0] if hits else 0.)
    return np.mean(list(out.values()), 0)

@pytest.mark.parametrize('part', ['valid', 'test'])
@pytest.mark.parametrize('levels', [3, 10**6])   # three distinct scores only: ties everywhere
def test_metrics_against_the_obvious_version(part, levels):
    g = torch.Generator().manual_seed(levels)
    S = torch.randint(0, levels, (TOY.training.n_users + 1, TOY.training.n_items + 1), generator=g).float()
    ev = evaluate(Scores(S), TOY, part).metrics()
    for k in (10, 20): np.testing.assert_allclose([ev[f'{m}@{k}'] for m in ('hr', 'recall', 'ndcg', 'mrr')], slow_metrics(S, TOY, part, k), atol=1e-9)

def test_several_held_out_items_per_user():
    import dataclasses
    both = dataclasses.replace(TOY, valid=TOY.valid.iloc[:0], test=pd.concat([TOY.valid, TOY.test]).sort_values('user', kind='stable'))
    S = torch.rand(TOY.training.n_users + 1, TOY.training.n_items + 1, generator=torch.Generator().manual_seed(1))
    ev = evaluate(Scores(S), both).metrics()
    np.testing.assert_allclose([ev[f'{m}@10'] for m in ('hr', 'recall', 'ndcg', 'mrr')], slow_metrics(S, both, 'test', 10), atol=1e-9)

def test_ranks_do_not_depend_on_the_block_size():
    S = torch.randint(0, 4, (TOY.training.n_users + 1, TOY.training.n_items + 1), generator=torch.Generator().manual_seed(2)).float()
    assert (evaluate(Scores(S), TOY, cells=1).rank == evaluate(Scores(S), TOY).rank).all()

def test_nan_scores_name_the_model():
    S = torch.full((TOY.training.n_users + 1, TOY.training.n_items + 1), float('nan'))
    with pytest.raises(ValueError, match='table of scores gave NaN'): evaluate(Scores(S), TOY)

def test_empty_part_is_an_error():
    import dataclasses
    with pytest.raises(ValueError, match='valid part'): evaluate(Pop().fit(TOY.training), dataclasses.replace(TOY, valid=TOY.valid.iloc[:0]), 'valid')

def test_a_seen_target_is_a_miss():
    m = rank_metrics(np.array([1]), np.array([0]), ks=(10,))
    assert m.to_numpy().sum() == 0

def test_history_at_test_time_ends_with_the_validation_item():
    users = np.unique(TOY.test.user)
    v, t = (history_batch(TOY, p, users, 50).seq for p in ('valid', 'test'))
    for r, u in enumerate(users):
        train = TOY.training.train.item[TOY.training.train.user == u].tolist()
        assert v[r][v[r] > 0].tolist() == train
        assert t[r][t[r] > 0].tolist() == train + TOY.valid.item[TOY.valid.user == u].tolist()

def test_windows_cover_each_target_once_with_its_true_predecessor():
    user, seq, pos = windows(TOY.training, L=4)
    got = sorted((u, a, b) for u, s, p in zip(user.tolist(), seq.tolist(), pos.tolist()) for a, b in zip(s, p) if b)
    want = sorted((u, a, b) for u, g in TOY.training.train.groupby('user') for a, b in zip(g.item, g.item.iloc[1:]))
    assert got == want

@pytest.mark.parametrize('grid', [2**26, 0])
def test_negatives_are_never_positives(grid):
    user = torch.from_numpy(TOY.training.train.user.to_numpy('int64', copy=True)).repeat(20)
    neg = draw_negatives(Seen(TOY.training, grid), user, torch.Generator().manual_seed(0))
    assert not Seen(TOY.training)(user, neg).any() and neg.min() >= 1 and neg.max() <= TOY.training.n_items

def test_a_user_who_met_everything_is_named():
    full = TOY.training.with_train(pd.concat([TOY.training.train, pd.DataFrame(dict(user=5, item=range(1, TOY.training.n_items + 1), rating=5., timestamp=1))]))
    with pytest.raises(ValueError, match='user 5 has met all'): next(iter(PairSampler(full)))

@pytest.mark.parametrize('cls', RANKERS)
def test_same_seed_same_result_and_best_epoch_is_kept(cls):
    def run(seed):
        rec = Recommender(seeded(lambda: cls(TOY.training, d=16), seed)); f = fit(rec, TOY, seed=seed, epochs=4)
        return rec, f
    (a, fa), (b, _), (c, _) = run(0), run(0), run(1)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert any(not torch.equal(p, q) for p, q in zip(a.parameters(), c.parameters()))
    assert evaluate(a, TOY, 'valid').metrics()['ndcg@10'] == pytest.approx(fa.curve.valid.max(), abs=1e-12)

def test_same_seed_same_result_in_another_process():
    code = '''import hashlib, sys; from llmers_nb.datasets import *; from llmers_nb.layers import *; from llmers_nb.collaborative import *; from llmers_nb.training import *
import torch; torch.set_num_threads(1)
s = leave_one_out(planted(seed=0)); r = Recommender(seeded(lambda: LightGCN(s.training, d=8), 0)); fit(r, s, epochs=2)
print(hashlib.sha256(r.backbone.item.weight.detach().numpy().tobytes()).hexdigest())'''
    a, b = (subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert a == b and len(a.strip()) == 64

def test_click_model_learns_and_reports_auc():
    rec = Recommender(seeded(lambda: DeepFM(CLICKS.training), 0))
    before = evaluate(rec, CLICKS).metrics(); fit(rec, CLICKS, epochs=15)
    ev = evaluate(rec, CLICKS)
    assert set(ev.metrics()) == {'auc', 'logloss'} and evaluate(rec, CLICKS, 'valid').metrics()['auc'] > .5
    assert ev.metrics()['logloss'] != before['logloss']

def test_auc_by_counting_pairs():
    rng = np.random.default_rng(0); y = rng.integers(0, 2, 60); p = rng.integers(0, 5, 60)/4
    pairs = [(a > b) + .5*(a == b) for a in p[y == 1] for b in p[y == 0]]
    assert Evaluation(np.arange(60), np.arange(60), p=p.clip(.01, .99), label=y).metrics()['auc'] == pytest.approx(np.mean([(a > b) + .5*(a == b) for a in p.clip(.01, .99)[y == 1] for b in p.clip(.01, .99)[y == 0]]))
    assert len(pairs) > 0

def test_paired_interval_covers_a_known_difference():
    rng = np.random.default_rng(0); users = np.arange(1, 2001)
    a = Evaluation(users, users, rank=np.where(rng.random(2000) < .30, 1, 99)); b = Evaluation(users, users, rank=np.where(rng.random(2000) < .20, 1, 99))
    i = paired([a], [b], 'hr@10')
    assert i.low < .10 < i.high and i.low > .05 and i.p < .01 and i.n == 2000
    same = paired([a], [a], 'hr@10')
    assert (same.diff, same.low, same.high, same.p) == (0, 0, 0, 1)

def test_paired_refuses_other_users():
    a, b = (Evaluation(np.array(u), np.array([1, 2]), rank=np.array([1, 2])) for u in ([1, 2], [1, 3]))
    with pytest.raises(ValueError, match='same users'): paired([a], [b])

@pytest.mark.parametrize('bad,what', [(dict(lr=1e18, epochs=3), 'lower lr'), (dict(learningrate=1.), 'unknown training setting')])
def test_bad_settings(bad, what):
    with pytest.raises(ValueError, match=what): fit(Recommender(LightGCN(TOY.training, d=8)), TOY, **bad)

def test_new_users_are_scored_from_their_history():
    knn = ItemKNN(5).fit(TOY.training); items = TOY.training.train.item[TOY.training.train.user == 3].tolist()
    known = knn.scorer(Batch(user=torch.tensor([3])))(slice(None)); new = knn.scorer(Batch(user=torch.tensor([0]), seq=torch.tensor([items])))(slice(None))
    assert torch.allclose(known, new)

def test_too_long_history_says_what_to_do():
    sas = SASRec(TOY.training, L=5)
    with pytest.raises(ValueError, match='last 5'): sas.encode(Batch(seq=torch.ones(1, 6, dtype=int)), sas.tables())

def test_protocol_p_reference_values(ml100k):
    "EASE has a closed form, so its score pins down split, masking and tie rule at once."
    m = evaluate(EASE(100.).fit(ml100k.training), ml100k).metrics()
    assert (round(m['hr@10'], 4), round(m['ndcg@10'], 4)) == (.1379, .0700)
    m = evaluate(ItemKNN(10).fit(ml100k.training), ml100k).metrics()
    assert (round(m['hr@10'], 3), round(m['ndcg@10'], 4)) == (.124, .0659)
