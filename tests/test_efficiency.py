"Costs of systems and language models that recommend directly. Toy data and a bag of words only: no network, no stored results."
import json, warnings
from dataclasses import replace
import numpy as np, pandas as pd, pytest, torch
from llmers_nb import efficiency as E
from llmers_nb.benchmark import Results, measure
from llmers_nb.datasets import leave_one_out, planted
from llmers_nb.evaluation import evaluate, history_batch
from llmers_nb.llm import LLMForbidden, RecordedLLM, forbid_llm
from llmers_nb.sampling import Batch

@pytest.fixture(scope='module')
def toy(): return leave_one_out(planted(seed=0))

@pytest.fixture(scope='module')
def runs(toy, tmp_path_factory):
    "Two seeds of one backbone and one system; the folder and the raw records."
    store, raw = Results(tmp_path_factory.mktemp('runs')), []
    for seed in (0, 1):
        for name, arm in ((None, 'backbone'), ('LLM2X', 'system')):
            rec, ev = measure(name, 'SASRec', toy, seed, arm, epochs=1)
            raw.append(rec); store.add(f'{arm}{seed}', rec, ev)
    return store.folder, raw

@pytest.fixture(scope='module')
def llm(toy): return RecordedLLM.for_data(toy.training)

# ---- costs ----------------------------------------------------------------------------------------------------------------------------
def test_costs_from_the_records(runs):
    "Every ratio and amount again, from the records that `measure` returned and not from the stored table."
    folder, raw = runs
    row, = E.costs(folder, 'planted').to_dict('records')
    b, s = ([r for r in raw if r['arm'] == a] for a in ('backbone', 'system'))
    for col, field in (('epoch_ratio', 'epoch_seconds'), ('train_ratio', 'train_seconds'), ('serve_ratio', 'serve_ms')):
        assert row[col] == pytest.approx(np.mean([x[field]/y[field] for x, y in zip(s, b)]), rel=1e-4)  # of two seeds, median = mean
    assert row['gain_pct'] == pytest.approx(100*(sum(x['ndcg@10'] for x in s)/sum(y['ndcg@10'] for y in b) - 1), abs=1e-2)
    assert row['params_pct'] == pytest.approx(100*s[0]['params_added']/b[0]['params'], rel=1e-4) and row['params_added'] == s[0]['params_added']
    assert (row['system'], row['category'], row['metric'], row['seeds']) == ('LLM2X', 'model', 'ndcg@10', 2)
    assert row['llm_calls'] == s[0]['llm_calls'] > 0 and row['llm_bytes'] == s[0]['llm_bytes'] > 0

def test_costs_says_what_to_run(tmp_path, runs):
    for folder, data in ((tmp_path, 'ml-100k'), (runs[0], 'ml-100k')):
        with pytest.raises(FileNotFoundError, match='llmers bench --systems all --dataset ml-100k'): E.costs(folder, data)

def test_no_data_results_yet(monkeypatch):
    "A checkout without data/results gets the same advice."
    def nothing(folder): raise E.SurveyError("No data file 'results'")
    monkeypatch.setattr(E, 'Results', nothing)
    with pytest.raises(FileNotFoundError, match='llmers bench'): E.costs()

def _copy(runs, folder, change):
    t = pd.read_csv(runs[0]/'runs.csv'); change(t).to_csv(folder/'runs.csv', index=False)
    return folder

def test_no_ratio_across_machines_or_without_a_partner(runs, tmp_path):
    "A system's run on another kind of machine is left out, by name; it never gets a ratio."
    far = lambda t: t.assign(machine=np.where((t.arm == 'system') & (t.seed == 1), 'another', t.machine))
    with pytest.warns(UserWarning, match='LLM2X on SASRec'): out = E.costs(_copy(runs, tmp_path, far), 'planted')
    assert out.seeds.tolist() == [1] and 'another' not in set(out.machine)

def test_competing_runs_are_refused(runs, tmp_path):
    two = lambda t: pd.concat([t, t[(t.arm == 'backbone') & (t.seed == 0)].assign(config='other', serve_ms=9.)])
    with pytest.raises(ValueError, match="two stored runs.*SASRec"): E.costs(_copy(runs, tmp_path, two), 'planted')

