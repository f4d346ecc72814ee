"""Which precisions a page is made from."""

from conversion.web.build import _wanted


def test_8_bits_leave_half_precision_for_webgpu():
    assert _wanted("int8") == ("fp32", "int8")
    assert _wanted("int8", has_gpu=True) == ("fp32", "fp16", "int8")
    assert _wanted("fp16", has_gpu=True) == ("fp32", "fp16")
