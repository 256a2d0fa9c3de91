"""dagster-aws's S3, whose calls end as everywhere here: bounded by BACKUP_STALL_SECONDS."""

from typing import Any

from dagster_aws.s3 import S3Resource

from backup_dag.core.settings import Settings
from backup_dag.core.store.s3 import connect


def bucket_resource(settings: Settings) -> S3Resource:
    """The resource `s3`. Its own client would wait five times a minute for each call, whatever is set."""

    class Bounded(S3Resource):
        def get_client(self) -> Any:
            return connect(settings)

    return Bounded(region_name=settings.aws_default_region, endpoint_url=settings.aws_endpoint_url_s3)
