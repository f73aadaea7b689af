"""`nightcap run` as a module: `ray job submit --working-dir . -- python -m jobs.caption SOURCE... --output URI`."""

from __future__ import annotations

import sys

from jobs.cli import exit_with, main

if __name__ == "__main__":
    try:
        code = main(["run", *sys.argv[1:]])
    except SystemExit as usage:  # raised by argparse
        code = int(usage.code or 0)
    if code:  # `ray job submit` doesn't return it; conf/deploy/submit.sh reads this line from the job's log
        print(f"nightcap: exit code {code}", file=sys.stderr)
    exit_with(code)