def test_click_models_are_measured_by_auc(runs, tmp_path):
    click = lambda t: t.assign(**{'ndcg@10': np.nan, 'auc': np.where(t.arm == 'system', .6, .5), 'backbone': 'DeepFM'})
    row, = E.costs(_copy(runs, tmp_path, click), 'planted').to_dict('records')
    assert row['metric'] == 'auc' and row['gain_pct'] == pytest.approx(20) and row['backbone'] == 'DeepFM'
    assert len(E.tradeoff(E.costs(tmp_path, 'planted')).axes) == 1

# ---- the encoder as a recommender ---------------------------------------------------------------------------------------------------
def test_text_scorer_by_another_path(toy, llm):
    "Scores are the encoder's cosines; storing the item vectors changes nothing; repetition changes nothing."
    stored, fresh = (E.TextScorer(llm, toy.training, L=4, stored=s) for s in (True, False))
    users = np.unique(toy.test.user)[:7]
    b = history_batch(toy, 'test', users, 4)
    S = stored.scorer(b)(slice(0, 7))
    u, i = 3, 11
    met = pd.concat([toy.training.train, toy.valid]).sort_values(['user', 'timestamp'], kind='stable').query('user == @users[@u]').item.tail(4)
    a, z = llm.encoder.forward(['A viewer who watched: ' + '; '.join(toy.training.items.title[met]) + '.', toy.training.items.text[i]])
    assert float(S[u, i]) == pytest.approx(float(a @ z), abs=1e-5)
    assert torch.equal(S, stored.scorer(b)(slice(0, 7))) and torch.allclose(S, fresh.scorer(b)(slice(0, 7)), atol=1e-5)
    assert (evaluate(stored, toy).rank == evaluate(fresh, toy).rank).all()

def test_reads_texts_of_the_training_view_only(toy, llm):
    "Held-out rows decide who is asked and what is right, never what is scored, beyond the history every sequence model gets."
    other = replace(toy, test=toy.test.assign(item=(toy.test.item % toy.training.n_items) + 1))
    m, users = E.TextScorer(llm, toy.training), np.unique(toy.test.user)[:5]
    a, z = (m.scorer(history_batch(s, 'test', users, m.L))(slice(0, 5)) for s in (toy, other))
    assert torch.equal(a, z)

def test_text_scorer_beats_chance(toy, llm):
    "The toy's texts decide; without them no better than chance."
    right = E.direct(E.TextScorer(llm, toy.training), toy, 1)
    items = toy.training.items.copy(); items[['title', 'text']] = items[['title', 'text']].sample(frac=1, random_state=0).to_numpy()
    class Mixed(E.TextScorer): pass
    m = Mixed(llm, toy.training); m.V = m.V[np.random.default_rng(0).permutation(len(m.V))]
    wrong = E.direct(m, toy, 1)
    assert right['ndcg@10'] > wrong['ndcg@10'] + 4*(right['ndcg_se'] + wrong['ndcg_se'])/2
    assert right['users'] == toy.test.user.nunique() and right['serve_ms'] > 0

# ---- the generating model -----------------------------------------------------------------------------------------------------------
def test_as_text_keeps_words_in_order(toy):
    words, table = E.title_words(toy.training)
    items = torch.tensor([[2, 7, 0], [0, 0, 4], [0, 0, 0]])
    for left in (False, True):
        x = E.as_text(items, table, left)
        for row, ids in zip(x.numpy(), ([2, 7], [4], [])):
            want = ['<start>'] + [w for i in ids for w in [*toy.training.items.title[i].split(), '<end>']]
            assert list(words[row[row > 0]]) == want
            assert (np.diff((row > 0).astype(int)) >= 0).all() if left else (np.diff((row > 0).astype(int)) <= 0).all()

def test_windows_stay_with_their_user(toy):
    m = E.TitleLM(toy.training, L=3, d=8, layers=1, beams=2)
    ptr, idx = toy.training.histories
    at = np.random.default_rng(0).integers(0, len(idx), 200)
    for p, w in zip(at, m.windows(at).numpy()):
        user = np.searchsorted(ptr, p, side='right') - 1
        assert w[w > 0].tolist() == idx[max(ptr[user], p - 3):p + 1].tolist() and w[-1] == idx[p]

def test_grounding_drops_and_counts():
    shop = pd.DataFrame(dict(title=['Heat', 'Sabrina', 'Sabrina'], item=[1, 2, 3]))
    found, dropped = E.ground([0, 0, 1, 1], ['Sabrina', 'sabrina', '', 'Heat'], [-1., -2., -3., -4.], shop)
    assert found[['row', 'item', 'logp']].values.tolist() == [[0, 2, -1.], [0, 3, -1.], [1, 1, -4.]] and dropped == 2

