"""Build papers.csv, applications.csv and papers_report.json from the five source texts.

    python data/parse_seeds.py ../shared/seeds            # writes beside this file
    python data/parse_seeds.py ../shared/seeds --out DIR  # writes elsewhere (the tests do)

Sources, told apart by the number their file name starts with:
    000  home page of the NeurIPS'25 workshop        001  home page of the WSDM'26 workshop
    002  the list Awesome-LLM-for-RecSys             003  a feed of daily papers (titles only are kept)
    004  the KDD'25 survey (118 references, Table 1)
Every row that looks like a row is either kept, kept after a repair that the report names, or listed in the
report with its line number. Nothing is dropped in silence; abstracts are never stored.
"""
import argparse, csv, hashlib, io, json, os, re, sys
from collections import Counter
from pathlib import Path

COLUMNS = 'paper_id title name authors kind source section section_title llm tuning scenario venue year url paper_url ref systems line'.split()

# Slips that no rule can see, corrected one by one: (source, line or reference): column, wrong text, right text, reason.
CORRECTIONS = {
    ('awesome', 45): ('llm', 'GhatGLM', 'ChatGLM', 'misspelt model name'),
    ('awesome', 76): ('tuning', 'FFT', 'Full Finetuning', 'abbreviation written out'),
    ('awesome', 153): ('tuning', 'effiecnt', 'efficient', 'misspelt tuning'),
    ('awesome', 189): ('tuning', 'Adater', 'Adapter', 'misspelt tuning'),
    ('awesome', 304): ('title', 'Agentic Paradi', 'Agentic Paradigms', 'title cut off'),
    ('awesome', 387): ('venue', 'ECAL', 'EACL', 'misspelt venue (line 412 repeats the paper with the right one)'),
    ('awesome', 477): ('url', 'arxiv.org/2405', 'arxiv.org/abs/2405', 'link without its folder'),
    ('survey', 8): ('title', 'humancentric', 'human-centric', 'hyphen lost at a line break'),
    ('survey', 14): ('title', 'crossdomain', 'cross-domain', 'hyphen lost at a line break'),
    ('survey', 19): ('title', 'Ilm-enhanced', 'LLM-enhanced', 'letter misread'),
    ('survey', 49): ('title', 'longtailed', 'long-tailed', 'hyphen lost at a line break'),
    ('survey', 56): ('title', 'Contentbased', 'Content-based', 'hyphen lost at a line break'),
    ('survey', 89): ('title', 'promptenhanced', 'prompt-enhanced', 'hyphen lost at a line break'),
}
# One paper under two titles, where neither an arXiv number nor a system says so.
ALIASES = [
    ('Pre-train, Prompt and Recommendation: A Comprehensive Survey of Language Modelling Paradigm Adaptations in Recommender Systems',
     'Pre-train, Prompt, and Recommendation: A Comprehensive Survey of Language Modeling Paradigm Adaptations in Recommender Systems'),
    ('Joint Evaluation: A Human+LLM+Multi-Agents Collaborative Framework for Comprehensive AI Safety',
     'Joint Evaluation Framework for Comprehensive AI Safety Assessment'),
]
ARXIV_TYPOS = re.compile(r'^(Arxiv|Avrxi|Arixv)\b')


def key(title):
    "What two spellings of one title share: its letters and digits (and +, which tells RecBench+ from RecBench), in lower case."
    return re.sub(r'[^a-z0-9+]+', '', title.lower())

def arxiv_id(url):
    m = re.search(r'arxiv\.org/(?:abs/|pdf/|html/)?(\d{4}\.\d{4,5})', url, re.I)
    return m[1] if m else ''

def year_of(venue, url):
    "The year the venue names, else the year of the arXiv number, else nothing."
    m = re.search(r"(?:19|20)\d\d", venue)
    if m: return m[0]
    m = re.search(r"(?:@[A-Za-z]+|')(\d\d)$", venue)
    if m: return '20' + m[1]
    a = arxiv_id(url)
    return '20' + a[:2] if a else ''


