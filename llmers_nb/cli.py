"""The command `llmers`: the survey's tables, data, comparisons and figures from a shell. The work is done in the notebooks' modules.

Nothing heavy is imported before a command needs it: `llmers systems` never loads torch."""
import argparse, ast, contextlib, difflib, json, os, re, shutil, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

class Usage(ValueError):
    "Bad input: shown as one line, exit status 2."

def nearest(name, known): # the end of an error message
    "The nearest names, else all of them."
    low = {str(k).lower(): str(k) for k in known}
    near = difflib.get_close_matches(str(name).lower(), low, 3, .4) or [k for k in low if str(name).lower() in k][:3]
    return f"did you mean {', '.join(low[k] for k in near)}?" if near else f"known: {', '.join(low.values()) or 'none'}"

class Failed(RuntimeError):
    "Work that broke although the input was good: shown without a traceback, exit status 1."

class Parser(argparse.ArgumentParser):
    "argparse, but a mistake costs one line and names the nearest word."
    def error(self, message):
        if m := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            message = f'unknown {message.split(":")[0].removeprefix("argument ")} {m[1]!r}; ' + nearest(m[1], re.findall(r"[\w-]+", m[2]))
        raise Usage(f'{message} (see: {self.prog} --help)')

# ---- output

def plain(v): # a value that JSON and a terminal can show
    "None for missing values, Python numbers for numpy's."
    if hasattr(v, 'item'): v = v.item()
    return None if v is None or v != v or v in (float('inf'), float('-inf')) else v

def show(records, form, columns=None, note=''): # records: list of flat dicts; columns: of the table, all records keep theirs in JSON
    "Records to standard output; in a table long texts are cut and control characters removed."
    if form == 'json':
        print(json.dumps([{k: plain(v) for k, v in r.items()} for r in records], indent=1, ensure_ascii=False, allow_nan=False)); return
    import pandas as pd
    df = pd.DataFrame(records, columns=columns)
    def cell(v):
        v = plain(v)
        s = '' if v is None else f'{v:.4f}' if isinstance(v, float) and abs(v) < 10 else f'{v:.1f}' if isinstance(v, float) else {True: 'yes', False: 'no'}.get(v, v) if isinstance(v, bool) else str(v)
        s = ''.join(c if c.isprintable() else ' ' for c in s)
        return s if len(s) <= 64 else s[:61] + '...'
    if len(df): print(df.map(cell).to_string(index=False))
    if note: print(note)

# ---- the survey

def selected(table, a, names): # rows that meet the filters given on the command line
    "A closed word that no row has is an error; free text may well find nothing."
    from llmers_nb.survey import ALIASES, find
    where = {k: v for k in names if (v := getattr(a, k)) is not None}
    for k, v in where.items():
        if not len(find(table, **{k: v})):
            col = k if k in table else ALIASES.get(k, k)
            cols = ['category', 'subcategory'] if k == 'category' and 'subcategory' in table else [col]
            raise Usage(f'no row has {k} {v!r}; ' + nearest(v, sorted({x for c in cols for x in table[c].dropna()}, key=str)))
    return find(table, a.text, **where)

def listing(rows, a, columns, what): # print rows of the survey's tables
    from llmers_nb.survey import bibtex, records
    if a.format == 'bibtex': print(bibtex(rows) if len(rows) else '')
    else: show(records(rows), a.format, columns, f'{len(rows)} {what}')

def systems(a):
    from llmers_nb import survey
    S = survey.systems()
    if a.implemented: S = S[S.implemented]
    rows = selected(S, a, ('system', 'category', 'year', 'venue', 'llm', 'tuning', 'access', 'semantics'))
    listing(rows, a, ['system', 'category', 'subcategory', 'first_posted', 'venue', 'notebook', 'title'],
            f'systems, {rows.implemented.sum()} of them implemented (column notebook)')