def test_invented_titles_are_no_items(toy, monkeypatch):
    "What was written outside the catalogue gets no score and is counted; items not written share the lowest score."
    m = E.TitleLM(toy.training, d=8, layers=1, beams=3)
    real = m.catalogue.title[4]
    monkeypatch.setattr(m, 'write', lambda seq: (np.repeat(np.arange(len(seq)), 3), ['No Such Thing', real, f'{real} again']*len(seq), np.array([-.1, -.5, -.9]*len(seq))), raising=False)
    S = m.scorer(Batch(user=torch.arange(1, 13), seq=torch.ones(12, 10, dtype=torch.long)))(slice(0, 12))   # more rows than one chunk
    low = torch.finfo(torch.float32).min
    own = m.catalogue.item[m.catalogue.title == real].tolist()
    assert (m.written, m.dropped) == (36, 24) and (S[:, own] == -.5).all() and ((S > low).sum(1) == len(own)).all() and torch.isfinite(S).all()

def test_generation_is_deterministic_learns_and_scores_its_own_words(toy):
    a, z = E.TitleLM(toy.training, d=32, layers=1, beams=6), E.TitleLM(toy.training, d=32, layers=1, beams=6)
    loss = a.fit(80, lr=.01)
    assert loss == z.fit(80, lr=.01) and np.mean(loss[-5:]) < .5*loss[0]
    b = history_batch(toy, 'test', np.unique(toy.test.user)[:4], a.L)
    assert torch.equal(a.scorer(b)(slice(0, 4)), z.scorer(b)(slice(0, 4))) and 0 < a.written == 24 and a.dropped < a.written
    row, title, logp = a.write(b.seq[:1])                       # one score again: teacher forcing instead of beam search
    ids = {w: n for n, w in enumerate(a.words)}
    k = next(k for k, t in enumerate(title) if t in set(a.catalogue.title))
    x, y = E.as_text(b.seq[:1], a.table), torch.tensor([[*(ids[w] for w in title[k].split()), E.END]])
    with torch.no_grad(): p = a.net(input_ids=torch.cat([x, y], 1)).logits.log_softmax(-1)[0, x.shape[1] - 1:-1]
    assert float(p.gather(1, y.T).sum()) == pytest.approx(float(logp[k]), abs=1e-3)

def test_serving_with_a_language_model_is_visible(toy, llm):
    "Neither can run where the library promises that no language model does."
    b = history_batch(toy, 'test', np.unique(toy.test.user)[:1], 10)
    reader, writer = E.TextScorer(llm, toy.training), E.TitleLM(toy.training, d=8, layers=1, beams=2)
    with forbid_llm('serving'):
        with pytest.raises(LLMForbidden): reader.scorer(b)
        with pytest.raises(LLMForbidden): writer.scorer(b)(slice(0, 1))
        with pytest.raises(LLMForbidden): writer.fit(1)

def test_sample_and_figures(toy, runs, llm):
    part = E.sample(toy, 9)
    assert part.test.user.nunique() == 9 and part.training is toy.training and part.test.user.tolist() == E.sample(toy, 9).test.user.tolist()
    with pytest.raises(ValueError, match='evaluated users'): E.sample(toy, 0)
    t = E.costs(runs[0], 'planted'); live = pd.DataFrame([E.direct(E.TextScorer(llm, toy.training), part, 2)])
    fig, off = E.tradeoff(t, live), E.offline_figure(t)
    star = next(c for c in fig.axes[0].containers)
    assert star.lines[0].get_xydata().tolist() == [[live.serve_ms[0], live['ndcg@10'][0]]] and fig.axes[0].get_xscale() == 'log'
    assert [tuple(v) for l in off.axes[0].lines if l.get_label() == 'model' for v in l.get_xydata()] == [(t.llm_calls[0], t.gain_pct[0])]
    assert 'LLM2X (NDCG@10)' in {x.get_text() for x in off.axes[1].texts}
    spread = [x.xyann[1] for x in E.tradeoff(pd.concat([t]*6).assign(score=.5)).axes[0].texts]   # names that would collide are kept apart
    assert np.diff(sorted(spread)).min() > 0