class Report:
    "Rows, and per source and section: how many were read, kept, repaired (why), or could not be read (where)."
    def __init__(self): self.rows, self.parts = [], {}
    def part(self, source, section, title):
        return self.parts.setdefault(source, {}).setdefault(section, dict(
            section_title=title, read=0, kept=0, repaired=[], unparseable=[]))
    def keep(self, repairs, **row):
        "Take one row, after its listed correction if it has one."
        row = {c: '' for c in COLUMNS} | {k: str(v).strip() for k, v in row.items()}
        where = (row['source'], int(row['ref'] or row['line']))
        if where in CORRECTIONS:
            col, wrong, right, reason = CORRECTIONS[where]
            if wrong not in row[col]: sys.exit(f'{where}: {col} is {row[col]!r} and no longer holds {wrong!r}: remove this correction')
            row[col] = row[col].replace(wrong, right); repairs = [*repairs, f'{col}: {reason}']
        row['year'] = row['year'] or year_of(row['venue'], row['url'] + ' ' + row['paper_url'])
        p = self.part(row['source'], row['section'], row['section_title'])
        p['read'] += 1; p['kept'] += 1
        p['repaired'] += [dict(line=int(row['line']), reason=r) for r in repairs]
        self.rows.append(row)
    def lose(self, source, section, title, line, text, reason):
        p = self.part(source, section, title)
        p['read'] += 1
        p['unparseable'].append(dict(line=line, reason=reason, text=text))


# ---- 002: the awesome list ------------------------------------------------------------------------------------------

def links(cell):
    "The addresses of a cell's Markdown links, and whether the Markdown had to be mended."
    good = re.findall(r'\]\((https?://[^\s)]+)\)', cell)
    if good: return good, False
    bare = re.findall(r'https?://[^\s)\]|]+', cell)
    return bare, bool(bare)

def clean_venue(v):
    fixed = ARXIV_TYPOS.sub('arXiv', v)
    return fixed, bool(ARXIV_TYPOS.match(v)) and not v.startswith('Arxiv')

def awesome(text, rep):
    sec = top = title = header = ''
    for n, line in enumerate(text.split('\n'), 1):
        if m := re.search(r'(?:<b>|^#+ )(\d(?:\.\d)*)\.? ([^<]+)', line):
            sec, title, header = m[1], m[2].strip(), ''
        elif line.startswith('#'): sec = header = ''
        if not (line.startswith('|') and sec): continue
        cells = [c.strip() for c in line.strip().strip('|').split('|')]
        if re.fullmatch(r'[|:\- ]+', line): continue
        if '**' in cells[0]:                                       # a table's head names its columns
            header = [re.sub(r'\*', '', c) for c in cells]; continue
        if not header: rep.lose('awesome', sec, title, n, line, 'a row outside any table'); continue
        row, repairs = awesome_row(header, cells)
        if row is None: rep.lose('awesome', sec, title, n, line, repairs); continue
        rep.keep(repairs, source='awesome', section=sec, section_title=title, line=n, **row)

def awesome_row(header, cells):
    "One table row -> its fields and repairs, or None and the reason."
    repairs, want = [], len(header)
    raw_n = len(cells)
    if len(cells) > want and '' in cells: cells = [c for c in cells if c]; repairs.append('an extra empty column')
    url, mended = next(((u, m) for c in reversed(cells) for u, m in [links(c)] if u), ([], False))
    if mended: repairs.append('broken Markdown link')
    if not url: repairs.append('no link in the row')
    url = url[0] if url else ''
    if url.endswith('?'): url = url[:-1]; repairs.append('stray ? at the end of the link')
    out = dict(url=url)
    if header[0] == 'Benchmarks':                                  # name, site, paper; some rows leave the site out
        site = links(cells[1])[0][0] if len(cells) == 3 else ''
        if not site: repairs.append('the paper stands in the column of the website')
        return dict(kind='benchmark', title=cells[0], name=cells[0], url=site or url, paper_url=url), repairs
    if header[0] == 'Repo Name':
        m = re.match(r'\[([^\]]+)\]\((https?://[^)]+)\)', cells[0])
        if not m: return None, 'no repository link'
        return dict(kind='repository', title=m[1], name=m[1], url=m[2], authors=re.sub(r'\[([^\]]+)\].*', r'\1', cells[1])), repairs
    if header[0] == 'Dataset':
        return out | dict(kind='dataset', title=cells[0], name=cells[0], scenario=cells[1]), repairs
    if header[0] == 'Name' and len(cells) == want: name, title, llm, tuning, venue, _ = cells
    elif header[0] == 'Paper' and len(cells) == want: (title, venue, _), name, llm, tuning = cells, name_in(cells[0]), '', ''
    elif header[0] == 'Paper' and len(cells) == 5:                 # a row of the wide tables in a narrow one
        (title, llm, tuning, venue, _), name = cells, name_in(cells[0]); repairs.append('model and tuning in a table without these columns')
    else: return None, f'{raw_n} cells, {want} expected'
    venue, typo = clean_venue(venue)
    if typo: repairs.append('venue: misspelt arXiv')
    blank = lambda s: '' if s in ('N/A', 'Unknown') else s
    return out | dict(kind='paper', title=title, name=blank(name), llm=blank(llm), tuning=blank(tuning), venue=venue), repairs


