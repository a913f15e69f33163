"""The survey's tables, their loaders and figures. Numbers are recomputed with the csv module, not with pandas."""
import csv, filecmp, importlib.util, json, os, re, subprocess, sys
from collections import Counter
from pathlib import Path
import pytest

from llmers_nb import survey, trends
from llmers_nb.survey import (Application, Paper, SurveyError, System, bibtex, citation, data_path, find, implemented_systems, papers,
                              papers_report, read_rows, records, systems)

ROOT = Path(__file__).parent.parent
SEEDS = ROOT.parent/'shared'/'seeds'

def rows(name): # the file as dictionaries of strings
    with open(ROOT/'data'/name, encoding='utf-8', newline='') as f: return list(csv.DictReader(f))

def first_rows(): # one dictionary per system, the first row of each
    out = {}
    for r in rows('systems.csv'): out.setdefault(r['system'], r)
    return list(out.values())

# ---- tables

def test_78_systems_with_the_promised_fields():
    rec = records(systems())
    assert len(rec) == 78 == len({r['system'] for r in rows('systems.csv')})
    want = '''system title category subcategory side venue first_posted semantics foundation_model llm_access llm_tuning survey_ref
              paper_url code_url implemented notebook also'''.split()
    assert not set(want) - set(rec[0])
    json.dumps(rec, allow_nan=False)                      # flat and ready for JSON
    assert all(isinstance(r['implemented'], bool) for r in rec)
    assert {r['system'] for r in rec if r['also']} == {'LLM-ESR', 'LEARN', 'LARR'}

def test_first_row_of_a_system_is_its_primary_place():
    want = {r['system']: (r['category'], r['subcategory']) for r in first_rows()}
    assert {r['system']: (r['category'], r['subcategory']) for r in records(systems())} == want

def test_600_unique_papers():
    ids = {r['paper_id'] for r in rows('papers.csv') if r['kind'] == 'paper'}
    once = papers(unique=True)
    assert len(ids) >= 600 and set(once[once.kind == 'paper'].paper_id) == ids

def test_titles_are_grouped_across_sources():
    key = lambda t: re.sub(r'[^a-z0-9+]', '', t.lower())
    ids, sources = {}, {}
    for r in rows('papers.csv'):
        ids.setdefault((r['kind'], key(r['title'])), set()).add(r['paper_id'])
        sources.setdefault(r['paper_id'], set()).add(r['source'])
    assert all(len(v) == 1 for v in ids.values())
    assert sum(len(v) > 1 for v in sources.values()) > 50 # the sources overlap

def test_every_reference_once_and_linked_to_its_systems():
    refs = [r for r in rows('papers.csv') if r['source'] == 'survey']
    assert [int(r['ref']) for r in refs] == list(range(1, 119))
    want = {}
    for s in first_rows(): want.setdefault(s['survey_ref'], set()).add(s['system'])
    got = {r['ref']: set(filter(None, r['systems'].split('; '))) for r in refs}
    assert all(v <= got[k] for k, v in want.items() if k) and sum(map(bool, got.values())) == len(want) - 1
    assert not any(re.search(r"KDD '25|\bIn Proceedings|arXiv preprint", r['title']) for r in refs)

def test_no_abstracts():
    assert max(len(r['title']) for r in rows('papers.csv')) < 250

def test_counts_agree_with_the_report():
    got = Counter((r['source'], r['section']) for r in rows('papers.csv'))
    parts = json.loads((ROOT/'data'/'papers_report.json').read_text(encoding='utf-8'))['parts']
    kept = {(s, k): p['kept'] for s, secs in parts.items() for k, p in secs.items()}
    assert got == kept
    for secs in parts.values():
        for p in secs.values():
            assert p['read'] == p['kept'] + len(p['unparseable'])
            assert all(r['line'] and r['reason'] for r in p['repaired'] + p['unparseable'])
    assert {f'1.{i}' for i in range(1, 8)} | {'2.1', '2.2', '3'} <= {k for k in parts['awesome']} | {k[:3] for k in parts['awesome']}
    assert papers_report().kept.sum() == len(rows('papers.csv'))