def papers(a):
    from llmers_nb import survey
    if a.counts: return show(survey.records(survey.papers_report()), a.format)
    rows = selected(survey.papers(unique=not a.rows), a, ('kind', 'source', 'section', 'year', 'venue', 'llm', 'tuning'))
    listing(rows, a, ['name', 'title', 'kind', 'source', 'section', 'venue', 'year'],
            f'{"rows" if a.rows else "different papers, data sets and repositories"}; counts per source and section: llmers papers --counts')

# ---- data

def data(a):
    from llmers_nb import datasets
    t = time.perf_counter()
    ds = datasets.load_dataset(a.dataset, offline=a.offline)
    split = datasets._named(datasets.PROTOCOLS, a.protocol, 'protocol')(ds)
    tr, ref = split.training, datasets.FINGERPRINTS.get(a.dataset)
    out = dict(dataset=ds.name, users=ds.n_users, items=ds.n_items, interactions=len(ds.interactions), triples=len(ds.kg), protocol=split.protocol,
               train=len(tr.train), valid=len(split.valid), test=len(split.test), fingerprint=tr.fingerprint,
               recorded_answers=None if ref is None else 'usable' if ref == tr.fingerprint else 'refused for this split',
               cache=str(datasets.cache_root()), seconds=round(time.perf_counter() - t, 1))
    if a.embed: out |= embed(tr)
    if a.format == 'json': return show([out], 'json')
    show([dict(property=k, value=f'{v:,}' if isinstance(v, int) else str(v)) for k, v in out.items()], 'table')

def embed(training): # counts for the report
    "Run the offline step of every implemented system once, so that every vector is in the cache."
    from tqdm import tqdm
    from llmers_nb import benchmark                                   # importing it fills the registry
    from llmers_nb.enhancement import REGISTRY
    from llmers_nb.llm import RecordedLLM
    llm, t = RecordedLLM.for_data(training), time.perf_counter()
    for name, s in (bar := tqdm(sorted(REGISTRY.items()), desc='texts of', unit='system')):
        bar.set_postfix_str(name)
        try: s.cls.offline(llm, training)
        except ValueError as e: bar.write(f'{name} does not work with {training.name}: {e}', file=sys.stderr)
    led = llm.ledger.as_dict()
    return dict(vectors_new=led['calls'], vectors_cached=led['hits'], embed_seconds=round(time.perf_counter() - t, 1))

# ---- comparisons

def words(text): # 'A, B' -> ['A', 'B']
    return [w.strip() for w in text.split(',') if w.strip()]

def seeds(text): # '0,1,2' or '0-4' -> whole numbers
    "Seeds from the command line."
    out = []
    for w in words(text):
        if not (m := re.fullmatch(r'(\d{1,9})(?:-(\d{1,9}))?', w)): raise Usage(f'--seeds {text!r}: {w!r} is not a whole number; write 0,1,2 or 0-4')
        out += range(int(m[1]), int(m[2] or m[1]) + 1)
    if not out: raise Usage('--seeds is empty; write for example 0,1,2')
    return list(dict.fromkeys(out))

def names(text, what): # system names; 'all' is every implemented one, 'none' the backbone alone
    "Names checked against the survey before anything heavy is loaded; upper and lower case do not matter."
    from llmers_nb.survey import implemented_systems, systems
    done = {n.lower(): n for n in implemented_systems()}
    known = {n.lower(): n for n in systems().system}
    if text.lower() in ('none', 'all'): return [] if text.lower() == 'none' else sorted(done.values())
    out = []
    for w in words(text):
        if w.lower() in done: out.append(done[w.lower()])
        elif w.lower() in known: raise Usage(f'{known[w.lower()]} is in the survey but not implemented here; implemented: {", ".join(sorted(done.values()))}')
        else: raise Usage(f'unknown system {w!r}; ' + nearest(w, done.values()))
    if not out: raise Usage(f'--systems is empty; name systems, or write {what}')
    return list(dict.fromkeys(out))

