"""The LaTeX table of a comparison: it compiles, and holds the figures and marks of the printed table."""

import re
import shutil
import subprocess

import pytest

from cmrhash.config import CompareConfig, TrainConfig
from cmrhash.errors import UsageError
from cmrhash.evaluation.compare import compare
from cmrhash.evaluation.latex import escaped, latex_table

QUICK = TrainConfig(epochs=2, batch=16, lr=0.02, hidden=16, device="cpu")
COMMANDS = {
    *("begin", "end", "centering", "small", "setlength", "tabcolsep", "caption", "label", "toprule", "midrule"),
    *("bottomrule", "cmidrule", "multicolumn", "textbf", "textit", "scriptsize", "pm", "dagger", "rightarrow"),
    *("textbackslash", "textasciitilde", "textasciicircum", "footnotesize", "smallskip"),
}
PROTOCOL = {"metric": "mAP", "significance": "† differs from a_b (p < .05)", "untrained_encoders": []}


def row(method, bits, mean, direction="i2t", lang="en", **more):
    who = {"dataset": "my_set", "method": method, "bits": bits, "lang": lang, "head_lang": lang, "direction": direction}
    return {**who, "mean": mean, "sd": 0.01, "n": 3, "chance": 0.1, "collapsed": 0, **more}


def checked(text, tmp_path):
    """The rows of the table as lists of cells, after everything that LaTeX would refuse was looked for."""
    body = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("%"))
    assert set(re.findall(r"\\([a-zA-Z]+)", body)) <= COMMANDS
    bare = re.sub(r"\\[&%$#_{},]|\\\\", "", body)
    assert not re.search(r"[#_%†±<>|~]|[^\x00-\x7f]", re.sub(r"\$[<>|]\$|\^\{|\^\\", "", bare))
    depth = [0]
    for char in bare:
        depth.append(depth[-1] + (char == "{") - (char == "}"))
    assert min(depth) == depth[-1] == 0
    assert bare.count("$") % 2 == 0
    opened = re.findall(r"\\(begin|end)\{([a-z*]+)\}", body)
    assert [name for kind, name in opened] == [opened[0][1], "tabular", "tabular", opened[0][1]]
    width = len(re.search(r"\\begin\{tabular\}\{(l(c+))\}", body)[1])
    rows = [line.removesuffix(r"\\").split(" & ") for line in body.splitlines() if line.endswith(r"\\")]
    spans = [[int(found[1]) if (found := re.match(r"\\multicolumn\{(\d+)\}", c)) else 1 for c in r] for r in rows]
    assert {sum(own) for own in spans} == {width}
    if shutil.which("pdflatex"):
        whole = "\\documentclass[twocolumn]{article}\\usepackage{booktabs}\\begin{document}" + text + "\\end{document}"
        (tmp_path / "t.tex").write_text(whole, encoding="utf-8")
        done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "t"], cwd=tmp_path, capture_output=True)
        assert done.returncode == 0, done.stdout
    return [[cell.strip() for cell in r] for r in rows]


def test_a_table_has_a_column_per_direction_and_length_and_marks_the_best(tmp_path):
    rows = [row("a_b", 16, 0.5), row("a_b", 32, 0.6), row("c", 16, 0.55, significant=True), row("c", 32, 0.4)]
    rows += [
        row("a_b", 16, 0.9, "t2i", chance=0.2),
        row("c", 16, 0.3, "t2i", chance=0.2, sd=None, collapsed=1, significant=True),
    ]
    text = latex_table(rows, PROTOCOL, ["metric: 50 % of\nit"])
    assert text.startswith("% metric: 50 % of it\n\\begin{table*}")
    head, lengths, first, second, chance = checked(text, tmp_path)
    assert head[1:] == [
        r"\multicolumn{2}{c}{Image $\rightarrow$ text}",
        r"\multicolumn{2}{c}{Text $\rightarrow$ image}",
    ]
    assert lengths == ["Method", "16 bits", "32 bits", "16 bits", "32 bits"]
    spread = r"{\scriptsize\,$\pm$\,0.010}"
    bold = rf"\textbf{{0.600}}{spread}"
    assert first == [r"a\_b", f"0.500{spread}", bold, rf"\textbf{{0.900}}{spread}", "--"]
    assert second == ["c", rf"\textbf{{0.550}}{spread}$^{{\dagger}}$", f"0.400{spread}", r"0.300$^{\dagger*}$", "--"]
    assert chance == [r"\textit{chance}", "0.100", "0.100", "0.200", "--"]
    assert r"\label{tab:my-set}" in text
    caption = r"mAP on my\_set, mean $\pm$ standard deviation over 3 seeds. Bold: the best of each column. $^\dagger$"
    assert caption + r" differs from a\_b (p $<$ .05). *: a run has collapsed codes." in text


