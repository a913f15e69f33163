"""Every notebook runs, is clean, and is what the library was exported from; README and site list are in step."""
import json, os, re, shutil, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import nbformat, pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT/'nbs').glob('*.ipynb'))
LIMIT = 420  # seconds for one notebook without its slow cells

RUN = '''
import sys; sys.path.insert(0, {tests!r})
import no_network; no_network.block()
from pathlib import Path
from nbdev.config import get_config
from nbdev.test import test_nb
ok, seconds = test_nb(Path({nb!r}), skip_flags=get_config(path={root!r}).tst_flags.split(), basepath={root!r})
sys.exit(0 if ok else 1)
'''

def nbdev_test(nb):
    "One notebook as nbdev_test runs it, in a process of its own: no module or setting carries over."
    env = os.environ | dict(IN_TEST='1', MPLBACKEND='agg', OMP_NUM_THREADS=os.environ.get('OMP_NUM_THREADS', '1'))
    code = RUN.format(tests=str(ROOT/'tests'), nb=str(nb), root=str(ROOT))
    try: r = subprocess.run([sys.executable, '-c', code], cwd=ROOT/'nbs', env=env, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired: return f'still running after {LIMIT} s: mark its long cells with #| slow'
    return None if r.returncode == 0 else (r.stderr or r.stdout)[-4000:]

@pytest.fixture(scope='module')
def outcomes(request):
    "The notebooks that were asked for, two at a time."
    wanted = [i.callspec.params['nb'] for i in request.session.items if i.originalname == 'test_notebook_runs']
    with ThreadPoolExecutor(2) as pool: yield {nb: pool.submit(nbdev_test, nb) for nb in wanted}

@pytest.mark.parametrize('nb', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(nb, outcomes):
    error = outcomes[nb].result()
    assert error is None, error

@pytest.mark.parametrize('nb', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_clean(nb):
    raw = json.loads(nb.read_text(encoding='utf-8'))
    nbformat.validate(nbformat.from_dict(raw))
    assert set(raw['metadata']) == {'kernelspec'} and raw['metadata']['kernelspec']['name'] == 'python3'
    ids = [c['id'] for c in raw['cells']]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r'[A-Za-z0-9_-]{1,64}', i) for i in ids)
    for c in raw['cells']:
        assert set(c['metadata']) <= {'tags'}, f"{c['id']}: run make nb-clean"
        if c['cell_type'] == 'code': assert not c['outputs'] and c['execution_count'] is None, f"{c['id']} has outputs: run make nb-clean"

@pytest.mark.parametrize('nb', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_starts_with_title_and_description(nb):
    cells = json.loads(nb.read_text(encoding='utf-8'))['cells']
    assert re.match(r'# .+\n+> .+', ''.join(cells[0]['source']))
    assert sum(''.join(c['source']).startswith('#| default_exp ') for c in cells if c['cell_type'] == 'code') == (nb.stem != 'index')

@pytest.mark.parametrize('nb', NOTEBOOKS, ids=lambda p: p.stem)
def test_every_labelled_figure_has_caption_and_alternative_text(nb):
    for c in json.loads(nb.read_text(encoding='utf-8'))['cells']:
        s = ''.join(c['source'])
        if c['cell_type'] == 'code' and re.search(r'^#\| label: fig-', s, re.M):
            assert re.search(r'^#\| fig-cap: "?\S', s, re.M) and re.search(r'^#\| fig-alt: "?\S', s, re.M), s[:200]

@pytest.mark.parametrize('nb', NOTEBOOKS, ids=lambda p: p.stem)
def test_figure_labels_are_unique_in_their_notebook(nb):
    labels = [m for c in json.loads(nb.read_text(encoding='utf-8'))['cells'] for m in re.findall(r'^#\| label: (fig-[\w-]+)', ''.join(c['source']), re.M)]
    assert len(set(labels)) == len(labels), labels

def test_export_leaves_no_difference(tmp_path):
    for d in ('nbs', 'llmers_nb'): shutil.copytree(ROOT/d, tmp_path/d, ignore=shutil.ignore_patterns('__pycache__'))
    for f in ('settings.ini', 'pyproject.toml', 'README.md'): shutil.copy(ROOT/f, tmp_path/f)
    for f in (tmp_path/'llmers_nb').glob('*.py'):
        if f.name not in ('__init__.py', 'cli.py'): f.unlink()            # a module whose notebook is gone must not survive
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}
    subprocess.run([sys.executable, '-c', 'from nbdev.doclinks import nbdev_export; nbdev_export()'], cwd=tmp_path, env=env, check=True, timeout=300)
    for d, names in ((ROOT/'llmers_nb', {p.name for r in (ROOT, tmp_path) for p in (r/'llmers_nb').glob('*.py')}), (ROOT, {'pyproject.toml', 'settings.ini'})):
        for n in sorted(names):
            new = tmp_path/d.relative_to(ROOT)/n
            assert new.exists() and (d/n).exists(), f'{n}: run nbdev_export'
            assert new.read_text(encoding='utf-8') == (d/n).read_text(encoding='utf-8'), f'{n} is out of step with its notebook: run nbdev_export'

def test_readme_is_in_step_with_index():
    r = subprocess.run([sys.executable, str(ROOT/'.ci'/'readme.py'), '--check'], capture_output=True, text=True, timeout=300)
    assert r.returncode == 0, r.stderr[-2000:]

def test_readme_example_runs(tmp_path):
    "The block a newcomer copies: ten lines, and they end in real metrics."
    blocks = re.findall(r'^```python\n(.*?)^```', (ROOT/'README.md').read_text(encoding='utf-8'), re.M | re.S)
    code = next(b for b in blocks if 'evaluate(' in b)
    assert len([l for l in code.splitlines() if l.strip()]) <= 10 and 'epochs=3' in code
    *body, last = code.strip().splitlines()
    file = tmp_path/'example.py'
    file.write_text(f"import sys; sys.path.insert(0, {str(ROOT/'tests')!r}); import no_network; no_network.block()\n" + '\n'.join(body)
                    + f"\nm = {last}\nimport json; print(json.dumps(m))\n", encoding='utf-8')
    r = subprocess.run([sys.executable, str(file)], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert r.returncode == 0, r.stderr[-3000:]
    m = json.loads(r.stdout.splitlines()[-1])
    assert 10/1682 < m['hr@10'] < 1 and 0 < m['ndcg@10'] <= m['hr@10']     # better than ten films drawn by chance

def test_relative_links_of_the_readme_exist():
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    for link in re.findall(r'(?:\]\(|src="|href=")(?!https?:|#)([^)"]+)', text): assert (ROOT/link).exists(), link

def test_every_notebook_is_in_the_site():
    text = (ROOT/'_quarto.yml').read_text(encoding='utf-8')
    listed = re.findall(r'[\w-]+\.ipynb', text)
    assert sorted(listed) == sorted(p.name for p in NOTEBOOKS)
