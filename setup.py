"""Everything is read from settings.ini; the only thing added is that a wheel carries the tables of data/."""
import shutil
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup
from setuptools.command.build_py import build_py

cfg = ConfigParser(delimiters=['='], interpolation=None)
cfg.read('settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']

class WithData(build_py):
    "Copy data/ to llmers_nb/data, where an installed package looks for it; an editable install reads the checkout instead."
    def run(self):
        super().run()
        if getattr(self, 'editable_mode', False): return
        to = Path(self.build_lib)/cfg['lib_name']/'data'
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree('data', to, ignore=shutil.ignore_patterns('*.py', '__pycache__', '.*'))

setup(name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'].split(),
      long_description=Path('README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
      author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], license='Apache-2.0',
      classifiers=['Programming Language :: Python :: 3', 'Intended Audience :: Science/Research'],
      packages=[cfg['lib_name']], include_package_data=False, cmdclass={'build_py': WithData},
      python_requires='>=' + cfg['min_python'], install_requires=cfg['requirements'].split(),
      extras_require={'dev': cfg['dev_requirements'].split()},
      entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f'{cfg["lib_name"]}={cfg["lib_path"]}._modidx:d']})
