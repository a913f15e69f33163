"The LLM side: encoder, store, recorded answers, ban, ledger, placebos. No network; the store lives in a temporary folder."
import json, os, random, shutil, signal, sqlite3, subprocess, sys, time
from dataclasses import replace
from pathlib import Path
import numpy as np, pandas as pd, pytest
from llmers_nb import llm as L
from llmers_nb.cache import bill, cache_table, check_cache, prune_cache
from llmers_nb.datasets import DataError, LeakError, Training, cache_root, leave_one_out, load_split, planted
from llmers_nb.llm import (AMOUNTS, CacheError, EmbeddingStore, Film, Ledger, LLMForbidden, MemoryStore, RecordedLLM, Shopper, TextEncoder, ToyLLM,
                           Viewer, WordHash, check_texts, check_weights, find_model, forbid_llm, placebo, read_answers, show_text, space_of, text_key)

ROOT, DATA_CACHE = Path(L.__file__).parents[1], cache_root()   # where downloads are, before the tests get a cache of their own

@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch): monkeypatch.setenv('LLMERS_CACHE', str(tmp_path/'cache'))

def stand_in(name, fingerprint=None):
    "A training set with the real ids of a recording and invented interactions; claims the recording's split unless told otherwise."
    folder, rng = L.data_path('responses')/name, np.random.default_rng(0)
    ids = {k: [str(json.loads(x)[f'{k[:-1]}_id']) for x in open(folder/f'{k}.jsonl', encoding='utf-8')] for k in ('items', 'users')}
    ids = {k: sorted(v, key=lambda x: (len(x), x)) for k, v in ids.items()}
    items = pd.DataFrame(dict(raw_id=ids['items'], title=[f'T{i}' for i in ids['items']], text=[f'Text of {i}.' for i in ids['items']],
                              price=rng.random(len(ids['items']))), index=pd.RangeIndex(1, len(ids['items'])+1, name='item'))
    users = pd.DataFrame(dict(raw_id=ids['users']), index=pd.RangeIndex(1, len(ids['users'])+1, name='user'))
    train = pd.DataFrame(dict(user=np.repeat(users.index, 5), item=rng.integers(1, len(items)+1, 5*len(users)), rating=5., timestamp=0))
    return Training(name, 'leave-one-out', train.astype({'user': 'int32', 'item': 'int32'}), items, users, pd.DataFrame(), np.array([]), np.array([]),
                    fingerprint or L.RECORDINGS[name].fingerprint)

@pytest.fixture(scope='module')
def films(): return stand_in('ml-100k')
@pytest.fixture(scope='module')
def toy(): return leave_one_out(planted()).training
def recorded(training, store=None): return RecordedLLM.for_data(training, encoder=WordHash(32, store=store))

# ---- encoder -------------------------------------------------------------------------------------------------------------------------
def test_minilm_real_weights(tmp_path):
    "Meaning, order, unit rows, duplicates; a warm encoder loads nothing; global random numbers are left alone."
    import torch
    texts = ['A robot learns to love.', 'Recipes for apple cake.', 'An android discovers affection.', 'A robot learns to love.']
    torch.manual_seed(0); np.random.seed(0); random.seed(0)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    store, cold, warm = EmbeddingStore(tmp_path/'e.sqlite'), Ledger(), Ledger()
    Z = TextEncoder(store=store).encode(texts, cold)
    assert torch.equal(states[0], torch.get_rng_state()) and (states[1] == np.random.get_state()[1]).all() and states[2] == random.getstate()
    assert Z.shape == (4, 384) and Z.dtype == np.float32 and np.allclose(np.linalg.norm(Z, axis=1), 1, atol=1e-5)
    assert (Z[0] == Z[3]).all() and Z[0] @ Z[2] > Z[0] @ Z[1] + .2
    assert (cold.calls, cold.prompts, cold.as_dict()['hits']) == (3, 3, 1) and cold.tokens_in > 15 and cold.seconds > 0 and cold.bytes == 3*384*4
    enc = TextEncoder('all-MiniLM-L6-v2', store=store)          # the short name means the same model
    enc.forward = lambda texts: pytest.fail('the model was called')
    assert (enc.encode(texts[::-1], warm) == Z[::-1]).all()
    assert warm.calls == 0 and warm.as_dict()['hits'] == 4 and warm.cost() == cold.cost()
    alone = TextEncoder(store=MemoryStore()).encode(texts[:1])  # batch mates and order matter only in the last bits
    assert np.abs(alone - Z[:1]).max() < 1e-5

