"""The process in which kaldilm reads an ARPA file; ``ngram_lm.read_arpa`` is the other end.

kaldilm aborts its process where it does not like a file.  Here that ends nothing else.

    python -m rnnt_kd.decoding.arpa_worker LM.arpa SYMBOLS FST

SYMBOLS: ``<word> <label>`` a line.  FST: text, ``<from> <to> <label> <label> <cost>`` an arc, ``<state> <cost>``
a final state, the start state first; a cost is minus a natural log, and is left away where it is 0; label ``#0`` leads
to the shorter history.
"""

import sys
from pathlib import Path

import kaldilm

if __name__ == "__main__":
    arpa, symbols, fst = sys.argv[1:]
    text = kaldilm.arpa2fst(arpa, disambig_symbol="#0", write_symbol_table=symbols, max_arpa_warnings=0)
    Path(fst).write_text(text, encoding="utf-8")
