"""What a program for GPUs is said to launch."""

from experiments.compiled_optimizers.kernels import Launches, launches

# A loop of five rounds that takes a row of x and writes it into a stack, and a
# choice between one kernel and two.
PROGRAM = """
HloModule jit_step

%fused (p.0: f32[5,8], p.1: f32[5,8], p.2: s32[]) -> f32[5,8] {
  %p.0 = f32[5,8]{1,0} parameter(0)
  %p.1 = f32[5,8]{1,0} parameter(1)
  %p.2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  %row = f32[1,8]{1,0} dynamic-slice(%p.1, %p.2, %zero), dynamic_slice_sizes={1,8}
  ROOT %put = f32[5,8]{1,0} dynamic-update-slice(%p.0, %row, %p.2, %zero)
}

%body (arg: (s32[], f32[5,8], f32[5,8])) -> (s32[], f32[5,8], f32[5,8]) {
  %arg = (s32[], f32[5,8], f32[5,8]) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %stack = f32[5,8]{1,0} get-tuple-element(%arg), index=1
  %x = f32[5,8]{1,0} get-tuple-element(%arg), index=2
  %new = f32[5,8]{1,0} fusion(%stack, %x, %i), kind=kLoop, calls=%fused
  ROOT %out = (s32[], f32[5,8], f32[5,8]) tuple(%i, %new, %x)
}

%condition (arg.1: (s32[], f32[5,8], f32[5,8])) -> pred[] {
  %arg.1 = (s32[], f32[5,8], f32[5,8]) parameter(0)
  ROOT %more = pred[] constant(true)
}

%cheap (c: f32[5,8]) -> f32[5,8] {
  %c = f32[5,8]{1,0} parameter(0)
  ROOT %c.1 = f32[5,8]{1,0} negate(%c)
}

%dear (d: f32[5,8]) -> f32[5,8] {
  %d = f32[5,8]{1,0} parameter(0)
  %d.1 = f32[5,8]{1,0} multiply(%d, %d)
  ROOT %d.2 = f32[5,8]{1,0} negate(%d.1)
}

ENTRY %main (a: f32[5,8], b: pred[]) -> f32[5,8] {
  %a = f32[5,8]{1,0} parameter(0)
  %b = pred[] parameter(1)
  %start = s32[] constant(0)
  %all = (s32[], f32[5,8], f32[5,8]) tuple(%start, %a, %a)
  %loop = (s32[], f32[5,8], f32[5,8]) while(%all), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %done = f32[5,8]{1,0} get-tuple-element(%loop), index=1
  ROOT %chosen = f32[5,8]{1,0} conditional(%b, %done, %done), true_computation=%dear, false_computation=%cheap
}
"""  # noqa: E501


def test_loops_slices_and_choices():
  # A row and the place of it are read, and a row is written, five times over.
  loop, array = 5 * (2 * 8 * 4 + 4), 5 * 8 * 4
  least, most = launches(PROGRAM)
  assert least == Launches(5 + 1, loop + 2 * array)
  # x times x reads x once.
  assert most == Launches(5 + 2, loop + 4 * array)
