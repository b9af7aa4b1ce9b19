"""Write files in LiteRT's format, operation by operation: TensorFlow's converter would need TensorFlow, and seconds.

Source: the format's schema, tensorflow/compiler/mlir/lite/schema/schema.fbs, and the Python module made of it.
"""
import numpy as np

ALIGNMENT = 64  # bytes, of the arrays in a file
OPTIONS = {'MEAN': 'Reducer', 'BATCH_MATMUL': 'BatchMatMul'}  # where their name is not the operation's
VERSIONS = {'FULLY_CONNECTED': 12}  # the first one with a scale for each row of a matrix; 1 of other operations


class File(object):
    """A file with functions, whose Graphs share their constants. schema: the module of the format, tf1.litert()[1]."""

    def __init__(self, schema):
        self.schema, self.root = schema, schema.ModelT()
        self.root.version, self.root.subgraphs, self.root.signatureDefs, self.root.operatorCodes = 3, [], [], []
        self.root.buffers = [self.schema.BufferT()]  # of tensors without data
        self.arrays = [None]  # for each buffer; one that is used again is stored once

    def buffer(self, array):
        """The number of the buffer with an array."""
        known = [number for number, other in enumerate(self.arrays) if other is array]
        if not known:
            self.root.buffers.append(self.schema.BufferT())
            self.arrays.append(array)
        return known[0] if known else len(self.arrays) - 1

    def offset(self, array):
        """Where an array is in the content."""
        return self.root.buffers[self.buffer(array)].offset

    def code(self, operation):
        """The number of an operation's entry in the file."""
        code = self.schema.OperatorCodeT()
        code.builtinCode, code.version = getattr(self.schema.BuiltinOperator, operation), VERSIONS.get(operation, 1)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)  # of readers that know no other operations
        known = [other.builtinCode for other in self.root.operatorCodes]
        if code.builtinCode not in known:
            self.root.operatorCodes.append(code)
        return (known + [code.builtinCode]).index(code.builtinCode)

    def content(self):
        """The bytes of the file. The arrays are behind the rest, copied once."""
        import flatbuffers  # comes with LiteRT

        def rest():
            builder = flatbuffers.Builder()
            builder.Finish(self.root.Pack(builder), b'TFL3')
            return builder.Output()

        stored = list(zip(self.root.buffers, self.arrays))[1:]
        for buffer, array in stored:
            buffer.offset, buffer.size = ALIGNMENT, array.nbytes
        parts = [rest()]  # already has its final length
        end = len(parts[0])
        for buffer, array in stored:
            buffer.offset = end + -end % ALIGNMENT
            parts += [bytes(buffer.offset - end), array.reshape(-1).view(np.uint8)]
            end = buffer.offset + buffer.size
        parts[0] = rest()
        return b''.join(parts)


class Graph(object):
    """A function in a File, under a name. input() and output() have names, too."""

    def __init__(self, file, name):
        self.file, self.schema = file, file.schema
        self.root, self.signature = self.schema.SubGraphT(), self.schema.SignatureDefT()
        self.root.tensors, self.root.operators, self.root.inputs, self.root.outputs = [], [], [], []
        self.signature.signatureKey, self.signature.subgraphIndex = name, len(file.root.subgraphs)
        self.signature.inputs, self.signature.outputs = [], []
        file.root.subgraphs.append(self.root)
        file.root.signatureDefs.append(self.signature)

    def tensor(self, shape, dtype, buffer=0):
        """A new Tensor. shape: None is a size that may differ from run to run.  dtype: NumPy's."""
        tensor = self.schema.TensorT()
        tensor.type, tensor.buffer = getattr(self.schema.TensorType, np.dtype(dtype).name.upper()), buffer
        tensor.shape = [1 if size is None else size for size in shape]
        tensor.shapeSignature = [-1 if size is None else size for size in shape]
        self.root.tensors.append(tensor)
        return Tensor(self, len(self.root.tensors) - 1, list(shape), dtype)

    def input(self, name, shape, dtype=np.float32):
        """A Tensor that is given."""
        tensor = self.tensor(shape, dtype)
        self.name(tensor, name, self.root.inputs, self.signature.inputs)
        return tensor

    def output(self, name, tensor):
        """Return a Tensor."""
        self.name(tensor, name, self.root.outputs, self.signature.outputs)

    def name(self, tensor, name, numbers, entries):
        entry = self.schema.TensorMapT()
        entry.name, entry.tensorIndex = name, tensor.number
        numbers.append(tensor.number)
        entries.append(entry)

    def constant(self, array, scale_M=None):
        """The Tensor of an array. scale_M: of the rows of a matrix of integers."""
        array = np.asarray(array)
        tensor = self.tensor(array.shape, array.dtype, self.file.buffer(array))
        if scale_M is not None:
            quantization = self.schema.QuantizationParametersT()
            quantization.scale, quantization.zeroPoint = scale_M, np.zeros(len(scale_M), np.int64)
            self.root.tensors[tensor.number].quantization = quantization
        return tensor

    def take(self, x, indices):
        """The elements of x, a Tensor or an array, at some indices along its first axis."""
        shape = indices.shape if isinstance(indices, Tensor) else np.shape(indices)
        return self.add('GATHER', x, np.int32(indices) if isinstance(indices, int) else indices,
                        shape=list(shape) + list(x.shape[1:]))

    def add(self, operation, *inputs, shape=None, dtype=None, **options):
        """The result of an operation of LiteRT, such as 'ADD': a Tensor.

        inputs: Tensors, arrays, or numbers, which get the type of the first input; None is left out.
        shape, dtype: of the result; None is the first input's.
        """
        inputs = [x if x is None or isinstance(x, Tensor) else
                  self.constant(np.asarray(x, inputs[0].dtype) if isinstance(x, (int, float)) else x) for x in inputs]
        found = self.tensor(inputs[0].shape if shape is None else shape, dtype or inputs[0].dtype)
        operator = self.schema.OperatorT()
        operator.opcodeIndex, operator.outputs = self.file.code(operation), [found.number]
        operator.inputs = [-1 if x is None else x.number for x in inputs]
        if options:
            kind = OPTIONS.get(operation, operation.title().replace('_', '')) + 'Options'
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, kind)
            operator.builtinOptions = getattr(self.schema, kind + 'T')()
            vars(operator.builtinOptions).update(options)
        self.root.operators.append(operator)
        return found


class Tensor(object):
    """A tensor of a Graph. shape: a list, None where a size may differ from run to run.  dtype: NumPy's."""

    def __init__(self, graph, number, shape, dtype):
        self.graph, self.number, self.shape, self.dtype = graph, number, shape, dtype

    def __add__(self, other):
        return self.graph.add('ADD', self, other)

    def __sub__(self, other):
        return self.graph.add('SUB', self, other)

    def __mul__(self, other):
        return self.graph.add('MUL', self, other)

    def reshape(self, shape):
        """shape: None is whatever is left, or what may differ from run to run."""
        return self.graph.add('RESHAPE', self, np.int32([-1 if size is None else size for size in shape]), shape=shape)

    def mean(self):
        """Of the last axis, which stays, of size 1."""
        return self.graph.add('MEAN', self, np.int32(len(self.shape) - 1), shape=self.shape[:-1] + [1], keepDims=True)
