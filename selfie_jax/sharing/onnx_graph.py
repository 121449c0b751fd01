"""An ONNX graph as it is written: nodes and constants, with names given to all of them."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_OPSET = 20  # GELU is an operator since.
_IR_VERSION = 9  # Of the same age: runtimes since 2023 read both.


class Graph:
  """A growing list of nodes and constants."""

  def __init__(self) -> None:
    self._nodes: list[onnx.NodeProto] = []
    self._constants: dict[str, np.ndarray] = {}

  def add(self, operator: str, *inputs: str | np.ndarray, **attributes: int | float | str | list[int]) -> str:
    """Adds a node with one output, and returns the output's name. An input is such a name, or a constant."""
    names = [value if isinstance(value, str) else self._constant(value) for value in inputs]
    output = f'{operator.lower()}_{len(self._nodes)}'
    self._nodes.append(helper.make_node(operator, names, [output], **attributes))
    return output

  def _constant(self, value: np.ndarray) -> str:
    name = f'constant_{len(self._constants)}'
    self._constants[name] = value
    return name

  def reshape(self, x: str, *shape: int) -> str:
    """Adds a change of shape: a 0 keeps that axis as it is, and -1 takes what is left."""
    return self.add('Reshape', x, ints(*shape))

  def model(
    self, output: str, *, inputs: tuple[str, list[int | str]], outputs: tuple[str, list[int | str]], name: str
  ) -> bytes:
    """Returns the checked model.

    Args:
      output: the value that is the model's output.
      inputs: name and shape of the model's float32 input; a word stands for any number.
      outputs: name and shape of its output.
      name: of the graph.
    """
    nodes = [*self._nodes, helper.make_node('Identity', [output], [outputs[0]])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (inputs, outputs)]
    constants = [numpy_helper.from_array(np.ascontiguousarray(value), key) for key, value in self._constants.items()]
    model = helper.make_model(
      helper.make_graph(nodes, name, values[:1], values[1:], constants),
      producer_name='selfie_jax',
      opset_imports=[helper.make_opsetid('', _OPSET)],
      ir_version=_IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def ints(*values: int) -> np.ndarray:
  """Returns a constant as ONNX wants its shapes, axes and indices."""
  return np.array(values, np.int64)
