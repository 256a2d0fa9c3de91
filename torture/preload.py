"""What each verb's process is forked from: the program and what it needs, loaded once, so that a case takes
no longer than it must."""

import functools
import gc

import boto3
import botocore.loaders
import botocore.session

import torture.suite  # noqa: F401

setattr(botocore.session, "create_loader", functools.cache(botocore.loaders.create_loader))  # noqa: B010
boto3.session.Session().client(
    "s3", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
)
gc.collect()
gc.freeze()  # else a collection in each fork would copy all of it
