"""Cycles of programs for TPUs, added up by hand."""

from lora_opt.planning.cycles import Cycles, cycles

# A loop of seven rounds (known from its condition alone), a conditional, and a
# kernel.
PROGRAM = """HloModule jit_step, is_scheduled=true

%fused (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  ROOT %b = f32[8]{0} add(%a, %a), backend_config={"estimated_cycles":"99"}
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %y = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused, \
backend_config={"estimated_cycles":"100"}
  %z = f32[8]{0} custom-call(%y), custom_call_target="tpu_custom_call"
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %z)
}

%condition (q: (s32[], f32[8])) -> pred[] {
  %seven = s32[]{:T(128)} constant(7)
  %q = (s32[], f32[8]{0}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %less = pred[]{:T(512)} compare(%j, %seven), direction=LT
}

%dear (r: f32[8]) -> f32[8] {
  %r = f32[8]{0} parameter(0)
  ROOT %s = f32[8]{0} fusion(%r), kind=kLoop, calls=%fused, \
backend_config={"estimated_cycles":"1000"}
}

%cheap (u: f32[8]) -> f32[8] {
  %u = f32[8]{0} parameter(0)
  ROOT %v = f32[8]{0} copy(%u), backend_config={"estimated_cycles":"10"}
}

ENTRY %main (s: (s32[], f32[8]), m: f32[8]) -> f32[8] {
  %start = (s32[], f32[8]{0}) parameter(0)
  %m = f32[8]{0} parameter(1)
  %note = f32[8]{0} custom-call(%m), custom_call_target="AllocateBuffer"
  %loop = (s32[], f32[8]{0}) while(%start), condition=%condition, body=%body
  %due = pred[] constant(true)
  ROOT %c = f32[8]{0} conditional(%due, %m, %m), true_computation=%dear, \
false_computation=%cheap
}
"""


def test_loops_branches_and_kernels():
  assert cycles(PROGRAM) == Cycles(
    least=7 * 100 + 10,
    most=7 * 100 + 1000,
    uncounted={'tpu_custom_call': 7},
  )


def test_a_compiler_without_estimates():
  assert cycles('ENTRY %main (m: f32[8]) -> f32[8] {\n}\n') is None
