"""An Airflow DAG: one run per night, on this machine or on the cluster at RAY_ADDRESS."""

from __future__ import annotations

from datetime import datetime

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

with DAG(
    dag_id="nightcap",
    schedule="0 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 0},  # the next run continues; a retry would hide exit code 3
) as dag:
    caption = BashOperator(
        task_id="caption",
        bash_command="nightcap run s3://shop/products --output s3://shop/captions",
        skip_on_exit_code=5,  # another run holds the output: skip the task, don't fail it
        append_env=True,
    )
    verify = BashOperator(
        task_id="verify", bash_command="nightcap verify s3://shop/captions", append_env=True
    )
    caption >> verify
