"""Who regions are timed against: the ways to run a dense network, the fastest of which counts. Optional ones (`pip install .[bench]`)
are named as absent where they are not installed."""
import io
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}  # greatest difference, of the reference's greatest value


def dense_forms(module: nn.Module, x: Tensor) -> tuple[dict[str, Callable[[], Tensor]], dict[str, str]]:
    """Calls of a folded dense module on x by form, warmed up, and the forms that cannot run here, with the reason."""
    makers = {"torch.compile": _compiled} | ({"CUDA graph": _graph} if x.is_cuda else {"ONNX Runtime": _onnxruntime, "OpenVINO": _openvino})
    calls, absent = {"folded": lambda: module(x)}, {}
    for name, make in makers.items():
        try:
            call = make(module, x)
            call()
            calls[name] = call
        except ImportError as error:
            absent[name] = f"not installed ({error.name})"
        except RuntimeError as error:  # no compiler, for one
            absent[name] = str(error).strip().split("\n")[0][:150]
    return calls, absent


def _compiled(module: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    torch.compiler.reset()
    ready = torch.compile(module, mode="max-autotune") if x.is_cuda else torch.compile(module, options={"freezing": True})
    return lambda: ready(x)


def _graph(module: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    from lc.speed.kernels import capture
    return partial(capture(module, x), x)


def _onnxruntime(module: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    import onnx  # noqa: F401 (the exporter needs it)
    import onnxruntime
    file, options = io.BytesIO(), onnxruntime.SessionOptions()
    torch.onnx.export(module, (x,), file, dynamo=False, input_names=["x"])
    options.intra_op_num_threads = torch.get_num_threads()
    session, values = onnxruntime.InferenceSession(file.getvalue(), options, ["CPUExecutionProvider"]), x.contiguous().numpy()
    return lambda: torch.from_numpy(session.run(None, {"x": values})[0])


def _openvino(module: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    import openvino
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    ready = openvino.compile_model(openvino.convert_model(module, example_input=x, input=list(x.shape)), "CPU", settings)
    values = x.contiguous().numpy()
    return lambda: torch.from_numpy(ready(values)[0])


def difference(call: Callable[[], Tensor], reference: Tensor, name: str) -> float:
    """Greatest difference of the call's output, as a share of the reference's greatest value; RuntimeError above TOLERANCE."""
    found = call()
    off = float((found.float() - reference).abs().max() / reference.abs().max())
    if not off <= TOLERANCE[found.dtype]:
        raise RuntimeError(f"{name} is off by {off:.1e} of the greatest value, {TOLERANCE[found.dtype]:g} allowed for {found.dtype}: its time means nothing")
    return off
