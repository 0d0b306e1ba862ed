"""The command line: one verb per stage, each a few lines that call the room that does the work."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import re
import shlex
import signal
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from cleft.errors import CleftError, ConfigError, OtherRankFailed, ResourceError, Terminated
from cleft.grammar import count, verb
from cleft.launch import LAUNCHER_VARIABLES, Launch, find_launch, is_first

if TYPE_CHECKING:
    from cleft.config import ClassifyConfig, DataConfig, Settings

EPILOG = """\
from a folder of images to a page:
  cleft data phantoms phantoms                        # or your own CheXpert, or your own table
  cleft pretrain demo --run runs/first --data.root phantoms
  cleft learn-context runs/first
  cleft evaluate runs/first-context --task zero-shot
  cleft report runs/first runs/first-context --out report.html

exit codes:
  0 done, 1 a part of a study failed, 2 a setting, 3 data, 4 weights, 5 a number that is not finite,
  6 disk or memory, 130 and 143 stopped (the same command goes on)

Not a medical device. Nothing leaves this machine.
"""


def main(words: Sequence[str] | None = None) -> int:
    """Runs one verb and returns its exit code.

    Args:
        words: What was typed after `cleft`; by default what was typed.

    Returns:
        0, or the exit code of the class of the error: 2 settings, 3 data, 4 weights, 5 numbers, 6 disk or memory,
        130 and 143 when stopped by a signal.
    """
    words, settings = _apart(sys.argv[1:] if words is None else words)
    options, rest = _parser().parse_known_args(words)
    rest = [*rest, *settings]
    try:
        if rest and not getattr(options, "takes_settings", False):
            raise ConfigError(f"unexpected {' '.join(rest)!r}; see cleft {options.verb} --help")
        launch = find_launch()
        _configure_logging(is_first())
        if launch is not None and options.verb != "pretrain":
            if launch.rank > 0:
                return 0
            _work_alone(launch, options.verb)
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings are about its own calls, once per process
        if options.verb in _HEAVY and is_first():
            print("loading PyTorch and the other libraries ...", file=sys.stderr, flush=True)
        return options.run_verb(options, rest) or 0
    except OtherRankFailed as error:
        return error.exit_code
    except KeyboardInterrupt:
        return _say("stopped by Ctrl-C", 130, debug=options.debug)
    except CleftError as error:
        if isinstance(error, ConfigError) and error.rank is None and _is_repeated():
            return error.exit_code
        rank = "" if error.rank is None else f"rank {error.rank}: "
        return _say(f"{rank}{error}", error.exit_code, debug=options.debug)
    except (MemoryError, RuntimeError) as error:
        explained = _explain_machine(error)
        if explained is None:
            raise
        return _say(str(explained), explained.exit_code, debug=options.debug)
    except BrokenPipeError:  # whoever reads us, such as head, has seen enough
        sys.stdout = open(os.devnull, "w")
        return 0
    except OSError as error:
        return _say(_explain(error), ResourceError.exit_code, debug=options.debug)


_HEAVY = ("pretrain", "learn-context", "classify", "evaluate", "reproduce", "import")
"""Verbs that load PyTorch, which takes half a minute on a slow machine."""


def _is_repeated() -> bool:
    """Whether another process of this machine was started with the same command, and reports what is wrong with it."""
    try:
        launch = find_launch()
    except ConfigError:
        return False
    return launch is not None and launch.local_rank > 0


def _work_alone(launch: Launch, command: str) -> None:
    """Makes this process independent of the launcher that started it: only stage one works on several processes."""
    others = launch.world_size - 1
    if others:
        print(
            f"cleft {command} works in one process; the other {others} that {launch.launcher} started "
            f"{verb(others, 'does', 'do')} nothing",
            file=sys.stderr,
        )
    for name in LAUNCHER_VARIABLES:
        os.environ.pop(name, None)


def entry() -> None:
    """What the installed command calls."""
    signal.signal(signal.SIGTERM, _end)
    sys.exit(main())


def _end(number: int, frame: FrameType | None) -> None:
    """Stop on SIGTERM outside of training as on Ctrl-C, so that drafts are removed; training handles signals itself."""
    raise Terminated("stopped by SIGTERM; the same command begins again")


def _explain_machine(error: MemoryError | RuntimeError) -> CleftError | None:
    """What a failure of memory or of a loader worker outside of training means; None for any other error."""
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        return ResourceError("out of memory; lower train.batch_size or images.size")
    if "DataLoader" not in str(error):
        return None
    from cleft.data.batches import explain_worker

    return explain_worker(error)


def _explain(error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = "make room on the disk" if full else "check the path and its permissions"
    return f"{error.filename or 'the disk'}: {error.strerror or error}; {remedy}"


def _configure_logging(is_first: bool) -> None:
    """Sends log messages to the error stream; of several processes only the first reports more than errors."""
    talk = logging.getLogger("cleft")
    if not talk.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        talk.addHandler(handler)
        talk.propagate = False
        talk.setLevel(logging.INFO if is_first else logging.ERROR)
        if not is_first:
            warnings.simplefilter("ignore")


def _apart(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Dotted settings and their values, which argparse would take for positional words, apart from the rest."""
    own: list[str] = []
    settings: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        dotted = word.startswith("--") and "." in word.partition("=")[0]
        place = settings if dotted else own
        place.append(word)
        if dotted and "=" not in word and waiting:
            place.append(waiting.pop(0))
    return own, settings


