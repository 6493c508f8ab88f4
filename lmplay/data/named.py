"""The named datasets: where each is and how its rows are read."""

STUDY = {
    'max_chars': 9_999,
    'total_chars': 10 * 1024 * 1024,
    'evaluation_share': 0.05,
    'evaluation_least': 10,
    'evaluation_most': 0.1,
}
NAMED: dict[str, dict] = {
    'embedded': {
        'loader': 'embedded',
        'description': "Python's own library as code and prose, generated math problems; no network; 16 MB",
    },
    'wikipedia': {
        'loader': 'hub',
        'hub': 'wikimedia/wikipedia',
        'language': 'en',
        'snapshot': '20231101',
        'description': 'articles of Wikipedia, any language and snapshot; English: 6.4 M articles, 20 GB',
    },
    'wikitext': {
        'loader': 'hub',
        'hub': 'Salesforce/wikitext',
        'config': 'wikitext-103-raw-v1',
        'validation': 'validation',
        'document_start': r'^ = [^=].*[^=] = \n?$',  # the hub has a line per row; a title begins an article
        'description': 'WikiText-103, good and featured articles of Wikipedia, own validation split; 540 MB',
    },
    'tinystories': {
        'loader': 'hub',
        'hub': 'roneneldan/TinyStories',
        'validation': 'validation',
        'description': 'short stories in simple words, own validation split; 2.1 M stories, 1.9 GB',
    },
    'openorca': {
        'loader': 'hub',
        'hub': 'Open-Orca/OpenOrca',
        'prompt': ['system_prompt', 'question'],
        'text': 'response',
        'description': 'instructions answered by GPT-3.5 and GPT-4; 4.2 M rows, 7 GB',
    },
    'orca_math': {
        'loader': 'hub',
        'hub': 'microsoft/orca-math-word-problems-200k',
        'prompt': 'question',
        'text': 'answer',
        'description': 'math word problems with worked solutions; 200 K rows, 220 MB',
    },
    'smoltalk': {
        'loader': 'hub',
        'hub': 'HuggingFaceTB/smoltalk',
        'config': 'all',
        'messages': 'messages',
        'description': 'conversations for instruction tuning; 1 M rows, 4 GB',
    },
    'cosmopedia_v2': {
        'loader': 'hub',
        'hub': 'HuggingFaceTB/smollm-corpus',
        'config': 'cosmopedia-v2',
        'description': 'synthetic textbooks and stories; 39 M documents, 220 GB: set a limit or max_bytes',
    },
    # The three domains of the moe-emergence study, by its rules: the number of characters of a document is
    # above the lower and below the upper limit that it names.
    'code': {
        'loader': 'hub',
        'hub': 'codeparrot/codeparrot-clean',
        'text': 'content',
        'min_chars': 101,
        **STUDY,
        'description': 'Python files from GitHub (CodeParrot-clean), the first 10 MB of middle-sized ones',
    },
    # a Parquet copy of allenai/math_qa, whose loading script `datasets` no longer runs
    'math': {
        'loader': 'hub',
        'hub': 'regisss/math_qa',
        'prompt': 'Problem',
        'text': 'Rationale',
        'separator': '\n\n',
        **STUDY,
        'description': 'math word problems with their rationale (MathQA), the first 10 MB',
    },
    'prose': {
        'loader': 'hub',
        'hub': 'allenai/c4',
        'config': 'en',
        'min_chars': 201,
        **STUDY,
        'description': 'English web text (C4), the first 10 MB of middle-sized pages',
    },
}