def test_languages_are_blocks_of_a_wide_table_and_untrained_encoders_are_named(tmp_path):
    rows = [
        row("a", b, 0.5, way, lang, n=1, sd=None)
        for lang in ("de", "en")
        for way in ("i2t", "t2i")
        for b in (8, 16, 32, 64)
    ]
    text = latex_table(rows, {**PROTOCOL, "untrained_encoders": ["text-de"]}, [])
    assert text.count("table*") == 2
    assert "table*" not in latex_table([of for of in rows if of["bits"] < 64], PROTOCOL, [])
    assert [line[0] for line in checked(text, tmp_path)[2:]] == [
        r"\multicolumn{9}{l}{\textit{de}}",
        *("a", r"\textit{chance}"),
        r"\multicolumn{9}{l}{\textit{en}}",
        *("a", r"\textit{chance}"),
    ]
    assert (
        r"\caption{mAP on my\_set, 1 seed. No method differs from a\_b (p $<$ .05). UNTRAINED ENCODERS: text-de.}"
        in text
    )
    assert "textbf" not in text  # one method has no rival


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex with booktabs")
@pytest.mark.parametrize("lengths", [(16,), (16, 32, 64, 128)])
def test_latex_makes_a_table_that_fits_into_the_page(lengths, tmp_path):
    rows = [row(name, b, 0.5, way) for name in ("a_b", "krr-ap") for b in lengths for way in ("i2t", "t2i")]
    table = latex_table([{**one, "significant": True} for one in rows], PROTOCOL, ["50 % of: a_b"])
    head = r"\documentclass[twocolumn]{article}\usepackage{booktabs}\usepackage[margin=2cm]{geometry}"
    (tmp_path / "paper.tex").write_text(head + "\n\\begin{document}\n" + table + "\\end{document}\n", encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "Overfull" not in done.stdout


def test_the_caption_says_which_methods_draw_nothing(tmp_path):
    once = {"sd": None, "n": 1, "draws": False}
    cca = row("cca", 16, 0.4, **once)
    text = latex_table([row("a_b", 16, 0.5), cca], PROTOCOL, [])
    assert "mean $\\pm$ standard deviation over 3 seeds. Without deviation: cca, which draws nothing." in text
    both = latex_table([row("a_b", 16, 0.5), cca, row("scm", 16, 0.3, **once)], PROTOCOL, [])
    assert "Without deviation: cca, scm, which draw nothing." in both
    assert "deviation" not in latex_table([cca], PROTOCOL, [])


def test_every_character_of_a_name_is_escaped(tmp_path):
    name = r"a&%$#_{}~^\<>|b"
    assert checked(latex_table([row(name, 8, 0.5)], PROTOCOL, []), tmp_path)[2][0] == escaped(name)


def test_compare_writes_the_table_beside_the_others(make_cache, tmp_path):
    data = make_cache(tmp_path / "cache")
    grid = CompareConfig(methods=("cca",), bits=(8,), langs=("de",), seeds=1)
    with pytest.raises(UsageError, match="unknown format 'latx': did you mean latex"):
        compare(CompareConfig(format="latx"), QUICK, data, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    compare(grid, TrainConfig(device="cpu"), data, tmp_path / "runs")
    table = tmp_path / "runs/toy/compare.tex"
    assert not table.exists()
    result = compare(
        CompareConfig(**{**vars(grid), "format": "latex"}), TrainConfig(device="cpu"), data, tmp_path / "runs"
    )
    cells = checked(table.read_text(encoding="utf-8"), tmp_path)
    assert cells[2][:3] == ["cca", *(f"{row['mean']:.3f}" for row in result.rows)]
    header = (tmp_path / "runs/toy/compare.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    assert header == [name for name in result.rows[0] if name != "command"]  # commands are in the JSON