def _say(sentence: str, code: int, *, debug: bool) -> int:
    if debug:
        print("--debug: the lines below may name files and values of your data", file=sys.stderr)
        traceback.print_exc()
    print(f"error: {sentence}", file=sys.stderr)
    return code


def _typed(path: Path) -> str:
    """A path as it is typed, with quotes where it needs them."""
    return shlex.quote(str(path))


def _parser() -> argparse.ArgumentParser:
    from cleft.version import __version__

    parser = argparse.ArgumentParser(
        prog="cleft",
        description="CLIP-like models for your own radiographs, with a large language model as text tower.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"cleft {__version__}")
    parser.add_argument("--debug", action="store_true", help="print where an error came from")
    verbs = parser.add_subparsers(dest="verb", metavar="<verb>", required=True, parser_class=_VerbParser)

    pretrain = _verb(verbs, "pretrain", "stage one: pull images to their captions", _pretrain, takes_settings=True)
    pretrain.add_argument("preset", help="a preset's name, a YAML file, or another run (cleft presets lists them)")
    pretrain.add_argument("--run", type=_path, help="folder of the run; the same folder again resumes (runs/<preset>)")

    context = _verb(verbs, "learn-context", "stage two: learn the prompt context", _learn_context, takes_settings=True)
    context.add_argument("run", type=_path, help="run folder of stage one")
    context.add_argument("--out", type=_path, help="folder of the new run (<run>-context)")

    heads = _verb(
        verbs,
        "classify",
        "train a linear probe, or the whole image tower, on labels, and test it",
        _classify,
        takes_settings=True,
    )
    heads.add_argument("run", type=_path, help="run folder whose image tower the head is trained on")
    heads.add_argument("--mode", choices=["linear-probe", "fine-tune"], help="does the tower move? (linear-probe)")
    heads.add_argument(
        "--protocol",
        choices=["usual", "paper"],
        help="the paper's numbers, or a probe solved exactly and fine-tuning by layers (usual)",
    )
    heads.add_argument("--data", help="dataset and folder, e.g. rsna:/data/rsna; by default the run's own")
    heads.add_argument("--classes", help="name of a set, or findings with commas; by default the run's or the data's")
    heads.add_argument(
        "--scoring", choices=["multi-class", "present-absent"], help="as in cleft evaluate (multi-class)"
    )
    heads.add_argument("--blank", choices=["unknown", "absent"], help="what blank labels count as (unknown)")
    heads.add_argument("--fraction", help="share of the training patients, e.g. 0.01, nested for equal seeds (1)")
    heads.add_argument("--seeds", type=_number, metavar="N", help="N heads with the seeds 0 to N-1; by default one")
    heads.add_argument("--out", type=_path, help="folder of the new run (<run>-<mode>, and what else is not usual)")
    heads.add_argument("--allow-overlap", action="store_true", help="test on patients that were trained on, and say so")
    heads.add_argument("--drop-overlap", action="store_true", help="test only on patients the run has not seen")

    evaluate = _verb(verbs, "evaluate", "put a question to a trained model", _evaluate)
    evaluate.set_defaults(takes_settings=True)  # those of data alone, which need no list of all in the help
    evaluate.add_argument("run", type=_path, help="run folder, or one of its result files where --against is given")
    evaluate.add_argument(
        "--task",
        choices=["zero-shot", "linear-probe", "fine-tune", "retrieval", "prompts"],
        help="zero-shot: class prompts alone; linear-probe, fine-tune: the head of a run of cleft classify; retrieval: "
        "search images and sentences with each other; prompts: what answers owe to the wording, and what the learned "
        "context is near to (what the run can do: its head, or zero-shot)",
    )
    evaluate.add_argument(
        "--direction",
        help="of --task retrieval: image-to-text, text-to-image, image-to-image, or several with commas (all three)",
    )
    evaluate.add_argument(
        "--data",
        help="dataset and folder or table, e.g. chexpert:/data/CheXpert; by default the run's own. Single settings of "
        "data are changed as in training: --data.root <folder> where the images were moved",
    )
    evaluate.add_argument(
        "--split", choices=["train", "val", "test", "all"], default="test", help="which images are asked about (test)"
    )
    evaluate.add_argument("--classes", help="name of a set, or findings with commas; by default the run's own")
    evaluate.add_argument(
        "--scoring",
        choices=["multi-class", "present-absent"],
        help="which class is it, or: is each finding there (multi-class; of a head what it was trained for)",
    )
    evaluate.add_argument(
        "--blank", choices=["unknown", "absent"], help="what blank labels count as (unknown; of a head as in training)"
    )
    evaluate.add_argument(
        "--prompts",
        choices=["auto", "context", "handwritten"],
        help="the learned context, or sentences written by hand; auto: the context where there is one",
    )
    evaluate.add_argument(
        "--per-class", type=int, metavar="N", help="ask about N images of each class, in place of all"
    )
    evaluate.add_argument(
        "--per-patient", type=int, metavar="K", help="with --per-class: at most K images of a patient in a class (4)"
    )
    evaluate.add_argument(
        "--wording", help="words that stand for the classes: default, released, gloria, or a YAML file (the run's own)"
    )
    evaluate.add_argument(
        "--similarity",
        choices=["global", "local", "both", "released"],
        help="whole images with whole prompts; of a run of GLoRIA too the best word of a prompt with its regions "
        "(local), the mean of both, or both as its release counts words, standardised (global)",
    )
    evaluate.add_argument(
        "--standardise",
        action="store_const",
        const=True,
        help="bring each class to mean 0 and deviation 1 over the images, so that answers depend on each other",
    )
    evaluate.add_argument(
        "--allow-overlap", action="store_true", help="score patients that were trained on, and say so"
    )
    evaluate.add_argument("--drop-overlap", action="store_true", help="score only patients the run has not seen")
    evaluate.add_argument(
        "--embeddings",
        type=_path,
        metavar="CSV",
        help="also write the embedding of each image beside its path in your table (the run keeps none of these paths)",
    )
    evaluate.add_argument(
        "--against",
        type=_path,
        help="another run, which is asked the same, or a result file: is one better on the same images, patients drawn "
        "in pairs",
    )

    report = _verb(
        verbs, "report", "one self-contained page about runs, or about a study of the paper's tables", _report
    )
    report.add_argument(
        "folders", type=_path, nargs="+", help="run folders, a study's folder, or folders that contain them"
    )
    report.add_argument(
        "--out", type=_path, help="page of the runs (report.html); a study's page is study.html in its folder"
    )
    _overwrite(report)
    report.add_argument(
        "--images", action=argparse.BooleanOptionalAction, help="show images (by default phantoms alone)"
    )

    study = _verb(
        verbs, "reproduce", "a table or figure of the paper, or a grid of your own", _reproduce, takes_settings=True
    )
    study.add_argument("study", help="table1, table2, table3, figure3, tableS1, tableS2, tableS3, all, or a YAML file")
    study.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="a data set and its folder, e.g. chexpert=/data/CheXpert; again for others",
    )
    study.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="LABEL=FOLDER",
        help="a further row: a model that is there already, imported or trained; again for others",
    )
    study.add_argument(
        "--scale",
        choices=["paper", "tiny"],
        default="paper",
        help="the paper's towers, or small ones that a laptop trains in a minute each (paper)",
    )
    study.add_argument("--seeds", type=_number, default=3, metavar="N", help="runs of each row, seeds 0 to N-1 (3)")
    study.add_argument("--out", type=_path, help="folder of the study; the same command resumes it (studies/<name>)")
    _overwrite(study)
    study.add_argument("--only", metavar="PATTERN", help="rows, or cells as row/column: 'cleft-*', '*/rsna/zero-shot'")
    study.add_argument("--plan", action="store_true", help="say what would be run and what it costs, and stop")
    study.add_argument("--jobs", type=_number, default=1, metavar="N", help="runs at a time, each in its process (1)")

    bring = _verb(verbs, "import", "make a model folder of a published checkpoint", _import)
    bring.add_argument(
        "checkpoint",
        type=_path,
        help="a file of the authors' release or of another system's, or the folder of one; nothing in it is run",
    )
    bring.add_argument(
        "--method",
        help="whose it is, such as gloria; by default it is recognised by its weights (CLIP's own names do not tell: "
        "openai-clip, open-clip, chexzero or pubmedclip)",
    )
    bring.add_argument("--out", type=_path, required=True, help="model folder to write")
    bring.add_argument(
        "--tokenizer",
        type=_path,
        help="folder or hub name of the language model's tokenizer; for CLIP also its bpe_simple_vocab_16e6.txt.gz",
    )
    bring.add_argument("--text-model", help="hub name or folder of the language model, if the checkpoint lacks it")
    bring.add_argument(
        "--size", type=_number, metavar="N", help="pixels at which the image tower reads (224, or what its folder says)"
    )

    data = verbs.add_parser("data", help="check, prepare or draw a dataset", allow_abbrev=False)
    actions = data.add_subparsers(dest="action", metavar="<action>", required=True, parser_class=_VerbParser)
    template = _verb(actions, "template", "write an example of your own table", _data_template)
    template.add_argument("folder", type=_path, help="where manifest.csv and its explanation go")
    check = _verb(
        actions, "check", "say what a folder holds, or what is wrong with it", _data_check, takes_settings=True
    )
    _add_source(check)
    check.add_argument("--page", type=_path, help="also write a page, one self-contained HTML file")
    check.add_argument(
        "--decode",
        type=_some,
        default=50,
        metavar="N",
        help="how many images to decode, to see whether they can be: a number, or all (50)",
    )
    pictures = check.add_mutually_exclusive_group()
    pictures.add_argument(
        "--images",
        type=_number,
        metavar="N",
        help="images to show on the page (by default twelve of phantoms, else none)",
    )
    pictures.add_argument("--no-images", dest="images", action="store_const", const=0, help="show none")
    check.add_argument("--json", type=_path, help="also write everything as JSON, for machines")
    _overwrite(check)
    split = _verb(
        actions, "split", "draw a split, say what is where, write it to be shared", _data_split, takes_settings=True
    )
    _add_source(split)
    split.add_argument("--out", type=_path, help="file to write, for data.split_file; .json, or .json.gz to pack it")
    split.add_argument("--hashed", action="store_true", help="write digests in place of ids")
    prepare = _verb(actions, "prepare", "decode all images once, ahead of training", _data_prepare, takes_settings=True)
    _add_source(prepare)
    prepare.add_argument("--jobs", type=int, help="processes that decode; by default one per core, 64 at most")
    prepare.add_argument(
        "--rejects",
        type=_path,
        help="table of the images that cannot be used: id, reason (<cache>/rejects-<dataset>.csv)",
    )
    _overwrite(prepare)
    phantoms = _verb(actions, "phantoms", "draw images with labels, in the layout of a real dataset", _data_phantoms)
    phantoms.add_argument("folder", type=_path, help="a new or empty folder")
    phantoms.add_argument(
        "--kind",
        choices=["chest", "mammogram"],
        default="chest",
        help="chest images as CheXpert keeps them, or mammograms with the tables of EMBED (chest)",
    )
    phantoms.add_argument("--patients", type=int, help="how many (600, of mammograms 300: about 2,000 images)")
    phantoms.add_argument("--seed", type=int, default=0, help="the same seed draws the same images (0)")
    phantoms.add_argument("--size", type=int, help="height of an image in pixels (320, of a mammogram 384: 250 kB)")

    sizes = _verb(verbs, "sizes", "count the moving and the frozen weights of presets; nothing is downloaded", _sizes)
    sizes.add_argument("presets", nargs="*", help="presets, YAML files or runs; by default every preset")
    sizes.add_argument(
        "--tokens",
        type=int,
        help="distinct tokens of the captions, whose rows of the embedding are trained; by default "
        "those of a run; of a preset one row is counted apart",
    )

    purge = _verb(verbs, "purge", "remove patient data that cleft wrote: caches, embeddings, training states", _purge)
    purge.add_argument(
        "places",
        type=_path,
        nargs="+",
        help="run folders, folders that hold runs, and caches such as ~/.cache/cleft; weights and results stay",
    )
    purge.add_argument("--yes", action="store_true", help="remove; without it, only show what would be removed")

    _verb(verbs, "presets", "list the presets", _presets)
    _verb(verbs, "doctor", "versions, devices, optional parts, and what to fix", _doctor)
    return parser