ARMS = ('backbone', 'system', 'shuffled', 'random')
LEAD = ['system', 'backbone', 'dataset', 'seed', 'arm', 'hr@10', 'ndcg@10', 'hr@20', 'ndcg@20', 'auc', 'logloss', 'train_seconds', 'serve_ms'] # in tables

def training(a): # the training settings that were given, by name
    "Settings above 0; those not given are the backbone's own."
    kw = {k: v for k in ('epochs', 'patience', 'lr', 'batch') if (v := getattr(a, k)) is not None}
    for k, v in kw.items():
        if not 0 < v < float('inf'): raise Usage(f'--{k} {v}: give a number above 0')
    return kw

def run(a):
    picked, picked_seeds, arms = names(a.systems, 'none'), seeds(a.seeds), words(a.arms)
    for w in arms:
        if w not in ARMS: raise Usage(f'unknown arm {w!r}; ' + nearest(w, ARMS))
    if not picked and a.backbone is None: raise Usage('--systems none needs a --backbone')
    kw = training(a)
    from llmers_nb import benchmark
    recs = benchmark.run(picked or ['none'], a.backbone, a.dataset, picked_seeds, arms=tuple(arms), progress=True, **kw)
    return lambda: show(recs, a.format, [c for c in LEAD if any(c in r for r in recs)], f'{len(recs)} runs; all columns: --format json')

def bench(a):
    picked, picked_seeds = names(a.systems, 'all'), seeds(a.seeds)
    if not picked: raise Usage('llmers bench compares systems: name some, or write all (the backbone alone: llmers run --systems none)')
    if a.jobs < 1: raise Usage(f'--jobs {a.jobs}: give 1 or more')
    kw = training(a)
    from llmers_nb import benchmark
    from llmers_nb.survey import records
    try: table = benchmark.bench(picked, a.backbone, a.dataset, picked_seeds, jobs=a.jobs, folder=a.folder, **kw)
    except RuntimeError as e: raise Failed(str(e)) from None           # single runs broke; the others are stored
    recs = records(table)
    return lambda: show(recs, a.format, [c for c in LEAD if any(c in r for r in recs)], f'{len(recs)} runs; all columns: --format json')

# ---- figures: every notebook executed by papermill, each in a process of its own

def source_folder(given): # the folder of notebooks
    "Notebooks are not part of an installed package: a checkout is needed."
    from llmers_nb.survey import package_dir
    nbs = Path(given) if given else package_dir().parent/'nbs'
    if not nbs.is_dir(): raise Usage(f'no folder {nbs}: `llmers figures` needs the source code (git clone, then make figures); an installed package has no notebooks')
    return nbs.resolve()

def inspect(path): # (figure labels, {parameter: default}) of one notebook
    "Labels and parameters, read without running anything."
    try: cells = [c for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']
    except (ValueError, KeyError, TypeError) as e: raise Usage(f'{path.name} is not a notebook: {e}') from None
    source = [''.join(c['source']) for c in cells]
    params = {}
    for c, s in zip(cells, source):
        if 'parameters' not in c['metadata'].get('tags', []): continue
        for n in ast.parse(s).body:
            if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name): params[n.targets[0].id] = literal(ast.unparse(n.value))
    return [m[1] for s in source for m in re.finditer(r'^#\|\s*label:\s*([\w-]+)', s, re.M)], params

def literal(text): # a number, list, True, None ... or the text itself
    "The Python value that a text spells."
    try: return ast.literal_eval(text)
    except (ValueError, SyntaxError): return text