def test_weights_are_verified(tmp_path):
    folder = tmp_path/'model'; shutil.copytree(find_model(), folder)
    assert check_weights(folder, L.WEIGHTS[L.MINILM]) == L.WEIGHTS[L.MINILM]
    enc = TextEncoder(store=MemoryStore()); enc._folder = folder
    with open(folder/'model.safetensors', 'r+b') as f: f.seek(5_000_000); f.write(b'\0\1\2\3')
    with pytest.raises(ValueError, match='not the published weights'): enc.encode(['text'])
    (folder/'model.safetensors').unlink(); (folder/'pytorch_model.bin').write_bytes(b'pickle')
    with pytest.raises(FileNotFoundError, match='pickled weights are not loaded'): TextEncoder(str(folder), store=MemoryStore()).encode(['text'])

def test_model_missing_offline(tmp_path, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    with pytest.raises(FileNotFoundError, match='nobody/no-such-model.*HF_HUB_OFFLINE'): find_model('nobody/no-such-model')
    monkeypatch.setitem(L.PACKAGED, L.MINILM, 'no_such_package_here'); monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path))
    with pytest.raises(FileNotFoundError, match='pip install no-such-package-here'): find_model(local_files_only=True)

@pytest.mark.parametrize('bad,error', [('one string', TypeError), ([], ValueError), (['a', float('nan')], TypeError), (['a', None], TypeError),
                                       (['a', 3], TypeError), (['a', ' \n'], ValueError), (['\ud800'], ValueError)])
def test_bad_texts(bad, error, toy):
    with pytest.raises(error, match='texts'): ToyLLM(toy).embed(bad)
def test_good_texts(): assert check_texts(pd.Series(['a', 'b'])) == ['a', 'b'] == check_texts(np.array(['a', 'b'], object))

def test_vectors_that_are_not_unit_rows_are_refused():
    class Broken(WordHash):
        def forward(self, texts): return np.full((len(texts), 8), np.nan)
    enc = Broken(8)
    with pytest.raises(ValueError, match='not finite unit rows'): enc.encode(['a'])
    assert not enc.store

# ---- store ---------------------------------------------------------------------------------------------------------------------------
def test_every_ingredient_changes_the_key():
    base = TextEncoder(store=MemoryStore()).identity
    keys = {text_key(space_of(base), 'a'), text_key(space_of(base), 'a ')}
    for k in base: keys.add(text_key(space_of(base | {k: 'changed'}), 'a'))
    assert len(keys) == len(base) + 2 and {'weights', 'pooling', 'normalization', 'max_tokens', 'tokenizer'} <= set(base)
    assert text_key(space_of(dict(reversed(base.items()))), 'a') == text_key(space_of(base), 'a')

@pytest.mark.parametrize('sql', ['UPDATE vectors SET vec=zeroblob(64) WHERE key=?', 'UPDATE vectors SET vec=zeroblob(63) WHERE key=?',
    "UPDATE vectors SET vec='text' WHERE key=?", 'UPDATE vectors SET tokens=tokens+1 WHERE key=?', 'UPDATE vectors SET crc=0 WHERE key=?'])
def test_damaged_entry_is_encoded_again(sql, tmp_path):
    store = EmbeddingStore(tmp_path/'e.sqlite'); enc = WordHash(16, store=store); texts = ['red', 'green', 'blue']
    Z = enc.encode(texts)
    with sqlite3.connect(store.path) as db: db.execute(sql, (enc.key('green'),))
    db.close(); led = Ledger()
    with pytest.warns(UserWarning, match='1 damaged'): again = enc.encode(texts, led)
    assert (again == Z).all() and led.calls == 1 and check_cache(store) == dict(vectors=3, damaged=0)

def test_valid_checksum_of_nan_is_damage(tmp_path):
    store = EmbeddingStore(tmp_path/'e.sqlite'); store.put([('k', np.full(4, np.nan), 1, 0.)], 's', {'name': 'x'})
    with pytest.warns(UserWarning, match='damaged'): assert store.get(['k']) == {}