def _path(text: str) -> Path:
    """A path as typed, `~` at its start replaced by the home folder."""
    from cleft.privacy import expand_user

    try:
        return Path(expand_user(text))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _overwrite(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="also replace files that cleft did not write, or that were changed since",
    )


_OF_DATA = ("data.dataset", "data.table", "data.views", "data.split", "data.split_file", "data.test_list")
_OF_READING = (*_OF_DATA, "data.val_fraction", "data.test_fraction", "data.exclude", "data.uncertain", "data.max_bad")
_OF_MACHINE = ("data.workers", "data.cache", "train.accelerator", "train.precision")
_USUAL: dict[str, tuple[str, ...]] = {
    "pretrain": (
        *("data.root", *_OF_DATA, "classes", "images.size", "image.model", "text.model", "text.adapt", "loss.name"),
        *("optim.lr", "optim.steps", "train.batch_size", "train.devices", "seed", *_OF_MACHINE),
    ),
    "learn-context": (
        *("data.root", "classes", "wording", "context.length", "context.init", "context.batch_size"),
        *("context.optim.lr", "context.optim.steps", "seed", *_OF_MACHINE),
    ),
    "classify": (
        *("data.split", "data.split_file", "data.exclude", "classify.choose", "classify.steps", "classify.lr"),
        *("classify.augment", "image.pooling", "seed", *_OF_MACHINE),
    ),
    "reproduce": ("data.people", "data.split", "classify.protocol", "optim.steps", "train.batch_size", *_OF_MACHINE),
    "check": (*_OF_READING, "images.stored_size"),
    "split": _OF_READING,
    "prepare": ("data.dataset", "data.table", "data.max_bad", "data.cache", "images.recipe", "images.stored_size"),
}
"""Settings that the short help of a verb lists."""


