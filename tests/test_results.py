"""The committed results: complete, consistent with their ranks, made from the data they claim."""
import numpy as np, pytest
from llmers_nb.benchmark import ARMS, METRICS, Results, plan, split_of
from llmers_nb.enhancement import REGISTRY

STORE = Results()
TABLE = STORE.table

@pytest.mark.parametrize('system', list(REGISTRY))
def test_each_system_has_all_arms_for_the_same_seeds(system):
    home = REGISTRY[system].home
    t = TABLE[(TABLE.dataset == 'ml-100k') & (TABLE.backbone == home)]
    seeds = {arm: sorted(t[(t.arm == arm) & t.system.isin([system, 'none'])].seed) for arm in ARMS}
    assert seeds['system'] and seeds['system'] == seeds['shuffled'] == seeds['random'], seeds
    assert seeds['backbone'] == [0, 1, 2] and set(seeds['system']) <= {0, 1, 2}

def test_stored_configs_are_those_that_bench_would_skip(ml100k):
    "A changed setting would give another hash, and `llmers bench` would run again."
    want = {STORE.config(j, ml100k.training.fingerprint, {}) for j in plan('all', None, 'ml-100k', (0, 1, 2))}
    stale = set(TABLE.config) - want
    assert not stale, f'{len(stale)} stored runs belong to other settings: remove them and run `llmers bench`'

def test_ranks_give_back_the_metrics():
    for r in TABLE.to_dict('records'):
        m = STORE.evaluation(r['config']).metrics()
        for k, v in m.items(): assert r[k] == pytest.approx(v, abs=2e-5), (r['system'], r['arm'], r['seed'], k)

def test_ranked_items_are_the_test_items(ml100k):
    test = dict(zip(ml100k.test.user, ml100k.test['item']))
    for r in TABLE[TABLE.dataset == 'ml-100k'].to_dict('records'):
        e = STORE.evaluation(r['config'])
        assert dict(zip(e.user.tolist(), e.item.tolist())) == test
        if e.rank is not None: assert e.rank.min() >= 1 and e.rank.max() <= ml100k.training.n_items

def test_no_file_without_a_row_and_no_row_without_a_file():
    files = {p.stem for p in (STORE.folder/'ranks').glob('*.npz')}
    assert files == set(TABLE.config)
