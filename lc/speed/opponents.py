"""Who regions are timed against: the ways to run a dense network, the fastest of which counts. Those of `pip install -e .[bench]`
are named as absent where they are not installed. On a GPU also spconv, the field's library for sparse convolutions, on the same regions."""
import io
import warnings
from collections.abc import Callable
from functools import cache, partial
from unittest import mock

import torch
from torch import Tensor, nn

from lc import region_conv
from lc.region import Region, _pair
from lc.region_conv import RegionTensor

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}  # greatest difference, as a share of the reference's greatest value


def dense_forms(module: nn.Module, x: Tensor, compiled: bool = True) -> tuple[dict[str, Callable[[], Tensor]], dict[str, str]]:
    """Calls of a folded dense module on x by form, warmed up, and the forms that cannot run here, with the reason. compiled: also those that need
    a compiler or what only `.[bench]` installs."""
    makers = {"CUDA graph": lambda module, x: partial(capture(module, x), x)} if x.is_cuda else {"ONNX Runtime": _onnxruntime}
    makers |= {"torch.compile": _compiled, **({} if x.is_cuda else {"OpenVINO": _openvino})} if compiled else {}
    calls, absent = ready({name: partial(make, module, x) for name, make in makers.items()})
    return {"folded": lambda: module(x), **calls}, absent


def ready(makers: dict[str, Callable[[], Callable]]) -> tuple[dict[str, Callable[[], Tensor]], dict[str, str]]:
    """The calls made, each called once; and of those that cannot be made or called here, the reason."""
    calls, absent = {}, {}
    for name, make in makers.items():
        try:
            call = make()
            call()
            calls[name] = call
        except ImportError as error:
            absent[name] = f"not installed ({error.name})"
        except (RuntimeError, AssertionError, TypeError, ValueError, KeyError) as error:  # no compiler, no kernel, nothing that can be traced
            absent[name] = str(error).strip().split("\n")[0][:150]
    return calls, absent


def _compiled(module: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    torch.compiler.reset()
    ready = torch.compile(module, mode="max-autotune") if x.is_cuda else torch.compile(module, options={"freezing": True})
    return lambda: ready(x)


def capture(call: Callable, *inputs: Tensor) -> Callable:
    """`call` on inputs of these shapes as one CUDA graph; its result is overwritten by the next call. On a CPU `call` itself."""
    if not inputs[0].is_cuda:
        return call
    held, side = [value.clone() for value in inputs], torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, tunes, and lets libraries allocate before the recording
        for _ in range(3):
            call(*held)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call(*held)

    def replay(*inputs: Tensor):
        for old, new in zip(held, inputs):
            old.copy_(new)
        graph.replay()
        return result
    return replay


def session(module: nn.Module, inputs: tuple[Tensor, ...], names: list[str]) -> Callable[..., list[Tensor]]:
    """The module in ONNX Runtime, for inputs of these sizes and names: a call on tensors that gives all outputs."""
    import onnx  # noqa: F401 (the exporter needs it)
    import onnxruntime
    file, options = io.BytesIO(), onnxruntime.SessionOptions()
    with warnings.catch_warnings():  # of constants it meant to be, and of an exporter to come
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), inputs, file, dynamo=False, input_names=names)
    options.intra_op_num_threads = torch.get_num_threads()
    # its waiting threads spin within a run only: they would disturb whoever comes next
    options.add_session_config_entry("session.force_spinning_stop", "1")
    ready = onnxruntime.InferenceSession(file.getvalue(), options, ["CPUExecutionProvider"])
    used = {found.name for found in ready.get_inputs()}
    return lambda *values: list(map(torch.from_numpy,
                                    ready.run(None, {name: value.contiguous().numpy() for name, value in zip(names, values) if name in used})))


def _onnxruntime(module: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    ready, x = session(module, (x,), ["x"]), x.contiguous()
    return lambda: ready(x)[0]


def _openvino(module: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    import openvino
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    ready = openvino.compile_model(openvino.convert_model(module, example_input=x, input=list(x.shape)), "CPU", settings)
    values = x.contiguous().numpy()
    return lambda: torch.from_numpy(ready(values)[0])


def with_spconv(module: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """From a mask (N, H, W) to the rows (P, O) of a folded module on these pixels of x, its wide windows by spconv's SubMConv2d, which indexes a
    kind of window once a call; the rest is PyTorch. ImportError without spconv. On more than one thread of a CPU spconv is not to be trusted
    (results/NOTES.md)."""
    import spconv.pytorch as spconv
    compact = region_conv.region_conv2d

    @cache
    def layer(weight: Tensor, dilation: tuple[int, int]) -> nn.Module:
        (o, c, *kernel), key = weight.shape, f"{tuple(weight.shape[2:])} {dilation}"
        made = spconv.SubMConv2d(c, o, kernel, dilation=dilation, bias=False, indice_key=key).eval().to(weight.device, weight.dtype)
        made.weight = nn.Parameter(weight.permute(0, 2, 3, 1).contiguous(), requires_grad=False)
        return made

    def convolve(on: RegionTensor, weight: Tensor, bias: Tensor, dilation: int | tuple[int, int] = 1) -> RegionTensor:
        if weight.shape[2:].numel() == 1:
            return compact(on, weight, bias)
        images, *grid = on.region.mask.shape
        pixels = on.region.once(("spconv",), lambda: spconv.SparseConvTensor(on.rows, on.region.mask.nonzero().int().contiguous(), grid, images))
        return on.with_rows(layer(weight, _pair(dilation))(pixels.replace_feature(on.rows.contiguous())).features + bias)

    def rows(mask: Tensor) -> Tensor:
        with mock.patch.object(region_conv, "region_conv2d", convolve):
            return module(RegionTensor.select(x, Region(mask))).rows
    return rows


def difference(call: Callable[[], Tensor], reference: Tensor, name: str, dtype: torch.dtype | None = None) -> float:
    """Greatest difference of the call's output, as a share of the reference's greatest value; RuntimeError above TOLERANCE of dtype, or its own."""
    found = call()
    dtype = dtype or found.dtype
    off = float((found.float() - reference).abs().max() / reference.abs().max())
    if not off <= TOLERANCE[dtype]:
        raise RuntimeError(f"{name} is off by {off:.1e} of the greatest value, {TOLERANCE[dtype]:g} allowed for {dtype}: its time means nothing")
    return off