def test_broken_or_unwritable_store(tmp_path):
    (tmp_path/'e.sqlite').write_text('not a database '*500)
    with pytest.raises(CacheError, match='e.sqlite'): EmbeddingStore(tmp_path/'e.sqlite').get(['k'])
    assert (tmp_path/'e.sqlite').read_text().startswith('not a database')       # refused, not removed
    (tmp_path/'file').write_text('')
    with pytest.raises(CacheError, match='LLMERS_CACHE'): EmbeddingStore(tmp_path/'file'/'e.sqlite').get(['k'])

WRITER = """
import sys, time
from llmers_nb.llm import EmbeddingStore, WordHash
enc = WordHash(64, store=EmbeddingStore(sys.argv[1])); enc.chunk = 10
print('ready', flush=True); sys.stdin.readline()
enc.encode([f'text number {i}' for i in range(int(sys.argv[2]), int(sys.argv[3]))])
"""
def test_processes_share_a_store(tmp_path):
    "Three writers with overlapping texts, one of them killed: every stored row is sound, and a run afterwards completes the rest."
    env = os.environ | {'PYTHONPATH': str(ROOT)}; path = tmp_path/'e.sqlite'
    ps = [subprocess.Popen([sys.executable, '-c', WRITER, path, str(lo), str(hi)], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
          for lo, hi in ((0, 300), (100, 400), (50, 100_000))]
    for p in ps: assert p.stdout.readline() == 'ready\n'
    for p in ps: p.stdin.write('\n'); p.stdin.flush()
    for p in ps[:2]: assert p.wait(60) == 0
    assert ps[2].poll() is None; ps[2].send_signal(signal.SIGKILL); ps[2].wait()
    for p in ps: p.stdin.close(); p.stdout.close()
    found = check_cache(EmbeddingStore(path)); assert found['damaged'] == 0 and found['vectors'] >= 400
    texts, led = [f'text number {i}' for i in range(400)], Ledger()
    Z = WordHash(64, store=EmbeddingStore(path)).encode(texts, led)
    assert led.calls == 0 and (Z == WordHash(64).encode(texts)).all()

def test_table_and_prune(tmp_path):
    store = EmbeddingStore(tmp_path/'e.sqlite'); a, b = WordHash(8, store=store), WordHash(16, store=store)
    a.encode(['red', 'green']); b.encode(['red'])
    t = cache_table(store); assert t.vectors.to_dict() == {a.space: 2, b.space: 1} and t.dimension.to_dict() == {a.space: 8, b.space: 16}
    with pytest.raises(ValueError, match='nothing is stored'): prune_cache(['nonsense'], store)
    assert prune_cache([b.space], store) == 2 and list(cache_table(store).index) == [b.space] and check_cache(store)['vectors'] == 1

# ---- ban -----------------------------------------------------------------------------------------------------------------------------
def test_forbid_llm(toy, films):
    llm, enc = ToyLLM(toy), TextEncoder(store=MemoryStore())
    calls = {'items': lambda: llm.items(toy), 'users': lambda: llm.users(toy), 'embed': lambda: llm.embed(['a']), 'encode': lambda: enc.encode(['a']),
             'for_data': lambda: RecordedLLM.for_data(films), 'loading': lambda: enc.model, 'running': lambda: WordHash().forward(['a']),
             'placebo': lambda: placebo(llm, toy, 'random', 0)}
    for name, call in calls.items():
        with forbid_llm('serving'), pytest.raises(LLMForbidden, match=f'{name}.*serving'): call()
    with pytest.raises(KeyError), forbid_llm():
        with forbid_llm('inner'): pass
        with pytest.raises(LLMForbidden): llm.items(toy)         # the outer ban survives the inner one
        raise KeyError
    assert len(llm.items(toy)) == toy.n_items                    # and ends with its block, errors or not
    assert llm.ledger.as_dict()['hits'] == toy.n_items           # refused calls were not counted

# ---- recorded answers ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('name,columns', [('ml-100k', 'knowledge director cast themes mood setting audience related confidence'),
                                          ('amazon-office', 'knowledge category brand attributes use_cases audience complements substitutes confidence')])
