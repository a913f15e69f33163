"""The command line as a user meets it: real processes, exit status, one line for a mistake, JSON alone on standard output."""
import csv, json, os, subprocess, sys, textwrap, time
from pathlib import Path
import nbformat, pytest
from llmers_nb import cli

ROOT = Path(__file__).parent.parent

def llmers(*args, timeout=300, **env):
    code = f"import sys; sys.path.insert(0, {str(ROOT/'tests')!r}); import no_network; no_network.block(); from llmers_nb.cli import main; sys.exit(main({list(args)!r}))"
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=timeout, env=os.environ | {'OMP_NUM_THREADS': '1'} | env, cwd=ROOT)

def records(*args, **env):
    r = llmers(*args, '--format', 'json', **env)
    assert r.returncode == 0, r.stderr[-2000:]
    out = json.loads(r.stdout)
    assert isinstance(out, list) and all(isinstance(v, (str, int, float, bool, type(None))) for x in out for v in x.values()), 'flat records'
    return out

# ---- tables

def test_systems_as_json():
    out = records('systems')
    assert len(out) == 78
    assert set('system title category subcategory venue first_posted implemented notebook'.split()) <= set(out[0])
    done = [x for x in out if x['implemented']]
    assert done and all((ROOT/'nbs'/f"{x['notebook']}.ipynb").exists() for x in done)

def test_papers_as_json():
    out = records('papers', '--kind', 'paper')
    assert len(out) >= 600 and len({x['paper_id'] for x in out}) == len(out)
    assert {'title', 'source', 'section'} <= set(out[0])
    rows = list(csv.DictReader(open(ROOT/'data'/'papers.csv', encoding='utf-8', newline='')))
    counts = records('papers', '--counts')
    assert {(c['source'], c['section']): c['kept'] for c in counts}[('survey', 'references')] == sum(r['source'] == 'survey' for r in rows) == 118
    assert len(records('papers', '--rows')) == len(rows)

def test_filters_combine():
    out = records('systems', '--category', 'model', '--tuning', 'fine-tuned', '--year', '2024', '--llm', 'llama')
    want = [r for r in csv.DictReader(open(ROOT/'data'/'systems.csv', encoding='utf-8', newline='')) if r['category'] == 'model' and 'fine-tuned' in r['llm_tuning']
            and r['first_posted'].startswith('2024') and 'llama' in r['foundation_model'].lower()]
    assert out and {x['system'] for x in out} == {r['system'] for r in want}
    assert [x['system'] for x in records('systems', '--system', 'kar')] == ['KAR']
    assert records('papers', '--text', 'no-such-word-anywhere') == []

def test_bibtex():
    r = llmers('systems', '--system', 'RLMRec', '--format', 'bibtex')
    assert r.returncode == 0 and r.stdout.count('@') == 1 and 'Representation Learning with Large Language Models' in r.stdout

def test_table_for_people():
    r = llmers('systems', '--implemented')
    assert r.returncode == 0 and 'RLMRec' in r.stdout and 'implemented' in r.stdout.splitlines()[-1] and not r.stderr

def test_systems_are_fast():
    best = []
    for _ in range(3):
        t = time.perf_counter(); assert llmers('systems', '--format', 'json').returncode == 0; best.append(time.perf_counter() - t)
    assert min(best) < 5, best                                           # loading torch alone takes about as long

@pytest.mark.parametrize('command', ['', 'systems', 'papers', 'data', 'run', 'bench', 'figures'])
def test_help_explains(command):
    r = llmers(*command.split(), '--help')
    assert r.returncode == 0 and len(r.stdout.split()) > 60
    if not command: assert all(c in r.stdout for c in ('systems', 'papers', 'data', 'run', 'bench', 'figures'))

# ---- mistakes: status 2, one line, a hint

