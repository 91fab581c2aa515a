"""The command ``sepgroupy table``."""

import csv
import io

import pytest

from sepgroupy.cli import main


def output(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["table", *arguments])
    out, err = capsys.readouterr()
    return stopped.value.code, out, err


def test_models_by_name(capsys):
    code, out, _ = output(capsys, "z2cnn", "gc-p4cnn")
    assert code == 0
    assert [line.split(" | ")[0] for line in out.splitlines()] == ["| model", "| :--", "| z2cnn", "| gc-p4cnn"]


def test_a_module_by_import_path_as_csv(capsys):
    code, out, _ = output(capsys, "--module", "torch.nn:Flatten", "--shape", "2,3,4", "--csv")
    (row,) = csv.DictReader(io.StringIO(out))
    assert code == 0
    assert (row["model"], row["shape"], row["parameters"]) == ("torch.nn:Flatten", "2×3×4", "0")


def test_measured_times_are_in_the_table(capsys):
    code, out, _ = output(capsys, "z2cnn", "--measure")
    assert code == 0
    assert out.splitlines()[-1].endswith("| 1.00 | 1.00 |")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet18"], "model (='resnet18') is in none of the paper's tables"),
        (["--module", "torch.nn:Flatten", "--shape", "3x32"], "shape (='3x32') must be whole numbers"),
        (["--module", "torch.nn"], "must be an import path"),
        (["--module", "torch.nn:Linear"], "cannot be built"),
    ],
)
def test_misuse_is_one_line(capsys, arguments, message):
    code, out, err = output(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