class _VerbParser(argparse.ArgumentParser):
    """Parser whose help ends with the usual settings, or with all, where its verb takes settings."""

    takes_settings = False
    every_setting = False

    def format_help(self) -> str:
        text = super().format_help()
        if not self.takes_settings:
            return text
        if self.every_setting:
            return f"{text}\nsettings:\n{settings_help()}"
        usual = short_settings_help(_USUAL[self.prog.rpartition(" ")[2]])
        return f"{text}\nsettings, each as --name value; these are the usual ones, --help-all lists all:\n{usual}\n"


def settings_help() -> str:
    """Every setting with its type, default and meaning."""
    from cleft.config import Settings
    from cleft.config.declaration import choices_of, describe_kind, field_docs, field_types

    def section(group: Any, prefix: str) -> list[str]:
        docs, lines, below = field_docs(type(group)), list[str](), list[str]()
        for name, value in vars(group).items():
            if is_dataclass(value):
                below += section(value, f"{prefix}{name}.")
                continue
            kind = field_types(type(group))[name]
            words = choices_of(kind)
            lines.append(f"  --{prefix}{name} {'{' + ','.join(words) + '}' if words else name.upper()}")
            shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
            what = (
                f"{docs[name]} (default: {shown})"
                if words
                else f"{docs[name]} ({describe_kind(kind)}, default: {shown})"
            )
            lines += textwrap.wrap(what, 100, initial_indent=" " * 8, subsequent_indent=" " * 8)
        title = (type(group).__doc__ or "").splitlines()[0].rstrip(".")
        return ["", f"{title}:", *lines, *below] if lines else below

    return "\n".join(section(Settings(), ""))


def short_settings_help(keys: Sequence[str]) -> str:
    """Returns one to three lines for each of some settings: its name, the first clause of its meaning, its choices."""
    from cleft.config import declared_settings
    from cleft.config.declaration import choices_of

    lines: list[str] = []
    for key in keys:
        clause, choices = re.split(r"[.;:](?: |$)", _setting_doc(key))[0], choices_of(declared_settings()[key].kind)
        summary = f"{clause}: {', '.join(choices)}" if choices and not clause.startswith("`") else clause
        lines += textwrap.wrap(f"--{key:21} {summary}", 100, initial_indent="  ", subsequent_indent=" " * 26)
    return "\n".join(lines)


