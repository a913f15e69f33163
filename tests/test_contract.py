"""One contract for every system on every backbone that can carry it (design.md); runs on the planted toy data."""
import json, subprocess, sys, textwrap
import numpy as np, pytest, torch
from llmers_nb import benchmark, survey
from llmers_nb.benchmark import artifacts, measure
from llmers_nb.datasets import leave_one_out, planted
from llmers_nb.enhancement import BACKBONES, REGISTRY, NotSupported, build, load, require, save
from llmers_nb.evaluation import history_batch
from llmers_nb.training import deterministic
from llmers_nb.llm import LLMForbidden, RecordedLLM, forbid_llm

TOY = leave_one_out(planted(seed=0))
CLICKS = leave_one_out(planted(seed=0, dislike=.5))   # held-out items that are liked and others that are not, for AUC
PAIRS = [(s, b) for s in REGISTRY for b, c in BACKBONES.items() if REGISTRY[s].cls.needs <= c.gives]
REFUSED = [(s, b) for s in REGISTRY for b, c in BACKBONES.items() if not REGISTRY[s].cls.needs <= c.gives]
ART = {}

def art(system):
    if system not in ART: ART[system] = artifacts(system, TOY)[0]
    return ART[system]

def users(): return np.unique(TOY.test.user.to_numpy())

def scores(rec):
    b = history_batch(TOY, 'test', users(), rec.L)
    return rec.scorer(b)(slice(None))

def trained(backbone, parts):
    "One epoch on the toy, with any use of an LLM forbidden; validation of click models needs no AUC here."
    with forbid_llm():
        rec = build(backbone, TOY.training, parts, seed=0)
        opt = torch.optim.Adam(rec.parameters(), lr=1e-2)
        L = dict(L=rec.L) if rec.L else {}
        with torch.random.fork_rng(), deterministic():
            torch.manual_seed(0); rec.train()
            for b in rec.backbone.sampler(rec.training_data, batch=256, seed=0, **L): opt.zero_grad(); rec.loss(b).backward(); opt.step()
    return rec.eval()

def test_registry_and_survey_table_agree():
    table = survey.systems().set_index('system')
    assert set(REGISTRY) <= set(table.index)
    assert set(REGISTRY) == set(table.index[table.implemented])
    main = {'knowledge', 'interaction', 'model'}
    assert set(table.loc[list(REGISTRY), 'category']) == main

@pytest.mark.parametrize('name', list(REGISTRY))
def test_declarations(name):
    s = REGISTRY[name]
    assert s.home in BACKBONES and s.cls.needs <= BACKBONES[s.home].gives and s.space and s.omits
    for setting in s.space: s.cls(art(name), build(s.home, TOY.training).backbone, **setting)

@pytest.mark.parametrize('name', list(REGISTRY))
def test_second_offline_asks_nothing(name):
    "Everything the second time comes from the store: the ledger counts no call that was asked."
    llm = RecordedLLM.for_data(TOY.training)
    A = REGISTRY[name].cls.offline(llm, TOY.training)
    again = RecordedLLM.for_data(TOY.training, encoder=llm.encoder)
    B = REGISTRY[name].cls.offline(again, TOY.training)
    assert again.ledger.as_dict()['calls'] == 0
    assert set(A) == set(B) and all(np.array_equal(A[k], B[k]) for k in A), 'offline must give the same arrays twice'

@pytest.mark.parametrize('name', list(REGISTRY))
def test_offline_cannot_see_held_out(name):
    "Other held-out rows, same training rows: the artifacts do not change."
    import dataclasses
    other = dataclasses.replace(TOY, valid=TOY.test, test=TOY.valid)
    B, _ = artifacts(name, other)
    assert all(np.array_equal(art(name)[k], B[k]) for k in B)

@pytest.mark.parametrize('name', list(REGISTRY))
def test_augment_leaves_held_out_pairs_and_source_alone(name):
    before = TOY.training.train.copy()
    data = REGISTRY[name].cls.augment(TOY.training, art(name))
    assert TOY.training.train.equals(before), 'augment must not change its input'
    assert data.source_fingerprint == TOY.training.source_fingerprint
    real = set(zip(before.user, before.item))
    assert len(data.train) >= .5*len(real)

@pytest.mark.parametrize('name,backbone', PAIRS)
def test_weight_zero_is_the_backbone(name, backbone):
    s = REGISTRY[name]
    A = art(name) if s.null is not None else {k: a if k.endswith(('_i', '_u')) else a[:0] for k, a in art(name).items()}
    plain, null = trained(backbone, ()), trained(backbone, [(name, A, s.null or {})])
    for (k, p), (_, q) in zip(plain.backbone.named_parameters(), null.backbone.named_parameters()): assert torch.equal(p, q), f'{k} differs'
    assert torch.equal(scores(plain), scores(null))

