"""Commands of lmp_trainer one after another in this process, which is a rank: importing torch once is enough.

python -m tests.train.several FILE COMMANDS     JSON: [[{variable: value}, [argument, ...]], ...]

Writes their exit codes to FILE, to whose name the rank's number is added.
"""

import json
import os
import sys
from pathlib import Path

from lmplay.train.__main__ import main


def code_of(arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as ended:
        return int(ended.code or 0)


if __name__ == '__main__':
    file, commands = sys.argv[1:]
    codes = []
    for variables, arguments in json.loads(commands):
        os.environ.update(variables)
        codes.append(code_of(arguments))
        Path(file + os.environ['RANK']).write_text(json.dumps(codes))