# ---- 003: the feed; 000 and 001: the workshops ----------------------------------------------------------------------

def feed(text, rep):
    "Titles and abstracts take turns after the date; the titles are kept."
    lines = [(n, l.strip()) for n, l in enumerate(text.split('\n'), 1) if l.strip()]
    start = 1 + next(i for i, (_, l) in enumerate(lines) if re.fullmatch(r'[A-Z][a-z]{2} \d{1,2}', l))
    sec = dict(source='feed', section='feed', section_title='Daily papers')
    i = start
    while i < len(lines):
        n, t = lines[i]
        is_abstract = i + 1 < len(lines) and len(lines[i+1][1]) > 300
        if len(t) > 250 or not is_abstract: rep.lose(*sec.values(), n, t[:80], 'no title followed by an abstract'); i += 1; continue
        rep.keep([], **sec, title=t, kind='paper', name=name_in(t), line=n); i += 2

def name_in(title):
    "The system name that a title opens with, as in `HLLM: Enhancing ...`; empty when it has none."
    m = re.match(r'([A-Za-z0-9][\w.+@-]{1,20}): \w', title)
    return m[1] if m and re.search(r'[A-Z0-9].*[A-Z0-9]', m[1]) else ''

def neurips(text, rep):
    src = dict(source='workshop-neurips25')
    prog, cfp = ('program', 'Program'), ('topics', 'Call for papers')
    for n, line in enumerate(text.split('\n'), 1):
        cells = [c.strip() for c in line.strip().strip('|').split('|')]
        if line.startswith('| Keynote'):
            m = re.match(r'(Keynote \d+): "(.*)" \((.+)\)', cells[2])
            t, repairs = (m[2], []) if m[2] != 'TBD' else (f'{m[1]} (title not announced)', ['title to be announced'])
            rep.keep(repairs, **src, section=prog[0], section_title=prog[1], kind='talk', title=t, authors=m[3], venue='NeurIPS Workshop 2025', line=n)
        elif line.startswith('| Paper Oral'):
            t = re.search(r'"(.*)"', cells[2])[1]
            if t == 'TBD': rep.lose(src['source'], *prog, n, line, 'a slot without a title')
            else: rep.keep([], **src, section=prog[0], section_title=prog[1], kind='paper', title=t, venue='NeurIPS Workshop 2025', line=n)
        elif line.startswith('+ ') and line.rstrip().endswith('?'):
            rep.keep([], **src, section=cfp[0], section_title=cfp[1], kind='topic', title=line[2:], year='2025', line=n)