def test_alignment(name, columns):
    t = stand_in(name); t = replace(t, items=t.items.iloc[::-1].set_axis(t.items.index))       # internal ids in another order
    llm = recorded(t); items, users = llm.items(t), llm.users(t)
    assert list(items.columns) == columns.split() and items.index.equals(t.items.index) and users.index.equals(t.users.index)
    lines = {str(r['item_id']): r for r in map(json.loads, open(L.data_path('responses')/name/'items.jsonl', encoding='utf-8'))}
    assert [lines[r]['knowledge'] for r in t.items.raw_id] == items.knowledge.tolist()
    people = {str(r['user_id']): r for r in map(json.loads, open(L.data_path('responses')/name/'users.jsonl', encoding='utf-8'))}
    assert [people[r]['profile'] for r in t.users.raw_id] == users.profile.tolist()
    raw = t.items.raw_id.to_dict()
    for c in [c for c in L.PICKS if c in users]:
        assert [[str(x) for x in people[r][c]] for r in t.users.raw_id] == [[raw[x] for x in xs] for xs in users[c]]
    assert ('liked' in users) == (name == 'ml-100k')

def test_user_answers_belong_to_one_split(films):
    llm, other = recorded(films), replace(films, source_fingerprint='f'*64)
    with pytest.raises(LeakError, match='held-out'): llm.users(other)
    assert len(llm.items(other)) == films.n_items                # items saw no interactions
    more = films.with_train(pd.concat([films.train, films.train.head(3)]))
    assert more.fingerprint != films.fingerprint and len(llm.users(more)) == films.n_users
    with pytest.raises(LeakError): placebo(llm, films, 'shuffled', 0)[0].users(other)

def test_items_must_match(films):
    llm, few = recorded(films), replace(films, items=films.items.iloc[:-1])
    with pytest.raises(ValueError, match='1 of 1682 ids were answered but are not in the data, e.g. 1682'): llm.items(few)
    odd = films.items.copy(); odd.loc[7, 'raw_id'] = 'X7'
    with pytest.raises(ValueError, match='no recorded answer, e.g. X7'): llm.items(replace(films, items=odd))
    with pytest.raises(ValueError, match="'mine'; there are answers for ml-100k"): RecordedLLM.for_data(replace(films, name='mine'))

def test_recording_against_the_real_split():
    try: t = load_split('ml-100k', offline=True, cache_dir=DATA_CACHE).training
    except DataError as e: pytest.skip(f'MovieLens-100K is not in the cache: {e}')
    assert t.source_fingerprint == L.RECORDINGS['ml-100k'].fingerprint
    users = recorded(t).users(t); ptr, idx = t.histories
    own = [set(idx[ptr[u]:ptr[u+1]].tolist()) for u in users.index]
    assert all(h.isdisjoint(c) for h, c in zip(own, users.candidates)) and all(h.issuperset(n) for h, n in zip(own, users.noise))

VIEWER = dict(user_id=1, profile='Likes space.', interests=[dict(name='space', weight=5)], avoids=[], liked=[1], disliked=[2], ranking=[1, 3], noise=[9],
              candidates=[1, 2, 3])
@pytest.mark.parametrize('change,field', [(dict(profile=''), 'profile'), (dict(user_id='1'), 'user_id'), (dict(liked=[7]), 'not among the candidates'),
    (dict(interests=[dict(name='x', weight=6)]), 'interests.0.weight'), (dict(ranking=[1, 1]), 'occurs twice'), (dict(extra=1), 'extra'),
    (dict(liked=[2]), 'share'), (dict(noise=None), 'noise'), (dict(profile='x'*2001), 'profile')])
def test_bad_answer(change, field, tmp_path):
    p = tmp_path/'users.jsonl'; p.write_text(json.dumps(VIEWER | dict(user_id=8)) + '\n' + json.dumps(VIEWER | change) + '\n')
    with pytest.raises(ValueError, match=rf'users.jsonl, line 2, field .*{field}'): read_answers(p, Viewer)