@pytest.mark.parametrize('args,hint', [
    (['systms'], 'systems'), (['systems', '--category', 'distilation'], 'distillation'), (['systems', '--year', 'soon'], 'year'), (['systems', '--year', '1999'], '2024'),
    (['systems', '--format', 'xml'], 'json'), (['papers', '--section', '9.9'], '1.7'), (['papers', '--colour', 'x'], '--colour'),
    (['data', '--dataset', 'ml100k'], 'ml-100k'), (['data', '--dataset', 'planted', '--protocol', 'leave-one'], 'leave-one-out'),
    (['run'], '--systems'), (['run', '--systems', 'RLMRek'], 'RLMRec'), (['run', '--systems', 'LEARN'], 'not implemented'), (['run', '--systems', ','], 'empty'),
    (['run', '--systems', 'none'], '--backbone'), (['run', '--systems', 'KAR', '--seeds', '0;1'], '0,1,2'), (['run', '--systems', 'KAR', '--seeds', '-1'], '--seeds'),
    (['run', '--systems', 'KAR', '--arms', 'shufled'], 'shuffled'), (['run', '--systems', 'KAR', '--epochs', '0'], 'above 0'),
    (['run', '--systems', 'none', '--backbone', 'LightGN', '--dataset', 'planted'], 'LightGCN'), (['run', '--systems', 'LLM-ESR', '--dataset', 'planted', '--backbone', 'BPRMF'], 'needs'),
    (['bench', '--systems', 'none'], 'llmers run'), (['bench', '--jobs', '0'], '--jobs'),
    (['figures', '--only', 'fig-typolgy'], 'fig-typology'), (['figures', '--only', '61', '--param', 'figurs=x'], 'figures'), (['figures', '--param', 'novalue'], 'NAME=VALUE'),
    (['figures', '--nbs', 'no-such-folder'], 'source code'), (['figures', '--only', '00', '--jobs', '0'], '--jobs'), (['figures', '--only', '00', '--timeout', '0'], '--timeout')], ids=lambda v: ' '.join(v) if isinstance(v, list) else '')
def test_a_mistake_costs_one_line(args, hint, capsys):
    assert cli.main(args) == 2
    out = capsys.readouterr()
    assert not out.out
    line, = out.err.splitlines()
    assert line.startswith('llmers: ') and hint in line, line

def test_a_mistake_in_a_process_of_its_own():
    r = llmers('systms')
    assert r.returncode == 2 and not r.stdout and len(r.stderr.splitlines()) == 1

def test_offline_without_data_says_what_to_do(tmp_path):
    r = llmers('data', '--offline', LLMERS_CACHE=str(tmp_path))
    assert r.returncode == 2 and 'What to do' in r.stderr and len(r.stderr.strip().splitlines()) == 1

def test_a_bug_is_not_hidden(monkeypatch, capsys):
    monkeypatch.setattr(cli, 'systems', lambda a: {}['missing'])
    with pytest.raises(KeyError): cli.main(['systems'])
    monkeypatch.setattr(cli, 'systems', lambda a: (_ for _ in ()).throw(ValueError('two\nlines')))
    assert cli.main(['systems']) == 2 and capsys.readouterr().err == 'llmers: two lines\n'

def test_a_closed_pipe_is_no_error():
    r = subprocess.run(f'"{sys.executable}" -m llmers_nb.cli papers --format json | head -n 1; exit ${{PIPESTATUS[0]}}', shell=True, executable='/bin/bash', capture_output=True, text=True, cwd=ROOT)
    assert r.returncode == 0 and not r.stderr

@pytest.mark.parametrize('text,want', [('0,1,2', [0, 1, 2]), ('0-3', [0, 1, 2, 3]), (' 5 ,5', [5])])
def test_seeds(text, want): assert cli.seeds(text) == want

def test_hostile_titles_do_not_reach_the_terminal(capsys):
    cli.show([dict(title='a\x1b[31mb\nc' + 'x'*100, n=float('nan'))], 'table')
    out = capsys.readouterr().out
    assert '\x1b' not in out and 'xxx...' in out and 'nan' not in out
    cli.show([dict(v=float('inf'))], 'json')
    assert json.loads(capsys.readouterr().out) == [{'v': None}]

# ---- data, run, bench

def test_data(ml100k):
    one, = records('data', '--offline')
    assert (one['users'], one['items'], one['train'], one['valid'], one['test']) == (943, 1682, 98114, 943, 943)
    assert one['fingerprint'] == ml100k.training.fingerprint and one['recorded_answers'] == 'usable'
    assert records('data', '--offline', '--protocol', 'temporal')[0]['recorded_answers'] == 'refused for this split'

def test_run_prints_every_arm():
    out = records('run', '--systems', 'rlmrec', '--backbone', 'lightgcn', '--dataset', 'planted', '--seeds', '0,1', '--epochs', '2')
    assert {(r['system'], r['backbone'], r['dataset']) for r in out} == {('RLMRec', 'LightGCN', 'planted')}
    assert sorted((r['seed'], r['arm']) for r in out) == sorted((s, a) for s in (0, 1) for a in cli.ARMS)
    for r in out: assert 0 <= r['ndcg@10'] <= r['hr@10'] <= 1 and r['train_seconds'] > 0 and 'llm_calls' in r and 'serve_ms' in r

def test_run_a_backbone_alone():
    out = records('run', '--systems', 'none', '--backbone', 'BPRMF', '--dataset', 'planted', '--seeds', '0', '--epochs', '1')
    assert [(r['system'], r['arm']) for r in out] == [('none', 'backbone')]