def _setting_doc(key: str) -> str:
    from cleft.config import Settings
    from cleft.config.declaration import field_docs

    group: Any = Settings()
    *groups, name = key.split(".")
    for each in groups:
        group = getattr(group, each)
    return field_docs(type(group))[name]


class _HelpAll(argparse.Action):
    """Prints the help with every setting."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        text = "show this help message with every setting and exit"
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=text)

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        assert isinstance(parser, _VerbParser)
        parser.every_setting = True
        parser.print_help()
        parser.exit()


def _verb(
    verbs: argparse._SubParsersAction[_VerbParser],  # pyright: ignore[reportPrivateUsage]  argparse names it nowhere else
    name: str,
    summary: str,
    run: Callable[[argparse.Namespace, list[str]], int | None],
    *,
    takes_settings: bool = False,
) -> argparse.ArgumentParser:
    description = summary[0].upper() + summary[1:] + "."
    parser = verbs.add_parser(name, help=summary, description=description, allow_abbrev=False)
    parser.takes_settings = takes_settings
    if takes_settings:
        parser.add_argument("--help-all", action=_HelpAll)
    parser.set_defaults(run_verb=run, takes_settings=takes_settings)
    return parser


def _add_source(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say which data, and by which settings they are read and split."""
    parser.add_argument(
        "source",
        help="a preset's name, a YAML file or a run, as for cleft pretrain: its data and images settings are used; or "
        "the name of a dataset (chexpert, …, manifest for your own table), for the default settings",
    )
    parser.add_argument(
        "root", type=_path, nargs="?", help="folder of the images and their table; also --data.root <folder>"
    )


def _pretrain(options: argparse.Namespace, words: list[str]) -> None:
    from cleft.config import load_settings

    settings = load_settings(options.preset, words)
    folder = options.run or Path("runs") / Path(options.preset).stem
    from cleft.models.model_folder import peek_description
    from cleft.training.pretrain import pretrain

    if is_first() and "imported" in peek_description(Path(options.preset)).get("extra", {}):
        print(
            f"{options.preset}: its settings are taken and none of its weights; training begins anew", file=sys.stderr
        )
    if settings.method == "image-only":
        made = pretrain(settings, folder)
        if is_first():
            print(f"{made}: an image tower, nothing was trained; next: cleft classify {_typed(folder)}")
        return
    following = "classify" if settings.method == "mrm" else "learn-context"
    trained = pretrain(settings, folder)
    if is_first():
        print(f"{trained}: stage one is complete; next: cleft {following} {_typed(folder)}")


def _learn_context(options: argparse.Namespace, words: list[str]) -> None:
    from cleft.config import load_run_settings

    settings = load_run_settings(options.run, words)
    folder = options.out or options.run.with_name(f"{options.run.name}-context")
    from cleft.training.prompt_context import learn_context

    print(
        f"{learn_context(options.run, settings, folder)}: stage two is complete; next: cleft evaluate {_typed(folder)}"
    )


def _classify(options: argparse.Namespace, words: list[str]) -> None:
    from cleft.config import overridden_keys, setting_effect
    from cleft.data import settings_for
    from cleft.evaluation.classifier import seed_spread, train_classifiers
    from cleft.evaluation.result_files import read_evaluation, summary_lines
    from cleft.evaluation.task import class_names
    from cleft.training.linear_probe import without_idle

    given = {name: getattr(options, name) for name in ("mode", "protocol", "scoring", "blank", "fraction")}
    own = [f"--classify.{name}={value}" for name, value in given.items() if value is not None]
    settings = settings_for(options.run, options.data, [*own, *words])
    typed = overridden_keys(words)
    for key in sorted(typed):
        if setting_effect(key) == ("context",):
            raise ConfigError(f"--{key} does nothing with cleft classify, which reads no prompts; leave it out")
    named = {key.removeprefix("classify.") for key in typed}
    settings = replace(settings, classify=without_idle(settings.classify, named))
    folder = options.out or options.run.with_name(_name_head(options, settings.classify))
    paths = train_classifiers(
        options.run,
        settings,
        folder,
        seeds=options.seeds,
        classes=class_names(options.classes),
        allow_overlap=options.allow_overlap,
        drop_overlap=options.drop_overlap,
    )
    evaluations = [read_evaluation(path) for path in paths]
    for path, evaluation in zip(paths, evaluations, strict=True):
        print(f"{path.parents[1]}, seed {evaluation.training_seed}:")
        print("\n".join(f"  {line}" for line in summary_lines(evaluation)))
    print("\n".join(seed_spread(evaluations)), end="\n" * (len(paths) > 1))
    print(f"next: cleft report {' '.join(_typed(path.parents[1]) for path in paths)}")


def _name_head(options: argparse.Namespace, config: ClassifyConfig) -> str:
    """A folder name that tells apart what is usually compared."""
    parts = [
        options.run.name,
        config.mode,
        config.protocol if config.protocol != "usual" else "",
        options.data.partition(":")[0] if options.data else "",
        f"{100 * config.fraction:g}-percent" if config.fraction < 1 else "",
    ]
    return "-".join(filter(None, parts))


