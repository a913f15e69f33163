"""README.md from nbs/index.ipynb without Quarto: python .ci/readme.py (writes), --check (compares), --clean (clears notebooks).

Markdown cells are copied, code cells fenced, tables printed by the notebook kept; other outputs are left to the notebook itself."""
import json, os, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTE = '<!-- Made from nbs/index.ipynb by `make readme`: edit the notebook. -->\n'

def render(nb): # an executed notebook as a dictionary -> Markdown
    "One Markdown text; relative links point into nbs/."
    out = []
    for c in nb['cells']:
        src = ''.join(c['source']).strip()
        flags = re.findall(r'^#\|\s*(.+?)\s*$', src, re.M)
        if not src or 'hide' in flags or 'injected-parameters' in c['metadata'].get('tags', []): continue
        if c['cell_type'] == 'markdown': out.append(src); continue
        code = '\n'.join(l for l in src.splitlines() if not l.startswith('#|')).strip()
        if 'echo: false' not in flags: out.append(f'```python\n{code}\n```')
        out += [''.join(d['text/markdown']).strip() for o in c['outputs'] if 'text/markdown' in (d := o.get('data', {}))]
    text = '\n\n'.join(out)
    text = re.sub(r'(\]\(|src="|href=")(?!https?:|#|/|mailto:|\.\./)', r'\1nbs/', text)
    return NOTE + text.replace('](../', '](').replace('src="../', 'src="').replace('href="../', 'href="') + '\n'

def executed(): # the index notebook, run by papermill; the copy goes to build/nbs
    "Slow cells (training) are left out: the README shows no output of theirs."
    import nbformat, papermill
    nb, tmp = nbformat.read(ROOT/'nbs'/'index.ipynb', 4), ROOT/'build'/'readme.ipynb'
    tmp.parent.mkdir(exist_ok=True)
    for c in nb.cells:
        if c.cell_type == 'code' and re.search(r'^#\|\s*slow', c.source, re.M): c.metadata['tags'] = [*c.metadata.get('tags', []), 'skip-execution']
    nbformat.write(nb, tmp)
    os.environ['IN_TEST'] = '1'
    papermill.execute_notebook(str(tmp), str(tmp), cwd=str(ROOT/'nbs'), kernel_name='python3', progress_bar=False)
    return json.loads(tmp.read_text(encoding='utf-8'))

def picture(): # the README's picture, small; the full one is in build/figures
    "nbs/typology.png, drawn from the survey's table."
    import matplotlib; matplotlib.use('agg')
    from llmers_nb.trends import typology
    file = ROOT/'nbs'/'typology.png'; part = file.with_suffix('.part')
    typology()[0].savefig(part, format='png', dpi=90, metadata={'Software': None}); os.replace(part, file)

def clean():
    "Outputs out of every notebook; metadata as nbdev_clean leaves it."
    import nbformat
    from nbdev.clean import clean_nb
    from nbdev.config import get_config
    for p in sorted((ROOT/'nbs').glob('*.ipynb')):
        nb = json.loads(p.read_text(encoding='utf-8'))
        for c in nb['cells']:
            if c['cell_type'] == 'code': c['outputs'] = []
        clean_nb(nb, allowed_cell_metadata_keys=get_config(path=ROOT).allowed_cell_metadata_keys.split())
        text = json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + '\n'
        if text != p.read_text(encoding='utf-8'): p.write_text(text, encoding='utf-8'); print('cleaned', p.name)

if __name__ == '__main__':
    if '--clean' in sys.argv: clean(); sys.exit()
    if '--check' not in sys.argv: picture()
    text, file = render(executed()), ROOT/'README.md'
    if '--check' in sys.argv: sys.exit(0 if file.read_text(encoding='utf-8') == text else 'README.md is out of step with nbs/index.ipynb: run make readme')
    part = file.with_suffix('.part'); part.write_text(text, encoding='utf-8'); os.replace(part, file)
