"""Packaging. The plans are kept in plans/ and travel with the package as lmplay/plans."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(r"__version__ = '(.+)'", (here / 'lmplay' / '__init__.py').read_text(encoding='utf-8'))[1]
benchmark = ['psutil>=5.9', 'rapidfuzz>=3.6']
test = [
    *benchmark,
    'pytest>=8',
    'pytest-timeout>=2.3',
    'pytest-xdist>=3.5',
    'hypothesis>=6.100',
    'ruff>=0.6',
    'tensorboard>=2.17',
    'optuna>=4.0',
    'nbclient>=0.10',
    'nbformat>=5.10',
    'ipykernel>=6.29',
]
docs = ['mkdocs>=1.6', 'mkdocs-material>=9.6']
evaluation = ['lm-eval>=0.4.13']
setup(
    name='lmplay',
    version=version,
    description='A playground for language-model architectures that gives honest answers',
    long_description=(here / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='MIT',
    python_requires='>=3.11',
    packages=find_packages(include=['lmplay', 'lmplay.*']) + ['lmplay.plans'],
    package_dir={'lmplay.plans': 'plans'},
    package_data={
        'lmplay.data.embedded': ['problems.txt'],
        'lmplay.tokenizers': ['gpt2.tiktoken', 'LICENSE-gpt2'],
        'lmplay.plans': ['*.json'],
        'lmplay': ['**/*.md', '**/*.html', '**/*.j2'],
    },
    install_requires=[
        'torch>=2.11',
        'numpy>=1.26',
        'scipy>=1.11',
        'tiktoken>=0.8',
        'tokenizers>=0.20',
        'transformers>=4.48',
        'datasets>=3.0',
        'huggingface_hub>=0.26',
        'safetensors>=0.4.5',
        'pydantic>=2.7',
        'tqdm>=4.66',
        'rich>=13.7',
        'matplotlib>=3.8',
        'jinja2>=3.1',
        'PyYAML>=6.0',
        'xxhash>=3.4',
        'shtab>=1.7',
    ],
    extras_require={
        'test': test,
        'tensorboard': ['tensorboard>=2.17'],
        'wandb': ['wandb>=0.18'],
        'trackio': ['trackio>=0.20'],
        'sweep': ['optuna>=4.0'],
        'slurm': ['submitit>=1.5.2'],
        'eval': evaluation,
        'benchmark': [*benchmark, 'accelerate>=1.1'],
        'docs': docs,
        'dev': [*test, *evaluation, *docs, 'pyright>=1.1.380', 'pytest-cov>=5'],
    },
    entry_points={
        'console_scripts': [
            'lmp_trainer=lmplay.train.__main__:main',
            'lmp_generator=lmplay.generate.__main__:main',
            'lmp_plotstats=lmplay.plots.__main__:main',
            'lmp_verify_moe=lmplay.exp.gpt2_moe.verify:main',
            'lmp_routing=lmplay.routing.__main__:main',
            'lmp_compare=lmplay.compare.__main__:main',
            'lmp_eval=lmplay.evaluation.__main__:main',
            'lmp_export=lmplay.export.__main__:main',
            'lmp_cleanmodel=lmplay.export.clean:main',
            'lmp_new=lmplay.new.__main__:main',
        ]
    },
)
