#!/bin/sh
# Submit the job to a running Ray cluster, wait for it, and end with the job's own exit code, which `ray job submit`
# does not pass on: it is in OUTPUT/latest.json.   RAY_ADDRESS=http://head:8265 submit.sh SOURCE OUTPUT [OPTION...]
set -u
source_=$1 output=$2
shift 2
ray job submit --working-dir "${NIGHTCAP_HOME:-.}" -- \
    python -m jobs.caption "$source_" --output "$output" "$@"
status=$?
code=$(nightcap runs "$output" --last-exit-code) || exit "$status"
if [ "$status" -ne 0 ] && [ "$code" -eq 0 ]; then exit "$status"; fi
exit "$code"