def _evaluate(options: argparse.Namespace, words: list[str]) -> None:
    from cleft.evaluation.result_files import read_evaluation, summary_lines

    if options.against is not None:
        if options.task in ("retrieval", "prompts"):
            raise ConfigError(f"--against compares classifications; leave out --task {options.task}")
        if options.embeddings is not None:
            raise ConfigError("--embeddings are those of one run; leave out --against")
        return _evaluate_against(options, words)
    table = _embeddings_table(options, words)
    path = _evaluate_run(options, options.run, words)
    print("\n".join(summary_lines(read_evaluation(path))))
    if table is not None:
        print(f"{table()}: a row for each image, with its path; keep it private")
    print(f"{path}; next: cleft report {_typed(options.run)}")


def _embeddings_table(options: argparse.Namespace, words: list[str]) -> Callable[[], Path] | None:
    """Returns a function that writes the table of embeddings, after checking that it can be written."""
    if options.embeddings is None:
        return None
    from cleft.evaluation.task import Question, class_names, write_embeddings
    from cleft.files import Output
    from cleft.models.image_classifier import head_facts

    Output(options.embeddings, "--embeddings", overwrite=None).check()  # before the run is read
    if options.task in _HEADS or head_facts(options.run) is not None:
        raise ConfigError(f"--embeddings: {options.run} is a head, which has no embeddings; name the run of its tower")
    selection = {
        name: getattr(options, name)
        for name in ("data", "split", "per_class", "per_patient", "allow_overlap", "drop_overlap")
    }
    question = Question(classes=class_names(options.classes), overrides=tuple(words), **selection)
    config = question.config(question.run_settings(options.run))
    inputs = _inputs(str(options.run / "config.yaml"), config)
    out = Output(options.embeddings, "--embeddings", overwrite=None, inputs=inputs, mode=0o600).check()
    return lambda: write_embeddings(options.run, question, out)


def _evaluate_against(options: argparse.Namespace, words: list[str]) -> None:
    from cleft.evaluation.compare import compare, comparison_lines, write_comparison
    from cleft.evaluation.result_files import read_evaluation

    first, second = (
        place if place.suffix == ".json" else _evaluate_run(options, place, words)
        for place in (options.run, options.against)
    )
    command = f"cleft evaluate {options.run.name}" if options.run.suffix == ".json" else read_evaluation(first).command
    found = compare(first, second, command=f"{command} --against {options.against.resolve().name}")
    print("\n".join(comparison_lines(found)))
    print(f"{write_comparison(found, first.parent.parent)}; next: cleft report {_typed(first.parent.parent)}")


_HEADS = ("linear-probe", "fine-tune")
_OF_ZERO_SHOT = ("similarity", "standardise")
_OF_HEAD = ("direction", "classes", "prompts", "wording", *_OF_ZERO_SHOT)
_IDLE = {
    "zero-shot": ("direction",),
    "linear-probe": _OF_HEAD,
    "fine-tune": _OF_HEAD,
    "retrieval": ("scoring", "blank", "prompts", "wording", *_OF_ZERO_SHOT),
    "prompts": ("direction", "prompts", *_OF_ZERO_SHOT),
}
"""Options that do nothing with a task of `cleft evaluate`."""


def _evaluate_run(options: argparse.Namespace, run: Path, words: list[str]) -> Path:
    """Evaluates a run and returns its result file."""
    from cleft.models.image_classifier import head_facts

    task = options.task or ("linear-probe" if head_facts(run) is not None else "zero-shot")
    idle = [name for name in _IDLE[task] if getattr(options, name) is not None]
    if task == "retrieval" and options.classes and not options.per_class:
        idle.append("classes")
    if idle:
        given = "" if getattr(options, idle[0]) is True else f" {getattr(options, idle[0])}"
        what = "a head, which knows its classes and reads no prompt" if task in _HEADS else f"--task {task}"
        raise ConfigError(f"--{idle[0]}{given} does nothing with {what}; leave it out")
    arguments: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("data", "split", "scoring", "blank", "per_class", "per_patient", "allow_overlap", "drop_overlap")
        if getattr(options, name) is not None
    }
    arguments["overrides"] = tuple(words)
    if task in _HEADS:
        from cleft.evaluation.classifier import evaluate_classifier

        return evaluate_classifier(run, task=options.task, **arguments)
    if task == "zero-shot":
        from cleft.evaluation.zero_shot import evaluate_zero_shot

        return evaluate_zero_shot(
            run,
            classes=options.classes,
            prompts=options.prompts or "auto",
            wording=options.wording,
            similarity=options.similarity or "global",
            standardise=bool(options.standardise),
            **arguments,
        )
    from cleft.evaluation.task import Question, class_names

    question = Question(classes=class_names(options.classes), **arguments)
    if task == "prompts":
        from cleft.evaluation.prompt_sensitivity import evaluate_prompts

        return evaluate_prompts(run, question, wording=options.wording)
    from cleft.evaluation.retrieval import evaluate_retrieval, parse_directions

    return evaluate_retrieval(run, question, directions=parse_directions(options.direction))


def _report(options: argparse.Namespace, words: list[str]) -> None:
    from cleft.report.study_page import write_pages

    for page in write_pages(options.folders, options.out, images=options.images, overwrite=options.overwrite):
        print(f"{page}: open it in a browser")


