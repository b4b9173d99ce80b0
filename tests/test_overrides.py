"""People's paths in Hydra's grammar for options."""

import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

import mde.app.entry
from mde.app.command_line import CONF
from mde.app.entry import one_line, register
from mde.overrides import quoted

register()
NAMES = [
    "Фото.png",
    "a(1).png",
    "a=b",
    "a,b.png",
    "#1 {x} [y].png",
    "~a~.png",
    "$5 and $6.png",
    "${oc.env:HOME}.png",
    "\\${x}",
    "\\\\${x}\\",
    'it\'s "q".png',
    "[x]",
    "f(1)",
    " a  ",
    "1e3",
    "a\\,b",
    "12:30:00.mp4",
    "50%&!;<>|.png",
    "é",
    "e\N{COMBINING ACUTE ACCENT}",
    "a\nb",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("folder", ["", "Übung (2)/"])
def test_what_exists_is_taken_as_it_is_called(name: str, folder: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(folder + name)
    path.parent.mkdir(exist_ok=True)
    path.touch()
    for given in (str(path), str(tmp_path / path)):
        overrides = [quoted(argument) for argument in ("checkpoint=none", f"source={given}", "threads=2")]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("deploy", overrides)
        assert (config.source, config.threads) == (given, 2)


@pytest.mark.parametrize(
    "argument",
    [
        "size=[64,64]",
        "seed=1,2,3",
        "seed=range(1,4)",
        "data=folder",
        "data@data.parts.labelled=folder",
        "+prune.limits={encoder.blocks.3*:0,decoder*:1}",
        "checkpoint=${oc.env:HOME}/model.onnx",
        "hydra.run.dir=out/${now:%H-%M}",
        "source='Фото.png'",
        "source=two words.png",
        "sparsity=null",
        "~data.root",
        "-m",
        "--config-dir=/é",
        "source=",
        "size=[64,64",
        "source=missing(1).png",
        "compare=[é.onnx,b.onnx]",
    ],
)
def test_what_means_something_in_the_grammar_or_may_be_an_error_stays(argument: str) -> None:
    assert quoted(argument) == argument


def test_what_the_grammar_has_no_meaning_for_is_text(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photo.png").touch()
    assert quoted("hydra.run.dir=out/été#1") == "hydra.run.dir='out/été#1'"
    assert quoted("+name=Müller") == "+name='Müller'"
    assert quoted("source=~/photo.png") == f"source='{tmp_path}/photo.png'"
    assert quoted("hydra.run.dir=~/new") == f"hydra.run.dir='{tmp_path}/new'"


@pytest.mark.parametrize("argument", ["source=missing(1).png", "source=it's", "data.root=/x/a=b"])
def test_the_others_are_one_line_that_says_how_to_quote(argument: str) -> None:
    with pytest.raises(OverrideParseException) as caught:
        OverridesParser.create().parse_overrides([argument])
    line = one_line(caught.value)
    assert line.startswith(f"{argument}: not in the grammar of options")
    shown = line.split('"')[1].replace("\\\\", "\\")
    assert OverridesParser.create().parse_overrides([shown])[0].value() == argument.partition("=")[2]


def test_every_entry_point_reads_its_arguments_so(monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["deploy.py", "hydra.run.dir=été", "-m"])
    seen: list[str] = []
    with pytest.raises(SystemExit):
        mde.app.entry.run(lambda: seen.extend(sys.argv))
    assert seen == ["deploy.py", "hydra.run.dir='été'", "-m"]