def plan(nbs, only, params): # [(path, parameters for papermill)]
    "Which notebooks to run with which parameters; unknown names are refused before anything runs."
    known = {p: inspect(p) for p in sorted([*nbs.glob('[0-9]*.ipynb'), *nbs.glob('index.ipynb')])}
    if not known: raise Usage(f'no notebooks in {nbs}')
    calls = {}
    for p, (labels, _) in known.items():
        for n in {p.stem, p.stem.split('_')[0], p.stem.split('_', 1)[-1], *labels}: calls.setdefault(n.lower(), []).append(p)
    wanted = [w for o in only or () for w in words(o)]
    for w in wanted:
        if w.lower() not in calls: raise Usage(f'no notebook or figure {w!r}; ' + nearest(w, [n for n in calls if not n.isdigit()]))
    chosen = list(dict.fromkeys(p for w in wanted for p in calls[w.lower()])) if wanted else list(known)
    given = {}
    for kv in params or ():
        k, eq, v = kv.partition('=')
        defaults = [known[p][1][k] for p in chosen if k in known[p][1]]
        if not eq: raise Usage(f'--param {kv!r}: write NAME=VALUE')
        if not defaults: raise Usage(f'no parameter {k!r} in {", ".join(p.stem for p in chosen[:3])}{" ..." if len(chosen) > 3 else ""}; '
                                     + nearest(k, sorted({n for p in chosen for n in known[p][1]})))
        given[k], number = literal(v), (int, float)
        if isinstance(defaults[0], number) and not isinstance(given[k], (*number, type(None))): raise Usage(f'--param {k}={v}: {v!r} is not a number; the default is {defaults[0]}')
    return [(p, {k: v for k, v in given.items() if k in known[p][1]}, known[p]) for p in chosen]

def execute(job): # runs in a process of its own: JSON in, an executed notebook out
    "One notebook through papermill."
    import papermill
    j = json.loads(job)
    papermill.execute_notebook(j['nb'], j['out'], parameters=j['params'], cwd=j['cwd'], kernel_name='python3', language='python', progress_bar=False)

def kill_tree(p): # p: Popen
    "Kill a worker and its kernel, which lives in a session of its own."
    import psutil
    with contextlib.suppress(psutil.NoSuchProcess):
        me = psutil.Process(p.pid)
        for q in [*me.children(recursive=True), me]:
            with contextlib.suppress(psutil.NoSuchProcess): q.kill()
    p.wait()

def why(copy, log): # where a notebook broke, one line
    "Cell and error from the executed copy; without one, the worker's last words."
    with contextlib.suppress(OSError, ValueError):
        for c in json.loads(copy.read_text(encoding='utf-8'))['cells']:
            for o in c.get('outputs', []):
                if o['output_type'] != 'error': continue
                code = next((l for l in ''.join(c['source']).splitlines() if l.strip() and not l.startswith('#|')), '')
                return f"cell In [{c['execution_count']}] `{code[:70]}`: {o['ename']}: {(o['evalue'].splitlines() or [''])[0][:300]}"
    last = [l for l in log.read_text(errors='replace').splitlines() if l.strip()] or ['the worker left no message']
    return last[-1][:300]

def pictures(copy): # [(name, bytes)] of an executed notebook
    "Every PNG output, named by its cell's label, else by its running number."
    import base64
    out = []
    for c in json.loads(copy.read_text(encoding='utf-8'))['cells']:
        label = re.search(r'^#\|\s*label:\s*([\w-]+)', ''.join(c['source']), re.M)
        pngs = [d['image/png'] for o in c.get('outputs', []) if 'image/png' in (d := o.get('data', {}))]
        for k, b in enumerate(pngs):
            name = f'{len(out) + 1}' if not label else label[1] + (f'-{k + 1}' if k else '')
            out.append((f'{name}.png', base64.b64decode(''.join(b))))
    return out

