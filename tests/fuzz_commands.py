"""Random command lines, most of them wrong, and what comes of one."""

from __future__ import annotations

import contextlib
import io
import signal
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from rlhf_jax.cli import main

STUDY = '''"""A study of two cells."""
from rlhf_jax.kinds import Pretrain, SFT, TaskConfig
from rlhf_jax.study import CorpusConfig, ModelConfig
from rlhf_jax.study import Study


def study(tiny: bool) -> Study:
    model = ModelConfig(layers=1, width=16, heads=2, vocab=300, max_positions=32)
    cells = (
        Pretrain("base", model=model, tokens=20_000, batch=8, repeat=True),
        SFT("sft", base="base", task=TaskConfig(8, 8), examples=16, batch=8),
    )
    corpus = CorpusConfig(sources=("text.txt",), vocab=300, seq_len=32, heldout_tokens=64)
    return Study("fuzz", cells, corpus)
'''
TABLE = "params,tokens,loss\n" + "".join(
    f"{n},{d},{1.7 + 400 * n**-0.34 + 400 * d**-0.28}\n"
    for n in (1e6, 3e6, 1e7, 3e7)
    for d in (1e7, 1e8, 1e9)
)
BROKEN_STUDIES = {
    "raises.py": "def study(tiny):\n    return 1 / 0\n",
    "exits.py": "import sys\nsys.exit(3)\n",
    "empty.py": "",
    "no_tiny.py": "def study():\n    return None\n",
    "returns.py": "def study(tiny):\n    return 5\n",
    "constant.py": "study = 5\n",
    "syntax.py": "def study(tiny:\n",
    "imports.py": "import nowhere_to_be_found\n",
    "recursion.py": "def study(tiny):\n    return study(tiny)\n",
    "generator.py": "def study(tiny):\n    yield 1\n",
    "no_cells.py": "from rlhf_jax.study import *\ndef study(tiny):\n    return Study('x', ())\n",
    "text.md": "# no Python\n",
}
JUNK = (
    "-1",
    "0",
    "x",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "",
    " ",
    "2.5",
    "None",
    "[]",
    "{}",
    "💥",
    "a" * 300,
    "--",
    "..",
    "%s",
    "1e-400",
    "0x10",
    "1_000",
    "\x00"[:0],
    "¼",
)
NOT_COUNTS = ("-1", "0", "x", "nan", "inf", "", "2.5", "[]", "💥", "-0", "1e3x")
NOT_SHARES = ("-0.1", "1.5", "x", "nan", "inf", "", "0", "💥")
NOT_POSITIVE = ("-1", "0", "x", "nan", "inf", "-inf", "", "💥", "1e400")
BAD_OVERRIDES = (
    "base.batch=0",
    "base.batch=-4",
    "base.batch=2.5",
    "base.batch=x",
    "base.batch=",
    "base.batch=null",
    "base.batch=[1]",
    "base.tokens=0",
    "base.tokens=nan",
    "base.seed=-1",
    "base.seed=5000000000",
    "base.model.heads=0",
    "base.model.heads=3",
    "base.model.kv_heads=-2",
    "base.model.layers=0",
    "base.model.width=0",
    "base.model.nothing=1",
    "base.optim.lr=0",
    "base.optim.lr=-1",
    "base.optim.lr=inf",
    "base.optim.b1=1",
    "base.optim.warmup=2",
    "base.optim.schedule=cosin",
    "base.optim.clip=-1",
    "sft.epochs=0",
    "sft.examples=0",
    "sft.base=nowhere",
    "sft.base=sft",
    "sft.task.prompt_len=0",
    "corpus.validation=10",
    "corpus.validation=-0.1",
    "corpus.seq_len=0",
    "corpus.vocab=1",
    "corpus.sources=text.txt",
    "corpus.dedup=1",
    "nothing.batch=1",
    "base=1",
    "=1",
    "base.=1",
    ".batch=1",
    "base..batch=1",
    "base.batch",
    "base.model=1",
    "base.model.positions=alibi",
    "base.name=",
    "sft.records=nowhere.jsonl",
    "sft.records=nowhere:nothing",
    "sft.task.gold=os:path",
    "sft.task.gold=builtins:len",
    "*.batch=0",
    "z*.batch=1",
)