@pytest.mark.skipif(not SEEDS.is_dir(), reason='the source texts are not beside this checkout')
def test_parser_reproduces_the_files(tmp_path):
    subprocess.run([sys.executable, ROOT/'data'/'parse_seeds.py', SEEDS, '--out', tmp_path], check=True, capture_output=True)
    for name in ('papers.csv', 'applications.csv', 'papers_report.json'):
        assert filecmp.cmp(tmp_path/name, ROOT/'data'/name, shallow=False), name

@pytest.mark.skipif(not SEEDS.is_dir(), reason='the source texts are not beside this checkout')
def test_an_independent_count_of_the_awesome_list():
    text = next(SEEDS.glob('002_*')).read_text(encoding='utf-8')
    lines = text[text.index('## 1. Papers'):text.index('## Contributing')].split('\n')
    body = [l for l in lines if l.startswith('|') and '**' not in l and not l.startswith('|:')]
    assert len(body) == sum(r['source'] == 'awesome' for r in rows('papers.csv'))

def parser():
    spec = importlib.util.spec_from_file_location('parse_seeds', ROOT/'data'/'parse_seeds.py')
    mod = importlib.util.module_from_spec(spec); spec.loader.exec_module(mod)
    return mod

def test_parser_repairs_and_refuses():
    P, head = parser(), ['Paper', 'Publication', 'Link']
    got, why = P.awesome_row(head, ['A Title', 'Avrxi 2024', '', '[[Link(https://arxiv.org/abs/2504.16454)'])
    assert got['venue'] == 'arXiv 2024' and got['url'] == 'https://arxiv.org/abs/2504.16454' and len(why) == 3
    got, why = P.awesome_row(head, ['A Title', 'Falcon (40B)', 'Frozen', 'WSDM 2024', '[[Link]](https://x.org/1)'])
    assert (got['llm'], got['tuning'], got['venue']) == ('Falcon (40B)', 'Frozen', 'WSDM 2024')
    assert P.awesome_row(head, ['A Title', 'WSDM 2024'])[0] is None
    refs = P.references("x\nReferences\n\n- First A. 2020. T. V.\n- [2] B. 2021. Long\n\nKDD '25, August 3-7\n\ntitle. V.\n")
    assert [(r[0], r[2]) for r in refs] == [(1, 'First A. 2020. T. V.'), (2, 'B. 2021. Long title. V.')]

# ---- broken files

def broken(tmp_path, name, change):
    text = (ROOT/'data'/name).read_text(encoding='utf-8')
    new = change(text)
    assert new != text
    (tmp_path/name).write_text(new, encoding='utf-8')
    return tmp_path/name

@pytest.mark.parametrize('name, model, change, says', [
    ('systems.csv', System, lambda t: t.replace(',explicit,', ',explicitly,', 1), "systems.csv, row 2, column 'semantics'"),
    ('systems.csv', System, lambda t: t.replace('2023-05', '2023-13', 1), "row 2, column 'first_posted'"),
    ('systems.csv', System, lambda t: t.replace(',summary_text,', ',score_based,', 1), "row 2, column 'subcategory'"),
    ('systems.csv', System, lambda t: t.replace('ONCE,45', 'ONCE,450', 1), "row 2, column 'survey_ref'"),
    ('systems.csv', System, lambda t: t.replace('semantics,', 'semantik,', 1), 'row 1, column semantics, semantik'),
    ('systems.csv', System, lambda t: t.replace('KAR,94,', 'KAR,94,,', 1), 'row 3, column'),
    ('papers.csv', Paper, lambda t: t.replace(',paper,awesome,', ',poem,awesome,', 1), "papers.csv, row 2, column 'kind'"),
    ('papers.csv', Paper, lambda t: t.replace('https://arxiv', 'arxiv', 1), "row 2, column 'url'"),
    ('applications.csv', Application, lambda t: t[:t.index('\n') + 1], 'applications.csv, row 1'),
    ('systems.csv', System, lambda t: t.replace('ONCE,', '"ONCE,', 1).replace('GaCLLM,', '"x"GaCLLM,', 1), 'systems.csv, row'),
])
def test_a_broken_table_names_file_row_column(tmp_path, name, model, change, says):
    with pytest.raises(SurveyError) as e: read_rows(broken(tmp_path, name, change), model)
    assert says in str(e.value) and 'git checkout' in str(e.value)

