"""Stage 9, the end: the report, one HTML page with everything in it; no network, no torch.

Reads what the stages before left in EXPERIMENT_DIR and writes EXPERIMENT_DIR/report/index.html: error rates with
intervals or seeds, kinds of errors, error rate against size, learning curves, sparsity, lattices (lattices/, of
rnnt_kd.bin.dump_lattices) and every utterance.  What is missing or not finished is in it and says so.
"""

from pathlib import Path
from typing import List, Optional

from rnnt_kd import atomic
from rnnt_kd.bin import options
from rnnt_kd.bin.entry import command
from rnnt_kd.bin.stage import Stage
from rnnt_kd.record import file_digest


@command
def main(argv: Optional[List[str]] = None) -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--experiment-dir", type=Path, required=True, help="EXP_DIR/EXPERIMENT")
    options.add_data_root(parser)
    args = parser.parse_args(argv)
    from rnnt_kd.report import page, read  # matplotlib and Jinja2 are optional

    folder = args.experiment_dir / "report"
    small, large = read.inputs(args.experiment_dir)
    settings = {"program": _program(page.HERE), "files": [str(path) for path in large]}
    stage = Stage(folder, "report", settings, small, ["index.html"], large)
    if stage.is_finished():
        return
    text = page.make_page(read.read_finished(args.experiment_dir))
    stage.start()
    atomic.write_text(folder / "index.html", text)
    stage.finish()
    print(f"report: {folder / 'index.html'} ({len(text.encode()) / 1e6:.1f} MB)", flush=True)


def _program(folder: Path) -> str:
    """Digests of what the page is made of: another version makes it again."""
    return "".join(
        file_digest(path)[:8] for path in [*sorted(folder.glob("page.*")), *sorted(folder.glob("plots/*.py"))]
    )


if __name__ == "__main__":
    main()
