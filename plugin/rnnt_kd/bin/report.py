"""Stage 9, the end: the report, one HTML page with everything in it; no network, no torch.

Reads what the stages before left in EXP_DIR and writes EXP_DIR/report/index.html: error rates with intervals, kinds of
errors, error rate against size, learning curves, sparsity, several seeds (experiments/), lattices (report/lattices/,
of rnnt_kd.bin.dump_lattices) and every utterance.  What is missing or not finished is in it and says so.
"""

from pathlib import Path
from typing import List, Optional

from rnnt_kd import atomic
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.options import add_results, check_results, parser
from rnnt_kd.bin.stage import Stage, file_digest


@command
def main(argv: Optional[List[str]] = None) -> None:
    options = parser(__doc__)
    add_results(options)
    args = options.parse_args(argv)
    check_results(args)
    test_sets = args.test_sets.split()
    from rnnt_kd.report import page, read  # matplotlib and Jinja2 are optional

    corpus = args.corpus or args.exp_dir.resolve().name
    folder = args.exp_dir / "report"
    settings = {"corpus": corpus, "test_sets": args.test_sets, "systems": args.systems, "program": _program(page.HERE)}
    small, large = read.inputs(args.exp_dir)
    settings["files"] = [str(path.relative_to(args.exp_dir)) for path in large]
    stage = Stage(folder, "report", settings, small, ["index.html"], large)
    if stage.is_finished():
        return
    experiment = read.read_experiment(args.exp_dir, corpus, test_sets, args.systems.split())
    text = page.make_page(experiment, args.exp_dir)
    stage.start()
    atomic.write_text(folder / "index.html", text)
    stage.finish()
    print(f"report: {folder / 'index.html'} ({len(text.encode()) / 1e6:.1f} MB)", flush=True)


def _program(folder: Path) -> str:
    """A page of another version is made again."""
    return "".join(file_digest(path)[:8] for path in sorted(folder.glob("page.*")))


if __name__ == "__main__":
    main()