@pytest.mark.parametrize('text,says', [('{"user_id": 1, "profi', r'line 1, field \(whole line\): Invalid JSON'), ('', 'holds no answers'),
    ('[1]', 'line 1'), (json.dumps(VIEWER)+'\n'+json.dumps(VIEWER), 'line 2, field user_id: 1 was answered in line 1'), (json.dumps(VIEWER)+'\n\n', 'line 2')])
def test_bad_file(text, says, tmp_path):
    p = tmp_path/'users.jsonl'; p.write_text(text)
    with pytest.raises(ValueError, match=says): read_answers(p, Viewer)

def test_only_newlines_end_a_line(tmp_path):
    p = tmp_path/'u.jsonl'; p.write_text(json.dumps(dict(user_id=1, profile='a\u2028b', interests=[dict(name='x', weight=1)]), ensure_ascii=False), encoding='utf-8')
    assert read_answers(p, Shopper).profile[0] == 'a\u2028b'

# ---- ledger --------------------------------------------------------------------------------------------------------------------------
def test_ledger_arithmetic():
    a, b = Ledger(), Ledger()
    a.add('embed', 'asked', calls=2, tokens_in=20, seconds=.5); a.add('embed', 'asked', calls=1, tokens_in=5); a.add('items', 'replayed', calls=7, tokens_out=70, untimed=7)
    b.add('embed', 'repeated', calls=4); b.add('items', 'replayed', calls=1, tokens_out=10)
    assert (a.calls, a.tokens_in, a.tokens_out, a.cost()['calls'], a.cost()['tokens_out'], a.as_dict()['hits']) == (3, 25, 0, 10, 70, 7)
    m = Ledger.from_rows(a.rows() + b.rows())
    assert (m.calls, m.cost()['calls'], m.cost()['tokens_out'], m.as_dict()['hits']) == (3, 11, 80, 12)
    assert Ledger.from_rows(json.loads(json.dumps(m.rows()))).rows() == m.rows() and m.frame().calls.sum() == 15
    assert set(AMOUNTS) < set(m.as_dict()) and m.as_dict()['cost_untimed'] == 7
    with pytest.raises(ValueError, match='unknown amounts'): a.add('embed', 'asked', tokens=1)
    with pytest.raises(ValueError, match='source'): a.add('embed', 'guessed', calls=1)
    assert bill({'a': a, 'b': b}).loc[('b', 'items'), 'tokens_out'] == 10

def test_second_run_makes_no_call(films, tmp_path):
    store = EmbeddingStore(tmp_path/'e.sqlite')
    def run():
        llm = recorded(films, store); llm.embed(llm.items(films).knowledge); llm.embed(llm.users(films).profile); llm.embed(llm.items(films).knowledge)
        return llm.ledger
    cold, warm = run(), run()
    assert cold.calls == 1682 + 943 and warm.calls == 0
    assert cold.cost() == warm.cost() and cold.cost()['calls'] == 2*(1682 + 943) and cold.cost()['untimed'] == 1682 + 943
    rows = {(r['kind'], r['source']): r for r in warm.rows()}
    words = sum(len(x.split()) for x in open(L.data_path('responses')/'ml-100k'/'items.jsonl', encoding='utf-8').read().split('\n'))
    assert rows['items', 'replayed']['tokens_out'] == words and rows['items', 'repeated']['calls'] == 1682
    assert rows['embed', 'replayed']['calls'] == 1682 + 943 and rows['embed', 'repeated']['calls'] == 1682
    shown = films.train.groupby('user').tail(40)                 # a user's prompt: the question, titles of one word and a rating each, 20 candidates
    question = len(L.RECORDINGS['ml-100k'].ask_user.split())
    assert rows['users', 'replayed']['tokens_in'] == 943*(question + 20) + 2*len(shown)

