#!/bin/sh
# Submit the job to a running Ray cluster, wait for it, and end with the job's own exit code, which `ray job submit`
# does not pass on: the job's log says it.
#     RAY_API_SERVER_ADDRESS=http://head:8265 submit.sh SOURCE... --output URI [OPTION...]
set -u
id="nightcap-$(date -u +%Y%m%dT%H%M%SZ)-$$"
ray job submit --submission-id "$id" --working-dir "${NIGHTCAP_HOME:-.}" -- python -m jobs.caption "$@"
status=$?
if [ "$status" -eq 0 ]; then exit 0; fi
code=$(ray job logs "$id" | sed -n 's/^nightcap: exit code \([0-9]*\)$/\1/p' | tail -n 1)
exit "${code:-$status}"