def one(path, params, own, timeout, build, threads, live): # -> record
    "Execute a notebook under a time limit and write its figures."
    copies, figs, t = build/'nbs', build/'figures', time.perf_counter()
    tmp, log, mine = copies/f'.{path.stem}.part.ipynb', copies/f'{path.stem}.log', copies/f'.{path.stem}.figures'
    shutil.rmtree(mine, ignore_errors=True)
    if 'figures' in own and 'figures' not in params: params = params | {'figures': str(mine)} # it saves its own pictures, with their numbers
    env = os.environ | dict(IN_TEST='1', PYTHONPATH=os.pathsep.join(filter(None, [str(path.parent.parent), os.environ.get('PYTHONPATH')])),
        JUPYTER_PATH=str(Path(sys.prefix)/'share'/'jupyter'), TOKENIZERS_PARALLELISM='false',  # JUPYTER_PATH: the kernel of this Python, no other
        **{k: os.environ.get(k, str(threads)) for k in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS')})
    env.pop('MPLBACKEND', None)                                       # the notebook's own backend makes the pictures
    job = json.dumps(dict(nb=str(path), out=str(tmp), params=params, cwd=str(path.parent)))
    with open(log, 'w') as f:
        p = subprocess.Popen([sys.executable, '-c', 'import sys; from llmers_nb.cli import execute; execute(sys.argv[1])', job],
                             stdout=f, stderr=f, stdin=subprocess.DEVNULL, env=env, start_new_session=True)
        live.add(p)
        try: error = None if p.wait(timeout) == 0 else ''
        except subprocess.TimeoutExpired: error = f'stopped after {timeout:.0f} s; give more time with --timeout'
        finally: kill_tree(p); live.discard(p)
    for old in figs.glob(f'{path.stem}_*'): old.unlink()              # a picture stands for the code of today, or not at all
    rec = dict(notebook=path.stem, seconds=round(time.perf_counter() - t, 1), figures=0, status='ok', error=error or (why(tmp, log) if error == '' else None))
    if error is not None:
        if tmp.exists(): os.replace(tmp, copies/f'{path.stem}.failed.ipynb')
        return rec | dict(status='failed')
    word = path.stem.split('_', 1)[-1] + '_'                          # trends_claims.png of 61_trends becomes 61_trends_claims.png
    own_files = [(f.name.removeprefix(word), f.read_bytes()) for f in sorted(mine.glob('*'))] if mine.is_dir() else []
    files = own_files if any(n.endswith('.png') for n, _ in own_files) else own_files + pictures(tmp)
    for name, b in files:
        part = figs/f'.{path.stem}_{name}.part'
        part.write_bytes(b); os.replace(part, figs/f'{path.stem}_{name}')
    os.replace(tmp, copies/f'{path.stem}.ipynb')
    for gone in (log, copies/f'{path.stem}.failed.ipynb'): gone.unlink(missing_ok=True)
    shutil.rmtree(mine, ignore_errors=True)
    return rec | dict(figures=sum(n.endswith('.png') for n, _ in files))

def cores(): return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1

def figures(a):
    nbs = source_folder(a.nbs)
    todo = plan(nbs, a.only, a.param)
    if a.list: return show([dict(notebook=p.stem, figures=', '.join(labels), parameters=', '.join(f'{k}={v!r}' for k, v in ps.items()))
                            for p, _, (labels, ps) in todo], a.format)
    jobs = a.jobs if a.jobs is not None else min(2, cores())
    if jobs < 1: raise Usage(f'--jobs {jobs}: give 1 or more')
    if a.timeout <= 0: raise Usage(f'--timeout {a.timeout}: give seconds, above 0')
    from importlib.util import find_spec
    if missing := [m for m in ('papermill', 'ipykernel', 'psutil') if not find_spec(m)]:
        raise Usage(f"llmers figures needs {', '.join(missing)}: run pip install -e '.[dev]' -c constraints.txt")
    from tqdm import tqdm
    build = Path(a.build).resolve() if a.build else nbs.parent/'build'
    for d in ('nbs', 'figures'): (build/d).mkdir(parents=True, exist_ok=True)
    live, out = set(), []
    pool = ThreadPoolExecutor(jobs)                                   # threads only wait: each notebook has its own process
    try:
        work = [pool.submit(one, p, params, own, a.timeout, build, max(1, cores()//jobs), live)
                for p, params, (_, own) in reversed(todo)]            # last chapters first: they take longest
        with tqdm(total=len(work), desc='notebooks', unit='notebook') as bar:
            for f in as_completed(work):
                out.append(r := f.result()); bar.update(); bar.set_postfix_str(f"{r['notebook']} {r['seconds']:.0f} s")
                if r['error']: bar.write(f"FAILED {r['notebook']}, {r['error']}", file=sys.stderr)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for p in list(live): kill_tree(p)
    out.sort(key=lambda r: r['notebook'])
    bad = [r['notebook'] for r in out if r['error']]
    show(out, a.format, ['notebook', 'status', 'seconds', 'figures'], f"{sum(r['figures'] for r in out)} figures in {build/'figures'}")
    if bad: print(f"llmers: {len(bad)} of {len(out)} notebooks failed: {', '.join(bad)}; executed copies and logs are in {build/'nbs'}", file=sys.stderr)
    return 1 if bad else 0

# ---- the command line

def parser():
    "All commands and options."
    top = Parser(prog='llmers', description='The executable survey of LLM-enhanced recommender systems: its tables, data, comparisons and figures.',
                 epilog='Start with: llmers systems --implemented. Bad input ends with status 2 and one line; LLMERS_DEBUG=1 shows the traceback.')
    sub = top.add_subparsers(dest='command', metavar='COMMAND', parser_class=Parser)
    def add(name, do, help, more='', forms=('table', 'json')):
        p = sub.add_parser(name, help=help, description=help + ('. ' + more if more else '.'), formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        p.set_defaults(do=do)
        p.add_argument('--format', choices=forms, default='table', help='a table to read, or a list of flat JSON records')
        return p
    def filters(p, **names):
        p.add_argument('--text', metavar='WORDS', help='words that must all occur somewhere in the row')
        for k, h in names.items(): p.add_argument(f'--{k}', metavar=k.upper(), type=int if k == 'year' else str, help=h)
    def training_options(p):
        p.add_argument('--epochs', type=int, help='most epochs; none given: the backbone\'s own setting')
        p.add_argument('--patience', type=int, help='stop after so many epochs without a better validation score')
        p.add_argument('--lr', type=float, help='learning rate')
        p.add_argument('--batch', type=int, help='training rows in a batch')
    shared = dict(year='year as four digits', venue="part of the venue, such as WWW", llm='part of the name of the language model, such as LLaMA',
                  tuning='how the language model was used: frozen, fine-tuned, both, unstated')
    p = add('systems', systems, 'List the surveyed systems', 'Filters combine; upper and lower case do not matter.', ('table', 'json', 'bibtex'))
    filters(p, system='name of one system, such as RLMRec', category='category or subcategory, such as model or distillation', **shared,
            access='access to the language model: open, closed, unknown', semantics='explicit (text) or implicit (vectors, scores)')
    p.add_argument('--implemented', action='store_true', help='only systems that can be run here')
    p = add('papers', papers, 'List the literature', 'One row for each different paper, from five sources. Filters combine.', ('table', 'json', 'bibtex'))
    filters(p, kind='paper, dataset, benchmark, repository, topic or talk', source='awesome, feed, survey or a workshop', section='section of the source', **shared)
    p.add_argument('--rows', action='store_true', help='every line of every source, repeated papers too')
    p.add_argument('--counts', action='store_true', help='how many rows were read, kept, repaired and given up, per source and section')
    p = add('data', data, 'Download and verify a data set, and describe it', 'Files are kept in the cache folder (LLMERS_CACHE chooses another one) and verified by checksum.')
    p.add_argument('--dataset', default='ml-100k', help='ml-100k, ml-1m, ml-latest-small, amazon-office (needs LLMERS_DATA) or planted (a toy)')
    p.add_argument('--protocol', default='leave-one-out', help='split: leave-one-out, temporal or cold-item')
    p.add_argument('--offline', action='store_true', help='use the cache only, no network')
    p.add_argument('--embed', action='store_true', help='also encode every text that the implemented systems need, minutes the first time')
    p = add('run', run, 'Compare systems with their backbone', 'Each system is trained on recorded LLM answers, and twice more with placebos: shuffled texts and random vectors.')
    p.add_argument('--systems', required=True, metavar='A,B', help='systems, separated by commas; all; or none for the backbone alone')
    p.add_argument('--backbone', help='BPRMF, LightGCN, SASRec, DeepFM, ...; none given: each system\'s own')
    p.add_argument('--dataset', default='ml-100k', help='see llmers data --help')
    p.add_argument('--seeds', default='0,1,2', help='random seeds, such as 0,1,2 or 0-4')
    p.add_argument('--arms', default=','.join(ARMS), help='what to train, separated by commas')
    training_options(p)
    p = add('bench', bench, 'Compute the comparisons that the chapters show', 'Finished runs are kept in data/results, so that an interrupted benchmark goes on where it stopped.')
    p.add_argument('--systems', default='all', metavar='A,B', help='systems, separated by commas, or all')
    p.add_argument('--backbone', help='one backbone for all; none given: each system\'s own')
    p.add_argument('--folder', help='where to keep the results; none given: data/results')
    p.add_argument('--dataset', default='ml-100k', help='see llmers data --help')
    p.add_argument('--seeds', default='0,1,2', help='random seeds, such as 0,1,2 or 0-4')
    p.add_argument('--jobs', type=int, default=min(2, cores()), help='runs at a time')
    training_options(p)
    p = add('figures', figures, 'Execute the notebooks and write every figure', 'Needs the source code. Notebooks are never changed: executed copies go to build/nbs, figures to build/figures.')
    p.add_argument('--only', action='append', metavar='NAME', help='a notebook (58, embedding_utilization) or a figure label (fig-typology); may be repeated')
    p.add_argument('--param', action='append', metavar='NAME=VALUE', help='value for a notebook\'s parameters cell; may be repeated')
    p.add_argument('--list', action='store_true', help='only list notebooks, figure labels and parameters')
    p.add_argument('--jobs', type=int, help='notebooks at a time; none given: 2, or 1 on a single core')
    p.add_argument('--timeout', type=float, default=1200, metavar='SECONDS', help='time limit for each notebook')
    p.add_argument('--nbs', metavar='FOLDER', help='another folder of notebooks')
    p.add_argument('--build', metavar='FOLDER', help='where executed copies and figures go; none given: build/ beside nbs/')
    return top

def command(argv): # -> exit status
    "Parse and do. Whatever a library prints while computing goes to standard error, so that JSON stays alone."
    top = parser()
    a = top.parse_args(argv)
    if not a.command: top.print_help(); return 0
    if a.do not in (run, bench): return a.do(a) or 0
    with contextlib.redirect_stdout(sys.stderr): report = a.do(a)
    report()
    return 0

def main(argv=None): # -> exit status: 0, 1 (a notebook failed), 2 (bad input), 130 (interrupted)
    "The console script."
    try: status = command(argv); sys.stdout.flush(); return status
    except BrokenPipeError: os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()); return 0   # the reader went away: | head
    except KeyboardInterrupt: print('llmers: interrupted', file=sys.stderr); return 130
    except Exception as e:
        ours = type(e).__module__.startswith('llmers_nb') or isinstance(e, (ValueError, OSError))         # anything else is a bug: show it
        if not ours or os.environ.get('LLMERS_DEBUG'): raise
        print('llmers: ' + ' '.join(str(e).split()), file=sys.stderr); return 1 if isinstance(e, Failed) else 2

if __name__ == '__main__': sys.exit(main())
