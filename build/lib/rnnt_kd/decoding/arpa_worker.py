"""The process in which kaldilm reads an ARPA file; ``ngram_lm.read_arpa`` is the other end.

kaldilm aborts its process where it does not like a file.  Here that ends nothing else.  The answer to
``{"arpa": path}`` is:
  symbols: ``<word> <label>`` a line.
  fst:     ``<from> <to> <label> <label> <cost>`` an arc, ``<state> <cost>`` a final state, the start state first; a
           cost is minus a natural log, and is omitted where it is 0; label ``#0`` leads to the shorter history.
"""

import tempfile
from pathlib import Path
from typing import Dict

import kaldilm

from rnnt_kd.children import serve


def read(request: Dict[str, str], _) -> Dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        symbols = Path(folder) / "symbols"
        fst = kaldilm.arpa2fst(
            request["arpa"], disambig_symbol="#0", write_symbol_table=str(symbols), max_arpa_warnings=0
        )
        return {"symbols": symbols.read_text(encoding="utf-8"), "fst": fst}


if __name__ == "__main__":
    serve(read)