def _reproduce(options: argparse.Namespace, words: list[str]) -> int:
    from cleft.studies.reproduce import Request, reproduce

    request = Request(
        name=options.study,
        data=tuple(options.data),
        models=tuple(options.model),
        words=tuple(words),
        scale=options.scale,
        seeds=options.seeds,
        out=options.out,
        only=options.only,
        jobs=options.jobs,
    )
    ending = reproduce(request, plan_only=options.plan, say=print, overwrite=options.overwrite)
    for failure in ending.failures:
        print(f"failed: {failure}", file=sys.stderr)
    return ending.code


def _import(options: argparse.Namespace, words: list[str]) -> None:
    from cleft.config import load_run_settings
    from cleft.models.checkpoint import is_image_only
    from cleft.models.importing.importing import import_checkpoint, told_reading
    from cleft.models.model_folder import peek_description

    out = import_checkpoint(
        options.checkpoint,
        options.out,
        method=options.method,
        tokenizer=options.tokenizer,
        text_model=options.text_model,
        size=options.size,
    )
    print(f"{out}: {told_reading(load_run_settings(out))}")
    description = peek_description(out)
    if description.get("context_length"):
        vectors = count(description["context_length"], "vector")
        print(f"{out}: holds a learned context of {vectors}, which cleft evaluate uses")
    if is_image_only(description):
        print(f"{out} is an image tower; next: cleft classify {_typed(out)} --data chexpert:<folder> --allow-overlap")
    elif description["token_ids"]:
        print(f"{out} reads token ids alone; for sentences import again with --tokenizer <folder>")
    else:
        print(f"{out} is a model; next: cleft evaluate {_typed(out)} --data chexpert:<folder> --allow-overlap")


def _data_template(options: argparse.Namespace, words: list[str]) -> None:
    from cleft.data.readers.manifest import write_template

    print(f"{write_template(options.folder)}: fill it in, then: cleft data check manifest {_typed(options.folder)}")


def _data_check(options: argparse.Namespace, words: list[str]) -> int:
    from cleft.data.census.check import Effort, check_dataset
    from cleft.files import Output
    from cleft.report.census_page import write_census
    from cleft.results import to_json

    if options.images and not options.page:
        raise ConfigError(f"--images {options.images}: images are shown on a page; name one with --page")
    settings, origin = _data_settings(options, words)
    effort = Effort.of(
        decode=options.decode, pictures=options.images if options.page else 0, seed=settings.seed, progress=True
    )
    page, machine = (
        out
        and Output(
            out, option, overwrite=options.overwrite, inputs=_inputs(options.source, settings.data), mode=0o600
        ).check()
        for option, out in (("--page", options.page), ("--json", options.json))
    )
    if page and machine and page.path.absolute() == machine.path.absolute():
        raise ConfigError(f"--page and --json both name {page.path}; give two names")
    check = check_dataset(settings.data, settings.images, effort)
    print(origin)
    print("\n".join(check.lines))
    if machine:
        print(f"{machine.write(to_json(check.census) + chr(10))}: everything as JSON; keep it private")
    if page:
        print(f"{write_census(check.census, page.path, overwrite=options.overwrite)}: open it in a browser")
    return 3 if check.faults else 0


def _data_settings(options: argparse.Namespace, words: list[str]) -> tuple[Settings, str]:
    """Returns the settings of `data check`, `data split` and `data prepare`, and a line that says where they are from.

    They are those of `cleft pretrain` with the same words. Where a dataset has the name of a preset, a folder behind it
    decides: it is the dataset with one and the preset without.
    """
    from cleft.config import Settings, load_settings, merge_overrides, nearest, overridden_keys, preset_names
    from cleft.data import DATASETS

    source, root, typed = options.source, options.root, overridden_keys(words)
    if root is not None and "data.root" in typed:
        raise ConfigError(f"{root} and --data.root both name the folder; give one of them")
    place = [] if root is None else [f"--data.root={root}"]
    if source not in DATASETS or (root is None and source in preset_names()):
        if source not in preset_names() and not Path(source).expanduser().exists():
            raise ConfigError(
                f"no preset or dataset {source!r}{nearest(source, [*DATASETS, *preset_names()])}, and no YAML file or "
                f"run folder of that name; cleft presets lists the presets; the datasets are {', '.join(DATASETS)}"
            )
        return load_settings(source, [*place, *words]), f"settings: {source}"
    if "data.dataset" in typed:
        raise ConfigError(f"{source} and --data.dataset both name the dataset; give one of them")
    settings = merge_overrides(Settings(), [f"--data.dataset={source}", *place, *words])
    return settings, (
        f"settings: the defaults for {source}, as no preset or run is named; for the split that a run uses, name its "
        f"preset: cleft data {options.action} <preset> --data.dataset {source} --data.root "
        f"{'<folder>' if settings.data.root is None else _typed(settings.data.root)}"
    )


def _inputs(source: str, config: DataConfig) -> tuple[Path, ...]:
    """Every file and folder that is read: the preset or run, and those that settings of data name."""
    lists = (config.split_file, config.test_list, config.mapping, config.exclude)
    held = (Path(source), config.root, config.reports, config.bank, *lists)
    return tuple(path for path in held if path is not None)


def _some(text: str) -> int | None:
    """A number, or None for all."""
    return None if text == "all" else _number(text)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return int(text)


