"""An ONNX graph whose weights stay on disk: read through a memory map, written as a stream."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, external_data_helper, helper

from greenllm.errors import GreenError

if TYPE_CHECKING:
    from typing_extensions import Self

DATA = "model.onnx.data"  # of a graph in model.onnx
_INLINE = 1024  # bytes; smaller tensors stay in the graph, where shape inference can read them
_PAGE = 4096  # runtimes map pages


class Weights:
    """The initializers of a graph file, as read-only arrays that are paged in when they are touched."""

    def __init__(self, path: Path) -> None:
        self.directory = path.parent
        self.model = onnx.load(str(path), load_external_data=False)
        self.by_name: dict[str, TensorProto] = {t.name: t for t in self.model.graph.initializer}
        self._maps: dict[str, NDArray[np.uint8]] = {}

    def array(self, name: str) -> NDArray[Any]:
        """The values of an initializer; for one in an external file a view of its map."""
        tensor = self.by_name[name]
        if not external_data_helper.uses_external_data(tensor):
            return onnx.numpy_helper.to_array(tensor)
        raw = self.raw(name)
        return raw.view(helper.tensor_dtype_to_np_dtype(tensor.data_type)).reshape(tuple(tensor.dims))

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The bytes of an initializer in an external file.

        Raises:
            GreenError: the file is missing or too short.
        """
        info = external_data_helper.ExternalDataInfo(self.by_name[name])
        if info.location not in self._maps:
            file = self.directory / info.location
            if not file.is_file():
                raise GreenError(f"{file}: the graph's weights are missing.")
            self._maps[info.location] = np.memmap(file, dtype=np.uint8, mode="r")
        start = info.offset or 0
        found = self._maps[info.location][start : start + (info.length or 0)]
        if len(found) != info.length:
            raise GreenError(f"{self.directory / info.location}: too short for the weight {name}.")
        return found


class Writer:
    """Writes the data file of a new graph tensor by tensor.

    Args:
        path: the graph file to be; its data file lies beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: list[TensorProto] = []
        self._file = path.with_name(f"{path.name}.data").open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def add(self, name: str, values: NDArray[Any], data_type: int | None = None, dims: list[int] | None = None) -> str:
        """Append an initializer and return its name.

        Args:
            name: its name in the graph.
            values: the array; for 4-bit types bytes of two codes each, the first in the low half.
            data_type: an ONNX element type where it is not that of ``values``.
            dims: its shape where it is not that of ``values``.
        """
        tensor = TensorProto()
        tensor.name = name
        tensor.data_type = data_type or helper.np_dtype_to_tensor_dtype(values.dtype)
        tensor.dims.extend(values.shape if dims is None else dims)
        self._store(tensor, np.ascontiguousarray(values))
        return name

    def again(self, name: str) -> str:
        """The data of an initializer under another name; they lie in the file once."""
        tensor = TensorProto()
        tensor.CopyFrom(next(t for t in self.tensors if t.name == name))
        tensor.name = f"{name}.again"
        self.tensors.append(tensor)
        return tensor.name

    def copy(self, source: Weights, name: str) -> None:
        """Append an initializer of another graph as it is."""
        old = source.by_name[name]
        if not external_data_helper.uses_external_data(old):
            self.tensors.append(old)
            return
        tensor = TensorProto()
        tensor.name, tensor.data_type = name, old.data_type
        tensor.dims.extend(old.dims)
        self._store(tensor, source.raw(name))

    def save(self, model: onnx.ModelProto) -> None:
        """Put the tensors into ``model`` and write its file."""
        del model.graph.initializer[:]
        model.graph.initializer.extend(self.tensors)
        self._file.flush()
        onnx.save(model, str(self.path))

    def _store(self, tensor: TensorProto, values: NDArray[Any]) -> None:
        if values.nbytes < _INLINE:
            tensor.raw_data = values.tobytes()
        else:
            self._file.write(b"\0" * (-self._file.tell() % (_PAGE if values.nbytes >= _PAGE * 16 else 64)))
            where = {"location": f"{self.path.name}.data", "offset": self._file.tell(), "length": values.nbytes}
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.extend(onnx.StringStringEntryProto(key=k, value=str(v)) for k, v in where.items())
            self._file.write(values.reshape(-1).view(np.uint8).data)
        self.tensors.append(tensor)
