"""The plans that came with the original lmplay, in its form."""

WIKI = ['wiki_en', 'wiki_es']
STORIES = ['tinystories', 'cosmopedia_v2']
INSTRUCTIONS = ['openorca', 'orcamathword200', 'smoltalk_all']
DATASETS = {
    'wiki_en': {'ds_loader': 'wiki', 'args': ['en']},
    'wiki_es': {'ds_loader': 'wiki', 'args': ['es']},
    'openorca': {'ds_loader': 'openorca'},
    'orcamathword200': {
        'ds_loader': 'hf',
        'args': ['orcamathword200', 'microsoft/orca-math-word-problems-200k'],
        'kwargs': {'truth_column': 'answer', 'prompt_column': 'question'},
    },
    'tinystories': {
        'ds_loader': 'hf',
        'args': ['tinystories', 'roneneldan/TinyStories'],
        'kwargs': {'truth_column': 'text'},
    },
    'smoltalk_all': {
        'ds_loader': 'hf',
        'args': ['smoltalk_all', 'HuggingFaceTB/smoltalk', 'all'],
        'kwargs': {'truth_column': 'messages'},
    },
    'cosmopedia_v2': {
        'ds_loader': 'hf',
        'args': ['cosmopedia_v2', 'HuggingFaceTB/smollm-corpus', 'cosmopedia-v2'],
        'kwargs': {'text_column': 'text'},
    },
}


def _step(name: str, datasets: list[str], *, all_exhausted: bool = False) -> dict:
    stopping = {'interleve_stopping_strategy': 'all_exhausted'} if all_exhausted else {}
    return {'step_name': name, 'datasets': datasets, 'epochs': 1.0} | stopping


STEPS = {
    'wiki_en_es': [_step('wiki_en_es', WIKI)],
    'l_wiki_en_es': [_step('l_wiki_en_es', WIKI)],
    'pretrain': [_step('pretrain', ['tinystories'])],
    'bigpretrain': [_step('bigpretrain', STORIES)],
    'hugepretrain': [_step('hugepretrain', STORIES, all_exhausted=True)],
    'instruction_ft': [_step('l_instruction_ft', INSTRUCTIONS)],
    'l_instruction_ft': [_step('l_instruction_ft', INSTRUCTIONS, all_exhausted=True)],
    'all': [_step('all', list(DATASETS), all_exhausted=True)],
    **{
        name: [_step(name, [name])]
        for name in ('openorca', 'orcamathword200', 'smoltalk_all', 'cosmopedia_v2')
    },
}
STEPS['full_v1'] = STEPS['wiki_en_es'] + STEPS['bigpretrain'] + STEPS['instruction_ft']
STEPS['full'] = STEPS['l_wiki_en_es'] + STEPS['hugepretrain'] + STEPS['l_instruction_ft']


def original_plan(name: str) -> dict | None:
    """The plan of that name, None where there was none, or where the plan of that name is now another."""
    if name not in STEPS:
        return None
    used = {dataset for step in STEPS[name] for dataset in step['datasets']}
    return {
        'seed': 0,
        'datasets': {key: spec for key, spec in DATASETS.items() if key in used},
        'steps': STEPS[name],
    }