def wsdm(text, rep):
    src, venue = dict(source='workshop-wsdm26'), 'WSDM Workshop 2026'
    L = text.split('\n')
    at = lambda s: next(i for i, l in enumerate(L) if l.strip() == s)
    for n, line in enumerate(L, 1):                                # the schedule: oral sessions, invited talks
        if 'Oral Session' in line:
            for t in line.strip(' |').split('Paper Authors - ')[1].split(' - '):
                rep.keep([], **src, section='oral', section_title='Oral sessions', kind='paper', title=t, name=name_in(t), venue=venue, line=n)
        elif m := re.search(r'\[Invited Talk by ([^\]]+)\] \(\d+ min\) ([^|]+)', line):
            rep.keep([], **src, section='talks', section_title='Keynotes and invited talks', kind='talk', title=m[2], authors=m[1], venue=venue, line=n)
    speakers = [(i + 1, l.strip()) for i, l in enumerate(L) if at('Keynote Speakers') < i < at('Accepted Papers') and l.strip()]
    for j in range(0, len(speakers), 3):                           # name, affiliation, title
        rep.keep([], **src, section='talks', section_title='Keynotes and invited talks', kind='talk', title=speakers[j+2][1],
                 authors=speakers[j][1], venue=venue, line=speakers[j+2][0])
    pending = None
    for n in range(at('Accepted Papers') + 2, at('Organizers') + 1):  # a title ends the line of the paper before it
        line = L[n-1]
        if pending:
            authors = line.split('AbstractAbstract')[0]
            rep.keep(['title, authors and abstract run together, punctuation of the title lost'], **src, section='accepted',
                     section_title='Accepted papers', kind='paper', title=pending[1], authors=authors, venue=venue, line=pending[0])
        m = re.search(r'(?:^|PDF Code )- (.+)$', line)
        pending = (n, m[1]) if m else None
        if not m and not line.endswith('PDF Code'): rep.lose(src['source'], 'accepted', 'Accepted papers', n, line[:80], 'no title found')


# ---- 004: the survey ------------------------------------------------------------------------------------------------

def references(text):
    "(number, first line, text, broken) of each reference; page heads removed, parts on both sides of a page joined."
    L = text.split('\n')
    start, out = next(i for i, l in enumerate(L) if l.strip() == 'References'), []
    for i, line in enumerate(L[start+1:], start + 2):
        line = line.strip()
        if not line or line.startswith("KDD '25,"): continue
        m = re.match(r'- (?:\[(\d+)\] )?(.*)', line)
        if m: out.append([int(m[1]) if m[1] else 0, i, m[2], []])
        else: out[-1][2] += ' ' + line; out[-1][3].append('continued after a page break')
    for j, r in enumerate(out):
        if not r[0]: r[0] = out[j-1][0] + 1 if j else 1; r[3].append('number missing')
    return out

def survey(text, rep, systems):
    src = dict(source='survey', section='references', section_title='References')
    refs = references(text)
    if [r[0] for r in refs] != list(range(1, 119)): sys.exit(f'the survey has references 1 to 118; found {[r[0] for r in refs]}')
    for num, line, body, repairs in refs:
        body = body.replace('*', '')
        m = re.match(r'(.+?)\.? ((?:19|20)\d\d)\. (.+?)(\?\.?|\.) (.+)$', body)
        if not m: rep.lose(*src.values(), line, body, 'no author, year, title, venue'); continue
        authors, year, title, end, rest = m.groups()
        a = re.search(r'arXiv:(\d{4}\.\d{4,5})', rest)
        rep.keep(repairs, **src, kind='paper', title=title + ('?' if '?' in end else ''), name=name_in(title), authors=authors, year=year, ref=num, line=line,
                 venue=f'arXiv {year}' if a else ref_venue(rest), url=f'https://arxiv.org/abs/{a[1]}' if a else '',
                 systems='; '.join(sorted(s['system'] for s in systems.values() if s['survey_ref'] == str(num))))

def ref_venue(s):
    "Proceedings or journal, without pages, volume and publisher."
    if s.startswith('In '): return re.split(r', Vol\.|\. |\.$', s[3:])[0]
    return re.split(r' \d+[, (]| \(\d{4}\)|\.$', s)[0]

def applications(text, rows):
    "Table 1, with the first three columns filled down, plus the address that the awesome list gives for the same dataset."
    L = text.split('\n')
    i = next(j for j, l in enumerate(L) if l.startswith('Characteristic\t'))
    listed, out, ch, app = {key(r['title']): r['url'] for r in rows if r['kind'] == 'dataset'}, [], '', ''
    for n, line in enumerate(L[i+1:], i + 2):
        if '\t' not in line: break
        c, a, dataset, link = line.split('\t')
        ch, app = c or ch, a or app
        out.append(dict(characteristic=ch, application=app, dataset=dataset, link='' if link == '-' else link,
                        list_link=listed.get(key(dataset), ''), line=n))
    return out


# ---- one id for one paper -------------------------------------------------------------------------------------------