def test_not_utf8(tmp_path):
    (tmp_path/'systems.csv').write_bytes((ROOT/'data'/'systems.csv').read_bytes().replace(b'ONCE', b'ONC\xe9', 1))
    with pytest.raises(SurveyError, match='UTF-8'): read_rows(tmp_path/'systems.csv', System)

def test_rows_of_one_system_must_agree(tmp_path, monkeypatch):
    at = broken(tmp_path, 'systems.csv', lambda t: t.replace('LLM-ESR,49,LLMESR:', 'LLM-ESR,49,LLM ESR:', 1))
    real = survey.data_path
    monkeypatch.setattr(survey, 'data_path', lambda n='': at if n == 'systems.csv' else real(n))
    with pytest.raises(SurveyError, match="LLM-ESR.*'title'"): systems()

# ---- where the data is

def test_data_path_from_an_installed_wheel(tmp_path, monkeypatch):
    pkg = tmp_path/'site-packages'/'llmers_nb'
    (pkg/'data').mkdir(parents=True); (pkg/'data'/'systems.csv').write_text('x')
    (pkg.parent/'data').mkdir(); (pkg.parent/'data'/'systems.csv').write_text("another package's")
    monkeypatch.setattr(survey, 'package_dir', lambda: pkg)
    assert survey.data_path('systems.csv') == pkg/'data'/'systems.csv'
    with pytest.raises(SurveyError, match='reinstall'): survey.data_path('nothing.csv')

