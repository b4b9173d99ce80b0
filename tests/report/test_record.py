import copy
import json

import pytest
import torch

from mde.errors import MdeError
from mde.models import build_model
from mde.records import describe_model, new_record, read_record, write_record


@pytest.mark.parametrize("name", ["fastdepth", "guidedepth"])
def test_describing_a_network_in_training_leaves_modes_and_statistics_as_they_were(name):
    model = build_model(name).train()
    model.encoder.eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    assert describe_model(model, (64, 64))["name"] == name
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "change",
    [
        "",
        "[]",
        "5",
        "[" * 10**5,
        {"schema": 2},
        {"schema": None},
        {"status": None},
        {"environment": []},
        {"model": "midas_small"},
        {"quality": {"set": 0.9}},
        {"latency": None},
        {"model": {"steps": "many"}},
    ],
)
def test_a_record_of_another_kind_is_refused_in_a_line_that_names_the_file(tmp_path, change):
    record = new_record("complete")
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    path = tmp_path / "metrics.json"
    path.write_text(change if isinstance(change, str) else json.dumps(record | change))
    with pytest.raises(MdeError, match=f"^{path}: ") as refused:
        read_record(tmp_path)
    assert "\n" not in str(refused.value)