def _data_split(options: argparse.Namespace, words: list[str]) -> None:
    from cleft.data import DATASETS, read_dataset
    from cleft.data.splits.recipes import salts_of, split_records
    from cleft.data.splits.split_file import check_split_output, make_split_file, split_lines, write_split_file

    if options.hashed and options.out is None:
        raise ConfigError("--hashed writes nothing without --out; name the file with --out split.json")
    settings, origin = _data_settings(options, words)
    config = settings.data
    if options.out is not None:
        check_split_output(options.out)
    reading = read_dataset(config)
    splits = split_records(reading, config)
    print(origin)
    salts = salts_of(splits.recipe, config)
    print("\n".join(split_lines(splits, reading, config, salts)))
    if options.out is None:
        return
    hashed = options.hashed or DATASETS[config.dataset].terms is not None
    path = write_split_file(options.out, make_split_file(splits, reading, config, salts=salts, hashed=hashed))
    what = "digests of ids" if hashed else "ids"
    print(f"\n{path}: {what}, no image and no label; whoever has the images: --data.split_file {path}")


def _data_prepare(options: argparse.Namespace, words: list[str]) -> None:
    from cleft.data import read_dataset
    from cleft.data.images.cache import PrepareOptions, cache_folder, prepare_images, reject_lines
    from cleft.data.images.decode_pool import usable_cores
    from cleft.data.images.dicom_headers import oddity_notes
    from cleft.files import Output

    if options.jobs is not None and options.jobs < 1:
        raise ConfigError(f"--jobs {options.jobs}: at least one process decodes; give 1 or more")
    settings, origin = _data_settings(options, words)
    print(origin)
    cache = cache_folder(settings.data)
    rejects = Output(
        options.rejects or cache / f"rejects-{settings.data.dataset}.csv",
        "--rejects" if options.rejects else "data.cache:",
        overwrite=options.overwrite,
        inputs=_inputs(options.source, settings.data),
        mode=0o600,
    ).check()
    reading = read_dataset(settings.data)
    prepared = prepare_images(
        reading.records,
        settings.images,
        cache,
        PrepareOptions(
            jobs=options.jobs or min(usable_cores(), 64), max_bad=settings.data.max_bad, rejects=rejects, retry=True
        ),
    )
    refused = {record: (reason, prepared.sentences[record]) for record, reason in prepared.rejected.items()}
    are = verb(len(prepared), "is", "are")
    print(f"{prepared.folder}: {count(len(prepared), 'image')} {are} prepared, {len(refused):,} cannot be used")
    for line in reject_lines(refused.values()):
        print(line)
    for note in oddity_notes(prepared.notes):
        print(note)
    for reason, rows in reading.rejected.items():
        print(f"rows of the table left out, {reason}: {len(rows):,}")


def _data_phantoms(options: argparse.Namespace, words: list[str]) -> None:
    from cleft.data.phantoms.chest import write_phantoms
    from cleft.data.phantoms.mammograms import write_mammograms

    seed = options.seed
    if options.kind == "mammogram":
        root = write_mammograms(
            options.folder, patients=_or(options.patients, 300), seed=seed, size=_or(options.size, 384)
        )
        print(f"{root}: mammograms are drawn; next: cleft data check embed {_typed(root)}")
        return
    root = write_phantoms(options.folder, patients=_or(options.patients, 600), seed=seed, size=_or(options.size, 320))
    print(f"{root}: phantoms are drawn; next: cleft pretrain demo --data.root {_typed(root)}")


def _or(given: int | None, usual: int) -> int:
    return usual if given is None else given


def _sizes(options: argparse.Namespace, words: list[str]) -> None:
    from cleft.config import load_settings, preset_names
    from cleft.models.parameter_count import count_weights, outline_model, row_width, trained_tokens

    print(f"{'preset':18} {'part':16} {'trainable':>14} {'frozen':>14}")
    uncounted: list[str] = []
    for name in options.presets or preset_names():
        settings = load_settings(name, [])
        tokens = options.tokens
        if tokens is None and name not in preset_names():
            tokens = trained_tokens(Path(name).expanduser())
        counts = count_weights(outline_model(settings, tokens=tokens or 0))
        for part, weights in counts.items():
            print(f"{name:18} {part:16} {weights.moving:14,} {weights.frozen:14,}")
        moving, frozen = (sum(column) for column in zip(*counts.values(), strict=True))
        print(f"{name:18} {'all':16} {moving:14,} {frozen:14,}")
        width = row_width(settings)
        if tokens is None and width:
            print(f"{name:18} {'each token row':16} {width:14,}")
            uncounted.append(name)
    if uncounted:
        print(
            f"not counted in 'all': the rows of the embedding that are trained, one for each distinct token of the "
            f"captions ({', '.join(uncounted)}); give their number as --tokens, or name a finished run"
        )


def _purge(options: argparse.Namespace, words: list[str]) -> None:
    from cleft.training.run_folder import plan_purges

    purges = plan_purges(options.places)
    for purge in purges:
        size, files = purge.size(), count(len(purge.files), "file")
        if options.yes:
            purge.remove()
        action = "removed" if options.yes else "would remove"
        print(f"{purge.place}: {action} {files}, {size / 1e6:,.1f} MB")
        for folder, held in purge.folders().items():
            print(f"  {folder}: {count(held, 'file')}")
        for line in purge.left:
            print(f"  left: {line}")
    if not options.yes and any(purge.files for purge in purges):
        print("nothing was removed yet; the same command with --yes removes these files")


def _presets(options: argparse.Namespace, words: list[str]) -> None:
    from cleft.config import preset_summaries

    for name, summary in preset_summaries().items():
        print(f"{name:22} {summary}")


def _doctor(options: argparse.Namespace, words: list[str]) -> int:
    from cleft.doctor import examine

    findings = examine()
    print("\n".join(findings.lines))
    return 1 if findings.faults else 0