def group(rows, systems):
    "Give the rows of one paper one id: same kind, and same title (letters and digits), arXiv number or system."
    parent = {}
    def find(x):
        while parent.setdefault(x, x) != x: x = parent[x]
        return x
    def union(a, b): parent[find(a)] = find(b)
    for a, b in ALIASES:
        titles = {r['title'] for r in rows}
        if not {a, b} <= titles: sys.exit(f'alias no longer needed or misspelt: {a!r}')
        union(('paper', key(a)), ('paper', key(b)))
    for s in systems.values():                                     # a system ties its reference, its title and its arXiv number
        for k in (('paper', key(s['title'])), ('arxiv', arxiv_id(s['paper_url'])), ('ref', s['survey_ref'])):
            if k[1]: union(('system', s['system']), k)
    for r in rows:
        t = (r['kind'], key(r['title']))
        if r['kind'] == 'paper':
            if a := arxiv_id(r['url']): union(t, ('arxiv', a))
            if r['ref']: union(t, ('ref', r['ref']))
    ids = {}
    for r in rows:
        root = find((r['kind'], key(r['title'])))
        if root not in ids:                                        # named after its first row: readable and independent of later rows
            words = re.findall(r'[a-z0-9]+', r['title'].lower())
            digest = hashlib.sha256((r['kind'] + key(r['title'])).encode()).hexdigest()[:6]
            ids[root] = '-'.join(words[:3])[:40] + '-' + digest
        r['paper_id'] = ids[root]
        r['systems'] = '; '.join(sorted(s['system'] for s in systems.values() if r['kind'] == 'paper' and find(('system', s['system'])) == root))
    if len(set(ids.values())) != len(ids): sys.exit('two papers got one id: lengthen the digest')


def write(path, text):
    "All of the file or none of it."
    tmp = path.with_name(path.name + '.part')
    tmp.write_text(text, encoding='utf-8', newline=''); os.replace(tmp, path)

def as_csv(rows, columns):
    buf = io.StringIO()
    w = csv.DictWriter(buf, columns, lineterminator='\n'); w.writeheader(); w.writerows(rows)
    return buf.getvalue()

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('seeds', type=Path, help='folder of the source texts 000_*.txt to 004_*.txt')
    ap.add_argument('--out', type=Path, default=Path(__file__).parent, help='folder to write to')
    args = ap.parse_args()
    texts = {}
    for n in range(5):
        hit = sorted(args.seeds.glob(f'00{n}_*.txt'))
        if len(hit) != 1: sys.exit(f'{args.seeds}: one file 00{n}_*.txt expected, {len(hit)} found')
        texts[n] = hit[0].read_text(encoding='utf-8')
    systems = {}
    with open(Path(__file__).parent / 'systems.csv', encoding='utf-8', newline='') as f:
        for s in csv.DictReader(f): systems.setdefault(s['system'], s)
    rep = Report()
    awesome(texts[2], rep); feed(texts[3], rep); neurips(texts[0], rep); wsdm(texts[1], rep); survey(texts[4], rep, systems)
    group(rep.rows, systems)
    apps = applications(texts[4], rep.rows)
    kinds = {k: len({r['paper_id'] for r in rep.rows if r['kind'] == k}) for k in sorted({r['kind'] for r in rep.rows})}
    n_per_id = Counter(r['paper_id'] for r in rep.rows)
    summary = dict(rows=len(rep.rows), unique=kinds, repeats=len(rep.rows) - len(n_per_id), table1_rows=len(apps),
                   no_year=sum(not r['year'] for r in rep.rows), no_url=sum(not r['url'] for r in rep.rows),
                   systems_linked=len({s for r in rep.rows for s in r['systems'].split('; ') if s}), parts=rep.parts)
    write(args.out / 'papers.csv', as_csv(rep.rows, COLUMNS))
    write(args.out / 'applications.csv', as_csv(apps, 'characteristic application dataset link list_link line'.split()))
    write(args.out / 'papers_report.json', json.dumps(summary, indent=1, ensure_ascii=False) + '\n')
    print(f"{'source':20}{'section':12}{'read':>6}{'kept':>6}{'repaired':>10}{'unread':>8}")
    for source, parts in rep.parts.items():
        for sec, p in parts.items():
            print(f"{source:20}{sec:12}{p['read']:6}{p['kept']:6}{len(p['repaired']):10}{len(p['unparseable']):8}")
    print({k: v for k, v in summary.items() if k != 'parts'})

if __name__ == '__main__': main()
