#!/bin/sh
# Submit the job to a running Ray cluster, wait for it, and exit with its exit code. `ray job submit` reports only
# success or failure, so the exit code is read from the job's log.
#     RAY_API_SERVER_ADDRESS=http://head:8265 submit.sh SOURCE... --output URI [OPTION...]
set -u
id="nightcap-$(date -u +%Y%m%dT%H%M%SZ)-$$"
ray job submit --submission-id "$id" --working-dir "${NIGHTCAP_HOME:-.}" -- python -m jobs.caption "$@"
status=$?
if [ "$status" -eq 0 ]; then exit 0; fi
code=$(ray job logs "$id" | sed -n 's/^nightcap: exit code \([0-9]*\)$/\1/p' | tail -n 1)
exit "${code:-$status}"