def test_data_path_from_any_folder(tmp_path):
    run = subprocess.run([sys.executable, '-c', 'from llmers_nb.survey import systems; print(len(systems()))'], cwd=tmp_path,
                         env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == '78'

# ---- implemented

HEAD = '# AUTOGENERATED! DO NOT EDIT! File to edit: ../nbs/{}.ipynb.\n'

def test_implemented_systems_reads_decorators(tmp_path):
    (tmp_path/'a.py').write_text(HEAD.format('51_summary_text') + 'import torch_that_does_not_exist\n@system("KAR")\nclass K: pass\n')
    (tmp_path/'b.py').write_text(HEAD.format('58_embedding_utilization') + '@enh.system("LLM-ESR", omits=("x",))\nclass E: pass\n')
    (tmp_path/'c.py').write_text(HEAD.format('50_enhancement') + '@system("NOT ONE")\nclass N: pass\n')
    (tmp_path/'d.py').write_text('@system("BY HAND")\nclass H: pass\n')
    assert implemented_systems(tmp_path) == {'KAR': '51_summary_text', 'LLM-ESR': '58_embedding_utilization'}
    (tmp_path/'e.py').write_text(HEAD.format('59_embedding_guidance') + '@system("KAR")\nclass K: pass\n')
    with pytest.raises(SurveyError, match='already implemented in 51_summary_text'): implemented_systems(tmp_path)

def test_implemented_systems_of_none(tmp_path): assert implemented_systems(tmp_path) == {}

def test_every_implemented_system_is_a_surveyed_one():
    assert set(implemented_systems()) <= {r['system'] for r in rows('systems.csv')}

# ---- queries, BibTeX, citations

def test_find_against_a_count_by_hand():
    want = [r['system'] for r in first_rows() if r['first_posted'][:4] == '2024' and 'llama' in r['foundation_model'].lower() and r['llm_tuning'] == 'frozen']
    assert list(find(systems(), year=2024, llm='LLaMA', tuning='frozen').system) == want and want
    assert list(find(systems(), system='KAR').system) == ['KAR'] # not SKarREC
    both = find(systems(), venue=['WWW', 'SIGIR'])
    assert len(both) == sum('WWW' in r['venue'] or 'SIGIR' in r['venue'] for r in first_rows())
    assert len(find(papers(), 'Cold START')) == sum('cold' in (t := ' '.join(r.values()).lower()) and 'start' in t for r in rows('papers.csv'))
    assert len(find(systems(), 'no such words (at all', year=None)) == 0
    with pytest.raises(SurveyError, match='category'): find(systems(), categry='model')

def balanced(s):
    depth = 0
    for c in re.sub(r'\\.', '', s):
        depth += (c == '{') - (c == '}')
        assert depth >= 0
    return depth == 0

def test_bibtex_round_trip():
    once = find(papers(unique=True), kind='paper')
    entries = re.split(r'\n(?=@)', bibtex(once))
    assert len(entries) == len(once)
    back = str.maketrans({'\\': None})
    for e, r in zip(entries, records(once)):
        m = re.fullmatch(r'@(misc|article|inproceedings)\{([a-z0-9-]+),\n((?:  \w+ = \{.*\},\n)+)\}\n*', e)
        assert m and balanced(e) and m[2] == r['paper_id']
        fields = dict(re.findall(r'  (\w+) = \{(.*)\},\n', m[3]))
        title = fields['title'][1:-1].replace(r'\textasciitilde{}', '~').replace(r'\textasciicircum{}', '^')
        assert re.sub(r'\\(.)', r'\1', title) == r['title']
        assert not re.search(r'(?<!\\)[&%$#_]', fields['title']) and str(r['year'] or '') == fields.get('year', '')
    assert len({e.split('{')[1].split(',')[0] for e in entries}) == len(entries)

def test_bibtex_keys_do_not_depend_on_the_selection():
    key = lambda t: re.search(r'@\w+\{([^,]+)', bibtex(t))[1]
    assert key(find(systems(), system='RLMRec')) == key(find(papers(), ref=66)) and bibtex(systems()).count('\n@') == 77

def test_every_system_has_a_citation():
    for r in first_rows():
        c = citation(r['system'])
        assert c.startswith('**') and '\n' not in c and '](http' in c and r['venue'] in c
        assert not r['survey_ref'] or f"\\[{r['survey_ref']}\\]" in c
    with pytest.raises(SurveyError, match='LLM-ESR'): citation('LLMESR')

def test_markdown_of_a_hostile_title(): assert survey._md('[a](x) <b> `c`') == r'\[a\](x) \<b\> \`c\`'

# ---- figures: one number of each, by another path

def half(m): return f"{m[:4]} H{1 if int(m[5:]) < 7 else 2}"

def test_typology_counts():
    fig, df = trends.typology()
    want = Counter((r['category'], r['subcategory'], r['side']) for r in rows('systems.csv'))
    assert len(df) == len(rows('systems.csv')) and (df.branch == 'Embedding utilization').sum() == sum(v for k, v in want.items() if k[1] == 'embedding_utilization')
    assert ((df.branch == 'Summary text') & (df.leaf == 'Item only')).sum() == want['knowledge', 'summary_text', 'item']
    shown = {t.get_text().removeprefix('✓ ') for t in fig.axes[0].texts}
    assert {r['system'] for r in rows('systems.csv')} <= shown

def test_typology_marks_what_is_implemented(monkeypatch):
    monkeypatch.setattr(survey, 'implemented_systems', lambda *a: {'KAR': '51_summary_text'})
    fig, df = trends.typology()
    assert list(df[df.implemented].system) == ['KAR']
    assert [t.get_text() for t in fig.axes[0].texts if t.get_text().startswith('✓')] == ['✓ KAR']

def test_quadrant_counts_and_order():
    fig, df = trends.quadrants()
    want = Counter((r['semantics'], r['llm_access']) for r in first_rows())
    assert Counter(zip(df.semantics, df.llm_access)) == want and sum(want.values()) == 78
    for _, g in df.groupby(['semantics', 'llm_access']): assert g.sort_values('rank').first_posted.is_monotonic_increasing
    names = [t.get_text() for ax in fig.axes for t in ax.texts]
    assert {r['system'] for r in first_rows()} <= set(names)

def test_names_in_the_quadrants_do_not_overlap():
    fig, df = trends.quadrants()
    fig.canvas.draw()
    for ax in fig.axes:
        boxes = [t.get_window_extent() for t in ax.texts if t.get_text() in set(df.system)]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])

