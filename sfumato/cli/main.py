"""`sfumato VERB ...`: finds the verb, runs it, and turns what the user can put right into one sentence.

Exit codes: 0 done; 1 a defect of sfumato (with its traceback); 2 a mistake that the sentence explains; 130 interrupted
(Ctrl-C; a run in training has saved itself), 143 and 75 likewise on SIGTERM and SIGUSR1.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

__all__ = ["main", "version"]

VERBS = {
    "demo": "train on real letters and write a word in letters that the model invented",
    "train": "train a paper's model on your pictures, resume a run, or fine-tune one",
    "sample": "make pictures with a trained run",
    "edit": "change a picture: make a part of it, colour it, turn strokes into one",
    "upscale": "a large picture from a small one, by a run trained to enlarge",
    "interpolate": "pictures on the way from one to another",
    "encode": "the noise from which a run makes given pictures",
    "decode": "the pictures that a run makes of encodings",
    "bench": "compare samplers on a run: bench samplers RUN",
    "evaluate": "how good a run's pictures are, or those of a folder, against data",
    "likelihood": "how probable a trained run thinks pictures are, the strangest first",
    "report": "what a run is and how it went, in one HTML file to send to a colleague",
    "reproduce": "train, sample and measure a paper's preset, its published figures beside ours",
    "papers": "the papers that can be trained, or one of them in full",
    "data": "look at a data set: data check DATA, data explore DATA",
    "inspect": "what a run, a .safetensors file or a picture says of itself",
    "doctor": "what this machine can do, and what is missing",
    "cite": "BibTeX of a paper, or of the paper a run was trained with",
}
EXAMPLES = """\
  sfumato train ddpm photos/ --out runs/photos      any folder of pictures
  sfumato sample runs/photos                        a run describes itself
  sfumato train --resume runs/photos                after a crash, or to go on
"""
ENDS = """\
`sfumato VERB --help` explains a verb. --debug (or SFUMATO_DEBUG=1) shows where an error came from.
Exit codes: 0 done, 1 a defect of sfumato, 2 a mistake that the message explains; stopped and saved: 130 by Ctrl-C,
143 by SIGTERM, 75 by SIGUSR1."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words or os.environ.get("SFUMATO_DEBUG", "") not in ("", "0")
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.showwarning = _note
            code = _run([word for word in words if word != "--debug"])
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # --help
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        _tell("sfumato: interrupted.")
        return 128 + signal.SIGINT
    except BrokenPipeError:  # `sfumato papers | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        sentence = _sentence(error)
        if debug or sentence is None:
            raise
        _tell(f"sfumato: {sentence}", alone=getattr(error, "unheard", False))
        return 2


def _run(words: list[str]) -> int:
    if any("\0" in word for word in words):
        from sfumato.errors import UserError

        raise UserError("a zero byte is no part of a name or number: leave it out.")
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] in ("-V", "--version", "version"):
        print(f"sfumato {version()}")
        return 0
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        from sfumato.errors import UserError

        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"choose one of {', '.join(VERBS)}."
        raise UserError(f"there is no verb '{verb}': {hint}")
    return importlib.import_module(f".{verb}", __package__).run(rest) or 0


def _overview() -> str:
    wide = max(map(len, VERBS))
    rows = "\n".join(f"  {verb:{wide}}  {text}" for verb, text in VERBS.items())
    return (
        "sfumato: diffusion models as software. Your pictures in, a model out, new pictures out.\n\n"
        f"{rows}\n\n{EXAMPLES}\n{ENDS}"
    )


def version() -> str:
    """Of sfumato."""
    from sfumato import __version__

    return __version__


def _sentence(error: Exception) -> str | None:
    """One sentence for what the user can put right; None for a defect."""
    from sfumato.errors import UserError

    if isinstance(error, UserError):
        return _cut(" ".join(str(error).split()))
    if _memory_is_short(error):
        return "out of memory: give a smaller --batch, a smaller --size or --precision bf16, and try again."
    if isinstance(error, OSError):
        return _os_sentence(error)
    return None


def _memory_is_short(error: Exception) -> bool:
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from sfumato.engine.plan import out_of_memory

    return out_of_memory(error)


def _cut(sentence: str, most: int = 1000) -> str:
    """The beginning and the end, which say what was wrong and what to do, of one that quotes at length."""
    return sentence if len(sentence) <= most else f"{sentence[: most // 2]} ... {sentence[-most // 2 :]}"


def _os_sentence(error: OSError) -> str | None:
    where = f"'{_cut(str(error.filename), 200)}'" if error.filename else "the output"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full (writing {where}): free some space, or give another folder with --out."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{where} may not be written or read: check its permissions, or give another folder with --out."
    if error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.EEXIST):
        return f"{where} cannot be used ({(error.strerror or '').lower()}): give another path."
    return None


def _note(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Our own warnings as a line; those of other packages are for developers: --debug shows them."""
    if category is RuntimeWarning and "/sfumato/" in filename.replace(os.sep, "/"):
        _tell(f"note: {message}")


def _tell(line: str, *, alone: bool = False) -> None:
    """To stderr, once per job: the other ranks of torchrun stay silent, unless the first has died."""
    from sfumato.cli.progress import first_rank
    from sfumato.cli.show import printable

    if alone or first_rank():
        print(printable(line), file=sys.stderr, flush=True)