def test_bench_resumes(tmp_path):
    args = ['bench', '--systems', 'RLMRec', '--dataset', 'planted', '--seeds', '0', '--jobs', '1', '--epochs', '1', '--folder', str(tmp_path)]
    first = records(*args)
    files = {p: p.stat().st_mtime_ns for p in (tmp_path/'ranks').glob('*.npz')}
    assert len(first) == len(files) == 4
    assert records(*args) == first and {p: p.stat().st_mtime_ns for p in (tmp_path/'ranks').glob('*.npz')} == files

# ---- figures, on small notebooks

def notebook(folder, name, *cells):
    "Cells are source texts; ('source', ['tag']) for a tagged one."
    nb = nbformat.v4.new_notebook(metadata={'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}})
    for c in cells:
        source, tags = c if isinstance(c, tuple) else (c, [])
        cell = nbformat.v4.new_code_cell(textwrap.dedent(source)); cell.metadata = {'tags': tags} if tags else {}
        nb.cells.append(cell)
    folder.mkdir(exist_ok=True); nbformat.write(nb, folder/f'{name}.ipynb')
    return (folder/f'{name}.ipynb').read_bytes()

PLOT = 'import matplotlib.pyplot as plt\nplt.plot([1, n]);'

@pytest.fixture(scope='module')
def book(tmp_path_factory):
    "Good, bad, slow and dying notebooks, executed once."
    tmp = tmp_path_factory.mktemp('book'); nbs = tmp/'nbs'
    before = notebook(nbs, '01_good', ('n = 3 # height', ['parameters']), '#| label: fig-line\n' + PLOT, 'plt.plot([n]); plt.show()', "import os\nassert os.environ['IN_TEST'] == '1' and os.getcwd().endswith('nbs') and n == 7")
    notebook(nbs, '02_bad', 'x = 1', "#| export\nraise ValueError('wrong value\\nmore')")
    notebook(nbs, '03_slow', 'import time, os\nopen("pid.txt", "w").write(str(os.getpid()))\ntime.sleep(600)')
    notebook(nbs, '04_dies', 'import os\nos._exit(3)')
    notebook(nbs, '05_own', ("n, figures = 2, None", []), ("figures = None", ['parameters']), "from pathlib import Path\nPath(figures).mkdir()\n(Path(figures)/'numbers.csv').write_text('a')", PLOT)
    old = tmp/'build'/'figures'; old.mkdir(parents=True); (old/'01_good_fig-gone.png').write_bytes(b'old'); (old/'02_bad_fig-x.png').write_bytes(b'old')
    return tmp, before, llmers('figures', '--nbs', str(nbs), '--timeout', '30', '--param', 'n=7', '--format', 'json')

def test_figures_survive_bad_notebooks(book):
    tmp, before, r = book
    out = {x['notebook']: x for x in json.loads(r.stdout)}
    assert r.returncode == 1 and {k: v['status'] for k, v in out.items()} == {'01_good': 'ok', '02_bad': 'failed', '03_slow': 'failed', '04_dies': 'failed', '05_own': 'ok'}
    assert '02_bad, cell In [2] `raise ValueError' in r.stderr and 'ValueError: wrong value' in r.stderr
    assert 'stopped after 30 s' in out['03_slow']['error'] and 'Kernel died' in out['04_dies']['error'] and '3 of 5 notebooks failed' in r.stderr

def test_figures_are_written_under_their_labels(book):
    figs = book[0]/'build'/'figures'
    assert {p.name for p in figs.iterdir()} == {'01_good_fig-line.png', '01_good_2.png', '05_own_numbers.csv', '05_own_1.png'}   # old ones are gone, no .part
    assert all(p.read_bytes().startswith(b'\x89PNG') for p in figs.glob('*.png'))

def test_notebooks_are_not_touched(book):
    tmp, before, _ = book
    assert (tmp/'nbs'/'01_good.ipynb').read_bytes() == before
    assert (tmp/'build'/'nbs'/'01_good.ipynb').exists() and not (tmp/'build'/'nbs'/'02_bad.ipynb').exists()

def test_no_kernel_survives_its_time_limit(book):
    import psutil
    pid = int((book[0]/'nbs'/'pid.txt').read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE

def test_only_one_and_wrong_parameter(book):
    tmp, *_ = book
    r = llmers('figures', '--nbs', str(tmp/'nbs'), '--only', 'good', '--param', 'n=tall')
    assert r.returncode == 2 and 'not a number' in r.stderr and len(r.stderr.splitlines()) == 1
    r = llmers('figures', '--nbs', str(tmp/'nbs'), '--list', '--only', 'FIG-LINE', '--format', 'json')
    assert json.loads(r.stdout) == [dict(notebook='01_good', figures='fig-line', parameters='n=3')]