def write_inputs(folder: Path) -> None:
    """The files that the command lines name."""
    (folder / "study.py").write_text(STUDY)
    (folder / "text.txt").write_text(
        "\n\n".join(f"The {i}th line is here. It says {i * i}." for i in range(300))
    )
    (folder / "runs.csv").write_text(TABLE)
    (folder / "binary.csv").write_bytes(bytes(range(256)) * 4)
    (folder / "empty.csv").write_text("")
    for name, text in BROKEN_STUDIES.items():
        (folder / name).write_text(text)


def random_commands(seed: int, n: int, folder: Path) -> Iterator[tuple[list[str], bool]]:
    """(arguments, whether they must be refused)."""
    write_inputs(folder)
    random = Random(seed)
    makers = (_study_command, _study_command, _broken_study, _fit, _cost, _generate, _options, _aot)
    for _ in range(n):
        argv, wrong = random.choice(makers)(random, folder)
        yield [word.replace("\x00", "") for word in argv], wrong


def _study_command(random: Random, folder: Path) -> tuple[list[str], bool]:
    """A good study with overrides, wrong ones among them."""
    argv = [
        *random.choice((["plan"], ["status"], ["run", "--dry-run"], ["plan", "--json"])),
        str(folder / "study.py"),
        "--runs",
        str(folder / "runs"),
    ]
    bad = random.sample(BAD_OVERRIDES, random.choice((0, 1, 1, 2)))
    good = random.sample(
        ("base.batch=4", "base.seed=7", "sft.epochs=2", "base.optim.lr=1e-2", "*.seed=3"),
        random.randint(0, 1),
    )
    words = [*bad, *good]
    random.shuffle(words)
    return argv[:1] + words * (argv[0] != "run") + argv[1:] + words * (argv[0] == "run"), bool(bad)


def _broken_study(random: Random, folder: Path) -> tuple[list[str], bool]:
    name = random.choice([*BROKEN_STUDIES, "missing.py", ".", "", "runs.csv", "binary.csv"])
    command = random.choice(
        (
            ["plan"],
            ["status"],
            ["run"],
            ["report"],
            ["run", "--dry-run"],
            ["predict", "--at", "1e15"],
        )
    )
    return [*command, str(folder / name), "--runs", str(folder / "runs")], True


def _fit(random: Random, folder: Path) -> tuple[list[str], bool]:
    table = str(folder / "runs.csv")
    wrong = random.choice(
        (
            [str(folder / "nowhere.csv")],
            [str(folder)],
            [str(folder / "empty.csv")],
            [str(folder / "binary.csv")],
            [table, "--approach", random.choice(("4", "0", "x", ""))],
            [table, "--law", random.choice(JUNK)],
            [
                table,
                "--columns",
                random.choice(("loss=nothing", "loss", "=loss", "x=y", "params=loss")),
            ],
            [table, "--resamples", random.choice(("-1", "x", "2.5", "nan", ""))],
            [table, "--seed", random.choice(("-1", "x", "5000000000", "2.5", ""))],
            [table, "--window", random.choice(("-1", "0", "x", "nan", "1", "inf"))],
            [table, "a.b=1"],
            [table, "--plot", table],
            [],
        )
    )
    return ["fit", *wrong], True


