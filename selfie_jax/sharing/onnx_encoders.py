"""The encoders (`models/`) as ONNX nodes: z-scored log-mel (batch, n_mels, frames) to one vector a clip."""

import numpy as np
from flax import nnx

from selfie_jax.models import vit
from selfie_jax.models.audiontt import AudioNTT, ConvBlock
from selfie_jax.sharing.onnx_graph import Graph, ints


def add_audiontt(graph: Graph, x: str, encoder: AudioNTT) -> str:
  """Adds the convolutional encoder with its pooling, for any number of frames."""
  x = graph.add('Unsqueeze', x, ints(1))
  conv = []
  for block in encoder.blocks:
    x = _conv_block(graph, x, block)
    conv.append(x)
  frames = [_by_frame(graph, x)]
  for block in range(len(conv) - 1, len(conv) - encoder.concatenated, -1):
    frames.insert(0, _by_frame(graph, _pool_frames(graph, conv[block - 1], 2 ** (len(conv) - block))))
  x = frames[-1]
  for dense in (encoder.dense1, encoder.dense2):
    x = graph.add('Relu', _linear(graph, x, dense))
  if encoder.concatenated:
    x = graph.add('Concat', *frames, x, axis=2)
  greatest, mean = (graph.add(operator, x, ints(1), keepdims=0) for operator in ('ReduceMax', 'ReduceMean'))
  return graph.add('Add', greatest, mean)


def _by_frame(graph: Graph, x: str) -> str:
  # Channels come first here, and last within a frame.
  return graph.reshape(graph.add('Transpose', x, perm=[0, 3, 2, 1]), 0, 0, -1)


def _pool_frames(graph: Graph, x: str, stride: int) -> str:
  return graph.add('MaxPool', x, kernel_shape=[1, stride], strides=[1, stride])


def _conv_block(graph: Graph, x: str, block: ConvBlock) -> str:
  kernel = _values(block.conv.kernel).transpose(3, 2, 0, 1)  # HWIO to OIHW
  x = graph.add('Conv', x, kernel, _values(block.conv.bias), pads=[1, 1, 1, 1])
  norm = block.norm
  values = map(_values, (norm.scale, norm.bias, norm.mean, norm.var))
  x = graph.add('Relu', graph.add('BatchNormalization', x, *values, epsilon=norm.epsilon))
  return graph.add('MaxPool', x, kernel_shape=[2, 2], strides=[2, 2])


def add_vit(graph: Graph, x: str, encoder: vit.ViT, frames: int) -> str:
  """Adds the transformer with its pooling, for clips of so many log-mel frames."""
  bands, stride = encoder.mel_patches, encoder.frame_stride
  steps = frames // stride
  width = encoder.features // bands
  x = graph.add('Slice', x, ints(0), ints(steps * stride), ints(2))
  x = graph.add('Transpose', graph.reshape(x, 0, bands, -1, steps, stride), perm=[0, 3, 1, 2, 4])
  x = _linear(graph, graph.reshape(x, 0, steps * bands, -1), encoder.embed)
  learned = encoder.positions is not None
  positions = _values(encoder.positions)[:steps] if learned else np.asarray(vit.sincos_positions(steps, bands, width))
  x = graph.add('Add', x, positions.reshape(steps * bands, width))
  for block in encoder.blocks:
    x = graph.add('Add', x, _attention(graph, _layer_norm(graph, x, block.attention_norm), block.attention, width))
    hidden = _linear(graph, _layer_norm(graph, x, block.mlp_norm), block.mlp.up)
    x = graph.add('Add', x, _linear(graph, graph.add('Gelu', hidden, approximate='tanh'), block.mlp.down))
  x = graph.reshape(_layer_norm(graph, x, encoder.norm), 0, steps, -1)
  return graph.add('ReduceMean', x, ints(1), keepdims=0)


def _attention(graph: Graph, x: str, layer: vit.Attention, width: int) -> str:
  query, key, value = (
    graph.reshape(_linear(graph, x, part), 0, 0, layer.heads, -1) for part in (layer.query, layer.key, layer.value)
  )
  query, value = (graph.add('Transpose', part, perm=[0, 2, 1, 3]) for part in (query, value))
  scores = graph.add('MatMul', query, graph.add('Transpose', key, perm=[0, 2, 3, 1]))
  weights = graph.add('Softmax', graph.add('Div', scores, np.float32(np.sqrt(width // layer.heads))), axis=-1)
  x = graph.add('Transpose', graph.add('MatMul', weights, value), perm=[0, 2, 1, 3])
  return _linear(graph, graph.reshape(x, 0, 0, width), layer.output)


def _layer_norm(graph: Graph, x: str, norm: nnx.LayerNorm) -> str:
  return graph.add('LayerNormalization', x, _values(norm.scale), _values(norm.bias), axis=-1, epsilon=norm.epsilon)


def _linear(graph: Graph, x: str, layer: nnx.Linear) -> str:
  return graph.add('Add', graph.add('MatMul', x, _values(layer.kernel)), _values(layer.bias))


def _values(variable: nnx.Variable) -> np.ndarray:
  return np.asarray(variable[...])