def test_month_counts():
    _, df = trends.by_month()
    want = Counter((r['first_posted'], r['category']) for r in first_rows())
    assert {(m, c): n for m, r in df.iterrows() for c, n in r.items() if n} == want
    assert '2023-07' in df.index and df.loc['2023-07'].sum() == 0 # an empty month stays visible

def test_llm_counts():
    _, df = trends.llms_over_time()
    cells = [(r['first_posted'], r['foundation_model']) for r in first_rows()]
    assert df.loc['LLaMA, Vicuna, LLaVA'].sum() == sum(bool(re.search('LLaMA|Vicuna|LLaVA', c)) for _, c in cells)
    assert df.loc['GPT (chat)', '2024Q3'] == sum('GPT' in c and m in ('2024-07', '2024-08', '2024-09') for m, c in cells)
    with pytest.raises(SurveyError, match='Grok'): trends.families('Grok-2 (N)')

def test_fine_tuned_counts():
    _, df = trends.fine_tuned_share()
    said = [r for r in first_rows() if r['llm_tuning'] != 'unstated']
    tuned = Counter(half(r['first_posted']) for r in said if r['llm_tuning'] in ('fine-tuned', 'both'))
    assert {h: k for h, k in df.k.items() if k} == tuned and df.n.sum() == len(said) and df.unstated.sum() == 78 - len(said)

def test_claims():
    _, df = trends.claims()
    R = [r for r in first_rows()]
    m = [12*int(r['first_posted'][:4]) + int(r['first_posted'][5:]) for r in R]
    y = [r['semantics'] == 'implicit' for r in R]
    mean = sum(m)/len(m)
    b = 12*sum((a - mean)*v for a, v in zip(m, y))/sum((a - mean)**2 for a in m)
    assert abs(df.per_year['implicit semantics'] - b) < 1e-9 and df.yes['implicit semantics'] == sum(y)
    assert df.n['fine-tuned open LLM'] == sum(r['llm_tuning'] != 'unstated' and r['llm_access'] != 'unknown' for r in R)

def test_the_shuffle_test_sees_a_trend_and_no_trend():
    m = list(range(40))
    assert trends.slope(m, [i >= 20 for i in m])[1] < .001 and trends.slope(m, [i % 2 for i in m])[1] > .3

def test_table1():
    _, df = trends.table1()
    assert list(df.dataset) == [r['dataset'] for r in rows('applications.csv')] and len(df) == 14
    assert trends.table1_html(df).count('<tr>') == 15

def test_saved_figures_are_identical_and_whole(tmp_path):
    a, b = (trends.save_figures(tmp_path/d, ['by_month', 'fine_tuned_share']) for d in 'ab')
    assert [p.name for p in a] == [p.name for p in b] and all(x.read_bytes() == y.read_bytes() for x, y in zip(a, b))
    assert sorted(p.name for p in (tmp_path/'a').iterdir()) == sorted(p.name for p in a)
    with open(tmp_path/'a'/'trends_by_month.csv', newline='') as f: assert sum(int(r['model']) for r in csv.DictReader(f)) == sum(r['category'] == 'model' for r in first_rows())
    with pytest.raises(SurveyError, match='typology'): trends.save_figures(tmp_path, ['typologie'])

# ---- no torch

def test_no_torch():
    code = "import sys, llmers_nb.survey, llmers_nb.trends; bad = {'torch', 'transformers', 'sklearn'} & set(sys.modules); assert not bad, bad"
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)
