from instructkit.data.dataset import convert_command, not_converted
from instructkit.errors import did_you_mean


def test_near_names_are_told_and_otherwise_all_of_them() -> None:
    assert did_you_mean("vqa", ["vqav2", "gqa", "nocaps"]) == "did you mean vqav2 or gqa?"
    assert did_you_mean("zzz", ["vqav2", "gqa"]) == "there are vqav2, gqa"
    assert did_you_mean("zzz", ["vqav2", "gqa"], "see the README") == "see the README"


def test_what_is_not_converted_comes_with_the_command() -> None:
    command = "instructkit convert gqa --split testdev --raw RELEASE"
    assert not_converted("gqa/testdev", "data") == f"gqa/testdev is not converted in data: {command} --out data"
    assert convert_command("gqa/testdev", "data", images=True) == f"{command} --images FOLDER --out data"
