"""What the report reads: other stages' files, refused by name where they aren't what they were."""

from pathlib import Path

import pandas as pd
import pytest

from stages import evaluate
from stages.core.errors import InputError
from stages.core.files import FileFormatError
from tests.helpers.prediction_tables import EPS, make_table
from tests.helpers.reports import make_project, read_results


def test_attack_that_attacks_csv_does_not_list_is_refused_by_name(project):
    table = make_table(n=12)
    unknown = table[table["attack"] == "bim"].assign(attack="deepfool")
    table = pd.concat([table, unknown], ignore_index=True)
    make_project(tables={"clean": table, "adv": make_table("adv", 12)})
    with pytest.raises(FileFormatError, match=r"predictions.clean: .* got deepfool"):
        evaluate.main()


def test_eps_that_no_attack_was_run_at_is_named(project):
    make_project(n=12, params={"attack.eps": 0.1})
    with pytest.raises(InputError, match=r"attack\.eps: expected .* at 0\.1, got 0\.00784314, "):
        read_results()


def test_models_evaluated_on_different_images_are_refused(project):
    make_project(tables={"clean": make_table(n=12), "adv": make_table("adv", 11)})
    with pytest.raises(InputError, match="adv: expected predictions for the same images"):
        read_results()


def test_steps_of_an_attack_are_those_at_the_main_eps(project):
    table = make_table(n=12)
    table.loc[(table["attack"] == "pgd") & (table["eps"] < 0.9 * EPS), "steps"] = 50
    make_project(tables={"clean": table, "adv": table})
    results = read_results()
    assert results.steps["pgd"] == 20
    assert results.attack_label("pgd") == "PGD-20"
    assert results.attack_label("pgd", steps=False) == "PGD"
    assert results.attack_label("fgsm") == "FGSM"


@pytest.mark.parametrize(
    ("known", "name"), [(20, "patients"), (7, "patients or groups"), (0, "groups")]
)
def test_clusters_are_patients_only_where_all_are_known(project, known, name):
    make_project(n=12, data={"images": 20, "groups": {"images_with_known_patient": known}})
    assert read_results().clusters == name


@pytest.mark.usefixtures("drawn")
def test_missing_or_damaged_file_is_named(project):
    """Damaged tables: tests/fuzz."""
    make_project(n=4, examples=1, size=16)
    files = {file for file in Path().rglob("*.*") if file.is_file() and "clean" not in str(file)}
    first, *others = sorted(Path("data/predictions/adv").glob("*.csv"))
    assert files > {first, *others}
    for file in sorted(files - {*others}):  # all tables are read alike
        content = file.read_bytes()
        cut = file.name in ("universal.png", "ensemble.json")
        for damage in (None, content[: len(content) // 2]) if cut else (None,):
            file.unlink(missing_ok=True)
            if damage:
                file.write_bytes(damage)
            with pytest.raises((InputError, OSError)) as error:
                evaluate.main()
            assert str(file) in str(error.value)
        file.write_bytes(content)