def _cost(random: Random, folder: Path) -> tuple[list[str], bool]:
    number = random.choice(NOT_POSITIVE)
    wrong = random.choice(
        (
            ["--params", number, "--tokens", "1e9"],
            ["--params", "1e9", "--tokens", number],
            ["--params", "1e9"],
            [],
            ["--preset", random.choice(JUNK)],
            ["--params", "1e9", "--tokens", "1e9", "--hardware", random.choice(JUNK)],
            ["--params", "1e9", "--tokens", "1e9", "--mfu", random.choice(NOT_SHARES)],
            [
                "--params",
                "1e9",
                "--tokens",
                "1e9",
                "--price",
                random.choice(("-1", "nan", "x", "inf", "")),
            ],
            [
                "--params",
                "1e9",
                "--tokens",
                "1e9",
                "--inference-tokens",
                random.choice(("-1", "nan", "x", "inf", "")),
            ],
        )
    )
    return ["cost", *wrong], True


def _generate(random: Random, folder: Path) -> tuple[list[str], bool]:
    argv = [
        "generate",
        random.choice(("fuzz/base", "nothing", "", "..", str(folder / "study.py"), *JUNK)),
        "--prompt",
        random.choice(JUNK),
        "--runs",
        str(folder / "runs"),
    ]
    if random.random() < 0.5:
        argv += [
            random.choice(("--temperature", "--seed", "--tokens", "--top")),
            random.choice(("-1", "nan", "x", "inf", "")),
        ]
    return argv, True  # nothing has been run there


def _options(random: Random, folder: Path) -> tuple[list[str], bool]:
    study = str(folder / "study.py")
    wrong = random.choice(
        (
            [
                "--mesh",
                random.choice(
                    (
                        "data=0",
                        "data=-1",
                        "data=x",
                        "x=2",
                        "data",
                        "data=2,data=2",
                        "data=3",
                        "tensor=4",
                        "fsdp=2.5",
                    )
                ),
            ],
            ["--accumulate", random.choice(NOT_COUNTS)],
            ["--workers", random.choice(NOT_COUNTS)],
            ["--runs", study],
            ["--runs", study + "/below"],
            ["--runs", str(folder / ("x" * 300))],
            ["--runs", "/proc/nowhere"],
            ["--runs", str(folder / "a*b")],
            ["--nothing"],
            ["--hardware", "abacus"],
            ["--mfu", random.choice(NOT_SHARES)],
        )
    )
    if "--runs" in wrong or random.random() < 0.5:
        return ["plan", study, *wrong], True
    return ["plan", study, "--runs", str(folder / "runs"), *wrong], True


def _aot(random: Random, folder: Path) -> tuple[list[str], bool]:
    wrong = random.choice(
        (
            ["nothing", "--topology", "v5e:4x4"],
            ["gpt2-124m", "--topology", random.choice(JUNK)],
            ["gpt2-124m"],
            [
                "gpt2-124m",
                "--topology",
                "v5e:4x4",
                random.choice(("--batch-per-device", "--seq-len", "--accumulate")),
                random.choice(NOT_COUNTS),
            ],
            [
                "gpt2-124m",
                "--topology",
                "v5e:4x4",
                "--mesh",
                random.choice(("data=0", "x=2", "data=3", ""[:0] or "fsdp=x")),
            ],
            [str(folder / "study.py"), "--topology", "v5e:4x4", "--cell", "nothing"],
        )
    )
    return ["aot", *wrong], True


def outcome(argv: Sequence[str], seconds: int = 60) -> tuple[int, str]:
    """(exit code, all that was printed). What is not caught is printed as it would be, with code 1;
    a command that takes longer is code -1."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            with no_longer_than(seconds):
                code = main(list(argv))
        except TimeLimit:
            code = -1
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 1
        except BaseException:
            traceback.print_exc()
            code = 1
    return code, printed.getvalue()


class TimeLimit(BaseException):
    """Nothing in the product may catch it."""


@contextlib.contextmanager
def no_longer_than(seconds: int) -> Iterator[None]:
    def hangs(*_) -> None:
        raise TimeLimit

    previous = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
