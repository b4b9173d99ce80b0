from mde.quantization.between import Node, between_floats

# image -> Cast -> a -> relu -> b -> add(relu, b) -> resize -> c -> out
GRAPH = [
    Node("cast", ["image"], ["0"], False),
    Node("a", ["0", "weight"], ["1"], True),
    Node("relu", ["1"], ["2"], False),
    Node("b", ["2"], ["3"], True),
    Node("add", ["2", "3"], ["4"], False),
    Node("resize", ["4", "sizes"], ["5"], False),
    Node("c", ["5"], ["6"], True),
    Node("last", ["6"], ["out"], False),
    Node("constant", [], ["alone"], False),
]


def test_a_node_stays_float_only_between_floats() -> None:
    assert between_floats(GRAPH, []) == []
    assert between_floats(GRAPH, ["b"]) == []
    assert between_floats(GRAPH, ["a"]) == ["cast"]
    assert between_floats(GRAPH, ["c"]) == ["last"]
    assert between_floats(GRAPH, ["a", "b"]) == ["cast"]  # the ReLU's value also goes, through the addition, to c
    assert between_floats(GRAPH, ["b", "c"]) == ["last"]
    assert between_floats(GRAPH, ["a", "b", "c"]) == ["cast", "relu", "add", "resize", "last"]