@pytest.mark.parametrize('name,backbone', PAIRS)
def test_one_step_differs(name, backbone):
    plain, on = trained(backbone, ()), trained(backbone, [(name, art(name), dict(REGISTRY[name].space[0]))])
    assert not torch.equal(scores(plain), scores(on)), 'the system changed nothing: a silent no-op'
    assert torch.isfinite(scores(on)[:, 1:]).all()

@pytest.mark.parametrize('name,backbone', REFUSED)
def test_refusal_names_the_capability(name, backbone):
    missing = REGISTRY[name].cls.needs - BACKBONES[backbone].gives
    with pytest.raises(NotSupported) as e: build(backbone, TOY.training, [(name, art(name), {})])
    assert all(m in str(e.value) for m in missing) and REGISTRY[name].home in str(e.value)

@pytest.mark.parametrize('name', list(REGISTRY))
def test_system_learns_from_the_planted_texts(name):
    "Text decides what ids cannot: with the right texts the system beats its backbone, with shuffled ones it loses the win."
    s = REGISTRY[name]
    clicks = 'clicks' in BACKBONES[s.home].gives
    m, data = ('auc', CLICKS) if clicks else ('ndcg@20', TOY)
    batch = None if 'seq' in BACKBONES[s.home].gives else 128   # the toy is small: the default batches would be one or two steps an epoch
    r = {arm: measure(name, s.home, data, 0, arm, epochs=40, patience=40, batch=batch)[0] for arm in benchmark.ARMS}
    assert r['system'][m] > r['backbone'][m], {a: x[m] for a, x in r.items()}
    assert r['system'][m] > r['shuffled'][m], {a: x[m] for a, x in r.items()}

def test_forbidden_really_is(tmp_path):
    llm = RecordedLLM.for_data(TOY.training)
    with forbid_llm(), pytest.raises(LLMForbidden): llm.embed(['a'])
    for name, s in REGISTRY.items():
        with forbid_llm(), pytest.raises(LLMForbidden): s.cls.offline(llm, TOY.training)

SERVE = textwrap.dedent('''
    import importlib.abc, json, sys
    import numpy as np
    class Blocked(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name.split('.')[0] in ('transformers', 'sentence_transformers', 'tokenizers', 'openai') or name in ('llmers_nb.llm', 'llmers_nb.cache', 'llmers_nb.benchmark'):
                raise ImportError(name + ' is not available while serving')
    sys.meta_path.insert(0, Blocked())
    import torch, importlib
    for m in json.loads(sys.argv[2]): importlib.import_module(m)
    from llmers_nb.enhancement import load
    from llmers_nb.sampling import Batch
    for f in json.loads(sys.argv[1]):
        rec = load(f)
        x = np.load(f + '.npz')
        b = Batch(user=torch.from_numpy(x['user']), seq=torch.from_numpy(x['seq']) if 'seq' in x else None)
        assert np.array_equal(rec.scorer(b)(slice(None)).numpy(), x['scores']), f
    print('served', len(json.loads(sys.argv[1])))
''')

def test_saved_models_serve_where_no_llm_can_be_imported(tmp_path):
    folders = []
    for name, backbone in PAIRS:
        rec = build(backbone, TOY.training, [(name, art(name), dict(REGISTRY[name].space[0]))], seed=0)
        f = str(save(rec, tmp_path/f'{name}-{backbone}'))
        b = history_batch(TOY, 'test', users()[:8], rec.L)
        extra = {} if b.seq is None else dict(seq=b.seq.numpy())
        np.savez(f + '.npz', user=b.user.numpy(), scores=rec.scorer(b)(slice(None)).numpy(), **extra)
        folders.append(f)
    modules = sorted({s.cls.__module__ for s in REGISTRY.values()})
    p = subprocess.run([sys.executable, '-c', SERVE, json.dumps(folders), json.dumps(modules)], capture_output=True, text=True)
    assert p.returncode == 0, p.stderr[-2000:]
    assert p.stdout.strip() == f'served {len(PAIRS)}'

def test_saved_files_hold_no_text_and_no_pickle(tmp_path):
    name = next(iter(REGISTRY)); rec = build(REGISTRY[name].home, TOY.training, [(name, art(name), {})])
    folder = save(rec, tmp_path/'m')
    assert {p.name for p in folder.iterdir()} == {'config.json', 'weights.safetensors', 'artifacts.safetensors'}
    text = (folder/'config.json').read_text()
    assert not any(t in text for t in TOY.training.items.title)
    with pytest.raises(FileExistsError): save(rec, folder)
