"""Small mistakes that an engineer could make, and the test that must notice each: who tests the tests.

    make mutants                                # all of them
    python -m tests.mutants --only NAME         # one; may be given several times
    python -m tests.mutants --list

A mutant changes one line of the package (the YAML files beside this one). It is applied to a copy in a temporary
folder, never to this tree; then its test runs there, and must fail. A test that has not even run (a syntax error, a
name that does not exist) counts as BROKEN, not as killed. A mutant whose line is no longer there is an error: it tests
nothing.

Exit code 0: all killed. 1: some not. 2: a mutant does not fit the tree, or a test fails by itself.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.mutants import runner

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TABLES = tuple(sorted(HERE.glob("*.yaml")))  # one for each room


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="this mutant; may be given several times")
    parser.add_argument("--list", action="store_true", help="the mutants, and run nothing")
    options = parser.parse_args(arguments)
    mutants = runner.load(TABLES)
    if options.list:
        print("\n".join(f"{mutant.name}  ({mutant.file}, {mutant.test})" for mutant in mutants))
        return 0
    if options.only:
        unknown = set(options.only) - {mutant.name for mutant in mutants}
        if unknown:
            print(f"unknown: {', '.join(sorted(unknown))}; --list shows the names", file=sys.stderr)
            return 2
        mutants = [mutant for mutant in mutants if mutant.name in options.only]
    try:
        results = runner.judge(mutants, ROOT, lambda line: print(line, file=sys.stderr, flush=True))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(runner.table(results))
    return 0 if all(result.verdict == "killed" for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