# ---- placebos ------------------------------------------------------------------------------------------------------------------------
def test_shuffled(films):
    llm = recorded(films); llm2, t2 = placebo(llm, films, 'shuffled', 3)
    items, items2, users, users2 = llm.items(films), llm2.items(t2), llm.users(films), llm2.users(t2)
    assert t2.fingerprint == films.fingerprint and t2.source_fingerprint == films.source_fingerprint and t2.train is films.train
    assert t2.items.raw_id.equals(films.items.raw_id) and t2.items.price.equals(films.items.price)
    pi = films.items.index.get_indexer(t2.items.title.str[1:].astype(int))                     # title 'T7' names the film it came from
    assert sorted(pi) == list(range(1682)) and (pi != np.arange(1682)).all()
    assert t2.items.text.tolist() == films.items.text.iloc[pi].tolist()                          # one permutation for text and for answers
    for c in items.columns: assert items2[c].tolist() == items[c].iloc[pi].tolist() or items[c].isna().any()
    rho = users.reset_index().set_index('profile').user.loc[users2.profile].to_numpy() - 1
    assert sorted(rho) == list(range(943)) and (rho != np.arange(943)).all() and users2.interests.tolist() == users.interests.iloc[rho].tolist()
    ptr, idx = films.histories; own = [set(idx[ptr[u]:ptr[u+1]].tolist()) for u in users.index]
    for c in ('liked', 'disliked', 'ranking', 'candidates'):
        assert users2[c].tolist() == [[i for i in xs if i not in h] for xs, h in zip(users[c].iloc[rho], own)]
    assert all(set(n) <= h for n, h in zip(users2.noise, own))
    assert (llm2.embed(['same text']) == llm.embed(['same text'])).all() and llm2.ledger is not llm.ledger

def test_random(films):
    llm = recorded(films); llm2, t2 = placebo(llm, films, 'random', 3)
    assert t2 is films and llm2.items(t2).equals(llm.items(films))
    texts = ['red green', 'green blue', 'red green']
    V, R = llm.embed(texts), llm2.embed(texts)
    assert R.dtype == np.float32 and np.allclose(np.linalg.norm(R, axis=1), np.linalg.norm(V, axis=1), atol=1e-5)
    assert (R[0] == R[2]).all() and abs(R[0] @ R[1]) < .7 and (llm2.embed(texts[1:2])[0] == R[1]).all()
    Z = llm2.embed([f'text {i}' for i in range(300)]); assert np.abs((Z @ Z.T)[np.triu_indices(300, 1)].mean()) < .01   # no common direction
    users, drawn = llm.users(films), llm2.users(films); ptr, idx = films.histories
    for c in L.PICKS: assert users[c].str.len().equals(drawn[c].str.len()) or c == 'noise'
    assert drawn.profile.equals(users.profile) and drawn.candidates.tolist() == users.candidates.tolist()
    for r in drawn.itertuples():
        assert set(r.liked) <= set(r.ranking) <= set(r.candidates) and not set(r.liked) & set(r.disliked)
        assert set(r.noise) <= set(idx[ptr[r.Index]:ptr[r.Index+1]].tolist())
    kept = np.mean([len(set(a) & set(b)) for a, b in zip(users.ranking, drawn.ranking)]); assert 4.7 < kept < 5.3   # chance: 10 of 20, twice

@pytest.mark.parametrize('kind', ['shuffled', 'random'])
def test_placebos_are_deterministic(kind, toy):
    llm = ToyLLM(toy)
    def run(seed):
        llm2, t2 = placebo(llm, toy, kind, seed)
        return llm2.users(t2).to_json() + llm2.items(t2).to_json() + t2.items.to_json() + str(llm2.embed(['a b', 'c']).tolist())
    assert run(0) == run(0) != run(1)
    llm2, t2 = placebo(llm, toy, kind, 0)
    with pytest.raises(ValueError, match='placebo already'): placebo(llm2, t2, kind, 1)
    with pytest.raises(ValueError, match='shuffled or random'): placebo(llm, toy, 'scrambled', 0)

def test_placebo_for_users_without_picks():
    t = stand_in('amazon-office'); llm = recorded(t)
    for kind in ('shuffled', 'random'):
        llm2, t2 = placebo(llm, t, kind, 0); assert list(llm2.users(t2).columns) == ['profile', 'interests']

# ---- hostile text --------------------------------------------------------------------------------------------------------------------
def test_hostile_text_is_shown_not_obeyed():
    evil = '<img src=x onerror=alert(1)> & "quoted" \x1b[2J\u202e\x07 line\nend'
    page = show_text({evil: evil}, evil)._repr_html_(); said = repr(show_text(evil))
    assert '<img' not in page and '&lt;img' in page and not set('\x1b\x07\u202e') & set(page + said) and '<U+001B>' in said and '\n' in said
