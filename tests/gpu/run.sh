#!/bin/sh
# All that is to be seen on a machine with an NVIDIA card, unattended: it needs a driver, and the program, built elsewhere.
#
#   tests/gpu/run.sh [HOB] [OUT]      HOB: the program, target/release/hob by default; OUT: a folder for what was measured
#
# A test program given in HOB_CUDA_TESTS (`cargo test --release -p hob-gpu --test cuda --no-run` names it) runs, too: every kernel and
# every architecture against references, on the card. The benchmark (HOB_BENCH, target/release/hob-bench by default) makes its own models,
# 30 GB of them one after the other in TMPDIR; others come from HOB_DATA.
set -u
here=$(cd "$(dirname "$0")/../.." && pwd)
hob=${1:-$here/target/release/hob}
bench=${HOB_BENCH:-$here/target/release/hob-bench}
out=${2:-$here/target/gpu}
mkdir -p "$out"
failed=0
step() {  # NAME COMMAND...: runs it, keeps what it says
  name=$1; shift
  echo "== $name"
  if "$@" >"$out/$name.txt" 2>&1; then tail -n 40 "$out/$name.txt"; else failed=1; echo "FAILED: $name"; tail -n 40 "$out/$name.txt"; fi
}
{ date -u; uname -srm; nvidia-smi 2>&1; } >"$out/machine.txt"
cat "$out/machine.txt"
step check "$hob" gpu check
[ -z "${HOB_CUDA_TESTS:-}" ] || step kernels timeout 180 env HOB_TEST_GPU=1 "$HOB_CUDA_TESTS" --nocapture --test-threads 1
[ ! -x "$bench" ] || step table timeout 300 env ${HOB_DATA:+"HOB_TEST_DATA=$HOB_DATA"} "$bench" card
for model in $("$hob" models list 2>/dev/null | awk 'NR > 1 && !/not pulled/ { print $1 }'); do
  step "bench-$(echo "$model" | tr ':/' '--')" timeout 120 "$hob" bench "$model" --device cuda
  # The same text from both, but for near ties: differences are for people to look at.
  for device in cpu cuda; do
    step "text-$device-$(echo "$model" | tr ':/' '--')" timeout 120 "$hob" run "$model" --device $device --max-tokens 64 "Write one sentence about the sea."
  done
done
echo "what was measured is in $out"
exit $failed
