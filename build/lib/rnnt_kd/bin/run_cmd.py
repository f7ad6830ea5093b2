"""Run a command, or an array of jobs, on this machine, as Kaldi's run.pl does.

    local/run_cmd.sh [--max-jobs-run N] [--gpu G] [--mem M] ... [JOB=1:N] LOG COMMAND [WORD ...]
    local/run_cmd.sh --max-jobs-run 2 JOB=1:4 log/count.JOB.log wc -l split.JOB/text \\| sort

JOB is any name; it stands for the number wherever it occurs in LOG and COMMAND, and JOB=3 is that job alone.  The words
go to bash: those with blanks in quotes, others as they are.  At most N jobs run at a time (default: as many as there
are processors).  Options for a cluster are taken and not needed.  A log has the command, start, end and status; status
1 if a job failed: it is named with the end of its log.
"""

import os
import re
import sys
from pathlib import Path
from typing import List, Optional, Tuple

from rnnt_kd.bin.entry import command
from rnnt_kd.errors import UserError
from rnnt_kd.jobs import MOST_TOLD, Process, run_processes, tell_failed

USAGE = "[--option value] ... [JOB=1:N] LOG COMMAND [WORD ...]"


@command
def main(argv: Optional[List[str]] = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["--help"], ["-h"]):
        print(__doc__, end="")
        return
    at_once, name, numbers, (log, *rest) = _read(words)
    quoted = [word if re.fullmatch(r"\S+", word) else f"'{word}'" if '"' in word else f'"{word}"' for word in rest]
    line = " ".join(quoted)

    def of(text: str, number: Optional[int]) -> str:
        return text if number is None else text.replace(name, str(number))

    processes = []
    for number in numbers:
        shown, path = of(line, number), Path(of(log, number))
        path.parent.mkdir(parents=True, exist_ok=True)
        processes.append(Process(path.name, ["bash", "-c", f"( {shown} )"], path, shown, own_group=True))
    failed: List[Process] = []

    def ended(process: Process, status: int) -> None:
        if status:
            failed.append(process)
            if len(failed) <= MOST_TOLD:
                tell_failed(process.name, Path(process.log or ""), status)

    run_processes(processes, at_once, ended)
    if failed:
        where = of(log, None) if numbers == [None] else log.replace(name, "*")
        print(f"run_cmd.sh: {len(failed)} / {len(processes)} failed, log is in {where}", file=sys.stderr)
        sys.exit(1)


def _read(words: List[str]) -> Tuple[int, str, List[Optional[int]], List[str]]:
    """(jobs at once, name of the number, numbers, log and command)."""
    at_once, name = os.cpu_count() or 1, ""
    numbers: List[Optional[int]] = [None]
    while words:
        found = re.fullmatch(r"([A-Za-z_]\w*)=(\d+)(?::(\d+))?", words[0])
        if words[0].startswith("-") and len(words) > 1:
            option, value = words[:2]
            if option in ("--max-jobs-run", "-tc"):
                if not re.fullmatch("[1-9][0-9]*", value):
                    raise UserError(option, f"'{value}'", "a whole number, at least 1")
                at_once = int(value)
            words = words[3 if option == "-pe" else 1 if option == "-V" else 2 :]
        elif found and not name:
            name, first, last = found[1], int(found[2]), int(found[3] or found[2])
            if not 1 <= first <= last:
                raise UserError("run_cmd.sh", f"'{words[0]}'", "JOB=1:N, from 1 up")
            numbers, words = list(range(first, last + 1)), words[1:]
        else:
            break
    if len(words) < 2:
        raise UserError("run_cmd.sh", "no log and command", USAGE)
    if len(numbers) > 1 and name not in words[0]:
        raise UserError("run_cmd.sh", f"one log, {words[0]}, for {len(numbers)} jobs", f"{name} in its name")
    return at_once, name, numbers, words


if __name__ == "__main__":
    main()
