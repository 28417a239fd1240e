"""Figures: text is literal and has glyphs; a figure that fails ends nothing."""

import warnings
from pathlib import Path

import pytest
from matplotlib import font_manager
from matplotlib.text import Text

from mindpangu import figures
from mindpangu.figures import write_figure, write_optional_figure

TEXTS = [
    "$x_{",
    "100 % of $5 to $6",
    r"\frac",
    "中文运行",
    "_hidden",
    "a\tb",
    "x\x1b[31m",
    "\udcb2\udce2",
    "\u202eevil",
    "😀",
    "$" * 99,
]


class Drawing:
    """Draws a text in every place where texts can be, and keeps the figure."""

    def __init__(self, text):
        self.text = text

    def __call__(self, figure):
        self.figure = figure
        axes = figure.subplots()
        (line,) = axes.plot([1, 100, 10_000], [1, 2, 3], label=self.text)
        axes.set_xscale("log")
        axes.set_title(self.text)
        axes.set_xlabel(self.text)
        axes.text(0.5, 0.5, self.text)
        axes.legend([line], ["0"]).get_texts()[0].set_text(self.text)
        figure.suptitle(self.text)

    @property
    def shown(self):
        return [text.get_text() for text in self.figure.findobj(Text)]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_is_drawn_without_a_warning(tmp_path, capfd, text):
    drawing = Drawing(text)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written = write_optional_figure(tmp_path / "new" / "a.png", (4, 3), drawing)

    assert written
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")
    out, err = capfd.readouterr()
    assert out.count("\n") <= 1
    assert err == ""


def test_dollars_are_shown_and_ticks_stay_formulas(tmp_path):
    drawing = Drawing("$x_{ and $5")

    write_optional_figure(tmp_path / "a.png", (4, 3), drawing)

    assert drawing.shown.count("$x_{ and $5") == 5
    assert all(not text.get_parse_math() for text in drawing.figure.findobj(Text) if text.get_text() == drawing.text)
    assert any("mathdefault" in text for text in drawing.shown)


def test_a_character_that_some_font_of_the_system_has_gets_its_glyph(tmp_path, capsys):
    installed = [file for file in font_manager.findSystemFonts() if not figures._PLACEHOLDERS.search(Path(file).name)]
    fonts = [file for file in installed if not figures._lacking(file, "中文")]
    if not fonts:
        pytest.skip("no font of this machine has Chinese characters")
    drawing = Drawing("中文运行")

    write_optional_figure(tmp_path / "a.png", (4, 3), drawing)

    assert "中文运行" in drawing.shown
    assert capsys.readouterr().out == ""


def test_a_character_that_no_font_has_becomes_an_escape_and_one_line_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    monkeypatch.setattr(
        font_manager.fontManager,
        "ttflist",
        [entry for entry in font_manager.fontManager.ttflist if "DejaVu Sans" in entry.name],
    )
    drawing = Drawing("运行 $1")

    assert write_optional_figure(tmp_path / "a.png", (4, 3), drawing)

    assert r"\u8fd0\u884c $1" in drawing.shown
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "no font has the characters 行运" in out


def broken(figure):
    raise RuntimeError("no ink\nmore lines")


def out_of_memory(figure):
    raise MemoryError


@pytest.mark.parametrize("draw", [broken, out_of_memory])
def test_a_figure_that_fails_costs_one_line_and_leaves_the_old_file(tmp_path, draw):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    lines = []

    assert not write_optional_figure(path, (4, 3), draw, lines.append)

    assert len(lines) == 1
    assert lines[0].startswith(f"{path} could not be drawn: ")
    assert "more lines" not in lines[0]
    assert path.read_bytes() == b"old"


def test_a_figure_that_cannot_be_written_costs_one_line(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    lines = []

    assert not write_optional_figure(tmp_path / "file" / "a.png", (4, 3), Drawing("x"), lines.append)

    assert len(lines) == 1


def test_interrupts_and_failures_of_required_figures_are_raised(tmp_path):
    def interrupted(figure):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_optional_figure(tmp_path / "a.png", (4, 3), interrupted)
    with pytest.raises(RuntimeError, match="no ink"):
        write_figure(tmp_path / "a.png", (4, 3), broken)

    assert list(tmp_path.glob("*.png")) == []


def test_no_module_of_the_package_saves_figures_itself():
    package = Path(figures.__file__).parent
    users = [path for path in package.rglob("*.py") if "savefig" in path.read_text(encoding="utf-8")]

    assert [path.name for path in users] == ["figures.py"]
