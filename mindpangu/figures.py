"""Draws figures with matplotlib and writes them to files.

All plots of the package go through this module. It draws text literally ("$" does not start a formula), looks for a
font with the characters that matplotlib's own font lacks, such as Chinese, and does not let a failed plot end a job
that can do without it.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mindpangu.display import escape, printable
from mindpangu.files import scratch_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

Draw = Callable[["Figure"], None]
Log = Callable[[str], None]

_DPI = 120
_MAX_FONTS = 200  # fonts to look into for missing characters; each takes 25 ms
_LIKELY_FONT = re.compile(
    r"cjk|wenquanyi|wqy|simhei|msyh|yahei|source ?han|pingfang|fallback|unicode|noto", re.IGNORECASE
)
_PLACEHOLDERS = re.compile(r"last ?resort", re.IGNORECASE)  # fonts that draw the same box for every character
_UNLIKELY_STYLE = re.compile(r"bold|italic|oblique|light|thin|black|mono|serif", re.IGNORECASE)


def write_optional_figure(path: Path, size: tuple[float, float], draw: Draw, log: Log = print) -> bool:
    """Writes a figure that the job can do without. If that fails, logs one line instead of raising an error.

    Args:
        path: the file, written atomically; its suffix is the format (.png). Its folder is created.
        size: width and height in inches.
        draw: draws on an empty figure.
        log: receives messages for the user.

    Returns:
        True if the figure was written.
    """
    try:
        write_figure(path, size, draw, log)
    except Exception as error:  # of any kind: the job's result is complete without the figure
        reason = str(error).strip().partition("\n")[0]
        log(printable(f"{path} could not be drawn: {type(error).__name__}{': ' if reason else ''}{reason}"))
        return False
    return True


def write_figure(path: Path, size: tuple[float, float], draw: Draw, log: Log = print) -> None:
    """Writes a figure; see `write_optional_figure`. Raises any error of drawing or of the disk."""
    # Imported here because figures are rare and matplotlib takes longer to import than the rest of the package. A
    # Figure without pyplot always draws with Agg, whatever the user's backend is, and needs no display.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"text.usetex": False}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about characters without glyphs and labels that do not fit
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        substituted = _show_literally(list(_texts(figure)))
        with scratch_file(path) as scratch:
            figure.savefig(scratch, format=path.suffix.lstrip(".") or "png", dpi=_DPI)
    if substituted:
        log(
            f"{printable(str(path))}: no font has the characters {substituted}, so they appear as escapes; install a "
            "font that has them, e.g. Noto Sans CJK for Chinese"
        )


def _texts(figure: "Figure") -> Iterator["Text"]:
    """Yields all texts of a figure except the numbers at the ticks, which matplotlib writes as formulas (10²)."""
    from matplotlib.text import Text

    ticks = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            ticks |= {id(text) for text in (*axis.get_ticklabels(which="both"), axis.get_offset_text())}
    for text in figure.findobj(Text):
        if id(text) not in ticks and text.get_text():
            yield text


def _show_literally(texts: list["Text"]) -> str:
    """Makes matplotlib draw texts literally. Returns the characters that no font has; they become escapes."""
    for text in texts:
        text.set_parse_math(False)
        text.set_text(printable(text.get_text()))
    missing = {id(text): _missing(text) for text in texts}
    families, nowhere = _find_fonts(set().union(*missing.values()))
    for text in texts:
        if missing[id(text)]:
            text.set_fontfamily([*text.get_fontfamily(), *families])
            text.set_text("".join(escape(each) if each in nowhere else each for each in text.get_text()))
    return "".join(sorted(nowhere))


def _missing(text: "Text") -> set[str]:
    """Returns the characters of a text that its font lacks."""
    from matplotlib import font_manager

    characters = set(text.get_text()) - {"\n"}
    return _lacking(font_manager.findfont(text.get_fontproperties()), characters)


def _lacking(font_file: str, characters: Iterable[str]) -> set[str]:
    from matplotlib import font_manager

    glyphs = font_manager.get_font(font_file).get_charmap()
    return {character for character in characters if ord(character) not in glyphs}


def _find_fonts(characters: set[str]) -> tuple[list[str], set[str]]:
    """Looks for fonts that have the characters. Returns (font families, characters that no font has)."""
    from matplotlib import font_manager

    if not characters:
        return [], characters
    known = {entry.fname: entry.name for entry in font_manager.fontManager.ttflist}
    # matplotlib's list is as old as its cache; fonts may have been installed since
    files = [file for file in {*known, *font_manager.findSystemFonts()} if not _PLACEHOLDERS.search(Path(file).name)]
    families = []
    for file in sorted(files, key=_preference)[:_MAX_FONTS]:
        if not characters:
            break
        try:
            rest = _lacking(file, characters)
            if len(rest) < len(characters):
                if file not in known:
                    font_manager.fontManager.addfont(file)
                families.append(font_manager.get_font(file).family_name)
                characters = rest
        except (OSError, RuntimeError):  # a font that cannot be read
            continue
    return families, characters


def _preference(font_file: str) -> tuple[bool, bool, str]:
    """Returns the sort key of a font file: fonts that are likely to have many characters first, plain styles first."""
    name = Path(font_file).name
    return not _LIKELY_FONT.search(name), bool(_UNLIKELY_STYLE.search(name)), name
